"""What an unknown name suggests."""

from __future__ import annotations

import pytest

import vega3d
from vega3d_plugin.contracts.errors import PriorError, UnknownNameError
from vega3d_plugin.priors.frozen.prior import resolved_tap


@pytest.mark.parametrize("typed", ["wan2.1", "Wan2.1", "wan-2.1", "wan21"])
def test_the_beginning_of_a_name_suggests_all_that_begin_so(typed: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        vega3d.load_prior(typed)
    suggested = str(caught.value).partition("Did you mean ")[2].partition("?")[0].split(" or ")
    assert suggested == ["'wan2.1-t2v-1.3b'", "'wan2.1-t2v-14b'", "'wan2.1-vace-1.3b'", "'wan2.1-vace-14b'"]


@pytest.mark.parametrize("blocks", [*range(1, 7), 30])
def test_the_suggested_tap_is_in_range_and_not_the_last(blocks: int) -> None:
    with pytest.raises(PriorError) as caught:
        resolved_tap(99, blocks, "mine")
    advised = str(caught.value).partition("try tap=")[2].rstrip(".")
    assert (advised == "") == (blocks == 1)
    assert blocks == 1 or 0 <= int(advised) < blocks - 1


def test_an_encoders_suggested_tap_is_its_last() -> None:
    with pytest.raises(PriorError, match=r"The last block is tap=11\.$"):
        resolved_tap(12, 12, "mine", generates=False)
