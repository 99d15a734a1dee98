"""Feature maps on a host's token grid: exact where it can be, worked out by hand where it can't."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import vega3d
from vega3d import TokenGrid, align
from vega3d_plugin.contracts.errors import AlignmentError


def in_time(*values: float) -> Tensor:
    """A map ``[T', 2, 2, 3]`` that is constant in each step; its second channel is the negative of the first."""
    steps = torch.tensor(values, dtype=torch.float32)[:, None, None, None]
    return torch.cat([steps, -steps], dim=1).expand(-1, -1, 2, 3)


def rows(values: tuple[float, ...], t: int, spans: list[tuple[float, float]] | None = None) -> list[float]:
    aligned = align(in_time(*values), TokenGrid(t, 2, 3), spans=spans)
    assert aligned.shape == (t, 2, 2, 3)
    torch.testing.assert_close(aligned[:, 1], -aligned[:, 0])
    assert bool((aligned == aligned[:, :, :1, :1]).all())
    return aligned[:, 0, 0, 0].tolist()


def approx(*values: float) -> object:
    return pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize("space", ["bilinear", "adaptive_avg"])
def test_a_map_that_fits_is_returned_as_it_is(space: str) -> None:
    features = torch.randn(3, 4, 5, 6)
    assert align(features, TokenGrid(3, 5, 6), space=space) is features


@pytest.mark.parametrize("size", [(3, 9), (10, 4), (1, 1), (5, 7)])
def test_bilinear_is_that_of_torch(size: tuple[int, int]) -> None:
    features = torch.randn(2, 4, 5, 6)
    expected = F.interpolate(features, size=size, mode="bilinear", align_corners=False, antialias=False)
    assert torch.equal(align(features, TokenGrid(2, *size)), expected)


def test_bilinear_by_hand() -> None:
    features = torch.tensor([0.0, 4.0])[None, None, None]
    assert align(features, TokenGrid(1, 1, 4)).flatten().tolist() == [0.0, 1.0, 3.0, 4.0]


@pytest.mark.parametrize("size", [(3, 2), (14, 14), (1, 1), (5, 7)])
def test_adaptive_is_that_of_torch(size: tuple[int, int]) -> None:
    features = torch.randn(2, 4, 5, 6)
    assert torch.equal(
        align(features, TokenGrid(2, *size), space="adaptive_avg"), F.adaptive_avg_pool2d(features, size)
    )


def test_adaptive_by_hand() -> None:
    features = torch.tensor([1.0, 3.0, 5.0, 9.0])[None, None, None]
    assert align(features, TokenGrid(1, 1, 2), space="adaptive_avg").flatten().tolist() == [2.0, 7.0]


def test_two_steps_for_a_row_are_their_mean() -> None:
    features = torch.randn(6, 4, 2, 3)
    expected = (features[0::2] + features[1::2]) / 2
    torch.testing.assert_close(align(features, TokenGrid(3, 2, 3)), expected)
    assert rows((1, 3, 10, 20), 2) == approx(2, 15)


def test_one_row_for_all_steps_is_their_mean() -> None:
    assert rows((1, 2, 6), 1) == approx(3)


def test_windows_that_cut_a_step_weight_it_by_its_share() -> None:
    # Three steps of 1/3 in two rows of 1/2: the middle step counts half in each.
    assert rows((3, 6, 12), 2) == approx((3 + 6 / 2) / 1.5, (6 / 2 + 12) / 1.5)
    # Five steps in two rows of 2.5 steps each.
    assert rows((1, 2, 3, 4, 5), 2) == approx((1 + 2 + 1.5) / 2.5, (1.5 + 4 + 5) / 2.5)
    # Four steps in three rows of 4/3 steps each.
    assert rows((0, 3, 6, 9), 3) == approx((0 + 1) / (4 / 3), (2 + 4) / (4 / 3), (2 + 9) / (4 / 3))


def test_fewer_steps_than_rows_are_interpolated_between_their_centres() -> None:
    # Centres of the steps at 1/4 and 3/4, of the rows at 1/8, 3/8, 5/8, 7/8: the outer rows lie beyond the centres.
    assert rows((0, 4), 4) == approx(0, 1, 3, 4)
    # Centres 1/6, 3/6, 5/6; rows 1/12, 3/12, ...: a quarter and three quarters of the way.
    assert rows((0, 4, 12), 6) == approx(0, 1, 3, 6, 10, 12)
    # Centres 1/4, 3/4; rows 1/6, 1/2, 5/6.
    assert rows((2, 4), 3) == approx(2, 3, 4)


def test_one_step_serves_every_row() -> None:
    assert rows((5,), 3) == approx(5, 5, 5)


def test_spans_of_equal_length_are_the_default() -> None:
    features = torch.randn(6, 4, 2, 3)
    for t in (2, 4, 6, 9):
        spans = [(i / 6, (i + 1) / 6) for i in range(6)]
        grid = TokenGrid(t, 2, 3)
        torch.testing.assert_close(align(features, grid, spans=spans), align(features, grid))


# A causal video VAE: step 0 covers the first frame, each further one four. Nine frames give steps (1, 4, 4).
CAUSAL = [(0, 1 / 9), (1 / 9, 5 / 9), (5 / 9, 1.0)]


def test_causal_spans_with_more_rows_than_steps() -> None:
    # Centres in frames 0.5, 3 and 7; of nine rows 0.5, 1.5, ..., 8.5. A ramp in time (a step's value is its centre)
    # stays the ramp, up to the centre of the last step.
    assert rows((0.5, 3, 7), 9, CAUSAL) == approx(0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7, 7)
    # Of four rows 1.125, 3.375, 5.625 and 7.875.
    assert rows((0.5, 3, 7), 4, CAUSAL) == approx(1.125, 3.375, 5.625, 7)
    # Equal parts would bend it.
    assert rows((0.5, 3, 7), 9) != approx(0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7, 7)


def test_causal_spans_with_fewer_rows_than_steps() -> None:
    # Two rows of 4.5 frames: 1 + 3.5 of the first two steps, 0.5 + 4 of the last two.
    expected = ((1 * 0.5 + 3.5 * 3) / 4.5, (0.5 * 3 + 4 * 7) / 4.5)
    assert rows((0.5, 3, 7), 2, CAUSAL) == approx(*expected)
    # As many rows as steps, but of three frames each: 1 + 2, 3 of the middle (frames 3 to 5 hold 2 of it) and so on.
    expected = ((1 * 0.5 + 2 * 3) / 3, (2 * 3 + 1 * 7) / 3, 7)
    assert rows((0.5, 3, 7), 3, CAUSAL) == approx(*expected)


def test_a_ramp_in_time_never_falls() -> None:
    for t in range(1, 12):
        values = rows((0.5, 3, 7), t, CAUSAL)
        assert values == sorted(values), t


@pytest.mark.parametrize("t", [1, 2, 5, 7])
def test_a_constant_stays_constant(t: int) -> None:
    assert rows((2, 2, 2), t, CAUSAL) == approx(*[2] * t)


@pytest.mark.parametrize("size", [(3, 4), (9, 7), (3, 11)])
@pytest.mark.parametrize("t", [2, 3, 7])
@pytest.mark.parametrize("spans", [None, CAUSAL])
def test_time_and_space_together(size: tuple[int, int], t: int, spans: list[tuple[float, float]] | None) -> None:
    features = torch.randn(3, 4, 5, 6)
    in_time_only = align(features, TokenGrid(t, 5, 6), spans=spans)
    expected = F.interpolate(in_time_only, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(align(features, TokenGrid(t, *size), spans=spans), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("space", ["bilinear", "adaptive_avg"])
@pytest.mark.parametrize("grid", [(2, 3, 4), (3, 9, 7), (7, 3, 4), (7, 9, 7)])
def test_the_dtype_is_kept_and_rounded_to_once(dtype: torch.dtype, space: str, grid: tuple[int, int, int]) -> None:
    features, grid = torch.randn(4, 3, 5, 6).to(dtype), TokenGrid(*grid)
    aligned = align(features, grid, space=space)
    assert aligned.dtype == dtype
    assert torch.equal(aligned, align(features.float(), grid, space=space).to(dtype))


def test_features_without_gradient_stay_so() -> None:
    aligned = align(torch.randn(4, 3, 5, 6), TokenGrid(2, 3, 4))
    assert not aligned.requires_grad
    with torch.inference_mode():
        align(torch.randn(4, 3, 5, 6), TokenGrid(6, 3, 4))


def test_torchs_default_dtype_does_not_matter() -> None:
    features = torch.randn(3, 2, 2, 3)
    expected = [align(features, TokenGrid(t, 4, 5)) for t in (2, 5)]
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = [align(features, TokenGrid(t, 4, 5)) for t in (2, 5)]
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("shape", [(4, 3, 5), (1, 4, 3, 5, 6), (0, 3, 5, 6), (4, 0, 5, 6), (4, 3, 5, 0)])
def test_what_is_no_feature_map_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(AlignmentError, match=r"\[T', C, h', w'\]") as caught:
        align(torch.zeros(shape), TokenGrid(2, 3, 4))
    assert str(list(shape)) in str(caught.value)


def test_spans_of_another_number_are_refused() -> None:
    with pytest.raises(AlignmentError, match="3 steps in time, but 2 spans"):
        align(in_time(1, 2, 3), TokenGrid(2, 2, 3), spans=[(0, 0.5), (0.5, 1)])


def test_a_row_that_no_span_covers_is_refused() -> None:
    with pytest.raises(AlignmentError, match="token row 1 of 2"):
        align(in_time(1, 2), TokenGrid(2, 2, 3), spans=[(0, 0.2), (0.2, 0.5)])


@pytest.mark.parametrize("size", [(5, 6), (2, 3)])
def test_an_unknown_mode_is_refused_whether_or_not_the_map_fits(size: tuple[int, int]) -> None:
    with pytest.raises(AlignmentError, match=r"'nearest'.*'adaptive_avg', 'bilinear'"):
        align(torch.zeros(1, 3, 5, 6), TokenGrid(1, *size), space="nearest")  # type: ignore[arg-type]


@pytest.mark.parametrize("grid", [(0, 1, 1), (1, -1, 1), (1, 1, 0)])
def test_an_empty_grid_is_refused(grid: tuple[int, int, int]) -> None:
    with pytest.raises(AlignmentError, match="t, h, w >= 1"):
        vega3d.TokenGrid(*grid)
    assert vega3d.TokenGrid(2, 3, 4).tokens == 24
