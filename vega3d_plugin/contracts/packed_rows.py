"""Several samples in one row of a batch, one after the other (packing): told by what a call is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def holds_several(arguments: Mapping[str, Any]) -> bool:
    """Whether a row of ``input_ids`` holds several samples.

    Trainers that pack say so in one of these ways: lengths for the attention (``cu_seq_lens_q``, or in place of the
    mask as Qwen's ``data_flatten`` does), a mask that numbers the samples, or positions that begin anew.

    Args:
        arguments: of a call of the host, by name.
    """
    ids, mask = arguments.get("input_ids"), arguments.get("attention_mask")
    lengths = arguments.get("cu_seq_lens_q")
    if isinstance(mask, Tensor) and mask.ndim == 1 and isinstance(ids, Tensor) and ids.ndim == 2:
        lengths = mask
    if isinstance(lengths, Tensor):
        return lengths.numel() > 2
    if (
        isinstance(mask, Tensor)
        and mask.ndim == 2
        and mask.dtype in (torch.int32, torch.int64)
        and bool((mask > 1).any())
    ):
        return True
    places = arguments.get("position_ids")
    if not isinstance(places, Tensor) or places.ndim not in (2, 3):
        return False
    return _begins_anew(places[0] if places.ndim == 3 else places)


def _begins_anew(places: Tensor) -> bool:
    """Positions ``[B, L]`` of text, or the first of the axes of pictures: a sample begins at the lowest."""
    for row in places:
        # Padding has one and the same position, before the first token or behind the last.
        inside = _changed(row) & _changed(row.flip(0)).flip(0)
        kept = row[inside]
        # A fall alone is none: newer transformers number the text behind a video lower than its last frames.
        if bool(((kept[1:] < kept[:-1]) & (kept[1:] == row.min())).any()):
            return True
    return False


def _changed(row: Tensor) -> Tensor:
    """True from the first value on that is not the row's first."""
    return (row != row[:1]).cumsum(0) > 0
