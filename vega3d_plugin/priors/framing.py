"""Which part of a frame a prior sees, and where a place in its map lies in the frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Framing:
    """A resize of a frame and a cut out of the result. Coordinates are (x, y) in pixels from the top left CORNER.

    So the centre of the first pixel is (0.5, 0.5), as torch's bilinear resize without ``align_corners`` has it.

    Attributes:
        frame: (height, width) of the frame.
        covered: (height, width) that the whole frame is resized to.
        corner: (top, left) of the cut, in pixels of the resized frame.
        size: (height, width) of the cut: what the prior sees.
    """

    frame: tuple[int, int]
    covered: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def crop(cls, frame: tuple[int, int], size: tuple[int, int], short_side: int | None = None) -> Framing:
        """Cover ``size``, keep the aspect ratio, cut out the centre (released ``resize_center_crop``).

        Args:
            frame: (height, width) of the frame.
            size: (height, width) of the cut.
            short_side: the shorter side of the frame becomes at least this many pixels before the cut.
        """
        scale = max(size[0] / frame[0], size[1] / frame[1], (short_side or 0) / min(frame))
        covered = (max(size[0], 1, round(frame[0] * scale)), max(size[1], 1, round(frame[1] * scale)))
        corner = ((covered[0] - size[0]) // 2, (covered[1] - size[1]) // 2)
        return cls(frame, covered, corner, size)

    @classmethod
    def stretch(cls, frame: tuple[int, int], size: tuple[int, int]) -> Framing:
        """The whole frame, without its aspect ratio."""
        return cls(frame, size, (0, 0), size)

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels that the prior sees for one of the frame, in x and y."""
        return self.covered[1] / self.frame[1], self.covered[0] / self.frame[0]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of what is seen, in pixels of the frame."""
        height, width = self.size
        (left, top), (right, bottom) = self.to_frame(torch.tensor([[0, 0], [width, height]])).tolist()
        return left, top, right, bottom

    def to_seen(self, points: Tensor) -> Tensor:
        """(x, y) ``[..., 2]`` in the frame to (x, y) in what the prior sees; outside of it where it is not seen."""
        top, left = self.corner
        return points * points.new_tensor(self.scale) - points.new_tensor([left, top])

    def to_frame(self, points: Tensor) -> Tensor:
        """(x, y) ``[..., 2]`` in what the prior sees to (x, y) in the frame; float64 for whole numbers."""
        points = points if points.is_floating_point() else points.double()
        top, left = self.corner
        return (points + points.new_tensor([left, top])) / points.new_tensor(self.scale)

    def token_centres(self, grid: tuple[int, int]) -> Tensor:
        """Centres of the tokens of a map ``(h, w)``: (x, y) in the frame, float64 ``[h * w, 2]``, raster order."""
        rows = (torch.arange(grid[0], dtype=torch.float64) + 0.5) * (self.size[0] / grid[0])
        columns = (torch.arange(grid[1], dtype=torch.float64) + 0.5) * (self.size[1] / grid[1])
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        return self.to_frame(torch.stack([x, y], dim=-1).flatten(0, 1))

    def to_token(self, points: Tensor, grid: tuple[int, int]) -> Tensor:
        """(x, y) ``[..., 2]`` in the frame to (x, y) in a map ``(h, w)``, where token (0, 0) spans 0 to 1."""
        per_token = points.new_tensor([self.size[1] / grid[1], self.size[0] / grid[0]])
        return self.to_seen(points) / per_token
