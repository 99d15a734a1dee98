"""Rows of the adapter ``transformers``: every family that it patches in the installed transformers."""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from typing import Any

import torch
import transformers
from packaging.version import Version

from vega3d_transformers.tiny import FAMILIES as KNOWN
from vega3d_transformers.tiny import (
    IMAGE,
    VIDEO,
    available_families,
    tiny_model,
    tiny_processor,
    tiny_video_processor,
)

from .host import Batch, Host, random_picture, random_video

#: Families that the adapter patches, and the tokens of one picture, rows and columns.
GRIDS = {
    "internvl": (4, 4), "idefics3": (4, 4), "smolvlm": (4, 4), "gemma3": (4, 4), "paligemma": (8, 8),
    "aya_vision": (4, 4), "cohere2_vision": (4, 4), "mistral3": (3, 4), "got_ocr2": (8, 8), "janus": (8, 8),
    "ovis2": (8, 8), "deepseek_vl": (8, 8), "lighton_ocr": (3, 4), "glm4v": (2, 4), "glm4v_moe": (2, 4),
    "glm46v": (2, 4), "video_llama_3": (4, 8),
}  # fmt: skip
#: Families whose processors pack pictures into rows of patches.
PACKED = ("glm4v", "glm4v_moe", "glm46v", "video_llama_3")
#: Height and width of the pictures of families that keep their proportions; those of packed ones are not resized.
WIDE = {"mistral3": (64, 112), "lighton_ocr": (64, 112), **dict.fromkeys(PACKED, (56, 112))}
#: Token grid of the video of families that take one beside pictures. GLM-4V marks both alike, and confuses them itself.
VIDEOS = {"video_llama_3": (4, 2, 4)}
FRAMES = 4


def generic_batch(family: str, images: int = 2) -> Batch:
    """A prompt with words and pictures, and a video where the family takes both, put together by hand."""
    if not images:
        return {"input_ids": torch.arange(3, 11)[None]}
    pictures = [picture_of(family, index) for index in range(images)]
    processor = tiny_processor(family)
    # One sample with several pictures.
    nested = family in ("idefics3", "smolvlm", "gemma3")
    prepared: dict[str, Any] = dict(processor(images=[pictures] if nested else pictures, return_tensors="pt"))
    h, w = GRIDS[family]
    media = [(IMAGE, h * w)] * images
    if family in VIDEOS:
        prepared |= prepared_video(family)
        media.append((VIDEO, VIDEOS[family][0] * VIDEOS[family][1] * VIDEOS[family][2]))
    return prompt(family, media, prepared)


def picture_of(family: str, seed: int) -> Any:
    """A picture of noise in a size that the family's processor hardly touches."""
    return random_picture(*WIDE.get(family, (96, 96)), seed=seed)


def prepared_video(family: str) -> dict[str, Any]:
    """What the family's video processor makes of a video of noise, which is not resized."""
    given = random_video(FRAMES, *WIDE[family])
    return dict(tiny_video_processor(family)(videos=[given], return_tensors="pt"))


def prompt(family: str, media: list[tuple[int, int]], prepared: dict[str, Any], kinds: tuple[int, ...] = ()) -> Batch:
    """Words around visual tokens, with what the model's forward takes of the rest.

    Args:
        family: see there.
        media: token and number of tokens of each picture or video.
        prepared: by the processors.
        kinds: what GLM-4V calls each of them, 1 a picture and 2 a frame of a video; default: all pictures.
    """
    words = torch.arange(3, 8)
    ids, types = [words], [torch.zeros(5)]
    for (token, count), kind in zip(media, kinds or (1,) * len(media), strict=True):
        ids += [torch.full((count,), token), words]
        types += [torch.full((count,), kind), torch.zeros(5)]
    batch: Batch = {"input_ids": torch.cat(ids)[None]}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    taken = inspect.signature(type(tiny_model(family)).forward).parameters
    batch |= {name: value for name, value in prepared.items() if name in taken}
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in taken and family in ("gemma3", "paligemma", "glm4v", "glm4v_moe", "glm46v"):
            batch[name] = torch.cat(types)[None].long()
    return batch


def row(family: str) -> Host:
    return Host(
        family,
        "transformers",
        build=lambda: tiny_model(family),
        batch=lambda: generic_batch(family),
        text_batch=lambda: generic_batch(family, images=0),
        grids=((1, *GRIDS[family]),) * 2 + ((VIDEOS[family],) if family in VIDEOS else ()),
        options={"host": "transformers", "processor": tiny_processor(family)},
        limits=PICKLE if family in COLLECTING else {},
    )


#: Families for which all promises are tested; the others differ from one of these in nothing that the seam meets.
#: Pictures of several sizes, samples padded with black pictures, a class token, a projector that pools, tokens that are
#: scaled afterwards, a projector that is called a second time for something else, one inside the vision tower, and rows
#: of patches with a video.
PROMISED = ("mistral3", "smolvlm", "internvl", "gemma3", "paligemma", "ovis2", "glm4v", "video_llama_3")
#: Once run, the vision tower keeps a hook of transformers' own, which is a local function.
PICKLE = {"test_pickle_and_torch_save": "transformers' hook that collects hidden states cannot be pickled"}
COLLECTING = ("internvl", "aya_vision", "mistral3") if find_spec("transformers.utils.output_capturing") else ()
#: Before transformers 4.51: families that are there, without the method that the adapter needs.
OLD = Version(transformers.__version__) < Version("4.51")
LATE = {"idefics3", "smolvlm", "blip_2", "instructblip", "idefics2", "chameleon", "kosmos2"} if OLD else set()
#: Families of the installed transformers that the adapter patches.
FAMILIES = [family for family in available_families() if family in GRIDS and family not in LATE]
ROWS = [row(family) for family in FAMILIES if family in PROMISED]

__all__ = [
    "FAMILIES", "FRAMES", "GRIDS", "KNOWN", "LATE", "OLD", "PACKED", "ROWS", "VIDEOS", "WIDE", "generic_batch",
    "picture_of", "prepared_video", "prompt", "row",
]  # fmt: skip
