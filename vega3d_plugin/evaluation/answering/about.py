"""What a file of answers says of the model that gave them: names, and digests that tell two of them apart."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ...checkpoints.reading import read_saved
from ...checkpoints.trainer_folder import TrainerFolder, adapter_checksums
from ...contracts.errors import SavedBranchError
from ...hosts.installed import PACKAGES, package_versions
from ...storage.checksums import checksum_of
from ...storage.record import read_run
from ...storage.versions import library_version
from ..harness_host import HostArguments


def identity(arguments: HostArguments, trained: TrainerFolder) -> dict[str, Any]:
    """What makes the model what it is, without its paths: host, branch, adapter and the prior's weights."""
    return {
        "host": _host(trained.host),
        "released": arguments.released,
        "branch": None if trained.branch is None else _branch(trained.branch),
        "adapter": None if trained.adapter is None else _adapter(trained.adapter),
        "dtype": arguments.dtype,
        "min_pixels": arguments.min_pixels,
        "max_pixels": arguments.max_pixels,
    }


def described(arguments: HostArguments, trained: TrainerFolder) -> dict[str, Any]:
    """Where the model came from: paths, the recipe and data of its training, versions."""
    places = [Path(place) for place in (trained.branch, trained.adapter, trained.host) if place is not None]
    runs = (read_run(place, SavedBranchError) for place in places if place.is_dir())
    run = next((dict(found) for found in runs if found is not None), None)
    return {
        "host": trained.host,
        "branch": trained.branch,
        "adapter": trained.adapter,
        "processor": trained.processor,
        "pixels": _pixels(arguments, run),
        "prior_pretrained": arguments.prior_pretrained,
        "recipe": run and run.get("recipe"),
        "step": run and run.get("step"),
        "seeds": run and run.get("seeds"),
        "trained_on": ((run or {}).get("data") or {}).get("files"),
        "versions": {"vega3d-plugin": library_version(), **_versions()},
    }


def _pixels(arguments: HostArguments, run: dict[str, Any] | None) -> dict[str, Any]:
    """The area between which pictures are resized: as asked, else as in training; None: the processor's own."""
    trained = (((run or {}).get("settings") or {}).get("host")) or {}
    return {key: getattr(arguments, key) or trained.get(key) for key in ("min_pixels", "max_pixels")}


def _versions() -> dict[str, str]:
    return {package.name: package.version for package in package_versions(PACKAGES) if package.version}


def _host(source: str) -> dict[str, Any]:
    """Of a folder its config and the names and sizes of its weight files: weights of gigabytes are not read twice."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return {"id": source}
    files = sorted(p for pattern in ("*.safetensors", "*.bin", "config.json") for p in folder.glob(pattern))
    text = json.dumps([(file.name, file.stat().st_size) for file in files])
    config = folder / "config.json"
    return {"id": folder.name, "files": _sha(text.encode() + (config.read_bytes() if config.is_file() else b""))}


def _branch(source: str) -> dict[str, Any]:
    saved = read_saved(source)
    text = json.dumps(saved.record, sort_keys=True)
    prior = saved.record["prior"]
    return {
        "fingerprint": checksum_of(saved.tensors, text),
        "prior": prior["name"],
        "prior_fingerprint": prior.get("fingerprint"),
        "fusion": saved.record["settings"]["fusion"].get("name"),
    }


def _adapter(source: str) -> dict[str, Any]:
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return {"id": source}
    return {"weights": adapter_checksums(folder)}


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
