"""What is written down about a branch, in ``vega3d_config.json`` and inside every checkpoint."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..contracts.errors import SavedBranchError

if TYPE_CHECKING:
    from ..contracts.settings import BranchSettings

CONFIG_FILE = "vega3d_config.json"
WEIGHTS_FILE = "vega3d.safetensors"
#: What `vega3d train` writes of a run, in its folder and in each checkpoint.
RUN_FILE = "vega3d_run.json"
# Trainers' files, in the order in which they are searched for a branch.
OTHER_FILES = ("adapter_model*.safetensors", "model*.safetensors", "adapter_model*.bin", "pytorch_model*.bin")
MARK = ".vega3d."


FORMAT = 1
#: Fixed, so that a checkpoint written by one version loads into a model patched by another.
RECORD_BYTES = 8192


def library_version() -> str:
    """Version of the installed package, or ``0+unknown`` when run from a source tree that is not installed."""
    try:
        return version("vega3d-plugin")
    except PackageNotFoundError:
        return "0+unknown"


def make_record(
    settings: BranchSettings, *, host: str, hidden_size: int, merge: int, feature_dim: int, fingerprint: str | None
) -> dict[str, Any]:
    """What is needed to build a branch again, and to tell whether it fits.

    Args:
        settings: of the branch, resolved.
        host: name of the adapter.
        hidden_size: size of the host's tokens.
        merge: patches per token and axis, at the seam.
        feature_dim: channels of the prior's features.
        fingerprint: of the prior; None accepts any weights of that name.
    """
    return {
        "format": FORMAT,
        "library_version": library_version(),
        "host": {"name": host, "hidden_size": hidden_size, "merge": merge},
        "prior": {
            "name": settings.prior.name,
            "source": settings.prior.pretrained,
            "revision": settings.prior.revision,
            "feature_dim": feature_dim,
            "fingerprint": fingerprint,
        },
        "settings": settings.to_dict(),
    }


def encode_record(record: dict[str, Any]) -> Tensor:
    """A record as bytes, zero-padded to :data:`RECORD_BYTES`: uint8 ``[RECORD_BYTES]``."""
    text = json.dumps(record, separators=(",", ":")).encode()
    if len(text) > RECORD_BYTES:
        raise SavedBranchError(f"The settings of the branch take {len(text)} bytes, more than {RECORD_BYTES}.")
    return torch.frombuffer(bytearray(text.ljust(RECORD_BYTES, b"\0")), dtype=torch.uint8)


def decode_record(data: Tensor, where: str) -> dict[str, Any]:
    """The inverse of :func:`encode_record`. Raises :class:`SavedBranchError` when it is not one."""
    text = bytes(data.to(torch.uint8).cpu().numpy().tobytes()).rstrip(b"\0")
    return check_record(text, where)


def check_record(text: bytes | str, where: str) -> dict[str, Any]:
    """Parse a record. Raises :class:`SavedBranchError` naming what is missing or too new."""
    try:
        record = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SavedBranchError(f"{where} holds no readable record of a branch: {error}") from None
    missing = [
        key for key in ("format", "host", "prior", "settings") if not isinstance(record, dict) or key not in record
    ]
    if missing:
        raise SavedBranchError(f"{where} is no record of a branch: it lacks {', '.join(missing)}.")
    if record["format"] > FORMAT:
        raise SavedBranchError(
            f"{where} has format {record['format']}, written by vega3d-plugin {record.get('library_version')}; this "
            f"version ({library_version()}) reads up to {FORMAT}. Upgrade vega3d-plugin."
        )
    return dict(record)
