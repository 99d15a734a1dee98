"""With which mean and standard deviation a host's processor normalises pixels."""

from __future__ import annotations

from typing import Any

from .clips import PixelStatistics
from .errors import HostError

# OpenAI CLIP's statistics; plain 0.5, which SigLIP and others use; and pixels that are left in [0, 1].
CLIP = PixelStatistics((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = PixelStatistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PLAIN = PixelStatistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def read_statistics(processor: Any) -> PixelStatistics | None:
    """Those of an image or video processor; None when it has none."""
    if getattr(processor, "do_normalize", True) is False:
        return PLAIN
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    if mean is None or std is None:
        return None
    return PixelStatistics.of(mean, std)


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


__all__ = ["CLIP", "HALF", "PLAIN", "processor_statistics", "read_statistics"]
