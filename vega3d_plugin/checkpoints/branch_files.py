"""The files of a saved branch: weights that carry the settings they were saved with, the settings to read, a card.

``vega3d.safetensors`` is a branch by itself: in its metadata lie the record (host, prior, settings) and a checksum of
record and tensors, so that one rename replaces all of it. ``vega3d_config.json`` is the same record for people and for
other programs, with a digest of its own; a save that was interrupted before it was written is told by that, and an edit
by hand too. Folders of versions before 0.1.0 have neither and are read as they are.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..branch.learned_scalars import saved_share
from ..contracts.errors import SavedBranchError, Vega3dError, Vega3dWarning
from ..contracts.settings import FusionSettings
from ..storage.checksums import METHOD, checksum_of
from ..storage.reading import parse_object, read_json
from ..storage.record import CONFIG_FILE, WEIGHTS_FILE, check_record
from ..storage.writing import sweep, write_atomically, write_json, write_text
from .model_card import model_card

CARD_FILE = "README.md"
#: Keys of the metadata of ``vega3d.safetensors``.
RECORD, CHECKSUM = "vega3d_record", "vega3d_checksum"
#: Key in ``vega3d_config.json``: what :func:`digest` gives of the rest of it.
DIGEST = "digest"
# Ends a card that this library wrote, with a digest of what stands above it.
_SEAL = re.compile(r"\n<!-- vega3d-plugin ([0-9a-f]{32}) -->\n\Z")
# How long settings and weights may differ because a save is just going on, in seconds.
_PATIENCE = 1.0


@dataclass(frozen=True)
class SavedBranch:
    """A branch as it was saved.

    Attributes:
        where: the file or folder, for messages.
        record: host, prior and settings.
        tensors: the branch's tensors by their own names.
    """

    where: str
    record: dict[str, Any]
    tensors: dict[str, Tensor]


def digest(record: Mapping[str, Any]) -> str:
    """Of a record's content, whatever the order of its keys: 32 hex digits."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def write_branch(folder: Path, record: Mapping[str, Any], tensors: Mapping[str, Tensor], *, card: bool = True) -> None:
    """Write a branch's files. Whenever this is interrupted, the folder holds the old branch or the new one.

    Args:
        folder: made if it does not exist.
        record: what :func:`~vega3d_plugin.storage.record.make_record` gives.
        tensors: of the branch, by name, on the CPU.
        card: write a model card, unless somebody has written one there or changed ours.

    Raises:
        OSError, SafetensorError: the folder cannot be written to.
    """
    from safetensors.torch import save_file

    bad = not_finite(tensors)
    if bad:
        warnings.warn(
            f"The branch that is saved in {folder} holds NaN or infinity in {_some(bad)}: training has diverged. It "
            "will be refused when it is loaded.",
            Vega3dWarning,
            stacklevel=3,
        )
    # As it comes back from JSON, so that both files hold the same.
    record = json.loads(json.dumps(record))
    text = json.dumps(record, separators=(",", ":"))
    metadata = {
        "format": "pt",
        "library": f"vega3d-plugin {record['library_version']}",
        RECORD: text,
        CHECKSUM: checksum_of(tensors, text),
    }
    about = model_card(record, sum(t.numel() for t in tensors.values()), _share(record, tensors) if card else None)
    sweep(folder)
    card = card and _is_ours(folder)
    # The weights first: they are a branch by themselves.
    write_atomically(folder / WEIGHTS_FILE, lambda path: save_file(dict(tensors), path, metadata=metadata))
    write_json(folder / CONFIG_FILE, {**record, DIGEST: digest(record)})
    if card:
        write_text(folder / CARD_FILE, f"{about}\n<!-- vega3d-plugin {_seal(about)} -->\n")
    _settle(folder)


def read_branch(folder: Path) -> SavedBranch:
    """Read what :func:`write_branch` wrote, in this version or an earlier one.

    Raises:
        SavedBranchError: a file is missing, damaged or was changed after it was saved; or settings and weights are of
            two branches.
    """
    config, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    if not weights.is_file():
        raise SavedBranchError(f"{folder} is incomplete: {CONFIG_FILE} without {WEIGHTS_FILE}.")
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            record, tensors = _read_weights(weights)
            return SavedBranch(str(folder), _agreed(folder, record), tensors)
        except _TwoSavesError as error:
            # A save that is going on has replaced one of the two files and is about to replace the other.
            if time.monotonic() < until:
                time.sleep(0.02)
                continue
            if record is None:
                raise SavedBranchError(str(error)) from None
            warnings.warn(f"{error} What stands in the weights is used.", Vega3dWarning, stacklevel=3)
            return SavedBranch(str(folder), check_record(json.dumps(record), str(config)), tensors)


def has_branch_files(folder: Path) -> bool:
    """True where :func:`read_branch` would find a branch: settings, or weights that carry theirs."""
    if (folder / CONFIG_FILE).is_file():
        return True
    try:
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as handle:
            return RECORD in (handle.metadata() or {})
    except (SafetensorError, OSError):
        return False


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    return [name for name, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]


class _TwoSavesError(Exception):
    """Settings and weights of a folder are not of one save."""


