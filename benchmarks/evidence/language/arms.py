"""The arms: the demo's small host, trained alone or with a branch behind one of several priors, on the same rows."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import vega3d
from vega3d_plugin.evaluation.answering.controls import Kept
from vega3d_plugin.evaluation.demo.clips import HELD_OUT, RoomClips, room_clips
from vega3d_plugin.evaluation.demo.compared import OPEN, SMALL_BRANCH
from vega3d_plugin.evaluation.demo.comparison import answers, learn
from vega3d_plugin.evaluation.demo.small_host import EncodedClips, small_host
from vega3d_plugin.storage.writing import write_atomically, write_json

#: Name to what it is, in the order of the tables.
ARMS = {
    "blind": "host, grey pictures",
    "host": "host alone",
    "host-fast": "host alone, three times the learning rate",
    "twin": "host + branch, untrained twin",
    "shuffled": "host + branch, features of another clip",
    "trained": "host + branch, small-world",
    "zeroed": "the same, features zero after training",
}
#: The order in which they are run: what the experiment is about for all seeds first.
FIRST, REST = ("host", "trained", "twin", "shuffled"), ("host-fast", "blind")
FASTER = 3.0


@dataclass(frozen=True)
class Plan:
    """Attributes: ``train``, ``test``: rooms; ``steps``: of each training."""

    train: int = 80
    test: int = 48
    steps: int = 200


class Experiment:
    """Trains what its folder does not hold yet.

    Args:
        folder: of features and results.
        plan: sizes; a folder holds one plan.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        folder.mkdir(parents=True, exist_ok=True)
        self.train, self.test = room_clips(0, plan.train, 0), room_clips(HELD_OUT, plan.test, 0)
        self.digest = _digest(self.train, self.test, plan)

    def run(self, arm: str, seed: int, *, only_read: bool = False) -> dict[str, Any] | None:
        """The result of an arm; trained first when the folder lacks it, unless it is only to be read."""
        file = self.folder / f"{arm}-{seed}.json"
        if file.exists():
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if found["rows"] != self.digest:
                raise SystemExit(f"{file} is of other questions or another plan. Name a new folder.")
            return found
        if only_read:
            return None
        self._train("trained" if arm == "zeroed" else arm, seed)
        return self.run(arm, seed)

    def _train(self, arm: str, seed: int) -> None:
        host = small_host((*self.train.questions, *self.test.questions), seed)
        blind = arm == "blind"
        rows, asked = (EncodedClips(host.processor, grey(part) if blind else part) for part in (self.train, self.test))
        model = host.build()
        if arm in ("twin", "shuffled", "trained"):
            self._patch(model, host.processor, arm, seed, rows, asked)
        started = time.process_time()
        faster = FASTER if arm == "host-fast" else 1.0
        losses = learn(model, rows, self.plan.steps, seed, lambda done: None, faster=faster)
        seconds = time.process_time() - started
        result = {
            "rows": self.digest,
            "losses": [round(loss, 4) for loss in losses],
            "ms": round(1000 * seconds / self.plan.steps),
            "trainable": sum(p.numel() for p in model.parameters()),
        }
        if arm == "trained":
            with vega3d.zeroed(model):
                self._write("zeroed", seed, {"rows": self.digest}, model, asked)
        if arm in ("twin", "shuffled", "trained"):
            result["a"] = float(vega3d.get_handle(model).branch.fuser.residual_scale.detach())
            result["share"] = _share(model, asked, result["a"])
        self._write(arm, seed, result, model, asked)

    def _write(self, arm: str, seed: int, result: dict[str, Any], model: Any, asked: EncodedClips) -> None:
        said = answers(model, asked)
        right = asked.choices[torch.arange(len(said)), torch.from_numpy(said)] == asked.answer
        write_json(self.folder / f"{arm}-{seed}.json", {**result, "right": "".join("01"[int(r)] for r in right)})

    def _patch(self, model: Any, processor: Any, arm: str, seed: int, rows: EncodedClips, asked: EncodedClips) -> None:
        prior = vega3d.load_prior("small-world")
        if arm == "twin":
            prior = vega3d.analysis.untrained_twin(prior, seed=seed)
        vega3d.patch(model, prior, processor=processor, **SMALL_BRANCH, **OPEN)
        branch = vega3d.get_handle(model).branch
        file = self.folder / f"features-{f'twin-{seed}' if arm == 'twin' else 'trained'}.safetensors"
        memory = KeptInHalf()
        if file.exists():
            memory.features.update(load_file(file))
        branch.store = memory
        if not file.exists():
            for part in (rows, asked):
                look(model, part)
            write_atomically(file, lambda place: save_file(dict(memory.features), place))
        if arm == "shuffled":
            branch.store = shuffled(memory, seed)


class KeptInHalf(Kept):
    """Features in float16, which halves the file."""

    def get(self, key: str) -> Tensor | None:
        """The features of a clip, in float32."""
        found = super().get(key)
        return None if found is None else found.float()

    def put(self, key: str, features: Tensor) -> Tensor:
        """Keep the features of a clip, and give back what :meth:`get` would."""
        return super().put(key, features.half().contiguous()).float()


def shuffled(memory: KeptInHalf, seed: int) -> KeptInHalf:
    """Every clip gets the features of the next one in a drawn order: always the same ones, and never its own."""
    keys = sorted(memory.features)
    order = np.random.default_rng(seed).permutation(len(keys)).tolist()
    other = KeptInHalf()
    after = order[1:] + order[:1]
    other.features.update({keys[one]: memory.features[keys[two]] for one, two in zip(order, after, strict=True)})
    return other


def grey(rows: RoomClips) -> RoomClips:
    """The same questions about pictures that show nothing."""
    return replace(rows, clips=np.full_like(rows.clips, 128))


@torch.no_grad()
def look(model: Any, rows: EncodedClips, tick: Callable[[], None] = lambda: None) -> None:
    """Run every clip through the seam once, so that its features are known."""
    for some in torch.from_numpy(np.unique(rows.rows.clip, return_index=True)[1]).split(16):
        model(**rows.batch(some), use_cache=False)
        tick()


@torch.no_grad()
def _share(model: Any, asked: EncodedClips, a: float) -> float:
    """Mean effective share of the generative tokens in the fused ones, over some questions."""
    with vega3d.record_gates(model) as gates:
        model(**asked.batch(torch.arange(min(64, len(asked.rows)))), use_cache=False)
    return float(a * (1 - torch.cat([gate.flatten() for gate in gates])).mean())


def _digest(train: RoomClips, test: RoomClips, plan: Plan) -> str:
    digest = hashlib.sha256(repr(plan).encode())
    for rows in (train, test):
        digest.update(rows.clips.tobytes())
        digest.update(repr([(q.text, q.answer) for q in rows.questions]).encode())
    return digest.hexdigest()[:16]
