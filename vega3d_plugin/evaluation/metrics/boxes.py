"""Axis-aligned boxes: overlap, and the best pairing of two sets of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .bootstrap import Floats, Ints

#: Added to a union so that nothing is divided by zero: in VEGA-3D's and ScanRefer's scripts, and in M3DRef-CLIP's.
VOLUME, FLOAT32_VOLUME = 1e-8, float(np.finfo(np.float32).eps)


def bounds(boxes: Sequence[Sequence[float]]) -> Floats:
    """Boxes as centre and full size ``[N, 6]`` to lower and upper corners ``[N, 2, 3]``."""
    table = np.asarray(boxes, dtype=np.float64).reshape(-1, 6)
    half = table[:, 3:] / 2
    return np.stack([-half + table[:, :3], half + table[:, :3]], axis=1)


def box_iou(
    first: npt.NDArray[np.floating], second: npt.NDArray[np.floating], epsilon: float = VOLUME
) -> npt.NDArray[np.floating]:
    """Intersection over union of every pair, in the dtype of the corners.

    The union is ``epsilon`` larger than it is, as in the released scorers (``llava/eval/box_utils.py::box3d_iou``): so
    an overlap of exactly a quarter falls below 0.25.

    Args:
        first: lower and upper corners ``[N, 2, 3]``.
        second: ``[M, 2, 3]``.
        epsilon: cubic metres.

    Returns:
        ``[N, M]``, 0 to 1.
    """
    lower = np.maximum(first[:, None, 0], second[None, :, 0])
    upper = np.minimum(first[:, None, 1], second[None, :, 1])
    shared = np.maximum(upper - lower, 0).prod(axis=-1)
    volumes = (first[:, 1] - first[:, 0]).prod(axis=-1)[:, None] + (second[:, 1] - second[:, 0]).prod(axis=-1)[None]
    return np.asarray(shared / (volumes - shared + first.dtype.type(epsilon)))


def best_pairing(gains: npt.NDArray[np.floating]) -> Ints:
    """The column of each row in the one-to-one pairing with the largest sum.

    Shortest augmenting paths (Crouse 2016, as SciPy's ``linear_sum_assignment``), ties broken as there.

    Args:
        gains: ``[N, N]``, finite.

    Returns:
        ``[N]``.
    """
    costs = -np.asarray(gains, dtype=np.float64)
    size = len(costs)
    row_price, column_price = np.zeros(size), np.zeros(size)
    column_of, row_of = np.full(size, -1), np.full(size, -1)
    for start in range(size):
        shortest, before = np.full(size, np.inf), np.full(size, -1)
        rows, columns = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
        open_columns = np.arange(size)[::-1].copy()
        row, reached, end = start, 0.0, -1
        while end < 0:
            rows[row] = True
            through = reached + costs[row, open_columns] - row_price[row] - column_price[open_columns]
            nearer = through < shortest[open_columns]
            shortest[open_columns[nearer]] = through[nearer]
            before[open_columns[nearer]] = row
            place = _nearest(shortest[open_columns], row_of[open_columns])
            column = int(open_columns[place])
            reached = float(shortest[column])
            columns[column] = True
            open_columns[place] = open_columns[-1]
            open_columns = open_columns[:-1]
            if row_of[column] < 0:
                end = column
            else:
                row = int(row_of[column])
        others = rows.copy()
        others[start] = False
        row_price[start] += reached
        row_price[others] += reached - shortest[column_of[others]]
        column_price[columns] -= reached - shortest[columns]
        _switch(end, start, before, column_of, row_of)
    return np.asarray(column_of, dtype=np.int64)


def _nearest(distances: Floats, taken_by: Ints) -> int:
    """Place of the smallest distance; among equal ones the last free column, else the first."""
    nearest = np.flatnonzero(distances == distances.min())
    free = nearest[taken_by[nearest] < 0]
    return int(free[-1] if len(free) else nearest[0])


def _switch(end: int, start: int, before: Ints, column_of: Ints, row_of: Ints) -> None:
    """Take the path that ends in column ``end``."""
    column = end
    while True:
        row = int(before[column])
        row_of[column] = row
        column, column_of[row] = int(column_of[row]), column
        if row == start:
            return
