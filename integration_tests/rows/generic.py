"""Rows of the adapter ``transformers``: every family that it patches in the installed transformers."""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from typing import Any

import torch

from vega3d_transformers.reader import IMAGES
from vega3d_transformers.tiny import IMAGE, available_families, tiny_model, tiny_processor

from .host import Batch, Host, random_picture

#: Families that the adapter patches, and the tokens of one picture, rows and columns.
GRIDS = {
    "internvl": (4, 4), "idefics3": (4, 4), "smolvlm": (4, 4), "gemma3": (4, 4), "paligemma": (8, 8),
    "aya_vision": (4, 4), "cohere2_vision": (4, 4), "mistral3": (3, 4), "got_ocr2": (4, 4), "janus": (8, 8),
    "ovis2": (8, 8), "deepseek_vl": (8, 8), "lighton_ocr": (3, 4),
}  # fmt: skip
#: Height and width of the pictures of families that keep their proportions, cut to whole cells.
WIDE = {"mistral3": (64, 112), "lighton_ocr": (64, 112)}


def generic_batch(family: str, images: int = 2) -> Batch:
    """A prompt with words and pictures, put together by hand."""
    if not images:
        return {"input_ids": torch.arange(3, 11)[None]}
    size = WIDE.get(family, (96, 96))
    pictures = [random_picture(*size, seed=index) for index in range(images)]
    processor = tiny_processor(family)
    # One sample with several pictures.
    nested = family in ("idefics3", "smolvlm", "gemma3")
    prepared: dict[str, Any] = dict(processor(images=[pictures] if nested else pictures, return_tensors="pt"))
    h, w = GRIDS[family]
    picture = torch.full((h * w,), IMAGE)
    words = torch.arange(3, 8)
    ids = torch.cat([words, *[torch.cat([picture, words]) for _ in pictures]])[None]
    batch: Batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    taken = inspect.signature(type(tiny_model(family)).forward).parameters
    batch |= {name: value for name, value in prepared.items() if name in taken}
    if "token_type_ids" in taken and family in ("gemma3", "paligemma"):
        batch["token_type_ids"] = (ids == IMAGE).long()
    return batch


def row(family: str) -> Host:
    return Host(
        family,
        "transformers",
        build=lambda: tiny_model(family),
        batch=lambda: generic_batch(family),
        text_batch=lambda: generic_batch(family, images=0),
        grids=((1, *GRIDS[family]),) * 2,
        options={"host": "transformers", "processor": tiny_processor(family)},
        limits=PICKLE if family in COLLECTING else {},
    )


def patched_families() -> list[str]:
    """Families of :data:`GRIDS` that the installed transformers has, with the method that the adapter needs."""
    return [f for f in available_families() if f in GRIDS and _has_method(f)]


def _has_method(family: str) -> bool:
    return any(callable(getattr(type(module), IMAGES, None)) for module in tiny_model(family).modules())


#: Families for which all promises are tested; the others differ from one of these in nothing that the seam meets.
#: Pictures of several sizes, samples padded with black pictures, a class token, a projector that pools, tokens that are
#: scaled afterwards, and a projector that is called a second time for something else.
PROMISED = ("mistral3", "smolvlm", "internvl", "gemma3", "paligemma", "ovis2")
#: Once run, the vision tower keeps a hook of transformers' own, which is a local function.
PICKLE = {"test_pickle_and_torch_save": "transformers' hook that collects hidden states cannot be pickled"}
COLLECTING = ("internvl", "aya_vision", "mistral3") if find_spec("transformers.utils.output_capturing") else ()
FAMILIES = patched_families()
ROWS = [row(family) for family in FAMILIES if family in PROMISED]
