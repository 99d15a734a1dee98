"""A run's figures beside their controls, as tables, and its curves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .measure import LEVELS, MOVING, PALE, TEST_SEED, MovedPoints, controls, recall_by_block
from .model import block_outputs, build_transformer
from .pictures import draw_curves
from .readout import depth_score, positions
from .sampling import continuation
from .training import Run

FINAL_SEED = TEST_SEED + 2000
DRAWS = 2000


def judge(run: Run, worlds: int, block: int) -> Iterator[str]:
    """Tables for RESULTS.md, on worlds of their own; the block is compared with its controls world by world."""
    yield f"Step {run.step} of {run.settings.steps}."
    for name, settings in {"Full contrast": MOVING, "Contrast as in photographs": PALE}.items():
        points = MovedPoints(settings, worlds, run.settings.patch, FINAL_SEED)
        yield f"\n{name}: {int(points.counted.sum())} moved points in {worlds} worlds.\n"
        yield from _recall_table(run, points)
        yield ""
        yield from (_against_controls(run, points, block, level) for level in LEVELS)
        yield ""
        yield from _depth_table(run, points)
    errors, _, _ = continuation(run.transformer, clips=min(worlds, 64))
    yield f"\nFrames 3 and 4 after two given ones: {errors}"


def _recall_table(run: Run, points: MovedPoints) -> list[str]:
    lines = _head("recall at noise", run, "twins (best block)", "pixels", "pixels without noise", "same position")
    for name, levels in LEVELS.items():
        known, control = recall_by_block(run.transformer, points, levels), controls(points, levels, **run.size)
        others = [max(control["twins"]), control["pixels"], control["clean_pixels"], control["same_position"]]
        lines.append(_row(name, *known, *others))
    return lines


def _against_controls(run: Run, points: MovedPoints, block: int, name: str) -> str:
    """How much better a block is than its untrained twins and than the pixels, with intervals over worlds."""
    noisy, sigmas = points.noisy(LEVELS[name])
    twins = [build_transformer(seed=1000 + i, **run.size) for i in range(3)]
    known, *untrained = (
        points.by_world(points.hits(block_outputs(model, noisy, sigmas)[block])) for model in (run.transformer, *twins)
    )
    pixels, counts = points.by_world(points.hits(points.patches(noisy))), points.counted.sum(1).double()
    twin = torch.stack(untrained).mean(0)
    drawn = torch.randint(len(counts), (DRAWS, len(counts)), generator=torch.Generator().manual_seed(0))

    def told(values: Callable[[Tensor], Tensor]) -> str:
        """A figure of the whole, and its interval."""
        low, high = values(drawn).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return f"{float(values(torch.arange(len(counts))[None])):.2f} ({low:.2f} to {high:.2f})"

    alone = torch.cat([block_outputs(run.transformer, noisy[:, :, [i]], sigmas[:, [i]])[block] for i in (0, -1)], dim=1)
    each = points.by_world(points.hits(alone))
    recall = told(lambda worlds: known[worlds].sum(1) / counts[worlds].sum(1))
    ratio = told(lambda worlds: known[worlds].sum(1) / twin[worlds].sum(1))
    over = told(lambda worlds: (known - pixels)[worlds].sum(1) / counts[worlds].sum(1))
    joint = told(lambda worlds: (known - each)[worlds].sum(1) / counts[worlds].sum(1))
    return (
        f"- noise {name}, block {block}: recall {recall}, {ratio} times the twins', {over} more than the pixels', "
        f"{joint} more than with each frame alone"
    )


def _depth_table(run: Run, points: MovedPoints) -> list[str]:
    lines = _head("depth (R^2) at noise", run, "twin (best block)", "pixels", "position alone")
    twin = build_transformer(seed=1000, **run.size)
    for name, levels in list(LEVELS.items())[:2]:
        noisy, _ = points.noisy(levels)
        pixels = depth_score(points.patches(noisy)[:, 0], points.depths)
        place = depth_score(positions(points), points.depths)
        lines.append(
            _row(name, *_depths(run.transformer, points, levels), max(_depths(twin, points, levels)), pixels, place)
        )
    return lines


def _head(first: str, run: Run, *others: str) -> list[str]:
    cells = [first, *(f"block {i}" for i in range(run.settings.blocks)), *others]
    return [_row(*cells), _row(*["---"] * len(cells))]


def _depths(transformer: Any, points: MovedPoints, levels: tuple[float, float]) -> list[float]:
    noisy, sigmas = points.noisy(levels)
    tokens: list[Tensor] = block_outputs(transformer, noisy, sigmas)
    return [depth_score(block[:, 0], points.depths) for block in tokens]


def _row(*cells: Any) -> str:
    return "| " + " | ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"


def curves(lines: list[dict[str, Any]], path: Path) -> None:
    """Recall at each noise level over the steps: the best middle block, and its controls as level lines."""
    control = next(line["controls"] for line in lines if "controls" in line)
    steps = [line for line in lines if "recall" in line]
    panels = {}
    for name in LEVELS:
        last = steps[-1]["recall"][name]
        middle = range(1, len(last) - 1)
        panels[f"recall of moved points within one token, noise {name}"] = {
            "middle blocks, best": [(s["step"], max(s["recall"][name][i] for i in middle)) for s in steps],
            "last block": [(s["step"], s["recall"][name][-1]) for s in steps],
            **{
                label: [(0, value), (steps[-1]["step"], value)]
                for label, value in {
                    "twice the twin": 2 * max(control[name]["twins"]),
                    "untrained twin": max(control[name]["twins"]),
                    "pixels": control[name]["pixels"],
                    "pixels without noise": control[name]["clean_pixels"],
                }.items()
            },
        }
    draw_curves(panels, path)
