"""How large pictures and frames of videos may be: one rule, looked at before a pixel is decoded.

A few kilobytes can say that they are a picture of any size. So a file may hold as many pixels as fit into 100 MB, or as
many as its own size is worth: the flattest photographs have 30 pixels a byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from PIL import Image

from ..contracts.errors import Vega3dError
from ..contracts.printable import first_line

#: Pixels that any file may have (8K video has 33 million), how many more for each of its bytes, and how many at all.
SMALL, RATIO, LARGEST = 1 << 25, 64, 10**8
#: Pixels of one side.
LONGEST = 1 << 16
#: Kinds of pictures that are read, by Pillow's names. Of the others it knows, one runs a program (EPS: Ghostscript).
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "TIFF", "PPM", "GIF", "AVIF", "JPEG2000")
#: What Pillow raises for pictures that are none.
UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError, MemoryError,
    Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip


def too_large(width: int, height: int, size: int) -> str:
    """Why a picture is not decoded, for a message; empty when it is small enough.

    Args:
        width, height: in pixels.
        size: of its file, in bytes.
    """
    pixels = width * height
    if max(width, height) > LONGEST or pixels > LARGEST:
        return f"is {width}x{height}, more than {LARGEST:,} pixels or {LONGEST:,} on a side"
    if pixels > max(SMALL, RATIO * size):
        return f"is {width}x{height} in {size:,} bytes, more than {SMALL:,} pixels or {RATIO} for each of its bytes"
    return ""


@contextmanager
def opened_picture(
    source: Path | bytes, error: type[Vega3dError], where: str = "", formats: tuple[str, ...] = FORMATS
) -> Iterator[Image.Image]:
    """A picture, opened and not decoded yet, no larger than the rule allows.

    Args:
        source: a file, or its bytes.
        error: what to raise.
        where: what to call it in messages; default: its path.
        formats: that it may have, by Pillow's names.

    Raises:
        Vega3dError: of the given type: no picture, a damaged one (also while it is decoded), or one that is too large.
        FileNotFoundError: there is no such file.
    """
    name = where or str(source)
    Image.init()
    known = [each for each in formats if each in Image.OPEN]
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=known) as image:
            size = len(source) if isinstance(source, bytes) else source.stat().st_size
            problem = too_large(image.width, image.height, size)
            if problem:
                raise error(f"{name} {problem}. Make it smaller.")
            yield image
    except FileNotFoundError:
        raise
    except UNREADABLE as problem:
        if isinstance(problem, Vega3dError):
            raise
        reason = first_line(problem) or type(problem).__name__
        raise error(f"{name} cannot be read: it is not an image, or damaged ({reason}).") from problem


def as_rgb(image: Image.Image, error: type[Vega3dError], where: str) -> Image.Image:
    """The picture as RGB of 8 bits.

    Pillow cuts numbers of more bits off at 255 instead of scaling them, so that such a picture becomes white.

    Raises:
        Vega3dError: of the given type: one channel of 16 or 32 bits, as depth maps have.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise error(
            f"{where} has one channel of more than 8 bits (mode {image.mode}), as a depth map has: no picture that a "
            "model could be shown. If it is one, scale its values to 0 to 255 and save it with 8 bits."
        )
    return image.convert("RGB")
