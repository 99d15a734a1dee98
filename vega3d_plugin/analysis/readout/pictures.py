"""Frames and depth maps inside a result's text, and the sheet that shows them side by side."""

from __future__ import annotations

import base64
import binascii
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...errors import AnalysisError

#: Sides beyond which nothing that a result holds is decoded.
_LARGEST = 4096


def encode_depth(depth: Tensor) -> str:
    """Depth ``[H, W]`` in metres, 0 to 65 (0 for none), as a 16-bit PNG of millimetres in base64."""
    millimetres = (depth.clamp(0, 65.535) * 1000).round().to(torch.int32).numpy().astype(np.uint16)
    return _encoded(Image.fromarray(millimetres), "PNG")


def encode_frame(frame: Tensor, longest: int = 480) -> str:
    """A frame ``[3, H, W]`` in [0, 1] as a JPEG of at most ``longest`` pixels a side in base64."""
    pixels = (frame.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(pixels)
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return _encoded(image, "JPEG")


def decode_depth(text: str, size: tuple[int, int], where: str) -> NDArray[np.float32]:
    """Metres ``[H, W]`` of what :func:`encode_depth` made.

    Raises:
        AnalysisError: another size, another picture, or none.
    """
    image = _decoded(text, "PNG", where)
    if (image.height, image.width) != tuple(size) or image.mode not in ("I;16", "I;16B", "I;16L"):
        raise AnalysisError(
            f"{where}: expected a depth map of {size[1]}x{size[0]} with 16 bits, found {image.width}x{image.height}, "
            f"mode {image.mode}."
        )
    return np.asarray(image).astype(np.float32) / 1000


def decode_frame(text: str, where: str) -> Image.Image:
    """The picture that :func:`encode_frame` made. Raises :class:`AnalysisError` when it is none."""
    return _decoded(text, "JPEG", where).convert("RGB")


def _encoded(image: Image.Image, kind: str) -> str:
    file = BytesIO()
    image.save(file, kind, **({"quality": 88} if kind == "JPEG" else {"optimize": True}))
    return base64.b64encode(file.getvalue()).decode("ascii")


def _decoded(text: str, kind: str, where: str) -> Image.Image:
    try:
        image = Image.open(BytesIO(base64.b64decode(text, validate=True)), formats=[kind])
        if max(image.size) > _LARGEST:
            raise AnalysisError(f"{where} is {image.width}x{image.height}; at most {_LARGEST} pixels a side are read.")
        image.load()
    except (binascii.Error, ValueError, OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, AnalysisError):
            raise
        raise AnalysisError(f"{where} is no {kind} picture in base64, or damaged ({error}).") from None
    return image
