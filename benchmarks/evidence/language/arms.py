"""The arms: one base host a seed, then the same LoRA training with no branch, or with one of several priors behind it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import vega3d
from vega3d_plugin.contracts.seeded import seeded
from vega3d_plugin.storage.writing import write_atomically

from .features import KeptFeatures, compute, trained_prior, untrained_prior
from .host import Encoded, Statistics, build_host
from .rooms import Rows, make_rows
from .training import Schedule, answered, learn, trainable

#: Name to what it is, in the order of the table.
ARMS = {
    "blind": "host, grey pictures",
    "host": "host + LoRA",
    "host-fast": "host + LoRA, three times the learning rate",
    "twin": "+ branch, untrained twin of small-world",
    "shuffled": "+ branch, small-world's features of another room",
    "trained": "+ branch, small-world",
    "zeroed": "the same, features set to zero after training",
}
BRANCH = {"images": "scene", "projector": {"name": "mlp", "hidden_dim": 128}}


@dataclass(frozen=True)
class Plan:
    """Sizes of the experiment.

    Attributes:
        rooms: of the splits train, validation and test.
        base: training of the base host, all of its weights.
        arm: training of an arm: LoRA in the language model, and the branch.
    """

    rooms: tuple[int, int, int] = (200, 20, 60)
    base: Schedule = Schedule(1500, 1e-3)
    arm: Schedule = Schedule(400, 1e-3)


class Experiment:
    """Everything in one folder; what is there already is not done again.

    Args:
        folder: of states, features and results.
        plan: sizes; a folder of another plan is refused.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        folder.mkdir(parents=True, exist_ok=True)
        written, told = folder / "plan.json", json.dumps(asdict(plan))
        if written.is_file() and written.read_text() != told:
            raise SystemExit(f"{folder} holds an experiment of another plan: {written.read_text()}. Name a new folder.")
        written.write_text(told)
        splits = zip(("train", "validation", "test"), plan.rooms, strict=True)
        self.rows: dict[str, Rows] = {split: make_rows(split, rooms) for split, rooms in splits}
        self.encoded = {split: Encoded(rows) for split, rows in self.rows.items()}
        self._features: dict[str, KeptFeatures] = {}

    # Features

    def features(self, name: str) -> KeptFeatures:
        """Of ``trained`` or ``twin-SEED``, for the clips of all splits."""
        if name not in self._features:
            self._features[name] = self._read(name)
        return self._features[name]

    def _read(self, name: str) -> KeptFeatures:
        prior = trained_prior() if name == "trained" else untrained_prior(int(name.removeprefix("twin-")))
        parts = []
        for split, rows in self.rows.items():
            file = self.folder / f"features-{name}-{split}.safetensors"
            if not file.is_file():
                print(f"features of {name}, {split}: {len(rows.pictures)} clips", flush=True)
                kept = compute(prior, rows)
                save_file({"features": kept.features.contiguous()}, file.with_suffix(".part"))
                file.with_suffix(".part").rename(file)
                (self.folder / f"keys-{split}.json").write_text(json.dumps(list(kept.number)))
            keys = json.loads((self.folder / f"keys-{split}.json").read_text())
            parts.append((load_file(file)["features"], keys))
        return KeptFeatures(
            torch.cat([features for features, _ in parts]), [key for _, keys in parts for key in keys], prior.fingerprint
        )

    def prior_of(self, arm: str, seed: int) -> KeptFeatures | None:
        """What stands behind the branch of an arm."""
        if arm == "twin":
            return self.features(f"twin-{seed}")
        if arm == "shuffled":
            rooms = np.concatenate([_room_of_clips(rows) for rows in self.rows.values()])
            return self.features("trained").shuffled(rooms, seed)
        return self.features("trained") if arm in ("trained", "zeroed") else None

    # Training

    def base(self, seed: int) -> Any:
        """The host of a seed after its own training."""
        file = self.folder / f"base-{seed}.safetensors"
        host = build_host(seed)
        if not file.is_file():
            curve = learn(
                host, self.encoded["train"], self.plan.base, seed, validation=self.encoded["validation"],
                tell=lambda line: print(f"base {seed}: {line}", flush=True),
            )  # fmt: skip
            save_file({name: value.contiguous() for name, value in host.state_dict().items()}, file)
            self._write(f"base-{seed}", {"curve": curve.points})
        host.load_state_dict(load_file(file))
        return host

    def run(self, arm: str, seed: int) -> dict[str, Any]:
        """Train an arm and answer the test questions; or read what was answered."""
        file = self.folder / f"{arm}-{seed}.json"
        if file.is_file():
            return json.loads(file.read_text())
        if arm == "zeroed":
            self.run("trained", seed)
            return json.loads(file.read_text())
        model, prior = self.base(seed), self.prior_of(arm, seed)
        model = _with_lora(model, prior, seed)
        rate = self.plan.arm.rate * (3 if arm == "host-fast" else 1)
        schedule = Schedule(self.plan.arm.steps, rate, self.plan.arm.rows, self.plan.arm.branch_rate)
        blind = arm == "blind"
        curve = learn(
            model, self.encoded["train"], schedule, 1000 + seed, validation=self.encoded["validation"], blind=blind,
            every=50, tell=lambda line: print(f"{arm} {seed}: {line}", flush=True),
        )  # fmt: skip
        found = {"curve": curve.points, "trainable": trainable(model), **self._answers(model, blind)}
        if prior is not None:
            found["a"] = float(_scale(model))
        if arm == "trained":
            with vega3d.zeroed(model):
                self._write(f"zeroed-{seed}", self._answers(model, False))
        self._write(f"{arm}-{seed}", found)
        return found

    def _answers(self, model: Any, blind: bool) -> dict[str, str]:
        right = answered(model, self.encoded["test"], blind=blind)
        return {"right": "".join("01"[int(each)] for each in right), "rows": self.rows["test"].digest}

    def _write(self, name: str, values: dict[str, Any]) -> None:
        text = json.dumps(values)
        write_atomically(self.folder / f"{name}.json", lambda path: path.write_text(text))


def _with_lora(host: Any, prior: KeptFeatures | None, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    with seeded(seed):
        if prior is not None:
            vega3d.patch(host, prior, config=BRANCH, processor=Statistics())
        lora = LoraConfig(
            r=16,
            lora_alpha=32,
            target_modules=r".*language_model.*\.(q|k|v|o)_proj",
            modules_to_save=None if prior is None else ["vega3d"],
        )
        return get_peft_model(host, lora)


def _scale(model: Any) -> float:
    return next(float(p.detach()) for name, p in model.named_parameters() if name.endswith("residual_scale"))


def _room_of_clips(rows: Rows) -> np.ndarray[Any, Any]:
    rooms = np.zeros(len(rows.pictures), np.int64)
    rooms[rows.clip] = rows.room
    return rooms
