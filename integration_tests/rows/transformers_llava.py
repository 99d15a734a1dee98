"""Rows of the adapter ``llava_transformers``: every family that the installed transformers has."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from vega3d_llava_video.tiny_transformers import tiny_model, tiny_processor

from .host import Batch, Host, random_picture, random_video

#: Height and width of the pictures: one above and one beside the square that the tower takes.
SIZES = ((64, 96), (90, 60))
FRAMES = 4
VIDEOS = ("llava_next_video", "llava_onevision", "video_llava")
#: Tokens of an image or tile, and of a pooled video frame, along each side.
IMAGE_SIDES = {"llava_onevision": 5}
VIDEO_SIDES = {"llava_next_video": 2, "llava_onevision": 3}

#: Once run, the vision tower keeps a hook of transformers' own, which is a local function.
PICKLE = {"test_pickle_and_torch_save": "transformers' hook that collects hidden states cannot be pickled"}
LIMITS = PICKLE if find_spec("transformers.utils.output_capturing") else {}


def llava_batch(family: str, images: int = 2, video: bool = True) -> Batch:
    """One prompt with images and, where the family takes them, a video; one without both."""
    processor = tiny_processor(family)
    pictures = [random_picture(*SIZES[i], seed=i) for i in range(images)]
    content: list[dict[str, str]] = [{"type": "image"} for _ in pictures]
    media: dict[str, Any] = {"images": pictures} if pictures else {}
    if video and family in VIDEOS:
        content.append({"type": "video"})
        media["videos"] = [random_video(FRAMES, 64, 96)]
    content.append({"type": "text", "text": "Left or right?"})
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    # Video-LLaVA's processor of transformers 4.50 fails without pictures.
    prepare = processor if media else processor.tokenizer
    return dict(prepare(text=[text], return_tensors="pt", **media))


def _grids(family: str) -> tuple[tuple[int, int, int], ...]:
    side = IMAGE_SIDES.get(family, 4)
    # Each picture fits two tiles beside or above each other, or four; its overview comes first.
    tiles = {"llava_next": 5 + 5, "llava_next_video": 5 + 5, "llava_onevision": 3 + 3}.get(family, len(SIZES))
    frame = VIDEO_SIDES.get(family, 4)
    videos = ((FRAMES, frame, frame),) if family in VIDEOS else ()
    return ((1, side, side),) * tiles + videos


def row(family: str) -> Host:
    batch = llava_batch(family)
    return Host(
        family,
        "llava_transformers",
        build=lambda: tiny_model(family),
        batch=lambda: llava_batch(family),
        text_batch=lambda: llava_batch(family, images=0, video=False),
        grids=_grids(family),
        visual="pixel_values" if "pixel_values" in batch else "pixel_values_images",
        limits=LIMITS,
    )


#: Families for which all promises are tested: the other two differ from these in nothing that the seam meets.
PROMISED = ("llava", "llava_next_video", "llava_onevision", "video_llava")
ROWS = [row(family) for family in PROMISED]
