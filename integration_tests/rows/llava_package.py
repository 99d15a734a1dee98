"""Rows of the adapter ``llava_video`` for the package ``llava``: a double, and whichever real package is there.

LLaVA-NeXT and the published ``llava-torch`` have one import name, so a run sees one of them: the checkout where
``VEGA3D_HOST_SOURCES`` names one, else the package where it is installed. Both need transformers 4.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from doubles.llava import double_model
from host_sources import host_source
from torch import Tensor, nn

from .host import Batch, Host

CROP = 56
PLACEHOLDER = -200


def pictures(count: int, side: int = CROP, seed: int = 0) -> Tensor:
    """Normalised pictures of noise, ``[count, 3, side, side]``, whose pixels were in [0, 1]."""
    return (torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) - 0.5) / 0.5


def prompt(*placeholders: int) -> Tensor:
    """Words with placeholders before some of them."""
    ids = [5, 6, 7, 8, 9, 10, 11]
    for at in sorted(placeholders, reverse=True):
        ids.insert(at, PLACEHOLDER)
    return torch.tensor([ids])


def mixed_batch(side: int = CROP) -> Batch:
    """One prompt with an image, a video of four frames and another image."""
    images = [pictures(1, side, 1), pictures(4, side, 2), pictures(1, side, 3)]
    return {"input_ids": prompt(1, 3, 5), "images": images, "modalities": ["image", "video", "image"]}


def _generate(model: nn.Module, batch: Batch, **options: Any) -> Tensor:
    given = dict(batch)
    out: Tensor = model.generate(given.pop("input_ids"), **given, **options)
    return out


def text_batch() -> Batch:
    """A prompt of words."""
    return {"input_ids": prompt()}


def installed() -> str:
    """``LLaVA-NeXT``, ``llava-torch`` or an empty string: which package ``llava`` this run can import."""
    import transformers

    if int(transformers.__version__.partition(".")[0]) >= 5:
        return ""
    checkout = host_source("LLaVA-NeXT")
    if checkout is not None:
        if str(checkout) not in sys.path:
            sys.path.insert(0, str(checkout))
        return "LLaVA-NeXT"
    return "llava-torch" if importlib.util.find_spec("llava") is not None else ""


@cache
def tower_folder() -> str:
    """A CLIP vision tower with random weights, in the layout that is downloaded; kept as long as the process lives."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    keep = tempfile.TemporaryDirectory(prefix="vega3d-clip-")
    _KEPT.append(keep)
    config = CLIPVisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=CROP, patch_size=14
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPVisionModel(config).save_pretrained(keep.name)
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    size = {"size": {"shortest_edge": CROP}, "crop_size": {"height": CROP, "width": CROP}}
    CLIPImageProcessor(**size, **half).save_pretrained(keep.name)
    return str(Path(keep.name))


_KEPT: list[tempfile.TemporaryDirectory] = []


def common_config() -> dict[str, Any]:
    """What a tiny causal model and its vision modules are configured with."""
    return {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0, "tie_word_embeddings": False,
        "mm_vision_tower": tower_folder(), "mm_hidden_size": 24, "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch", "mm_projector_type": "mlp2x_gelu",
    }  # fmt: skip


def next_model(**settings: Any) -> nn.Module:
    """The real ``LlavaQwenForCausalLM`` of a LLaVA-NeXT checkout."""
    from llava.model.language_model.llava_qwen import LlavaQwenConfig, LlavaQwenForCausalLM

    newline = {
        "mm_patch_merge_type": "spatial_unpad",
        "mm_newline_position": "grid",
        "mm_spatial_pool_mode": "bilinear",
    }
    config = LlavaQwenConfig(**{**common_config(), **newline, **settings})
    return _finished(LlavaQwenForCausalLM, config)


def torch_model() -> nn.Module:
    """The real ``LlavaLlamaForCausalLM`` of the package ``llava-torch``."""
    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

    return _finished(LlavaLlamaForCausalLM, LlavaConfig(**common_config(), mm_patch_merge_type="flat"))


def _finished(model_class: Any, config: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config)
        newline = getattr(model.model, "image_newline", None)
        if newline is not None:
            # The real one leaves it uninitialised.
            nn.init.normal_(newline)
    model.generation_config.do_sample = False
    return model.eval() if getattr(config, "delay_load", False) else _with_tower(model)


def _with_tower(model: nn.Module) -> nn.Module:
    """``llava-torch`` always leaves the tower to be loaded by its user."""
    tower: Any = model.get_vision_tower()  # type: ignore[operator]
    if not tower.is_loaded:
        tower.load_model()
    return model.eval()


def _load(model_class: Any, folder: Path) -> nn.Module:
    return _with_tower(model_class.from_pretrained(folder))


def images_batch() -> Batch:
    """One prompt with two images, for hosts without videos."""
    return {"input_ids": prompt(1, 4), "images": [pictures(1, seed=1), pictures(1, seed=3)]}


MIXED = ((1, 4, 4), (1, 4, 4), (4, 2, 2))


def _rows() -> list[Host]:
    def row(name: str, build: Any, batch: Any, grids: Any, **options: Any) -> Host:
        return Host(
            name,
            "llava_video",
            build,
            batch,
            text_batch,
            grids,
            visual="images",
            generate=_generate,
            load=_load,
            **options,
        )

    rows = [row("llava_double", double_model, mixed_batch, MIXED)]
    package = installed()
    if package == "LLaVA-NeXT":
        rows.append(row("llava_next", next_model, mixed_batch, MIXED))
    if package == "llava-torch":
        reason = "its forward takes no cache_position, which generate of transformers 4.50 passes"
        tests = ("test_generate", "test_generate_with_beams", "test_ordinary_use_raises_no_such_warning")
        limits = dict.fromkeys(tests, reason)
        rows.append(row("llava_torch", torch_model, images_batch, ((1, 4, 4), (1, 4, 4)), limits=limits))
    return rows


ROWS = _rows()
