"""Looking inside and switching off: recorded gates, and the two controls of an ablation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor, nn

from ..contracts.clips import Clip
from ..contracts.errors import FusionError
from ..contracts.tables import FUSERS
from .blocks import block
from .fusers.gated import GatedFuser
from .handle import get_handle


@contextmanager
def record_gates(model: nn.Module, *, all_threads: bool = False) -> Iterator[list[Tensor]]:
    """Record the gate of every visual token: ``with vega3d.record_gates(model) as gates: model(**batch)``.

    Blocks may be nested; each records.

    Args:
        model: patched.
        all_threads: record calls in every thread, not in this one alone.

    Yields:
        A list that receives one map ``[t, h, w]`` per clip, float32, in (0, 1): the weight of the semantic token, the
        mean over channels for a gate per channel. Order: that of the host's own calls (in Qwen-VL images come before
        videos).

    Raises:
        FusionError: the fusion has no gate.
    """
    branch = get_handle(model).branch
    fuser = branch.fuser
    if not isinstance(fuser, GatedFuser):
        gated = ", ".join(n for n in FUSERS.names() if issubclass(FUSERS.get(n), GatedFuser))
        raise FusionError(f"Fusion {fuser.name!r} has no gate to record. These have: {gated}.")
    gates: list[Tensor] = []

    def record(clips: Sequence[Clip], maps: Sequence[Tensor]) -> None:
        gates.extend(maps)

    with block(branch.key, "gates", record, all_threads=all_threads):
        yield gates


def disabled(model: nn.Module, *, all_threads: bool = False) -> AbstractContextManager[None]:
    """Switch the branch off: the host computes what it would without it.

    The switch is for calls in the thread (or asyncio task) that opened the block, so other requests to the same model
    are not touched. Threads that are started inside it, as by DataParallel or for a streamer, are not in it:
    ``all_threads`` switches every call off until the block ends.

    Args:
        model: patched.
        all_threads: switch calls in every thread, not in this one alone.
    """
    return block(get_handle(model).branch.key, "disabled", all_threads=all_threads)


def zeroed(model: nn.Module, *, all_threads: bool = False) -> AbstractContextManager[None]:
    """Replace the generative tokens by zeros: does the model use what they say, or only that they are there?

    Args: as of :func:`disabled`.
    """
    return block(get_handle(model).branch.key, "zeroed", all_threads=all_threads)
