"""What is written down about a branch, in ``vega3d_config.json`` and inside every checkpoint."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import SavedBranchError

if TYPE_CHECKING:
    from .branch import GenerativeBranch

FORMAT = 1
#: Fixed, so that a checkpoint written by one version loads into a model patched by another.
RECORD_BYTES = 8192


def library_version() -> str:
    """Version of the installed package, or ``0+unknown`` when run from a source tree that is not installed."""
    try:
        return version("vega3d-plugin")
    except PackageNotFoundError:
        return "0+unknown"


def make_record(branch: GenerativeBranch) -> dict[str, Any]:
    """Library version, host family and hidden size, prior with its source, revision and fingerprint, all settings."""
    settings = branch.settings
    return {
        "format": FORMAT,
        "library_version": library_version(),
        "host": {"name": branch.host, "hidden_size": branch.seam.hidden_size, "merge": branch.seam.merge},
        "prior": {
            "name": settings.prior.name,
            "source": settings.prior.pretrained,
            "revision": settings.prior.revision,
            "feature_dim": branch.prior.feature_dim,
            "fingerprint": branch.prior.fingerprint,
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
