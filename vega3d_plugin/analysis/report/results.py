"""The results in a folder: what ``vega3d analyse correspondence``, ``sweep``, ``readout`` and ``compare`` wrote."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ...errors import AnalysisError, ReportError
from ..comparing import Comparison
from ..readouts.results import ReadoutResult
from ..results import CorrespondenceResult, Result
from ..scoring import AnalysisWarning
from ..sweeping import SweepResult
from .scene_sheets import FOLDER

_KINDS: dict[str, type[Result]] = {
    "correspondence": CorrespondenceResult,
    "sweep": SweepResult,
    "readout": ReadoutResult,
    "comparison": Comparison,
}
#: Bytes of a JSON file that are looked into.
_LARGEST = 1 << 29
#: Bytes of a picture beside the results that is put into a report.
_LARGEST_PICTURE = 1 << 25
_SHOWN_PICTURES = 12

R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class FoundResult:
    """A result and the file that it was read from."""

    path: Path
    result: Result


@dataclass(frozen=True)
class FoundResults:
    """All results of a folder.

    Attributes:
        folder: where they lie.
        found: in the order of their names.
    """

    folder: Path
    found: tuple[FoundResult, ...]

    def of(self, kind: type[R]) -> list[tuple[Path, R]]:
        """Those of one kind, with their files."""
        return [(each.path, each.result) for each in self.found if isinstance(each.result, kind)]

    def scene_sheets(self) -> list[Path]:
        """Contact sheets of scenes."""
        return self._pictures(FOLDER, "*")

    def pictures_of(self, fingerprint: str) -> list[Path]:
        """Pictures of what a prior sees, by the prior's fingerprint: scores, matches and features over frames."""
        if not re.fullmatch(r"[0-9a-zA-Z-]{8,}", fingerprint):
            return []
        return self._pictures("pictures", f"*_{fingerprint[:8]}")

    def _pictures(self, folder: str, pattern: str) -> list[Path]:
        files = [path for path in sorted((self.folder / folder).glob(f"{pattern}.*")) if _is_picture(path)]
        return files[:_SHOWN_PICTURES]


def read_results(folder: str | Path) -> FoundResults:
    """Read every result of a folder.

    Raises:
        ReportError: no such folder, or no result in it.
        AnalysisError: a result that is damaged; the message names the file and the first key that is wrong.

    Warns:
        AnalysisWarning: a JSON file that is no result of an analysis; it is left out.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ReportError(
            f"{folder} is no folder. Give the --out folder of `vega3d analyse correspondence`, `sweep` or `readout`."
        )
    found = tuple(FoundResult(path, result) for path in sorted(folder.glob("*.json")) for result in _read(path))
    if not found:
        names = sorted(entry.name for entry in folder.iterdir())
        some = f"It holds {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}." if names else "It is empty."
        raise ReportError(
            f"{folder} holds no result of an analysis. {some} Run `vega3d analyse correspondence PRIOR --scenes SCENE "
            f"--out {folder}` first, or readout, or sweep."
        )
    return FoundResults(folder, found)


def _read(path: Path) -> Iterator[Result]:
    kind = _kind(path)
    if kind is None:
        warnings.warn(
            f"{path} is no result of an analysis and is left out: it has no kind that is known ({', '.join(_KINDS)}).",
            AnalysisWarning,
            stacklevel=4,
        )
        return
    yield kind.read(path)


def _kind(path: Path) -> type[Result] | None:
    try:
        if path.stat().st_size > _LARGEST:
            raise AnalysisError(f"{path} has {path.stat().st_size} bytes; a result has {_LARGEST} at most.")
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise AnalysisError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError) as error:
        raise AnalysisError(f"{path} is no valid JSON ({error}). Delete it, or run again what wrote it.") from None
    kind = data.get("kind") if isinstance(data, dict) else None
    return _KINDS.get(kind) if isinstance(kind, str) else None


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in (".png", ".jpg", ".jpeg") and 0 < path.stat().st_size <= _LARGEST_PICTURE


def listed(names: Sequence[str]) -> str:
    """Names as one reads them out: ``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)
