"""Does the branch help, on the user's own data? Scores of the base, the patched model and its two controls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..branch.handle import get_handle
from ..branch.switches import disabled, zeroed
from ..checkpoints.reading import read_saved
from ..checkpoints.saving import load_pretrained
from ..checkpoints.trainer_folder import TrainerFolder, find_trained, with_adapter
from ..contracts.errors import BadRowsError, RowError, SavedBranchError
from ..recipes.blocks import DataSettings
from ..storage.record import read_run
from ..training.answers import answer_likelihood, generate, split_answer
from ..training.data import ConversationData
from ..training.rows.conversation import Conversation, read_conversation
from ..training.rows.encoding import Encoded, Encoder
from ..training.rows.files import Rows
from .answering.controls import Kept
from .answering.run import SHOWN
from .comparison.measures import same_answer
from .comparison.overlap import overlap
from .harness_host import trained_host, trained_processor
from .verdicts import MEASURES, compared, finite, verdict

#: What is scored, in order: without the branch; as trained; the branch switched off; the generative tokens zero.
VARIANTS = ("base", "patched", "off", "zeroed")
CONTROLS = ("base", "off", "zeroed")
Tick = Callable[[str], None]


@dataclass(frozen=True)
class Score:
    """One answer by one variant.

    Attributes:
        nll: negative log-likelihood of the expected answer in nats, its end included.
        tokens: of the expected answer.
        said: what was generated; None when nothing was.
        exact: whether that is the expected answer, but for case, surrounding space and a final full stop.
    """

    nll: float
    tokens: int
    said: str | None = None
    exact: bool | None = None


@dataclass(frozen=True)
class Difference:
    """Patched minus a control, over the same answers.

    Attributes:
        control: a name of :data:`CONTROLS`.
        measure: ``nll`` (lower is better) or ``exact`` (higher is better).
        mean: of the differences, one for each answer.
        low, high: of the 95% percentile interval of the paired bootstrap over pictures; None for too few of them.
        size: the mean in standard deviations of the differences (Cohen's d_z); None where all are equal.
    """

    control: str
    measure: str
    mean: float
    low: float | None
    high: float | None
    size: float | None = None

    @property
    def verdict(self) -> str:
        """In words, see :func:`~vega3d_plugin.evaluation.verdicts.verdict`."""
        return verdict(MEASURES[self.measure], self.mean, self.low, self.high, "patched")


@dataclass
class Ablation:
    """What was measured.

    Attributes:
        settings: what was run.
        answers: row, question, expected answer and names of the pictures of each, and its scores by variant.
        differences: of patched to each control.
        warnings: what does not look right.
        skipped: rows that could not be used.
    """

    settings: dict[str, Any]
    answers: list[dict[str, Any]] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def scores(self, variant: str) -> list[Score]:
        """All scores of a variant."""
        return [answer["scores"][variant] for answer in self.answers]

    def mean(self, variant: str, measure: str) -> float | None:
        """Mean over answers of ``nll``, ``exact``, or ``token_nll`` (per token of all answers)."""
        scores = self.scores(variant)
        if measure == "token_nll":
            return sum(s.nll for s in scores) / sum(s.tokens for s in scores)
        values = [getattr(score, measure) for score in scores]
        return None if None in values else sum(values) / len(values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is not finite is null."""
        measures = ("exact", "nll", "token_nll")
        values = {
            "settings": self.settings,
            "rows": len({answer["row"] for answer in self.answers}),
            "means": {v: {m: self.mean(v, m) for m in measures} for v in VARIANTS},
            "differences": [{**asdict(d), "verdict": d.verdict} for d in self.differences],
            "warnings": self.warnings,
            "skipped": self.skipped,
            "answers": [
                {**answer, "scores": {v: asdict(s) for v, s in answer["scores"].items()}} for answer in self.answers
            ],
        }
        plain: dict[str, Any] = finite(values)
        return plain


def ablate(
    source: str | Path,
    files: Sequence[str | Path],
    *,
    branch: str | Path | None = None,
    adapter: str | Path | None = None,
    pretrained: str | Path | None = None,
    processor: str | Path | None = None,
    data: Mapping[str, Any] | None = None,
    limit: int | None = None,
    max_new_tokens: int = 16,
    generated: bool = True,
    seed: int = 0,
    resamples: int = 10_000,
    device: str | None = None,
    store: str | Path | None = None,
    start: Callable[[int], Tick] = lambda total: lambda what: None,
) -> Ablation:
    """Score a host without the branch, with it, with it switched off, and with its generative tokens zero.

    Every answer in the rows is scored, given the turns before it: exact match of what is generated greedily, and
    the negative log-likelihood of the expected answer. The base is measured before anything is loaded into the model.

    Args:
        source: the host, folder or hub id.
        files: rows with a question, media and an answer, LLaVA-style or chat-style.
        branch: a saved branch or a trainer's checkpoint; default: ``source`` itself. Where it holds a whole trained
            host, that is what is patched, and ``source`` is the base alone.
        adapter: a PEFT adapter; default: ``branch``, when it holds one. The base is measured without it, ``off`` with.
        pretrained: the prior's weights.
        processor: of the host; default: that of the checkpoint, which has the limits of training, else the host's.
        data: further :class:`~vega3d_plugin.recipes.blocks.DataSettings` (``frames``, ``video_as``, ...).
        limit: rows at most, from the first.
        max_new_tokens: of a generated answer.
        generated: False: likelihoods only, which takes a fraction of the time.
        seed, resamples: of the bootstrap.
        device: default: CUDA when there is any.
        store: folder of a feature store; by default features are kept for one row, and computed once for it.
        start: called with the number of steps; what it returns is called with each step's name.

    Raises:
        TrainError, BadRowsError: files or rows that cannot be used.
        HostError, SavedBranchError: a host or branch that cannot be loaded.
    """
    trained = find_trained(source, branch, adapter=adapter, processor=processor)
    if trained.branch is None:
        raise SavedBranchError("An ablation needs a branch: name its folder or checkpoint.")
    shown = {key: trained.data[key] for key in SHOWN if key in trained.data}
    settings = DataSettings.parse({"files": tuple(map(str, files)), **shown, **(data or {})})
    points = read_saved(trained.branch).record["settings"].get("positions", "none") != "none"
    encoder = Encoder(trained_processor(trained), settings, points=points)
    found = Ablation(
        {
            "model": str(source), "trained_host": trained.host, "branch": trained.branch, "adapter": trained.adapter,
            "data": settings.to_dict(), "limit": limit, "max_new_tokens": max_new_tokens if generated else None,
            "seed": seed, "resamples": resamples,
        }
    )  # fmt: skip
    questions = _Questions(ConversationData(Rows(settings.files), encoder), limit, found.skipped)
    tick = start(len(questions) * len(VARIANTS))
    model = trained_host(replace(trained, host=str(source)), device=device)
    scorer = _Scorer(encoder.processor, max_new_tokens if generated else None, tick)
    for name, answer in questions:
        found.answers.append({"row": name, **answer.described, "scores": {"base": scorer(model, answer, "base")}})
    if not found.answers:
        raise BadRowsError("No row could be used:\n  " + "\n  ".join(found.skipped[:10]))
    tuned = trained.adapter is not None or trained.host != str(source)
    if trained.host != str(source):
        del model
        model = trained_host(trained, device=device)
    load_pretrained(model, trained.branch, pretrained=pretrained, processor=encoder.processor, store=store)
    model = with_adapter(model, trained.adapter)
    found.settings["prior"] = get_handle(model).settings.prior.to_dict()
    _score_variants(found, questions, scorer, model, keep=store is None)
    found.differences = differences(found, seed=seed, resamples=resamples)
    found.warnings = [*_doubts(found, tuned), *_trained_on(trained, questions)]
    return found


def _score_variants(found: Ablation, questions: _Questions, scorer: _Scorer, model: nn.Module, *, keep: bool) -> None:
    """Score what is patched, and its two controls; ``keep``: the features of one row in memory, for all three."""
    memory = Kept()
    if keep:
        get_handle(model).branch.store = memory  # type: ignore[assignment]
    for place, (_, answer) in enumerate(questions):
        memory.features.clear()
        contexts: dict[str, AbstractContextManager[None]] = {
            "patched": nullcontext(), "off": disabled(model), "zeroed": zeroed(model),
        }  # fmt: skip
        for variant, context in contexts.items():
            with context:
                found.answers[place]["scores"][variant] = scorer(model, answer, variant)


def differences(found: Ablation, *, seed: int, resamples: int) -> list[Difference]:
    """Patched minus each control, by measure, with the paired bootstrap over pictures.

    Answers about the same pictures are no independent evidence, so all answers to them are drawn together.
    """
    names = [answer.get("pictures") or answer["row"] for answer in found.answers]
    pictures = np.unique(names, return_inverse=True)[1]
    result = []
    for measure in ("exact", "nll"):
        if found.mean("patched", measure) is None:
            continue
        patched = np.array([float(getattr(s, measure)) for s in found.scores("patched")])
        for control in CONTROLS:
            other = np.array([float(getattr(s, measure)) for s in found.scores(control)])
            mean, low, high, size = compared(patched[None], other[None], pictures, seed=seed, resamples=resamples)
            result.append(Difference(control, measure, mean, low, high, size))
    return result


@dataclass(frozen=True)
class _Answer:
    """An answer with the turns before it, encoded."""

    conversation: Conversation
    encoded: Encoded

    @property
    def expected(self) -> str:
        return self.conversation.turns[-1].text.strip()

    @property
    def described(self) -> dict[str, str]:
        asked = next((turn.text for turn in reversed(self.conversation.turns[:-1]) if turn.role == "user"), "")
        pictures = repr([(medium.kind, str(medium.source)) for medium in self.conversation.media])
        return {"question": asked.strip(), "answer": self.expected, "pictures": pictures}


class _Questions:
    """The answers of all rows, encoded anew on each pass; rows that cannot be used are left out of every pass."""

    def __init__(self, data: ConversationData, limit: int | None, skipped: list[str]) -> None:
        self.data, self.skipped = data, skipped
        # Bad rows are an error here, unless they are to be skipped.
        skipped.extend(str(bad) for bad in data.check())
        numbers = data.usable if data.usable is not None else range(len(data.rows))
        self.numbers = list(numbers)[:limit]
        self.settled = False
        self.total = sum(len(_parts(self._read(number))) for number in self.numbers)

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[tuple[str, _Answer]]:
        for number in list(self.numbers):
            name = self.data.rows.name(number)
            try:
                answers = [_Answer(part, self.data.encoder(part)) for part in _parts(self._read(number))]
            except RowError as error:
                if not self.data.settings.skip_bad_rows:
                    raise BadRowsError(f"{name}: {error}. Correct it, or pass --skip-bad-rows.") from error
                if self.settled:
                    # The answers after it would be taken for others.
                    raise BadRowsError(f"{name}: {error}. It could be read before; start again.") from error
                self.skipped.append(f"{name}: {error}")
                self.numbers.remove(number)
                continue
            for answer in answers:
                yield name, answer
        self.settled = True

    def _read(self, number: int) -> Conversation:
        return read_conversation(self.data.rows[number], self.data.settings, self.data._root(number))


class _Scorer:
    def __init__(self, processor: Any, max_new_tokens: int | None, tick: Tick) -> None:
        self.processor, self.max_new_tokens, self.tick = processor, max_new_tokens, tick

    def __call__(self, model: nn.Module, answer: _Answer, variant: str) -> Score:
        losses = answer_likelihood(model, answer.encoded)
        nll, tokens = float(losses.sum()), int(losses.numel())
        said = None
        if self.max_new_tokens is not None:
            prompt, _ = split_answer(answer.encoded)
            said, _ = generate(model, self.processor, prompt, max_new_tokens=self.max_new_tokens)
        self.tick(variant)
        return Score(nll, tokens, said, None if said is None else same_answer(said, answer.expected))


def _parts(conversation: Conversation) -> list[Conversation]:
    """One conversation for each answer, which ends with it."""
    turns = conversation.turns
    return [Conversation(turns[: i + 1]) for i, turn in enumerate(turns) if turn.role == "assistant"]


def _trained_on(trained: TrainerFolder, questions: _Questions) -> list[str]:
    """What is to be told of rows that the model was trained on."""
    places = [Path(place) for place in (trained.branch, trained.adapter) if place is not None]
    runs = (read_run(place, SavedBranchError) for place in places if place.is_dir())
    run = next((found for found in runs if found is not None), None)
    files = None if run is None else (run.get("data") or {}).get("files")
    if not files:
        return []
    return overlap("The model", [questions.data.rows[number] for number in questions.numbers], files)


def _doubts(found: Ablation, tuned: bool) -> list[str]:
    """What makes the figures doubtful."""
    doubts = []
    unequal = [
        answer["row"] for answer in found.answers if not tuned and answer["scores"]["base"] != answer["scores"]["off"]
    ]
    if unequal:
        doubts.append(
            f"The base and the patched model with its branch off should agree exactly, but differ on {len(unequal)} of "
            f"{len(found.answers)} answers (first: {unequal[0]}). Loading the branch changed something else in the "
            "model, or the host does not compute the same twice."
        )
    untouched = all(answer["scores"]["patched"].nll == answer["scores"]["off"].nll for answer in found.answers)
    if untouched:
        doubts.append(
            "The branch changes nothing: every likelihood is the same with it on and off. Either it is "
            "untrained (identity), "
            "or the pictures do not reach it; `vega3d doctor` tells."
        )
    limit = found.settings.get("max_new_tokens")
    # The last token is the end of the answer.
    long = [answer for answer in found.answers if limit and answer["scores"]["base"].tokens - 1 > limit]
    if long:
        doubts.append(
            f"{len(long)} of {len(found.answers)} expected answers are longer than the {limit} tokens that are "
            f"generated, so no answer can match them exactly (first: {long[0]['row']}). Raise --max-new-tokens."
        )
    if any(math.isnan(s.nll) for v in VARIANTS for s in found.scores(v)):
        doubts.append("Some likelihoods are NaN: the model overflows in its dtype.")
    return doubts
