"""Alignment to a host's grid, as the released Qwen branch does it."""

from __future__ import annotations

from support import goldens

import vega3d


def test_align_to_the_patch_grid() -> None:
    golden = goldens.load("align_grid_sr")
    for case in golden.info["cases"]:
        features = golden.inputs[f"feat_{case['i']}"]
        h, w = case["grid"]
        aligned = vega3d.align(features, vega3d.TokenGrid(features.shape[0], h, w))
        tokens = aligned.flatten(2).transpose(1, 2)
        assert goldens.error(tokens, golden.outputs[f"tokens_{case['i']}"]) < 1e-4, case
