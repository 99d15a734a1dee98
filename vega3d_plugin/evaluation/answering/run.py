"""A run: every question answered once, whatever happens on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...checkpoints.trainer_folder import TrainerFolder
from ...contracts.errors import BadRowsError, RowError, SettingsError
from ...recipes.blocks import DataSettings
from ...training.answers import answer_likelihood, generate_batch, split_answer
from ...training.rows.encoding import Encoded
from ..harness_host import EvaluatedHost, HostArguments, trained_folder
from .about import described, identity
from .controls import Control, Controlled
from .parts import Parts
from .questions import Question, Questions

#: Settings of the data that are, by default, those of training.
SHOWN = (
    *("preset", "frames", "sampling", "fps", "min_frames", "folder_fps", "video_as", "resize", "video_max_pixels"),
    "system",
)
#: Settings of the data that change no answer.
_FREE = {"files", "media_root", "workers", "skip_bad_rows"}
Tick = Callable[[int], None]


@dataclass
class Answered:
    """What a run came to.

    Attributes:
        out: the file of answers.
        questions: of all processes.
        share: of this process, and ``found``, how many of these were answered before.
        missing: of all, how many no process has answered yet; 0: the file is there.
        left_out: rows that could not be used.
    """

    out: Path
    questions: int
    share: int = 0
    found: int = 0
    missing: int = 0
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    """Questions, and the model that they are put to, before it is loaded.

    Attributes:
        arguments: the model.
        trained: where its parts are.
        settings: how the rows are read.
        questions: in them.
        limit: rows at most.
    """

    arguments: HostArguments
    trained: TrainerFolder
    settings: DataSettings
    questions: Questions
    limit: int | None

    @classmethod
    def of(
        cls,
        arguments: HostArguments,
        files: Sequence[str | Path],
        data: Mapping[str, Any] | None = None,
        limit: int | None = None,
    ) -> Asked:
        """Look into the checkpoint and the files; pictures are shown as in training, unless ``data`` says otherwise.

        Raises:
            SavedBranchError, TrainError, BadRowsError: as of :func:`answer`.
        """
        trained = trained_folder(arguments)
        shown = {key: trained.data[key] for key in SHOWN if key in trained.data}
        settings = DataSettings.parse({**shown, **(data or {}), "files": tuple(map(str, files))})
        return cls(arguments, trained, settings, Questions(settings, limit), limit)

    def identity(self) -> dict[str, Any]:
        """What makes the results what they are, beside what is done with the questions."""
        return {
            "model": identity(self.arguments, self.trained),
            "data": {key: value for key, value in self.settings.to_dict().items() if key not in _FREE},
            "rows": [file["sha256"] for file in self.questions.files],
            "limit": self.limit,
        }

    def about(self) -> dict[str, Any]:
        """What else a reader has to know."""
        left_out = [str(bad) for bad in self.questions.left_out]
        return {**described(self.arguments, self.trained), "files": self.questions.files, "left_out": left_out}


def answer(
    arguments: HostArguments,
    files: Sequence[str | Path],
    out: str | Path,
    *,
    control: Control = "on",
    data: Mapping[str, Any] | None = None,
    limit: int | None = None,
    batch_size: int = 1,
    likelihood: bool = False,
    shard: tuple[int, int] = (0, 1),
    start: Callable[[int, int], Tick] = lambda total, found: lambda count: None,
    host: Callable[[HostArguments, DataSettings], EvaluatedHost] = EvaluatedHost,
) -> Answered:
    """Answer the questions of rows, greedily, and write a file of answers.

    Every answer in a row is a question, given the turns before it as the row has them. The file has the rows' own keys
    and ``prediction``; where the row has an answer, ``gt_response`` and ``ground_truth`` say it, unless the row does.
    A run that ended early, in whatever way, is resumed by the same call.

    Args:
        arguments: the model; ``branch="none"`` for one without.
        files: rows, LLaVA-style or chat-style; the last turn may be the question.
        out: ``.jsonl``; ``.run.json`` beside it says what gave the answers.
        control: ``on``, or what the branch is put through, see :data:`~.controls.MEANING`.
        data: settings of the data (``frames``, ``video_as``, ``skip_bad_rows``, ...) over those of training.
        limit: rows at most, from the first.
        batch_size: questions at once; answers do not depend on it, but for rounding.
        likelihood: also the negative log-likelihood of the expected answer, in nats: ``nll`` and ``nll_tokens``.
        shard: this process and how many there are; whichever ends last writes the file.
        start: called with the questions of this process and how many were answered before; what it returns is called
            with the number of each batch.
        host: loads the model; another gives one that is loaded already.

    Raises:
        SavedBranchError, HostError: a model that cannot be loaded.
        TrainError, BadRowsError: files or rows that cannot be used.
        AnswersError: the file is of another run, or another process writes it.
    """
    asked = Asked.of(arguments, files, data, limit)
    questions, settings = asked.questions, asked.settings
    if control != "on" and asked.trained.branch is None and arguments.released is None:
        raise SettingsError(f"The control `{control}` needs a branch, and {arguments.pretrained} is evaluated without.")
    parts = Parts(
        Path(out),
        {
            "control": control,
            **asked.identity(),
            "protocol": {
                "generation": "greedy", "max_new_tokens": arguments.max_new_tokens, "history": "as the rows have it",
                "likelihood": likelihood, "system_prompt": arguments.system_prompt,
            },
        },
        {**asked.about(), "batch_size": batch_size},
        len(questions),
    )  # fmt: skip
    found = Answered(parts.out, len(questions), left_out=[str(bad) for bad in questions.left_out])
    if parts.complete:
        return found
    parts.open(*shard)
    try:
        done = parts.done()
        mine = share(len(questions), *shard)
        todo = [number for number in mine if number not in done]
        found.share, found.found = len(mine), len(mine) - len(todo)
        if todo:
            tick = start(len(mine), found.found)
            _Asking(host(arguments, settings), control, questions, likelihood, parts).ask(todo, batch_size, tick)
        found.missing = parts.merge()
    finally:
        parts.close()
    return found


def share(total: int, shard: int, shards: int) -> range:
    """The questions of one process of several: a stretch, since neighbours often have the same pictures.

    Raises:
        SettingsError: no such process.
    """
    if not 0 <= shard < shards:
        raise SettingsError(f"Shard {shard} of {shards}: shards are numbered from 0 to one below their number.")
    return range(total * shard // shards, total * (shard + 1) // shards)


class _Asking:
    """Answers questions in batches, and writes each batch before the next."""

    def __init__(
        self, host: EvaluatedHost, control: Control, questions: Questions, likelihood: bool, parts: Parts
    ) -> None:
        self.host, self.questions, self.likelihood, self.parts = host, questions, likelihood, parts
        self.controlled = Controlled(host.model, control, questions, lambda q: split_answer(self._encoded(q))[0])

    def ask(self, numbers: Sequence[int], size: int, tick: Tick) -> None:
        size = min(size, self.controlled.at_once or size)
        for start in range(0, len(numbers), size):
            batch = [self.questions[number] for number in numbers[start : start + size]]
            self.parts.write(self._lines(batch))
            tick(len(batch))

    def _lines(self, batch: Sequence[Question]) -> Iterator[dict[str, Any]]:
        usable: list[tuple[Question, Encoded]] = []
        for question in batch:
            try:
                usable.append((question, self._encoded(question)))
            except RowError as error:
                if not self.questions.settings.skip_bad_rows:
                    raise BadRowsError(
                        f"{question.where}: {error}. Correct it, or pass --skip-bad-rows. The answers before are kept."
                    ) from error
                yield {"number": question.number, "left_out": f"{question.where}: {error}"}
        if not usable:
            return
        asked = [question for question, _ in usable]
        with self.controlled.during(asked, keep=self.likelihood):
            prompts = [split_answer(encoded)[0] for _, encoded in usable]
            limit = self.host.arguments.max_new_tokens
            said = generate_batch(self.host.model, self.host.processor, prompts, max_new_tokens=limit)
            scores = [self._score(question, encoded) for question, encoded in usable]
        for question, (text, count), score in zip(asked, said, scores, strict=True):
            yield {"number": question.number, "row": answer_row(question, text, {"new_tokens": count, **score})}

    def _score(self, question: Question, encoded: Encoded) -> dict[str, Any]:
        if not self.likelihood or question.expected is None:
            return {}
        losses = answer_likelihood(self.host.model, encoded)
        # JSON has no NaN; a likelihood that is none stays visible as null.
        nll = float(losses.sum())
        return {"nll": nll if math.isfinite(nll) else None, "nll_tokens": int(losses.numel())}

    def _encoded(self, question: Question) -> Encoded:
        return self.host.encoder(question.conversation)


def answer_row(question: Question, said: str | None, more: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a file: the row's own keys, the answer if there is one, and what is expected if the row tells."""
    row = dict(question.row)
    meta = row.get("metadata")
    known = {*row, *(meta if isinstance(meta, dict) else ())}
    if question.expected is not None:
        row |= {key: question.expected for key in ("gt_response", "ground_truth") if key not in known}
    # Before the row's own id, which several questions of one row share.
    answered = {} if said is None else {"prediction": said}
    return {"sample_id": question.id, **{k: v for k, v in row.items() if k != "sample_id"}, **answered, **more}
