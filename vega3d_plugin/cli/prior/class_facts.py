"""What the class of a prior says before loading: its fast path, and the settings that change a feature.

Importing such a class imports torch, which takes seconds, and says the same each time. So what a class of this library
said is noted among the user's caches, by the versions and times of the files that it may come from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...contracts.later import Later
from ...contracts.specs import PriorSpec
from ...contracts.tables import PRIORS
from ...storage.caches import cache_root
from ...storage.versions import library_version

FOLDER = "prior_classes"
# Of what is noted: another number when that changes.
_FORMAT = 1
_PACKAGE = Path(__file__).resolve().parents[2]
#: Of classes that are not named before loading, what all of this library share.
_SHARED = Later("vega3d_plugin.priors.frozen.prior:FrozenPrior")


def class_facts(spec: PriorSpec) -> Mapping[str, Any]:
    """``reductions`` (a list of ``name`` and ``why``) and ``identity`` (names of settings; None: not said)."""
    kind = spec.kind
    if kind is None and PRIORS.plugin_of(spec.name) == "builtin_priors":
        return {**_noted(_SHARED), "identity": None}
    if isinstance(kind, Later) and kind.place.startswith(f"{_PACKAGE.name}."):
        return _noted(kind)
    return _said(spec.prior_class())


def _said(cls: Any) -> dict[str, Any]:
    identity = getattr(cls, "identity", None)
    reductions = [{"name": reduction.name, "why": reduction.why} for reduction in getattr(cls, "reductions", ())]
    return {"reductions": reductions, "identity": None if identity is None else list(identity)}


def _noted(kind: Later) -> dict[str, Any]:
    note = _note(kind)
    if note is not None:
        with suppress(OSError, ValueError):
            found = json.loads(note.read_text(encoding="utf-8"))
            if isinstance(found, dict) and found.keys() == {"reductions", "identity"}:
                return found
    said = _said(kind.get())
    if note is not None:
        from ...storage.writing import write_text

        with suppress(OSError):
            note.parent.mkdir(parents=True, exist_ok=True)
            for old in note.parent.glob(f"{note.name.partition('-')[0]}-*"):
                old.unlink(missing_ok=True)
            write_text(note, json.dumps(said))
    return said


def _note(kind: Later) -> Path | None:
    """The file for a class, whose name changes with the code; None where there is no place for it."""
    root = cache_root()
    if root is None:
        return None
    try:
        changed = [(str(file), file.stat().st_mtime_ns) for file in sorted((_PACKAGE / "priors").rglob("*.py"))]
    except OSError:
        return None
    named, state = ([kind.place], [_FORMAT, library_version(), changed])
    name, version = (hashlib.sha256(json.dumps(part).encode()).hexdigest()[:16] for part in (named, state))
    return root / FOLDER / f"{name}-{version}"
