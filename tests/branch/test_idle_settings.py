"""Settings that change nothing beside the others are told, and settings that cannot be meant are refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import vega3d
from vega3d_plugin.branch.idle_settings import idle_settings
from vega3d_plugin.contracts.errors import SettingsError, TrainError
from vega3d_plugin.hosts.pixel_area import set_pixel_area
from vega3d_plugin.recipes import RecipeError, read_recipe


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, ""),
        ({"images": "scene", "prior": {"name": "tiny-wan", "context": "views"}}, ""),
        ({"fusion": {"name": "cross_attention", "dropout": 0.0}}, ""),
        ({"images": "scene"}, "images='scene' has no effect"),
        ({"history": 2}, "history=2 has no effect"),
        ({"fusion": {"residual_scale": 1.0}}, "residual_scale has no effect with init='identity'"),
        ({"fusion": {"name": "add", "residual_scale": 1.0}}, "residual_scale has no effect with 'add'"),
        ({"fusion": {"dropout": 0.3}}, "fusion.dropout has no effect with 'token_gated_residual'"),
    ],
)
def test_settings_without_effect(values: dict[str, Any], told: str) -> None:
    sentences = list(idle_settings(vega3d.BranchSettings.parse(values)))
    assert len(sentences) == bool(told)
    assert all(told in sentence for sentence in sentences)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "host={adapter: qwen_vl, model: tiny, min_pixels: 500, max_pixels: 400}",
            "min_pixels 500 is above max_pixels",
        ),
        ("lora.lora_alpha=0", "greater than 0"),
        ("lora.lora_dropout=2", "less than 1"),
    ],
)
def test_recipes_that_cannot_be_meant(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_recipe("qwen_vl/smoke", [override])


def test_every_has_a_bound() -> None:
    with pytest.raises(SettingsError, match="less than or equal to 64"):
        vega3d.PriorSettings.parse({"every": 10**9})


def test_an_area_against_the_processors_own() -> None:
    images = SimpleNamespace(size={"shortest_edge": 65536, "longest_edge": 10**6}, min_pixels=65536, max_pixels=10**6)
    processor = SimpleNamespace(image_processor=images)
    with pytest.raises(
        TrainError, match=r"host.min_pixels 65,536 \(the processor's own\) is above host.max_pixels 50,176"
    ):
        set_pixel_area(processor, None, 50176, TrainError, "host.")
    set_pixel_area(processor, 3136, 50176, TrainError)
    assert images.size == {"shortest_edge": 3136, "longest_edge": 50176}
    assert (images.min_pixels, images.max_pixels) == (3136, 50176)
