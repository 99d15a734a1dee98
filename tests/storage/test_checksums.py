"""The checksum: what it must notice, and that it depends on nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vega3d_plugin.storage.checksums import checksum, checksum_of

SIZES = [1, 7, 8, 255 * 8, 2048, 2049, 4096 * 3 + 5]


def data(size: int) -> Tensor:
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))


@pytest.mark.parametrize("size", SIZES)
def test_every_flipped_bit_is_noticed(size: int) -> None:
    tensor = data(size)
    before = checksum(tensor)
    for place in range(size) if size < 300 else torch.randint(0, size, (300,)).tolist():
        for bit in range(8):
            tensor[place] ^= 1 << bit
            assert checksum(tensor) != before, (place, bit)
            tensor[place] ^= 1 << bit
    assert checksum(tensor) == before


def test_blocks_that_move_are_zeroed_or_cut_are_noticed() -> None:
    tensor = data(2048 * 6 + 40)
    blocks = tensor[: 2048 * 6].view(6, 2048)
    rest = tensor[2048 * 6 :]
    changed = [
        torch.cat([blocks[[1, 0, 2, 3, 4, 5]].flatten(), rest]),
        torch.cat([blocks[[0, 1, 2, 3, 4, 4]].flatten(), rest]),
        torch.cat([blocks[:3].flatten(), torch.zeros(2048, dtype=torch.uint8), blocks[4:].flatten(), rest]),
        tensor[:-1],
        tensor[:2048],
        torch.cat([tensor, torch.zeros(1, dtype=torch.uint8)]),
        torch.zeros_like(tensor),
    ]
    assert len({checksum(each) for each in [tensor, *changed]}) == len(changed) + 1


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool]
)
def test_of_values_in_raster_order_whatever_the_layout(dtype: torch.dtype) -> None:
    tensor = torch.arange(2 * 3 * 8 * 9).reshape(2, 3, 8, 9).to(dtype)
    assert checksum(tensor) == checksum(tensor.contiguous(memory_format=torch.channels_last))
    assert checksum(tensor[..., ::2]) == checksum(tensor[..., ::2].clone())
    assert checksum(torch.zeros((), dtype=dtype))
    assert checksum(torch.zeros((0, 3), dtype=dtype))


def test_of_several_by_name_shape_and_dtype() -> None:
    a, b = torch.arange(6.0), torch.arange(6.0) + 1
    first = checksum_of({"a": a, "b": b})
    assert first == checksum_of({"b": b, "a": a})
    others = [
        checksum_of({"a": b, "b": a}),
        checksum_of({"a": a, "c": b}),
        checksum_of({"a": a}),
        checksum_of({"a": a.reshape(2, 3), "b": b}),
        checksum_of({"a": a.view(torch.int32), "b": b}),
        checksum_of({"a": a, "b": b}, "text"),
    ]
    assert len({first, *others}) == len(others) + 1
