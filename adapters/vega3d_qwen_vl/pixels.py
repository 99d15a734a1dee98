"""Qwen-VL's packed pixels, back to frames. Exact: packing is a permutation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vega3d_plugin.contracts.errors import AlignmentError


@dataclass(frozen=True)
class Packing:
    """How a family cuts frames into rows of ``pixel_values``.

    Attributes:
        patch: side of a patch, in pixels.
        temporal: frames per patch; a single image is repeated to fill it.
        merge: patches per token and axis.
    """

    patch: int
    temporal: int
    merge: int

    def unpack(self, rows: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Rows of one clip to frames.

        Args:
            rows: ``[t * h * w, 3 * temporal * patch * patch]``; rows ordered (t, h/merge, w/merge, merge_h, merge_w),
                columns (channel, temporal, patch_h, patch_w).
            grid: ``(t, h, w)`` in patches.

        Returns:
            ``[t * temporal, 3, h * patch, w * patch]``, still normalised.

        Raises:
            AlignmentError: rows and grid do not fit.
        """
        t, h, w = grid
        m, p = self.merge, self.patch
        columns = 3 * self.temporal * p * p
        if rows.ndim != 2 or rows.shape != (t * h * w, columns) or h % m or w % m:
            raise AlignmentError(
                f"Packed pixels {list(rows.shape)} do not fit the grid (t, h, w) = {grid}: expected "
                f"[{t * h * w}, {columns}] with h and w divisible by {m}."
            )
        x = rows.reshape(t, h // m, w // m, m, m, 3, self.temporal, p, p)
        # (t, temporal, channel, h/m, m, p, w/m, m, p)
        x = x.permute(0, 6, 5, 1, 3, 7, 2, 4, 8)
        return x.reshape(t * self.temporal, 3, h * p, w * p)
