"""One feature map in one file, which proves by a record of its own that it is whole and whose it is."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..storage.checksums import checksum
from ..storage.writing import write_atomically

TENSOR = "features"
#: Of what ``store.json`` says its entries carry: 1 nothing, 2 key, shape, dtype and checksum.
FORMAT = 2


class EntryError(Exception):
    """An entry cannot be used; the message says why, and names no file."""


def check_map(features: Tensor, feature_dim: int | None) -> None:
    """Find out whether a tensor can be a feature map.

    Raises:
        EntryError: rank, dtype, channels, or values that are not finite.
    """
    shape = list(features.shape)
    if features.ndim != 4 or min(shape) < 1:
        raise EntryError(f"its shape is {shape}, expected a feature map [T', C, h, w]")
    if not features.is_floating_point():
        raise EntryError(f"its dtype is {features.dtype}, expected floating point")
    if feature_dim is not None and shape[1] != feature_dim:
        raise EntryError(f"it has {shape[1]} channels (shape {shape}), expected {feature_dim}")
    if not bool(torch.isfinite(features).all()):
        raise EntryError("it holds NaN or infinity")


def write_entry(path: Path, key: str, features: Tensor, root: Path) -> None:
    """Write a feature map ``[T', C, h, w]``, whole or not at all.

    Args:
        path: of the entry.
        key: of the clip.
        features: on the CPU.
        root: folder of the store, where the file is made before it is put in place.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    features = features.contiguous()
    record = {"key": key, "shape": _shape(features), "dtype": str(features.dtype), "checksum": checksum(features)}
    # No waiting for the disk: what a power failure tears is noticed and computed again.
    write_atomically(path, lambda place: save_file({TENSOR: features}, place, record), durable=False, within=root)


def read_entry(path: Path, key: str, feature_dim: int | None, recorded: bool) -> Tensor:
    """Read a feature map ``[T', C, h, w]``, in the layout that the branch wants.

    Args:
        path: of the entry.
        key: of the clip.
        feature_dim: channels, where they are known.
        recorded: every entry of this store carries a record; without it one is taken that is a feature map at all.

    Raises:
        EntryError: it is damaged, or of another clip, shape or dtype than it says.
        FileNotFoundError: another process has just removed it.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            record = handle.metadata() or {}
            mapped: Tensor = handle.get_tensor(TENSOR)
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError) as error:
        raise EntryError(f"{type(error).__name__}: {error}") from None
    if "checksum" in record:
        found = {"key": key, "shape": _shape(mapped), "dtype": str(mapped.dtype)}
        for name, value in found.items():
            if record.get(name) != value:
                raise EntryError(f"its {name} is {value}, its record says {record.get(name)!r:.60}")
        if record["checksum"] != checksum(mapped):
            raise EntryError("its content has changed since it was written")
    elif recorded:
        raise EntryError("it was not written by this store: it carries no checksum")
    else:
        check_map(mapped, feature_dim)
    # A copy: mapped files are aligned differently from fresh memory, and kernels round by alignment. In the layout
    # that the branch wants, so that it need not convert it on every hit.
    return torch.empty_like(mapped, memory_format=torch.channels_last).copy_(mapped)


def _shape(features: Tensor) -> str:
    return "x".join(map(str, features.shape))
