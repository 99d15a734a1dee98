"""In which form a store keeps a feature map: how large it is, and what it costs in exactness.

``native``: as the prior gave it. ``aligned``: already resampled to the host's token grid. Alignment has no parameters
and rounds once, so what is fused is the same, bit for bit, as long as it is resampled on one kind of device. Behind a
dash the numbers: ``bf16`` rounds to 8 significant bits, ``int8`` to 255 steps of a scale that every token has of its
own. The form is part of an entry's name, so that one store may hold several and none is taken for another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..contracts.clips import TokenGrid
from ..contracts.errors import StoreError, near_misses

if TYPE_CHECKING:
    from torch import Tensor

TENSOR, SCALE = "features", "scale"
#: Of bytes, by the name of the numbers; empty: as the prior gave them.
NUMBERS = ("", "bf16", "int8")
# Steps of an 8-bit number on either side of zero.
_STEPS = 127


@dataclass(frozen=True)
class Form:
    """Attributes: ``aligned``: resampled to the token grid; ``numbers``: one of :data:`NUMBERS`."""

    aligned: bool = False
    numbers: str = ""

    @classmethod
    def parse(cls, text: str | Form) -> Form:
        """From a name such as ``native`` or ``aligned-int8``.

        Raises:
            StoreError: no such form; the message names close ones.
        """
        if isinstance(text, Form):
            return text
        known = {str(form): form for form in FORMS}
        if text not in known:
            raise StoreError(
                f"Unknown form of features {text!r:.60}.{near_misses(str(text), known)} Known: {', '.join(known)}."
            )
        return known[text]

    def __str__(self) -> str:
        return "-".join(part for part in ("aligned" if self.aligned else "native", self.numbers) if part)

    def name(self, key: str, grid: TokenGrid | None = None, space: str = "") -> str:
        """The name of an entry.

        Args:
            key: of the clip and of the prior's compute dtype.
            grid: of patches that an aligned map is resampled to.
            space: how it is resampled.
        """
        parts = [key]
        if self.aligned:
            if grid is None:
                raise StoreError("An aligned map belongs to a token grid; ask the branch for it.")
            parts.append(f"aligned_{space}_{grid.t}x{grid.h}x{grid.w}")
        return ".".join([*parts, *([self.numbers] if self.numbers else [])])


FORMS = tuple(Form(aligned, numbers) for aligned in (False, True) for numbers in NUMBERS)


def numbers_of(name: str) -> str:
    """The numbers that an entry of this name is kept in."""
    last = name.rpartition(".")[2]
    return last if last in NUMBERS else ""


def encode(features: Tensor, numbers: str) -> dict[str, Tensor]:
    """The tensors that are written for a feature map ``[T', C, h, w]``."""
    import torch

    if numbers == "bf16":
        return {TENSOR: features.to(torch.bfloat16).contiguous()}
    if numbers == "int8":
        scale = features.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / _STEPS
        whole = (features.float() / scale).round().clamp(-_STEPS, _STEPS).to(torch.int8)
        return {TENSOR: whole.contiguous(), SCALE: scale.contiguous()}
    return {TENSOR: features.contiguous()}


def decode(tensors: Mapping[str, Tensor]) -> Tensor:
    """The feature map of what was written, in the layout that the branch wants: channels last, in memory of its own.

    A copy: bytes out of a file are aligned differently from fresh memory, and kernels round by alignment.
    """
    import torch

    kept = tensors[TENSOR]
    dtype = torch.float32 if SCALE in tensors else kept.dtype
    features = torch.empty_like(kept, dtype=dtype, memory_format=torch.channels_last).copy_(kept)
    return features.mul_(tensors[SCALE]) if SCALE in tensors else features


def entry_bytes(shape: tuple[int, int, int, int], form: Form, item: int = 4) -> int:
    """Bytes of the tensors of one entry.

    Args:
        shape: ``[T', C, h, w]`` of the map as it is kept.
        form: in which it is kept.
        item: bytes of a number as the prior gives it.
    """
    steps, channels, height, width = shape
    tokens = steps * height * width
    if form.numbers == "int8":
        return tokens * (channels + 4)
    return tokens * channels * (2 if form.numbers == "bf16" else item)
