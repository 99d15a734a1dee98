"""With which mean and standard deviation a host's processor normalises pixels."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

from .clips import RANGE_TOLERANCE, PixelStatistics
from .errors import HostError

if TYPE_CHECKING:
    from torch import Tensor

# OpenAI CLIP's statistics; plain 0.5, which SigLIP and others use; and pixels that are left in [0, 1].
CLIP = PixelStatistics((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = PixelStatistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PLAIN = PixelStatistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
#: Range of pixels in [0, 1] below which a picture says nothing of its statistics.
FLAT = 0.1
#: With which hosts normalise pixels, to name those that would fit.
KNOWN = {
    "ImageNet's": PixelStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "0.5 throughout": HALF,
    "OpenAI CLIP's": CLIP,
    "none, pixels in [0, 1]": PLAIN,
    "none, pixels in 0..255": PixelStatistics((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}


def read_statistics(processor: Any) -> PixelStatistics | None:
    """Those of an image or video processor; None when it has none.

    Raises:
        HostError: it has some, but not one number or three.
    """
    if getattr(processor, "do_normalize", True) is False:
        return PLAIN
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    if mean is None or std is None:
        return None
    try:
        return PixelStatistics.of(mean, std)
    except (TypeError, ValueError):
        raise HostError(
            f"Processor {type(processor).__name__} has image_mean={mean!r} and image_std={std!r}; expected one number "
            "or three."
        ) from None


def processor_statistics(processor: Any, host: str) -> PixelStatistics:
    """Those of a host's processor, for its images and its videos alike.

    Args:
        processor: a multimodal processor, or an image processor.
        host: name of the adapter, for the message.

    Raises:
        HostError: it has none, or others for videos than for images.
    """
    found = read_statistics(getattr(processor, "image_processor", processor))
    if found is None:
        raise HostError(
            f"Host {host!r}: processor {type(processor).__name__} has no image_mean and image_std. Pass the model's "
            "own processor (AutoProcessor.from_pretrained)."
        )
    videos = getattr(processor, "video_processor", None)
    other = None if videos is None else read_statistics(videos)
    if other is not None and other != found:
        raise HostError(
            f"Host {host!r}: the processor normalises images with {found} but videos with {other}; a clip is given to "
            "the prior with one of them. Give both the same statistics."
        )
    return found


def out_of_range(frames: Tensor, statistics: PixelStatistics, source: str) -> str:
    """What is wrong with the statistics that gave these frames, and which would fit.

    Empty when the frames lie in [0, 1], and when they are no numbers, which tells nothing of statistics.

    Args:
        frames: ``[..., 3, H, W]``, un-normalised.
        statistics: with which that was done.
        source: where these come from.
    """
    low, high = (float(value) for value in frames.aminmax())
    if not (isfinite(low) and isfinite(high)) or (low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):
        return ""
    pixels, fitting = statistics.normalise(frames), []
    for name, known in KNOWN.items():
        shown = known.unnormalise(pixels)
        least, most = (float(value) for value in shown.aminmax())
        # A photograph uses most of the range; one that is nearly of one colour fits anything.
        if least >= -RANGE_TOLERANCE and most <= 1 + RANGE_TOLERANCE and most - least > FLAT:
            fitting.append((most - least, name))
    likely = f" These would fit: {max(fitting)[1]}." if fitting else ""
    return (
        f"un-normalised with {statistics}, from the {source}, the pixels lie in [{low:.2f}, {high:.2f}]: these pixel "
        f"statistics are wrong.{likely} Pass the processor that makes the pixels: vega3d.patch(model, "
        "processor=processor)."
    )


__all__ = ["CLIP", "HALF", "KNOWN", "PLAIN", "out_of_range", "processor_statistics", "read_statistics"]
