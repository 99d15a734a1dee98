"""What is written down about a branch, in ``vega3d_config.json`` and inside every checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..contracts.documents import MAX_SETTINGS, DocumentError, parse_json
from ..contracts.errors import SavedBranchError, Vega3dError
from ..contracts.printable import brief
from ..contracts.settings import BranchSettings, Width, setting_path
from .reading import JsonObject, read_json
from .versions import library_version

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE = "vega3d_config.json"
WEIGHTS_FILE = "vega3d.safetensors"
#: A prior's own tower, beside the branch that was trained with it.
TOWER_FILE = "vega3d_tower.safetensors"
#: What `vega3d train` writes of a run, in its folder and in each checkpoint.
RUN_FILE = "vega3d_run.json"
#: What `vega3d export host` writes beside a host's weights: which adapter is in them.
MERGED_FILE = "vega3d_host.json"
# Trainers' files, in the order in which they are searched for a branch.
OTHER_FILES = ("adapter_model*.safetensors", "model*.safetensors", "adapter_model*.bin", "pytorch_model*.bin")
MARK = ".vega3d."


FORMAT = 1
#: Fixed, so that a checkpoint written by one version loads into a model patched by another.
RECORD_BYTES = 8192


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
    import torch

    return torch.frombuffer(bytearray(text.ljust(RECORD_BYTES, b"\0")), dtype=torch.uint8)


def decode_record(data: Tensor, where: str) -> dict[str, Any]:
    """The inverse of :func:`encode_record`. Raises :class:`SavedBranchError` when it is not one."""
    import torch

    if data.dtype != torch.uint8 or data.ndim != 1 or data.numel() > MAX_SETTINGS:
        raise SavedBranchError(
            f"{where} holds no readable record of a branch: it is {data.dtype} {list(data.shape)}, expected uint8 "
            f"[{RECORD_BYTES}]."
        )
    text = bytes(data.cpu().numpy().tobytes()).rstrip(b"\0")
    return check_record(text, where)


class _Part(BaseModel):
    """Base of a record's parts; later versions may add keys."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Host(_Part):
    name: str
    hidden_size: Width
    merge: Annotated[int, Field(gt=0, le=64)]


class _Prior(_Part):
    name: str
    source: str | None = None
    revision: str | None = None
    feature_dim: Width
    fingerprint: str | None = None


class _Record(_Part):
    format: Annotated[int, Field(ge=1)]
    library_version: str = "unknown"
    host: _Host
    prior: _Prior
    settings: dict[str, Any]


def check_record(text: bytes | str, where: str) -> dict[str, Any]:
    """Parse a record.

    Settings that this version or the installed plugins do not know are left to whoever builds a branch of them; all
    others are checked here.

    Raises:
        SavedBranchError: names what is missing, wrong or too new, with its key.
    """
    try:
        record = parse_json(text)
    except DocumentError as error:
        raise SavedBranchError(f"{where} holds no readable record of a branch: {error}.") from None
    missing = [
        key for key in ("format", "host", "prior", "settings") if not isinstance(record, dict) or key not in record
    ]
    if missing:
        raise SavedBranchError(f"{where} is no record of a branch: it lacks {', '.join(missing)}.")
    if type(record["format"]) is int and record["format"] > FORMAT:
        raise SavedBranchError(
            f"{where} has format {record['format']}, written by vega3d-plugin {brief(record.get('library_version'))}; "
            f"this version ({library_version()}) reads up to {FORMAT}. Upgrade vega3d-plugin."
        )
    wrong = _mistakes(_Record, record)
    if not wrong:
        wrong = _mistakes(BranchSettings, record["settings"], "settings")
    if wrong:
        raise SavedBranchError(f"{where} is a damaged record of a branch:\n  " + "\n  ".join(wrong))
    # Parts that were left out are at their defaults, so that whoever reads the record finds them.
    defaults = BranchSettings().to_dict()
    settings = {part: record["settings"].get(part, defaults[part]) for part in ("prior", "fusion", "projector")}
    if "placement" not in record["settings"]:
        # Before this was a setting, the map of a cut was fused with the tokens of the whole frame.
        cut = settings["prior"].get("resize", "crop") == "crop"
        settings["placement"] = "stretched" if cut else "own"
    return {"library_version": "unknown", **record, "settings": {**record["settings"], **settings}}


def read_run(folder: Path, error: type[Vega3dError]) -> JsonObject | None:
    """What ``vega3d train`` wrote of a run (:data:`RUN_FILE`); None where there is no such file.

    ``settings`` is an object, whose ``data``, where it has one, is an object or None.

    Raises:
        Vega3dError: of the given type: it is damaged; the message names the key.
    """
    file = folder / RUN_FILE
    if not file.is_file():
        return None
    run = read_json(file, error)
    settings = run.mapping("settings")
    if settings.get("data") is not None:
        settings.mapping("data")
    return run


def _mistakes(kind: type[BaseModel], values: dict[str, Any], inside: str = "") -> list[str]:
    """Wrong values, each with its key; names and keys that are only unknown here are none."""
    try:
        kind.model_validate(values)
    except ValidationError as error:
        found = [
            item for item in error.errors(include_url=False) if item["type"] not in ("value_error", "extra_forbidden")
        ]
        return [
            f"{setting_path((inside, *item['loc']) if inside else item['loc'])}: {item['msg']}"
            + ("" if item["type"] == "missing" else f", found {brief(item['input'])}")
            for item in found[:20]
        ]
    return []
