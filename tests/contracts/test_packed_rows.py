"""Which batches have several samples in one row, and which are only padded."""

from __future__ import annotations

import pytest
import torch

from vega3d_plugin.contracts.packed_rows import holds_several

IDS = torch.arange(8)[None]


@pytest.mark.parametrize(
    "packed",
    [
        {"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])},
        # The axes of time, height and width; a picture has one time.
        {"position_ids": torch.tensor([0, 1, 1, 1, 3, 0, 1, 2]).expand(3, 1, 8)},
        {"cu_seq_lens_q": torch.tensor([0, 4, 8])},
        {"attention_mask": torch.tensor([0, 4, 8])},
        {"attention_mask": torch.tensor([[1, 1, 1, 1, 2, 2, 2, 0]])},
    ],
)
def test_packed(packed: dict[str, torch.Tensor]) -> None:
    assert holds_several({"input_ids": IDS, **packed})


@pytest.mark.parametrize(
    "padded",
    [
        {},
        {"position_ids": torch.arange(8)[None], "attention_mask": torch.ones(1, 8)},
        # Left padding as transformers numbers it, with and without a mask; right padding.
        {"position_ids": torch.tensor([[1, 1, 0, 1, 2, 3, 4, 5]])},
        {"position_ids": torch.tensor([[0, 1, 2, 3, 4, 5, 1, 1]]), "attention_mask": torch.ones(1, 1, 8, 8)},
        # A prompt that begins with a picture.
        {"position_ids": torch.tensor([0, 0, 0, 0, 2, 3, 4, 5]).expand(3, 1, 8)},
        # A video, and text behind it that is numbered by the frames' height and width.
        {"position_ids": torch.tensor([0, 1, 2, 10, 18, 26, 4, 5]).expand(3, 1, 8)},
        {"cu_seq_lens_q": torch.tensor([0, 8])},
    ],
)
def test_not_packed(padded: dict[str, torch.Tensor]) -> None:
    assert not holds_several({"input_ids": IDS, **padded})
