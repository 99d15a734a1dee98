"""A tower's own weights: what a released checkpoint was trained with, where that is not the published prior.

In the released Qwen2.5-VL code the tower is a submodule of the host (``modeling_qwen2_5_vl.py``,
``_init_generative_encoder``), so checkpoints hold its weights, as ``generative_encoder.tower.*``. Training there starts
from a checkpoint without these names, and transformers 4.50 then initialises what a checkpoint lacks: linear,
convolution and embedding weights of the tower are noise from that moment on, and frozen. Features are those of this
tower, so it is read and put in the place of the published weights. What is no submodule there (Wan's VAE, the empty
prompt, all of SVD) stays as published.

A tower comes from a released checkpoint, or from the file ``vega3d_tower.safetensors`` that is written beside a branch
and holds the same tensors under the same names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ...contracts.errors import CheckpointError, SavedBranchError
from ...storage.checksums import checksum_of
from ...storage.folders import fetch, local_folder
from ...storage.record import TOWER_FILE
from ...storage.weights import Stored, read_stored, stored_tensors
from ...storage.writing import write_atomically

#: What stands before the names of a tower's tensors; anything may stand before that.
MARKS = ("generative_encoder.tower.", "generative_vision_tower.")
#: Key in the metadata of ``vega3d_tower.safetensors``.
CHECKSUM = "vega3d_checksum"
PATTERNS = [TOWER_FILE, "model*.safetensors*", "pytorch_model*.bin*"]
# Of each family of priors: what begins the names of one of its models in the released tower, and the model's own name.
# V-JEPA 2 and DINOv3 are other classes there, with other names.
_MODELS: Mapping[str, Mapping[str, str]] = {
    "wan": {"model.": "transformer"},
    "wan-vace": {"model.": "transformer"},
    "stable-diffusion": {"unet.": "unet", "vae.": "vae"},
    "vae": {"vae.": "vae"},
    "vggt": {"model.aggregator.": "aggregator"},
}


@dataclass(frozen=True)
class Tower:
    """The tensors of a tower, not read yet.

    Attributes:
        source: file, folder or hub id, as a setting has it.
        entries: by what stands behind the mark in their names.
        checksum: of the file ``vega3d_tower.safetensors``; empty for a released checkpoint.
    """

    source: str
    entries: Mapping[str, Stored]
    checksum: str = ""


@dataclass(frozen=True)
class TowerComparison:
    """A tower and the prior it might replace.

    Attributes:
        parameters: numbers of the prior that the tower has too.
        different: how many of them are not the same.
    """

    parameters: int
    different: int


class TowerError(CheckpointError):
    """A tower cannot stand in for this prior's weights; the message says why."""


