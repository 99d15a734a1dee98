"""Pixels changed in one part of a picture, in every host that can be built: does the branch change that part's tokens?

Which tokens those are is asked of the host itself, without a branch: the ones that change most when those pixels do.
With the fusion `only` and a prior that sees brightness, the branch then has to change the same ones. Wrong is another
place (the order at the seam is not that of the tokens), or none at all.
"""

from __future__ import annotations

import random
import re
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from _rows import Row
from torch import Tensor, nn

import vega3d

sys.path += [str(Path(__file__).parents[2] / folder) for folder in ("tests", "integration_tests")]

import hosts

#: How surely the host must tell the tokens that the branch changes from the others: 1 always, 0.5 by chance.
SURE = 0.8


def run(seconds: float) -> list[dict[str, Any]]:
    """Every host, once or for about so many seconds together; without any, some of the hosts."""
    chosen = hosts.HOSTS if seconds else hosts.HOSTS[::5]
    row, until, number = Row(f"pixels changed in one part, {len(chosen)} hosts"), time.monotonic() + seconds, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while not number or time.monotonic() < until:
            for host in chosen:
                tried(host, random.Random(f"{host.name} {number}"), row)
            number += 1
    return [asdict(row)]


def tried(host: hosts.Host, rng: random.Random, row: Row) -> None:
    """One part of the pictures of one host."""
    row.trials += 1
    try:
        sure = surety(host, rng)
    except Exception as error:
        row.raw += 1
        print(f"{host.name}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
        return
    if sure < SURE:
        row.wrong += 1
        print(f"{host.name}: the branch changes other tokens than the host ({sure:.2f})", file=sys.stderr)


def surety(host: hosts.Host, rng: random.Random) -> float:
    """How well the host's changes tell the tokens that the branch changes from the other visual ones."""
    batch = host.batch()
    part = changed(batch, rng.randrange(4))
    plain = host.build()
    own = change(plain, batch, part)
    visual = change(plain, batch, changed(batch, None)) > 0
    prior = vega3d.CallablePrior(brightness, feature_dim=1, fingerprint="brightness")
    options = {**host.options, "fusion": "only", "init": "released", "projector": "mlp2x_gelu"}
    torch.manual_seed(0)
    patched = vega3d.patch(host.build(), prior, **options)
    other = change(patched, batch, part)[visual]
    own = own[visual]
    hit = other > 0.2 * other.max()
    if not hit.any() or hit.all():
        return 0.0
    # The share of pairs in which the host changes the token more that the branch changes.
    return float((own[hit][:, None] > own[~hit][None]).double().mean())


def brightness(frames: Tensor) -> Tensor:
    """A prior that sees brightness alone, so that what changes a token is what lies in its place."""
    return torch.nn.functional.adaptive_avg_pool2d(frames.mean(dim=1, keepdim=True), (24, 24))


def change(model: nn.Module, batch: hosts.Batch, other: hosts.Batch) -> Tensor:
    """By how much each token changes that the language model is given."""
    first, second = given(model, batch), given(model, other)
    return (first - second).norm(dim=-1).flatten()


def given(model: nn.Module, batch: hosts.Batch) -> Tensor:
    """What the first layer of the language model is given: ``[B, L, D]``."""
    place = re.compile(r"(^|\.)(layers|h|blocks)\.0$")
    others = ("vis", "vega3d", "encoder", "tower", "projector", "image", "sam")
    layers = [m for n, m in model.named_modules() if place.search(n) and not any(word in n.lower() for word in others)]
    kept: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        kept.append((args[0] if args else options["hidden_states"]).detach().clone())

    handle = layers[0].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        hosts.logits(model, batch)
    finally:
        handle.remove()
    return kept[0]


def changed(batch: hosts.Batch, part: int | None) -> hosts.Batch:
    """The same prompt with a quarter of each picture in one of its colours; without a quarter, all of it.

    Packed patches are a table, whose rows are cut into four; pictures are cut across and down.
    """

    def of(value: Any) -> Any:
        if isinstance(value, list):
            return [of(item) for item in value]
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2:
            return value
        value = value.clone()
        # What stands at its beginning, so that nothing is out of range and channels still fit each other.
        first = value[:1].clone() if value.ndim == 2 else value[..., :1, :1].clone()
        for place in parts(value, part):
            place.copy_(first.expand_as(place))
        return value

    return {key: of(value) for key, value in batch.items()}


def parts(value: Tensor, part: int | None) -> Iterator[Tensor]:
    if part is None:
        yield value
    elif value.ndim == 2:
        rows = max(1, len(value) // 4)
        yield value[part * rows : (part + 1) * rows]
    else:
        height, width = value.shape[-2] // 2, value.shape[-1] // 2
        top, left = part // 2 * height, part % 2 * width
        yield value[..., top : top + height, left : left + width]
