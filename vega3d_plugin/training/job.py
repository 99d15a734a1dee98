"""``vega3d train`` as a function: a recipe in, checkpoints out."""

from __future__ import annotations

import logging
import os
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..contracts.errors import TrainError, Vega3dWarning
from ..contracts.printable import first_line
from ..recipes.blocks import DataSettings, TrainSettings
from ..recipes.library import Recipe, read_recipe
from ..recipes.schema import RecipeSettings
from ..storage.claims import FolderClaim, claim_folder
from ..storage.writing import write_json, write_text
from .data import BadRow, ConversationData
from .manifest import (
    check_going_on,
    check_output,
    check_same_run,
    check_whole,
    clear_unfinished,
    find_checkpoint,
    make_manifest,
    newest_whole,
    rank,
    step_of,
    world_size,
    write_manifest,
)
from .model.building import Prepared, check_host, prepare
from .plan import make_plan, zero_stage
from .preflight import adds_positions, check_external, check_memory, check_prior_fits, free_memory, unusable
from .read_ahead import ReadAhead
from .report import PLAN, write_quietly
from .rows.conversation import Conversation
from .rows.encoding import Encoder
from .rows.files import Rows
from .run_log import FILES, RunLog
from .samples import Samples, look_at
from .stores import feature_store
from .trainer import accumulation, make_arguments, make_trainer, total_steps
from .validation import overlap

log = logging.getLogger("vega3d")

REPORT = "bad_rows.txt"


@dataclass
class Job:
    """A run that is ready to start.

    Attributes:
        name: of the recipe.
        recipe, train: its settings.
        output: folder for checkpoints.
        arguments: of the trainer.
        prepared: the model and its processor.
        data: the rows that are used.
        bad: rows that are left out.
        held_out: rows for the validation loss, None where there are none.
        checkpoint: to go on from; None to begin.
        claim: on the output folder, in the first process; None where nothing will be written.
    """

    name: str
    recipe: RecipeSettings
    train: TrainSettings
    output: Path
    arguments: Any
    prepared: Prepared
    data: ConversationData
    bad: list[BadRow]
    checkpoint: Path | None
    claim: FolderClaim | None = None
    held_out: ConversationData | None = None

    def __post_init__(self) -> None:
        if self.claim is not None:
            # A job that is never run keeps nobody out once it is forgotten.
            weakref.finalize(self, self.claim.release)

    @property
    def accumulation(self) -> int:
        """Forward passes per optimiser step on each process."""
        return accumulation(self.train)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return total_steps(self.arguments, len(self.data))

    @property
    def finished(self) -> bool:
        """True where the checkpoint to go on from is the end of the run."""
        return self.checkpoint is not None and step_of(self.checkpoint) >= self.steps

    def run(self) -> Path:
        """Train, and return the last checkpoint; that it goes on from, where nothing is left to do.

        Raises:
            TrainError: nothing was saved; and whatever goes wrong in a step.
        """
        if self.claim is None and rank() == 0:
            self.claim = claim_output(self.output)
        try:
            # Trainer would take a step more.
            return self.checkpoint if self.checkpoint is not None and self.finished else self._train()
        finally:
            if self.claim is not None:
                self.claim.release()
                self.claim = None

    def _train(self) -> Path:
        manifest = make_manifest(
            self.name, self.recipe, self.prepared.model, self.data.rows, len(self.bad), world_size(),
            None if self.held_out is None else self.held_out.rows,
        )  # fmt: skip
        plan = make_plan(self)
        device = self.arguments.device
        check_memory(plan.memory, self.recipe, device, free_memory(device))
        log = RunLog(self.output) if rank() == 0 else None
        trainer = make_trainer(
            self.prepared, self.arguments, self.train, self.data, manifest, self.claim, self.held_out, log
        )
        self._show_rows(trainer)
        if log is not None:
            clear_unfinished(self.output)
            write_manifest(self.output, manifest)
            write_json(self.output / FILES / PLAN, asdict(plan))
            log.begin(0 if self.checkpoint is None else step_of(self.checkpoint))
            if self.bad:
                write_text(self.output / REPORT, "".join(f"{row}\n" for row in self.bad))
        if self.data.settings.workers:
            # Tokenizers warn at length about processes that are forked after their first use.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        with _told(log, self.output):
            trainer.train(resume_from_checkpoint=None if self.checkpoint is None else str(self.checkpoint))
        last = find_checkpoint(self.output)
        if last is None:
            raise TrainError(f"The run ended without a checkpoint in {self.output}: there was nothing to train on.")
        return last

    def _show_rows(self, trainer: Any) -> None:
        """Have a few rows looked at for the report; not where the weights are in pieces, which no process can use."""
        if not self.train.report_rows or zero_stage(self.arguments, self.train) > 2 or rank() != 0:
            return
        samples = Samples(
            self.output,
            self.data if self.held_out is None else self.held_out,
            self.train.report_rows,
            held_out=self.held_out is not None,
            processor=self.prepared.processor,
            autocast=trainer.accelerator.autocast,
        )
        callback = look_at(samples, fresh=self.checkpoint is None, after=lambda: write_quietly(self.output))
        trainer.add_callback(callback)

    def reported(self) -> list[str]:
        """Every row that was left out, those that turned out bad while training as well."""
        path = self.output / REPORT
        return list(dict.fromkeys(path.read_text(encoding="utf-8").splitlines())) if path.is_file() else []


