"""A state dictionary's branch is compared with the branch that it is loaded into."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from ..contracts.errors import SavedBranchError, Vega3dWarning
from ..contracts.printable import brief
from ..storage.record import decode_record

#: Where and how a prior runs; none of it changes what the branch was trained on.
HARMLESS = (
    "pretrained", "revision", "tower", "preset", "chunk_frames", "max_tokens", "fast", "compile", "offload", "dtype",
    "device",
)  # fmt: skip

# Fusers that use the instruction.
_INSTRUCTED = ("context_gated", "instruction_token_gated")


def check_loaded(
    data: Any, where: str, ours: Callable[[], Mapping[str, Any]], accepts: Mapping[str, Any] | None = None
) -> None:
    """Compare the record in a state dictionary with a branch, before its tensors are copied.

    Args:
        data: the tensor ``record`` of the state dictionary, if it has one.
        where: its name there.
        ours: makes the record of the branch that it is loaded into.
        accepts: record of a branch with another prior that is meant.

    Raises:
        SavedBranchError: the tensors were trained with another prior or other settings; the message has both sides.
    """
    # A partial dictionary has none; one that was never saved holds zeros; on the meta device there are no values.
    if not isinstance(data, Tensor) or data.is_meta or not bool(data.any()):
        return
    saved = decode_record(data, where)
    tell_without_instruction(saved, where)
    if accepts is not None and _identity(saved) == _identity(accepts):
        return
    own = ours()
    found = list(_differences(_identity(saved), _identity(own)))
    marks = saved["prior"].get("fingerprint"), own["prior"]["fingerprint"]
    # Equal fingerprints are equal features; a converted checkpoint has none.
    if None not in marks and marks[0] != marks[1]:
        found.append(("prior.fingerprint", *marks))
    if found:
        lines = "\n  ".join(f"{key}: saved {brief(theirs)}, this model {brief(ours)}" for key, theirs, ours in found)
        raise SavedBranchError(
            f"{where} was trained with another prior or other settings than this model is patched with:\n  {lines}\n"
            "Build the model again, and patch it as the branch was saved: vega3d.load_pretrained(model, FOLDER) reads "
            "the settings from the checkpoint. It also takes allow_prior=NAME, if another prior is meant."
        )


def tell_without_instruction(record: Mapping[str, Any], where: str) -> None:
    """Warn of a branch that was trained when its fuser got no instruction yet, and gets one now.

    Records of that time have no setting ``positions``. Branches converted from released checkpoints then were meant to
    get it, and cannot be told from those that were trained.
    """
    settings = record["settings"]
    if settings["fusion"].get("name") in _INSTRUCTED and "positions" not in settings:
        warnings.warn(
            f"{where} was written by a version that gave its fuser {settings['fusion']['name']!r} no instruction. This "
            "version does, so a branch that was trained with that version gives other results now: train it again. A "
            "branch that was converted from a released checkpoint is right: convert it again to end this warning.",
            Vega3dWarning,
            stacklevel=3,
        )


def _identity(record: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal of two branches for one's tensors to mean the same in the other."""
    settings = dict(record["settings"])
    fusion = settings.get("fusion")
    if isinstance(fusion, Mapping):
        # Where training started from.
        settings["fusion"] = {key: value for key, value in fusion.items() if key != "init"}
    prior = settings.get("prior")
    if isinstance(prior, Mapping):
        options = {k: v for k, v in dict(prior.get("options") or {}).items() if k != "trust"}
        settings["prior"] = {**{k: v for k, v in prior.items() if k not in HARMLESS}, "options": options}
    return {
        "host": dict(record["host"]),
        "prior": {key: record["prior"].get(key) for key in ("name", "feature_dim")},
        "settings": settings,
    }


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Keys that both have, with values that differ; other versions of the library may have more or fewer settings."""
    for key in sorted({*theirs} & {*ours}):
        a, b = theirs[key], ours[key]
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _differences(a, b, f"{path}{key}.")
        elif _plain(a) != _plain(b):
            yield f"{path}{key}", a, b


def _plain(value: Any) -> Any:
    """JSON has lists for tuples."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


__all__ = ["check_loaded", "tell_without_instruction"]
