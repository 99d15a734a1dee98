"""The arms: a host trained alone or with a branch behind one of several priors, on the same rows."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import vega3d
from vega3d_plugin.evaluation.answering.controls import Kept
from vega3d_plugin.storage.writing import write_atomically, write_json

from .host import Host


@dataclass(frozen=True)
class Arm:
    """What is trained.

    Attributes:
        meaning: in tables.
        features: behind a branch: ``trained``, ``twin`` or ``shuffled``; None without a branch.
        blind: the pictures are grey.
        faster: a factor of the learning rates.
        sees: the tower was trained to see before (``language/seeing.py``).
        more: twice the rooms to learn from, in as many steps.
    """

    meaning: str
    features: str | None = None
    blind: bool = False
    faster: float = 1.0
    sees: bool = False
    more: bool = False


#: In the order of the tables.
ARMS = {
    "blind": Arm("host, grey pictures", blind=True),
    "host": Arm("host alone"),
    "host-fast": Arm("host alone, three times the learning rate", faster=3.0),
    "twin": Arm("host + branch, untrained twin", "twin"),
    "shuffled": Arm("host + branch, features of another clip", "shuffled"),
    "trained": Arm("host + branch, small-world", "trained"),
    "zeroed": Arm("the same, features zero after training"),
    "host-tower": Arm("host alone, tower trained to see before", sees=True),
    "trained-tower": Arm("host + branch, small-world, tower trained to see before", "trained", sees=True),
    "host-more": Arm("host alone, twice the rooms", more=True),
    "trained-more": Arm("host + branch, small-world, twice the rooms", "trained", more=True),
}
#: The order in which they are run: what the experiment is about for all seeds first.
FIRST, REST = ("host", "trained", "twin", "shuffled"), ("blind", "host-fast")
#: Does a gain survive a better tower or more data?
BETTER = ("host-tower", "trained-tower", "host-more", "trained-more")


class Experiment:
    """Trains what its folder does not hold yet.

    Args:
        folder: of features and results; it holds one host and one plan.
        host: which, with its questions.
    """

    def __init__(self, folder: Path, host: Host) -> None:
        self.folder, self.host = folder, host
        folder.mkdir(parents=True, exist_ok=True)
        self.digest = host.digest

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

    def _train(self, name: str, seed: int) -> None:
        arm = ARMS[name]
        rows, asked = self.host.encoded(blind=arm.blind, more=arm.more)
        model = self.host.build(seed)
        result: dict[str, Any] = {"rows": self.digest}
        if arm.sees:
            result["sees"] = self.host.see(model, seed)
        if arm.features is not None:
            self._patch(model, arm, seed, rows, asked)
        started = time.process_time()
        losses = self.host.learn(model, rows, seed, arm.faster)
        seconds = time.process_time() - started
        result |= {
            "losses": [round(loss, 4) for loss in losses],
            "ms": round(1000 * seconds / len(losses)),
            "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "learnt": round(float(self.host.right(model, rows).mean()), 4),
        }
        if name == "trained":
            with vega3d.zeroed(model):
                self._write("zeroed", seed, {"rows": self.digest}, model, asked)
        if arm.features is not None:
            result["a"] = float(vega3d.get_handle(model).branch.fuser.residual_scale.detach())
            result["share"] = _share(model, self.host.glance(asked), result["a"])
        self._write(name, seed, result, model, asked)

    def _write(self, arm: str, seed: int, result: dict[str, Any], model: Any, asked: Any) -> None:
        right = self.host.right(model, asked)
        write_json(self.folder / f"{arm}-{seed}.json", {**result, "right": "".join("01"[int(r)] for r in right)})

    def _patch(self, model: Any, arm: Arm, seed: int, rows: Any, asked: Any) -> None:
        prior, name = self.host.prior(), "trained"
        if arm.features == "twin":
            prior, name = vega3d.analysis.untrained_twin(prior, seed=seed), f"twin-{seed}"
        self.host.patch(model, prior)
        branch = vega3d.get_handle(model).branch
        file = self.folder / f"features-{name}{'-more' if arm.more else ''}.safetensors"
        memory = KeptInHalf()
        if file.exists():
            memory.features.update(load_file(file))
        branch.store = memory
        if not file.exists():
            for part in (rows, asked):
                self.host.look(model, part)
            write_atomically(file, lambda place: save_file(dict(memory.features), place))
        if arm.features == "shuffled":
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


@torch.no_grad()
def _share(model: Any, batch: dict[str, Any], a: float) -> float:
    """Mean effective share of the generative tokens in the fused ones, over some questions."""
    with vega3d.record_gates(model) as gates:
        model(**batch)
    return float(a * (1 - torch.cat([gate.flatten() for gate in gates])).mean())