def make_job(
    recipe: Recipe | str | Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    resume_from: Path | None = None,
    skip_bad_rows: bool = False,
    store: str | Path | None = None,
    keep_output: bool = False,
    progress: Callable[[Sequence[int]], Any] = iter,
) -> Job:
    """Check everything that can be checked before the first step, and load the model.

    Args:
        recipe: as for :func:`~vega3d_plugin.recipes.library.read_recipe`; needs the blocks ``data`` and ``train``.
        overrides: as there.
        resume: go on from the last checkpoint in the output folder, or begin where there is none yet.
        resume_from: go on from this checkpoint.
        skip_bad_rows: as ``data.skip_bad_rows=true``.
        store: folder or URL of a feature store; default: what the recipe says.
        keep_output: nothing will be written, so the output folder may hold anything.
        progress: wraps the numbers of the rows while they are checked.

    Raises:
        RecipeError, TrainError, BadRowsError, HostError, PriorError: the first that is wrong, before any is trained.
    """
    extra = ["data.skip_bad_rows=true"] if skip_bad_rows else []
    settings = read_recipe(recipe, [*overrides, *extra])
    name = recipe.name if isinstance(recipe, Recipe) else str(recipe)
    check_host(settings.host)
    data, train = _needed(name, settings)
    output = Path(train.output_dir or Path("outputs") / Path(name).with_suffix("").name).expanduser()
    # One process claims and looks, before any writes: the others would find what it has written.
    claim = claim_output(output) if rank() == 0 and not keep_output else None
    try:
        rows = Rows(data.files)
        checkpoint = _checkpoint(output, settings, rows, resume, resume_from, claim is not None)
        arguments = make_arguments(settings, train, output, fresh=checkpoint is None)
        prepared_data = ConversationData(rows, _encoder(settings, data, train), report=output / REPORT)
        refuse = unusable(settings)
        bad = prepared_data.check(progress, refuse)
        held_out = _held_out(prepared_data, data, progress, refuse)
        if rank() == 0:
            check_prior_fits(settings, free_memory(torch.device("cpu")))
            check_external(settings, [prepared_data, *([held_out] if held_out else [])], output, progress)
        features = feature_store(settings, store)
        prepared = prepare(settings, train, features)
        if features is not None and data.workers:
            # In this process it would only wait.
            prepared_data.ahead = ReadAhead(settings, features)
        prepared_data.encoder.processor = prepared.processor
    except BaseException:
        if claim is not None:
            claim.release()
        raise
    return Job(name, settings, train, output, arguments, prepared, prepared_data, bad, checkpoint, claim, held_out)


