"""OpenVLA's stacked pixels, back to pictures: three channels for each vision tower, image after image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from vega3d_plugin.contracts.clips import RANGE_TOLERANCE, PixelStatistics
from vega3d_plugin.contracts.errors import FramesError
from vega3d_plugin.contracts.pixel_statistics import KNOWN

#: By how much the towers' pictures, in [0, 1], may differ on average. Each may resize a picture in its own way; in
#: float32 OpenVLA's processor makes them equal to 1e-7, in bfloat16 to 0.002. ImageNet's statistics read as 0.5
#: throughout are off by more than 0.05.
SAME_PICTURE = 0.02


@dataclass(frozen=True)
class Stacking:
    """How the channels of ``pixel_values`` are to be read.

    Attributes:
        statistics: for each vision tower, in the order of its channels: with which its pixels were normalised.
        towers: their names, for messages.
        source: where the statistics come from, for messages.
    """

    statistics: tuple[PixelStatistics, ...]
    towers: tuple[str, ...]
    source: str

    @property
    def channels(self) -> int:
        """Channels per image: 3 for each tower."""
        return 3 * len(self.statistics)

    def pictures(self, pixels: Tensor, images: int) -> Tensor:
        """``[B, images * channels, H, W]``, normalised, to ``[B, images, 3, H, W]`` in [0, 1].

        Those of the first tower; the other's are the same pictures, which is checked.

        Raises:
            FramesError: they are no pictures in [0, 1], or the two towers' are not the same: the statistics are wrong.
        """
        groups = self._groups(pixels, images)
        shown = [statistics.unnormalise(group) for statistics, group in zip(self.statistics, groups, strict=True)]
        self._check(shown, groups)
        return shown[0]

    def _groups(self, pixels: Tensor, images: int) -> list[Tensor]:
        stacked = pixels.detach().reshape(pixels.shape[0], images, len(self.statistics), 3, *pixels.shape[-2:])
        return list(stacked.unbind(2))

    def _check(self, shown: Sequence[Tensor], groups: Sequence[Tensor]) -> None:
        # One transfer from the device for all figures.
        figures = [figure for picture in shown for figure in picture.aminmax()]
        figures += [(picture - shown[0]).abs().mean() for picture in shown[1:]]
        values = torch.stack(figures).tolist()
        ranges = [(values[2 * i], values[2 * i + 1]) for i in range(len(shown))]
        apart = max(values[2 * len(shown) :], default=0.0)
        problems = [
            f"un-normalised with {statistics}, the pixels of {tower!r} lie in [{low:.2f}, {high:.2f}]"
            for (low, high), statistics, tower in zip(ranges, self.statistics, self.towers, strict=True)
            if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE
        ]
        otherwise = ""
        if not problems and apart > SAME_PICTURE:
            used = " and ".join(map(str, self.statistics))
            problems = [f"un-normalised with {used}, the two towers' pictures differ by {apart:.2f} on average"]
            otherwise = ", or the data pipeline gives the towers two different pictures"
        if problems:
            raise FramesError(
                f"Host 'openvla': {'; '.join(problems)}, so these statistics (from the {self.source}) are not those of "
                f"pixel_values{otherwise}.{_would_fit(groups, self.towers)} Pass the processor that makes the pixels: "
                "vega3d.patch(model, processor=processor)."
            )


def _would_fit(groups: Sequence[Tensor], towers: Sequence[str]) -> str:
    """Which known statistics give pictures: those most alike, and of these those that use the most of the range."""
    fitting = []
    for names in product(KNOWN, repeat=len(groups)):
        shown = [KNOWN[name].unnormalise(group) for name, group in zip(names, groups, strict=True)]
        low, high = (min(float(s.min()) for s in shown), max(float(s.max()) for s in shown))
        apart = max(float((s - shown[0]).abs().mean()) for s in shown)
        if low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE and apart <= SAME_PICTURE:
            spread = shown[0].amax(dim=(0, 1, 3, 4)) - shown[0].amin(dim=(0, 1, 3, 4))
            fitting.append((-round(apart, 3), float(spread.mean()), names))
    if not fitting:
        return ""
    *_, names = max(fitting)
    return f" These would fit: {', '.join(f'{name} for {tower!r}' for name, tower in zip(names, towers, strict=True))}."
