"""The pages: of one run, and of several."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...analysis.report.page import Page, Section, write_page
from ...contracts.errors import ReportError, Vega3dError, Vega3dWarning
from . import comparison, sections
from .reading import Run, read_run
from .scores import scores

FILE = "report.html"
COMPARISON = "comparison.html"


def write_run_report(folder: str | Path, to: str | Path | None = None) -> Path:
    """Write the report of a run, finished or not, as one self-contained HTML file; return its path.

    Args:
        folder: the output folder of ``vega3d train``.
        to: the file; default: ``report.html`` in the folder.

    Raises:
        ReportError: there is no run, or a file of it is damaged.
    """
    run = read_run(folder)
    with _named(run):
        return write_page(run_page(run), Path(to) if to else run.folder / FILE)


def write_comparison(folders: Sequence[str | Path], to: str | Path | None = None) -> Path:
    """Write the page of several runs beside each other; return its path.

    Args:
        folders: output folders of ``vega3d train``.
        to: the file; default: ``comparison.html`` in the folder that is named first.

    Raises:
        ReportError: there is no run, or a file of one is damaged.
    """
    runs = [read_run(folder) for folder in folders]
    with _named(*runs):
        return write_page(comparison_page(runs), Path(to) if to else runs[0].folder / COMPARISON)


def write_quietly(folder: Path) -> None:
    """As :func:`write_run_report`, while a run goes on or ends: what goes wrong is a warning."""
    try:
        write_run_report(folder)
    except (OSError, Vega3dError) as error:
        warnings.warn(
            f"The report of {folder} could not be written ({error}). `vega3d report {folder}` makes it again.",
            Vega3dWarning,
            stacklevel=2,
        )


def run_page(run: Run) -> Page:
    """The report of one run."""
    made: list[Section | None] = [
        sections.conclusions(run),
        sections.curves(run),
        sections.shares(run),
        sections.answers(run),
        scores([run.name], [run]),
        sections.plan(run),
        sections.versions(run),
        sections.next_steps(run),
    ]
    recipe = run.manifest.get("recipe")
    return Page(
        f"Training run {run.name}",
        [section for section in made if section is not None],
        eyebrow="vega3d train" + (f" {recipe}" if recipe else ""),
        lead=sections.state_of(run).text,
        top=[sections.cards(run)],
    )


def comparison_page(runs: Sequence[Run]) -> Page:
    """Several runs beside each other."""
    made: list[Section | None] = [
        comparison.figures(runs),
        scores(comparison.names_of(runs), runs),
        comparison.curves(runs),
        comparison.answers(runs),
        comparison.differences(runs),
    ]
    return Page(
        f"{len(runs)} training runs",
        [section for section in made if section is not None],
        eyebrow="vega3d report",
        lead=", ".join(comparison.names_of(runs)),
        top=[comparison.states(runs)],
    )


@contextmanager
def _named(*runs: Run) -> Iterator[None]:
    """Files that are not as a run writes them end in an error that says where they lie."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, Vega3dError):
            raise
        where = ", ".join(str(run.folder) for run in runs)
        raise ReportError(
            f"A file of {where} is not as `vega3d train` writes it ({type(error).__name__}: {error})."
        ) from error
