"""Looking inside and switching off: recorded shares and gates, and the two controls of an ablation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor, nn

from ..contracts.clips import Clip
from ..contracts.errors import FusionError
from ..contracts.shares import Shares
from ..contracts.tables import FUSERS
from .blocks import block
from .fusers.gated import GatedFuser
from .handle import get_handle


@contextmanager
def record_shares(model: nn.Module, *, all_threads: bool = False) -> Iterator[list[Shares]]:
    """Record what the branch does to every token: ``with vega3d.record_shares(model) as shares: model(**batch)``.

    Works with every fuser. Blocks may be nested; each records. To put it in one line, ``print(shares[0])``.

    Args:
        model: patched.
        all_threads: record calls in every thread, not in this one alone.

    Yields:
        A list that receives one :class:`~vega3d_plugin.contracts.shares.Shares` per clip, with maps ``[t, h, w]``,
        float32: the effective share of the host's and of the generative token, the relative change, the scale ``a``
        and the raw gate. Order: that of the host's own calls (in Qwen-VL images come before videos).
    """
    found: list[Shares] = []

    def record(clips: Sequence[Clip], shares: Sequence[Shares]) -> None:
        found.extend(shares)

    with block(get_handle(model).branch.key, "shares", record, all_threads=all_threads):
        yield found


class RecordedGates(list[Tensor]):
    """Raw gates ``[t, h, w]``, one map per clip; ``shares`` says how far they act.

    Attributes:
        shares: of the same clips, in the same order: see :func:`record_shares`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shares: list[Shares] = []


@contextmanager
def record_gates(model: nn.Module, *, all_threads: bool = False) -> Iterator[RecordedGates]:
    """Record the RAW gate of every visual token. What the branch does is told by :func:`record_shares`.

    A gate is no share of the host's token: in ``token_gated_residual`` that is ``1 - a * (1 - gate)``, so a fresh patch
    (``a = 0``) has gates about 0.5 and is the host alone. Blocks may be nested; each records.

    Args:
        model: patched.
        all_threads: record calls in every thread, not in this one alone.

    Yields:
        A list that receives one map ``[t, h, w]`` per clip, float32, in (0, 1), the mean over channels for a gate per
        channel. Its ``shares`` holds the effective shares of the same clips. Order: that of the host's own calls (in
        Qwen-VL images come before videos).

    Raises:
        FusionError: the fusion has no gate.
    """
    branch = get_handle(model).branch
    fuser = branch.fuser
    if not isinstance(fuser, GatedFuser):
        gated = ", ".join(n for n in FUSERS.names() if issubclass(FUSERS.get(n), GatedFuser))
        raise FusionError(
            f"Fusion {fuser.name!r} has no gate to record. These have: {gated}. vega3d.record_shares records the "
            "effective share of each source with every fusion."
        )
    gates = RecordedGates()

    def record(clips: Sequence[Clip], shares: Sequence[Shares]) -> None:
        gates.extend(s.gate for s in shares if s.gate is not None)
        gates.shares.extend(shares)

    with block(branch.key, "shares", record, all_threads=all_threads):
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
