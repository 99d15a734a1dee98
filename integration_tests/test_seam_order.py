"""Every generative token lands on the token of its own place: measured at the seam and behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

import vega3d
from vega3d_qwen_vl.tiny import tiny_processor

VOCABULARY = {"image_token_id": 10, "video_token_id": 11, "audio_token_id": 12}


def light(frames: Tensor) -> Tensor:
    """A prior that sees brightness alone, so that what changes a token is what lies in its place."""
    return torch.nn.functional.adaptive_avg_pool2d(frames.mean(dim=1, keepdim=True), (40, 40))


def omni() -> nn.Module:
    """A small Qwen2.5-Omni thinker: its merger works in the order of windows, which its tower undoes."""
    config = transformers.Qwen2_5OmniThinkerConfig(
        audio_config={
            "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "output_dim": 64,
            "num_mel_bins": 16, "max_source_positions": 50, "n_window": 10,
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
            "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1],
        },
        text_config={
            "vocab_size": 400, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_window_layers": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
        },
        **VOCABULARY,
    )  # fmt: skip
    torch.manual_seed(0)
    model: nn.Module = transformers.Qwen2_5OmniThinkerForConditionalGeneration(config)
    return model.eval()


@pytest.fixture(scope="module")
def patched() -> tuple[nn.Module, Any]:
    if not hasattr(transformers, "Qwen2_5OmniThinkerForConditionalGeneration"):
        pytest.skip("this transformers has no Qwen2.5-Omni")
    processor = tiny_processor("qwen2_5_vl", max_pixels=1024 * 28 * 28)
    prior = vega3d.CallablePrior(light, feature_dim=1, fingerprint="light")
    model = vega3d.patch(
        omni(), prior, host="transformers", processor=processor, fusion="only", init="released", projector="mlp2x_gelu"
    )
    return model, processor


def prepared(processor: Any, picture: np.ndarray) -> Mapping[str, Tensor]:
    made = processor.image_processor(images=[Image.fromarray(picture)], return_tensors="pt")
    return {name: made[name] for name in ("pixel_values", "image_grid_thw")}


def fused(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The tokens as the language model gets them: ``[L, D]``."""
    with torch.no_grad():
        found: Any = model.get_submodule("model").get_image_features(**batch)
    found = getattr(found, "pooler_output", found)
    return torch.cat(list(found)) if not isinstance(found, Tensor) else found


@pytest.mark.parametrize("size", [(224, 224), (140, 420), (336, 112)], ids=str)
@pytest.mark.parametrize("quarter", range(4))
def test_the_tokens_that_change_lie_where_the_light_is(
    patched: tuple[nn.Module, Any], size: tuple[int, int], quarter: int
) -> None:
    model, processor = patched
    height, width = size
    dark = np.full((*size, 3), 30, dtype=np.uint8)
    lit = dark.copy()
    top, left = quarter // 2 * (height // 2), quarter % 2 * (width // 2)
    lit[top : top + height // 2, left : left + width // 2] = 220
    batch = prepared(processor, dark)
    _, h, w = (int(value) for value in batch["image_grid_thw"][0])
    rows, columns = h // 2, w // 2
    changed = (fused(model, batch) != fused(model, prepared(processor, lit))).any(dim=1).reshape(rows, columns)
    inside = torch.zeros(rows, columns, dtype=torch.bool)
    inside[quarter // 2 * rows // 2 : (quarter // 2 + 1) * rows // 2 + rows % 2, :] = True
    sides = torch.zeros(rows, columns, dtype=torch.bool)
    sides[:, quarter % 2 * columns // 2 : (quarter % 2 + 1) * columns // 2 + columns % 2] = True
    # Resampling reaches one token over the border.
    near = torch.nn.functional.max_pool2d((inside & sides).float()[None, None], 3, 1, 1)[0, 0].bool()
    assert changed.any()
    assert not bool((changed & ~near).any())
    core = changed[inside & sides].float().mean()
    assert core > 0.9


def test_the_seam_is_where_the_order_is_that_of_the_picture(patched: tuple[nn.Module, Any]) -> None:
    assert vega3d.get_handle(patched[0]).seam.path == "model.visual"
