"""A run's figures beside their controls, as tables, and its curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from .measure import LEVELS, TEST_SEED, MovedPoints, controls, recall_by_block
from .model import block_outputs, build_transformer
from .pictures import draw_curves
from .readout import depth_score, positions
from .sampling import continuation
from .training import Run

FINAL_SEED = TEST_SEED + 1000


def judge(run: Run, worlds: int) -> str:
    """Tables for RESULTS.md, on worlds of their own."""
    points = MovedPoints(count=worlds, patch=run.settings.patch, seed=FINAL_SEED)
    blocks = [f"block {i}" for i in range(run.settings.blocks)]
    lines = [f"step {run.step}, {int(points.counted.sum())} moved points in {worlds} worlds", ""]
    lines += [_row("recall at noise", *blocks, "twin (best block)", "pixels", "pixels without noise", "same position")]
    lines += [_row(*["---"] * (len(blocks) + 5))]
    for name, levels in LEVELS.items():
        known, control = recall_by_block(run.transformer, points, levels), controls(points, levels, **run.size)
        others = [max(control["twins"]), control["pixels"], control["clean_pixels"], control["same_position"]]
        lines.append(_row(name, *known, *others))
    lines += ["", _row("depth at noise", *blocks, "twin (best block)", "pixels", "position alone"), _row(*["---"] * (len(blocks) + 4))]
    for name, levels in list(LEVELS.items())[:2]:
        noisy, _ = points.noisy(levels)
        twin = build_transformer(seed=1000, **run.size)
        scores = [_depths(model, points, levels) for model in (run.transformer, twin)]
        pixels = depth_score(points.patches(noisy)[:, 0], points.depths)
        place = depth_score(positions(points), points.depths)
        lines.append(_row(name, *scores[0], max(scores[1]), pixels, place))
    errors, _, _ = continuation(run.transformer, clips=min(worlds, 64))
    lines += ["", f"frames 3 and 4 after two given ones: {errors}"]
    return "\n".join(lines)


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