def _read_weights(path: Path) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """The record that the weights carry, None in those of earlier versions; and the tensors, checked against it."""
    metadata, tensors = _read_one_file(path)
    if RECORD not in metadata:
        return None, tensors
    said = metadata.get(CHECKSUM, f"{METHOD}:")
    # A later version may have another method, which this one cannot compare.
    if said.startswith(f"{METHOD}:") and said != checksum_of(tensors, metadata[RECORD]):
        raise SavedBranchError(
            f"{path} is damaged: its content has changed since it was saved ({CHECKSUM} does not match). Copy it "
            "again, or save the branch again."
        )
    return parse_object(metadata[RECORD], f"{path}: {RECORD}", SavedBranchError), tensors


def _read_one_file(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file that may be replaced at any moment.

    safetensors opens it twice, for the header and for the tensors, which may then be those of two files.
    """
    problem: Exception | None = None
    for _ in range(100):
        before = _identity(path)
        try:
            with safe_open(path, framework="pt") as handle:
                metadata = handle.metadata() or {}
                # Copies: the file may be replaced while the tensors are used.
                tensors = {key: handle.get_tensor(key).clone() for key in handle.keys()}  # noqa: SIM118
            problem = None
        except (SafetensorError, OSError) as error:
            problem = error
        if before == _identity(path):
            break
        time.sleep(0.01)
    if problem is not None:
        raise SavedBranchError(
            f"{path} is damaged or no file of weights ({type(problem).__name__}: {problem})."
        ) from problem
    return metadata, tensors


def _identity(path: Path) -> tuple[int, ...] | None:
    """What tells a file from the one that is put in its place."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _agreed(folder: Path, carried: dict[str, Any] | None) -> dict[str, Any]:
    """The record of a folder, when its settings and its weights are of one save.

    Raises:
        SavedBranchError: the settings are damaged, or were changed by hand.
        _TwoSavesError: they are of another save than the weights.
    """
    config = folder / CONFIG_FILE
    if not config.is_file():
        raise _TwoSavesError(f"{folder} has no {CONFIG_FILE}: a save was interrupted.")
    read = read_json(config, SavedBranchError)
    said = read.pop(DIGEST, None)
    if said is not None and said != digest(read):
        changed = "" if carried is None else _difference(read, carried)
        raise SavedBranchError(
            f"{config} was changed after it was saved{changed}. Settings that may differ are passed when the branch is "
            "loaded, such as pretrained= and device=; all others belong to the weights. Save the branch again."
        )
    if carried is None and said is not None:
        raise _TwoSavesError(
            f"{config} and {WEIGHTS_FILE} do not belong together: the weights carry no record of these settings. Copy "
            "both files again from one place."
        )
    if carried is not None and read != carried:
        raise _TwoSavesError(
            f"{config} and {WEIGHTS_FILE} do not belong together{_difference(read, carried)}: a save was interrupted. "
            "Save the branch again."
        )
    return check_record(json.dumps(read), str(config))


def _difference(there: Mapping[str, Any], carried: Mapping[str, Any]) -> str:
    found = differences(there, carried)
    lines = [f"{key} {a!r:.60} in {CONFIG_FILE}, {b!r:.60} with the weights" for key, a, b in found]
    return f" ({'; '.join(lines[:3])}{', ...' if len(lines) > 3 else ''})" if lines else ""


def differences(first: Any, second: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Where two records differ: the key with dots, and both values."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return [
            found
            for key in sorted({*first, *second}, key=str)
            for found in differences(first.get(key), second.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if first == second else [(path, first, second)]


def _settle(folder: Path) -> None:
    """Of several that save into one folder at once, the last to come by here leaves settings that fit the weights."""
    for _ in range(3):
        try:
            with safe_open(folder / WEIGHTS_FILE, framework="pt") as handle:
                carried = json.loads((handle.metadata() or {})[RECORD])
            read = json.loads((folder / CONFIG_FILE).read_bytes())
        except (SafetensorError, OSError, ValueError, KeyError):
            return
        if read == {**carried, DIGEST: digest(carried)}:
            return
        write_json(folder / CONFIG_FILE, {**carried, DIGEST: digest(carried)})


def _share(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str | None:
    """What the card says of the generative tokens' share."""
    try:
        return saved_share(tensors, FusionSettings.parse(record["settings"]["fusion"]), record["host"]["hidden_size"])
    except (Vega3dError, LookupError, TypeError):
        return None


def _is_ours(folder: Path) -> bool:
    """Whether the model card of a folder may be replaced: nobody has written one there, or changed ours."""
    try:
        there = (folder / CARD_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return True
    except (OSError, UnicodeDecodeError):
        return False
    seal = _SEAL.search(there)
    if seal is not None:
        return seal[1] == _seal(there[: seal.start()])
    # Versions before 0.1.0 did not seal theirs, and had no placement.
    try:
        old = read_branch(folder)
        settings = {key: value for key, value in old.record["settings"].items() if key != "placement"}
        return there == model_card({**old.record, "settings": settings}, sum(t.numel() for t in old.tensors.values()))
    except (SavedBranchError, LookupError, TypeError):
        return False


def _seal(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
