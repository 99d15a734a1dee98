"""One feature map as it is kept, which proves by a record of its own that it is whole and whose it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from ..storage.checksums import checksum
from ..storage.writing import write_atomically
from .forms import SCALE, TENSOR, decode, numbers_of

if TYPE_CHECKING:
    from torch import Tensor

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
    if not bool(features.isfinite().all()):
        raise EntryError("it holds NaN or infinity")


def make_record(key: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """What stands beside the tensors of an entry."""
    kept = tensors[TENSOR]
    record = {"key": key, "shape": _shape(kept), "dtype": str(kept.dtype), "checksum": checksum(kept)}
    return {**record, "scale": checksum(tensors[SCALE])} if SCALE in tensors else record


def check_record(key: str, tensors: Mapping[str, Tensor], record: Mapping[str, object]) -> None:
    """Find out whether tensors are those that were written under a name.

    Raises:
        EntryError: they are another clip's, or have changed.
    """
    import torch

    kept = tensors[TENSOR]
    found = {"key": key, "shape": _shape(kept), "dtype": str(kept.dtype)}
    for name, value in found.items():
        if record.get(name) != value:
            raise EntryError(f"its {name} is {value}, its record says {record.get(name)!r:.60}")
    if (SCALE in tensors) != (numbers_of(key) == "int8") or (SCALE in tensors and kept.dtype != torch.int8):
        raise EntryError("its numbers are not those that its name says")
    sums = {"checksum": kept, **({"scale": tensors[SCALE]} if SCALE in tensors else {})}
    if any(record.get(name) != checksum(tensor) for name, tensor in sums.items()):
        raise EntryError("its content has changed since it was written")


def write_entry(path: Path, key: str, tensors: dict[str, Tensor], root: Path) -> None:
    """Write an entry, whole or not at all.

    Args:
        path: of the entry.
        key: its name.
        tensors: of its map, as :func:`.forms.encode` gives them, on the CPU.
        root: folder of the store, where the file is made before it is put in place.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    from safetensors.torch import save_file

    record = make_record(key, tensors)
    # No waiting for the disk: what a power failure tears is noticed and computed again.
    write_atomically(path, lambda place: save_file(tensors, place, record), durable=False, within=root)


def read_entry(path: Path, key: str, feature_dim: int | None, recorded: bool) -> Tensor:
    """Read a feature map ``[T', C, h, w]``, in the layout that the branch wants.

    Args:
        path: of the entry.
        key: its name.
        feature_dim: channels, where they are known.
        recorded: every entry of this store carries a record; without it one is taken that is a feature map at all.

    Raises:
        EntryError: it is damaged, or of another clip, shape or dtype than it says.
        FileNotFoundError: another process has just removed it.
    """
    tensors, record = open_entry(path)
    return checked_map(key, tensors, record, feature_dim, recorded)


def open_entry(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file of one entry, mapped into memory, and its record, unchecked.

    Raises:
        EntryError: it is damaged.
        FileNotFoundError: another process has just removed it.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            names = [TENSOR, *(name for name in handle.keys() if name == SCALE)]  # noqa: SIM118  # no mapping
            return {name: handle.get_tensor(name) for name in names}, handle.metadata() or {}
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError) as error:
        raise EntryError(f"{type(error).__name__}: {error}") from None


def check_entry(
    key: str, tensors: Mapping[str, Tensor], record: Mapping[str, object], feature_dim: int | None, recorded: bool
) -> None:
    """Find out whether an entry holds, without making a map of it. Arguments and errors as for :func:`read_entry`."""
    if "checksum" in record:
        check_record(key, tensors, record)
    elif recorded:
        raise EntryError("it was not written by this store: it carries no checksum")
    else:
        check_map(tensors[TENSOR], feature_dim)


def checked_map(
    key: str, tensors: Mapping[str, Tensor], record: Mapping[str, object], feature_dim: int | None, recorded: bool
) -> Tensor:
    """The feature map of an entry that holds. Arguments and errors as for :func:`read_entry`."""
    check_entry(key, tensors, record, feature_dim, recorded)
    return decode(tensors)


def _shape(features: Tensor) -> str:
    return "x".join(map(str, features.shape))