def tower_entries(stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """Of the tensors of a checkpoint those of its tower, by what stands behind the mark."""
    found = {}
    for key, entry in stored.items():
        mark = next((mark for mark in MARKS if f".{mark}" in f".{key}"), None)
        if mark is not None:
            found[key.partition(mark)[2]] = entry
    return found


def find_tower(source: str | Path) -> Tower:
    """The tower in a file, a folder or a hub id (``owner/name`` or ``owner/name@revision``).

    Raises:
        CheckpointError: there is none, or a file is damaged.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        name, _, revision = str(source).partition("@")
        folder = local_folder(source if not revision or path.is_dir() else name, CheckpointError, "tower")
        path = folder or fetch(name, PATTERNS, CheckpointError, revision=revision or None)
        if (path / TOWER_FILE).is_file():
            path = path / TOWER_FILE
    try:
        for stored in stored_tensors(path):
            entries = tower_entries(stored)
            if entries:
                return Tower(str(source), entries, _checksum_in(path))
    except SavedBranchError as error:
        raise CheckpointError(str(error)) from error
    raise CheckpointError(f"{path} holds no tower: no tensors named '*{MARKS[0]}*'.")


def write_tower(tower: Tower, folder: Path) -> str:
    """Write a tower beside a branch, unless it is there already; returns its checksum."""
    from safetensors.torch import save_file

    target = folder / TOWER_FILE
    tensors = {f"{MARKS[0]}{name}": tensor.contiguous() for name, tensor in _read(tower.entries)}
    found = checksum_of(tensors)
    if target.is_file() and _checksum_in(target) == found:
        return found
    metadata = {"format": "pt", CHECKSUM: found}
    write_atomically(target, lambda path: save_file(tensors, path, metadata=metadata))
    return found


def has_released_tower(prior: Any) -> bool:
    """Whether a prior is of a kind whose released tower can be read."""
    return getattr(prior, "family", "") in _MODELS


def compare_tower(prior: Any, tower: Tower) -> TowerComparison:
    """Compare a prior that was just loaded with a tower, in the lower of both precisions.

    Raises:
        TowerError: the tower is of another kind.
    """
    total = different = 0
    for parameter, tensor in _pairs(prior, tower):
        dtype = min((parameter.dtype, tensor.dtype), key=lambda dtype: dtype.itemsize)
        total += parameter.numel()
        different += int((parameter.data.to(dtype) != tensor.to(dtype)).sum())
    return TowerComparison(total, different)


def use_tower(prior: Any, tower: Tower) -> None:
    """Put a tower's weights in the place of those of a prior that was just loaded, and note where they are from.

    Raises:
        TowerError: the tower is of another kind.
        CheckpointError: its file is damaged.
    """
    if tower.checksum:
        tensors = {f"{MARKS[0]}{name}": tensor for name, tensor in _read(tower.entries)}
        if checksum_of(tensors) != tower.checksum:
            raise CheckpointError(f"{tower.source} is damaged: its content has changed since it was written.")
    for parameter, tensor in list(_pairs(prior, tower)):
        # A copy: the file may be replaced while the prior is used.
        parameter.data = tensor.clone()
    prior._fingerprint = None
    prior.settings = prior.settings.model_copy(update={"tower": tower.source})


def apply_tower(prior: Any, source: str | None) -> None:
    """What :attr:`~vega3d_plugin.contracts.settings.PriorSettings.tower` asks for, for a prior that was just loaded."""
    if source is not None:
        use_tower(prior, find_tower(source))


def _pairs(prior: Any, tower: Tower) -> Iterable[tuple[nn.Parameter, Tensor]]:
    """The parameters of a prior, each with the tensor that stands for it."""
    name = prior.settings.name if getattr(prior, "settings", None) else type(prior).__name__
    models = _MODELS.get(getattr(prior, "family", ""))
    if models is None:
        raise TowerError(
            f"The tower in {tower.source} cannot be read for the prior {name!r}: its names there are not known. Known "
            f"are those of {', '.join(_MODELS)}."
        )
    wanted: dict[str, nn.Parameter] = {}
    for prefix, model in models.items():
        own = dict(prior.models[model].named_parameters())
        keys = [key for key in tower.entries if key.startswith(prefix)]
        wanted |= {key: own.pop(new) for key, new in _renamed(prior.family, prefix, keys).items() if new in own}
        if own:
            missing = sorted(own)
            raise TowerError(
                f"The tower in {tower.source} is no {name!r}: it lacks {len(missing)} of its tensors, such as "
                f"{missing[0]}."
            )
    for key, parameter in wanted.items():
        if tuple(parameter.shape) != tower.entries[key].shape:
            raise TowerError(
                f"The tower in {tower.source} is no {name!r}: {key} is {list(tower.entries[key].shape)}, expected "
                f"{list(parameter.shape)}."
            )
    for key, tensor in _read({key: tower.entries[key] for key in wanted}):
        yield wanted[key], tensor


def _renamed(family: str, prefix: str, keys: Iterable[str]) -> dict[str, str]:
    """Names in the tower to names in the prior's model."""
    plain = {key.removeprefix(prefix): key for key in keys}
    if not family.startswith("wan"):
        return {key: name for name, key in plain.items()}
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    # It moves what it is given to new names and looks at nothing but these.
    renamed: dict[str, str] = convert_wan_transformer_to_diffusers(dict(plain))
    return {key: name for name, key in renamed.items()}


def _read(entries: Mapping[str, Stored]) -> Iterable[tuple[str, Tensor]]:
    by_key = {entry.key: name for name, entry in entries.items()}
    try:
        for key, tensor in read_stored(entries.values()):
            yield by_key[key], tensor
    except SavedBranchError as error:
        raise CheckpointError(str(error)) from error


def _checksum_in(path: Path) -> str:
    if path.name != TOWER_FILE:
        return ""
    try:
        with safe_open(path, framework="pt") as handle:
            return str((handle.metadata() or {}).get(CHECKSUM, ""))
    except (SafetensorError, OSError):
        return ""
