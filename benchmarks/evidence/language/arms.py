"""The arms: a host trained alone or with a branch behind one of several priors, on the same rows."""

from __future__ import annotations

import json
import time
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
BRANCHED = ("twin", "shuffled", "trained")


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

    def _train(self, arm: str, seed: int) -> None:
        rows, asked = self.host.encoded(blind=arm == "blind")
        model = self.host.build(seed)
        if arm in BRANCHED:
            self._patch(model, arm, seed, rows, asked)
        started = time.process_time()
        losses = self.host.learn(model, rows, seed, FASTER if arm == "host-fast" else 1.0)
        seconds = time.process_time() - started
        result = {
            "rows": self.digest,
            "losses": [round(loss, 4) for loss in losses],
            "ms": round(1000 * seconds / len(losses)),
            "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        }
        if arm == "trained":
            with vega3d.zeroed(model):
                self._write("zeroed", seed, {"rows": self.digest}, model, asked)
        if arm in BRANCHED:
            result["a"] = float(vega3d.get_handle(model).branch.fuser.residual_scale.detach())
            result["share"] = _share(model, self.host.glance(asked), result["a"])
        self._write(arm, seed, result, model, asked)

    def _write(self, arm: str, seed: int, result: dict[str, Any], model: Any, asked: Any) -> None:
        right = self.host.right(model, asked)
        write_json(self.folder / f"{arm}-{seed}.json", {**result, "right": "".join("01"[int(r)] for r in right)})

    def _patch(self, model: Any, arm: str, seed: int, rows: Any, asked: Any) -> None:
        prior = self.host.prior()
        if arm == "twin":
            prior = vega3d.analysis.untrained_twin(prior, seed=seed)
        self.host.patch(model, prior)
        branch = vega3d.get_handle(model).branch
        file = self.folder / f"features-{f'twin-{seed}' if arm == 'twin' else 'trained'}.safetensors"
        memory = KeptInHalf()
        if file.exists():
            memory.features.update(load_file(file))
        branch.store = memory
        if not file.exists():
            for part in (rows, asked):
                self.host.look(model, part)
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


@torch.no_grad()
def _share(model: Any, batch: dict[str, Any], a: float) -> float:
    """Mean effective share of the generative tokens in the fused ones, over some questions."""
    with vega3d.record_gates(model) as gates:
        model(**batch)
    return float(a * (1 - torch.cat([gate.flatten() for gate in gates])).mean())
