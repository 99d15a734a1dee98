"""Render rooms, train a small host with and without the branch, and keep what both said about rooms held out."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...branch.handle import get_handle
from ...branch.switches import record_shares
from ...contracts.priors import Prior
from ...patching import patch
from ...priors.frozen.prior import FrozenPrior
from .. import verdicts
from ..answering.controls import Kept
from ..verdicts import Estimate
from .clips import HELD_OUT, RoomClips, room_clips
from .comparison import Arm, branch_parameters, judged_without_features, learn_and_judge
from .host import DemoHost
from .samples import Sample
from .small_host import EncodedClips, small_host

Tick = Callable[[int, int], None]
#: In verdicts.
WHO = "the branch"
#: In 120 the host alone is ahead: a branch that starts open has to be learned besides (benchmarks/evidence/RESULTS.md).
STEPS = 200
SHOWN = 5  # questions, with what both said
#: Branch of a small host: a projector less wide than the default of 4096.
SMALL_BRANCH: dict[str, Any] = {
    "projector": {"name": "mlp", "hidden_dim": 128},
    "config": {"space": "adaptive_avg"},
}
#: For the comparison. A host that is trained from nothing has no ability that an identity start would protect, and in
#: so few steps the branch would hardly open.
OPEN: dict[str, Any] = {"init": "released"}


@dataclass
class Compared:
    """Both arms on the rooms held out.

    Attributes:
        host: gives copies of the model that was trained without the branch.
        train, test: clips and questions.
        alone, branch: the two arms.
        zeroed: the model with the branch, its features zero.
        steps: of each training.
        prior: its name.
        prior_parameters, added: of the frozen prior, and of what the branch trains.
        prior_seconds: for one clip.
        feature_bytes: of one clip.
        effective_share: of the generative tokens in the fused ones of :attr:`example`, float32 ``[t, h, w]``; None
            for a fusion that has none.
        example: the held-out question that pictures show.
        optimiser: that trained both.
    """

    host: DemoHost
    train: RoomClips
    test: RoomClips
    alone: Arm
    branch: Arm
    zeroed: Arm
    steps: int
    prior: str
    prior_parameters: int
    added: int
    prior_seconds: float
    feature_bytes: int
    effective_share: NDArray[np.float32] | None
    example: int
    optimiser: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def arms(self) -> tuple[Arm, Arm, Arm]:
        """In the order of the tables."""
        return self.alone, self.branch, self.zeroed

    def share(self, arm: Arm, kind: str | None = None) -> Estimate:
        """Right answers of an arm, to questions of one kind or to all; the interval is over rooms."""
        chosen = self._chosen(kind)
        return verdicts.share(arm.right[None, chosen], self.test.room[chosen])

    def gain(self, kind: str | None = None, over: Arm | None = None) -> Estimate:
        """Right answers with the branch minus those of another arm, by default of the host alone."""
        chosen = self._chosen(kind)
        other = self.alone if over is None else over
        return verdicts.gain(self.branch.right[None, chosen], other.right[None, chosen], self.test.room[chosen])

    @property
    def difference(self) -> Estimate:
        """Over all questions."""
        return self.gain()

    @property
    def kinds(self) -> list[str]:
        """Of the questions, in the order of their first."""
        return list(dict.fromkeys(self.test.kinds.tolist()))

    def said(self, arm: Arm, number: int) -> str:
        """What an arm answered to a held-out question."""
        return self.test.questions[number].choices[int(arm.said[number])]

    def shown(self) -> list[int]:
        """Held-out questions worth a look: one of each kind, and some that the two models answer differently."""
        kinds = self.test.kinds
        first = [int(np.flatnonzero(kinds == kind)[0]) for kind in self.kinds]
        apart = np.flatnonzero(self.alone.said != self.branch.said).tolist()
        return [*first, *(number for number in apart if number not in first)][:SHOWN]

    def samples(self, count: int) -> list[Sample]:
        """Some questions to train on, of every kind in turn."""
        by_kind = [np.flatnonzero(self.train.kinds == kind) for kind in self.kinds]
        rows = [int(numbers[turn]) for turn in range(count) for numbers in by_kind if turn < len(numbers)][:count]
        return [_sample(self.train, row) for row in rows]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "train": {"rooms": len(set(self.train.room.tolist())), "questions": len(self.train)},
            "test": {"rooms": len(set(self.test.room.tolist())), "questions": len(self.test)},
            "steps": self.steps,
            "optimiser": self.optimiser,
            "prior": self.settings,
            "arms": {
                arm.name: {
                    "right": {kind or "all": self.share(arm, kind).to_dict() for kind in (None, *self.kinds)},
                    "parameters": arm.parameters,
                    "seconds": round(arm.seconds, 1),
                    "losses": [round(loss, 4) for loss in arm.losses],
                }
                for arm in self.arms
            },
            "difference": {kind or "all": _judged(self.gain(kind)) for kind in (None, *self.kinds)},
            "over_zeroed": _judged(self.gain(over=self.zeroed)),
            "cost": {
                "prior_parameters": self.prior_parameters,
                "branch_parameters": self.added,
                "prior_seconds_per_clip": round(self.prior_seconds, 4),
                "feature_bytes_per_clip": self.feature_bytes,
            },
        }

    def _chosen(self, kind: str | None) -> NDArray[np.bool_]:
        return np.ones(len(self.test), bool) if kind is None else self.test.kinds == kind


def compare(
    prior: str, pretrained: str | None, rooms: int, steps: int, seed: int, say: Callable[[str], None], tick: Tick
) -> Compared:
    """Train both and ask both; the two start from equal weights and see equal rows in an equal order.

    Args:
        prior, pretrained: of the branch.
        rooms: to train on; half as many are held out.
        steps: of each training.
        seed: of the host, the clips and the order of the rows.
        say, tick: see :func:`~vega3d_plugin.evaluation.demo.job.run`.
    """
    say(f"Rendering {rooms} rooms to train on and {rooms // 2} that are held out")
    train, test = room_clips(0, rooms, seed), room_clips(HELD_OUT, rooms // 2, seed)
    host = small_host((*train.questions, *test.questions), seed)
    learned, asked = EncodedClips(host.processor, train), EncodedClips(host.processor, test)

    say(f"Training a small host without the branch: {len(train)} questions, {steps} steps")
    alone = host.build()
    first = learn_and_judge(alone, "host alone", learned, asked, steps, seed, lambda done: tick(done, steps))

    say(f"Looking at {len(train.clips) + len(test.clips)} clips with {prior}, once each")
    model = host.build()
    patch(model, prior, pretrained=pretrained, processor=host.processor, **SMALL_BRANCH, **OPEN)
    branch = get_handle(model).branch
    memory = Kept()
    branch.store = memory  # type: ignore[assignment]
    seconds = _look(model, learned, tick) + _look(model, asked, tick)

    say(f"Training the same host with the branch: the same questions, {steps} steps")
    second = learn_and_judge(model, "host + branch", learned, asked, steps, seed, lambda done: tick(done, steps))
    example = _example(test, first, second)
    a_map = next(iter(memory.features.values()))
    return Compared(
        host=DemoHost(lambda: copy.deepcopy(alone), host.processor, tiny=True),
        train=train,
        test=test,
        alone=first,
        branch=second,
        zeroed=judged_without_features(model, asked),
        steps=steps,
        prior=prior,
        prior_parameters=_count(branch.prior),
        added=branch_parameters(model),
        prior_seconds=seconds / max(1, len(memory.features)),
        feature_bytes=a_map.numel() * a_map.element_size(),
        effective_share=_shares(model, asked, example),
        example=example,
        optimiser="Muon and AdamW" if hasattr(torch.optim, "Muon") else "AdamW",
        settings=get_handle(model).settings.prior.to_dict(),
    )


@torch.no_grad()
def _look(model: Any, rows: EncodedClips, tick: Tick) -> float:
    """Run every clip through the seam once, so that its features are in memory; returns the seconds it took."""
    started = time.perf_counter()
    numbers = torch.from_numpy(np.unique(rows.rows.clip, return_index=True)[1])
    for done, some in enumerate(numbers.split(16)):
        model(**rows.batch(some), use_cache=False)
        tick(min(16 * (done + 1), len(numbers)), len(numbers))
    return time.perf_counter() - started


def _example(test: RoomClips, alone: Arm, branch: Arm) -> int:
    """The first question that both answer rightly; without any the first."""
    both = np.flatnonzero((alone.right > 0) & (branch.right > 0))
    return int(both[0]) if len(both) else 0


def _shares(model: Any, asked: EncodedClips, example: int) -> NDArray[np.float32] | None:
    with record_shares(model) as shares, torch.no_grad():
        model(**asked.batch(torch.tensor([example])), use_cache=False)
    share = shares[0].generative
    return None if share is None else share.float().cpu().numpy()


def _count(prior: Prior) -> int:
    """Parameters that run for a feature: what lies behind the tap was freed. 0 for a prior without modules."""
    modules = prior.models.values() if isinstance(prior, FrozenPrior) else ()
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def _sample(rows: RoomClips, row: int) -> Sample:
    question = rows.questions[row]
    return Sample(np.ascontiguousarray(rows.clips[rows.clip[row]]), question.text, question.answer)


def _judged(difference: Estimate) -> dict[str, Any]:
    return {**difference.to_dict(), "verdict": difference.verdict(WHO)}