def _encoder(settings: RecipeSettings, data: DataSettings, train: TrainSettings) -> Encoder:
    return Encoder(None, data, train.max_length, points=adds_positions(settings))


def _held_out(
    training: ConversationData,
    data: DataSettings,
    progress: Callable[[Sequence[int]], Any],
    refuse: Callable[[Conversation], str] | None,
) -> ConversationData | None:
    """The rows for the validation loss, which are looked at as those of training are."""
    if not data.eval_files:
        return None
    held_out = ConversationData(Rows(data.eval_files), training.encoder, report=training.report)
    held_out.check(progress, refuse)
    shared = overlap(training.rows, held_out.rows)
    if shared and rank() == 0:
        warnings.warn(
            f"{shared} of {len(held_out.rows)} rows of data.eval_files are rows of data.files too: the validation loss "
            "is not that of rows the model has not seen.",
            Vega3dWarning,
            stacklevel=3,
        )
    return held_out


@contextmanager
def _told(log: RunLog | None, output: Path) -> Iterator[None]:
    """The log says how the run ended, and the report is written, whatever happened."""
    how, reason = "finished", ""
    try:
        yield
    except KeyboardInterrupt:
        how = "interrupted"
        raise
    except BaseException as error:
        how, reason = "failed", f"{type(error).__name__}: {first_line(error)}"
        raise
    finally:
        if log is not None:
            with suppress(OSError):
                log.end(how, reason)
            write_quietly(output)


def claim_output(folder: Path) -> FolderClaim:
    """Claim an output folder for one run: two in one folder would mix their checkpoints.

    Raises:
        TrainError: another run writes there; the message says which.
    """
    if folder.exists() and not folder.is_dir():
        raise TrainError(f"train.output_dir: {folder} is a file.")
    claim = claim_folder(folder, TrainError, "another run", "Set train.output_dir to a new folder.")
    if claim.taken_over:
        log.info("%s: took over the claim of a run that ended without releasing it (%s).", folder, claim.taken_over)
    return claim


def _checkpoint(
    output: Path, settings: RecipeSettings, rows: Rows, resume: bool, resume_from: Path | None, writes: bool
) -> Path | None:
    """The checkpoint to go on from, after a look at what the output folder and that checkpoint hold.

    Raises:
        TrainError: the folder holds something else; the checkpoint is damaged, or of another recipe.
    """
    going_on = resume or resume_from is not None
    if writes and not going_on:
        check_output(output)
    if writes and going_on:
        check_going_on(output, settings, rows)
    if resume_from is not None:
        check_same_run(resume_from, settings, rows)
        check_whole(resume_from)
        return resume_from
    if not resume:
        return None
    if writes and world_size() == 1:
        # Puts one in place that was whole when its run was killed; other processes may have looked already.
        clear_unfinished(output)
    checkpoint, damaged = newest_whole(output)
    if damaged and rank() == 0:
        warnings.warn(
            f"{'; '.join(damaged)}. The run resumes from {checkpoint}, the last complete one.",
            Vega3dWarning,
            stacklevel=3,
        )
    if checkpoint is not None:
        check_same_run(checkpoint, settings, rows)
    return checkpoint


def _needed(name: str, settings: RecipeSettings) -> tuple[DataSettings, TrainSettings]:
    missing = [block for block in ("data", "train") if getattr(settings, block) is None]
    if settings.data is None or settings.train is None:
        raise TrainError(
            f"{name} has no block {' and no block '.join(missing)}, so there is nothing to train on or no way to. Add "
            "it, or give its settings: data.files=rows.jsonl train.learning_rate=1e-5 train.batch_size=64."
        )
    return settings.data, settings.train
