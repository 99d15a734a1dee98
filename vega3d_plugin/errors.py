"""Typed errors. Each message says what failed, where, what was found and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Vega3dError(Exception):
    """Base class of every error this library raises on purpose."""


class UnknownNameError(Vega3dError, KeyError):
    """A host, prior, fuser, projector or recipe name that nobody registered."""

    def __init__(self, kind: str, name: object, known: Iterable[str], *, hint: str = "") -> None:
        """``hint`` says where to look, in place of a list of all that is known."""
        names = sorted(known)
        hint = hint or f"Known: {', '.join(names) or 'none'}."
        super().__init__(f"Unknown {kind} {name!r}.{near_misses(str(name), names)} {hint}")

    def __str__(self) -> str:
        # KeyError would print the message in quotes.
        return str(self.args[0])


class SettingsError(Vega3dError, ValueError):
    """One or more settings are wrong; the message lists every one of them with its path."""


class PluginError(Vega3dError):
    """A plugin could not be loaded, or registered something that cannot be used."""


class HostError(Vega3dError):
    """The model cannot be patched: not a supported host, or not built as its family is."""


class CompiledModelError(HostError):
    """The model is already compiled, so hooks added now may be ignored."""


class MetaModelError(HostError):
    """The model (or the part at the seam) has no weights yet: it lies on the meta device."""


class PatchError(Vega3dError):
    """``patch``, ``unpatch`` or the handle was used in a state that does not allow it."""


class FrozenBranchError(PatchError):
    """A training step runs while something else froze the branch, so it would not learn."""


class PriorError(Vega3dError):
    """A prior cannot be loaded or run."""


class CheckpointError(PriorError):
    """A weight folder is missing, incomplete or of another architecture."""


class PromptError(PriorError):
    """The embedding of the empty prompt is missing and cannot be computed."""


class FramesError(Vega3dError, ValueError):
    """Frames of a wrong shape, dtype or value range, or a video without usable frames."""


class VideoError(FramesError):
    """A video file cannot be read."""


class AnalysisError(Vega3dError, ValueError):
    """A prior cannot be judged on these scenes, or a result of it cannot be read."""


class ReportError(Vega3dError):
    """A report has nothing to show, or something that it cannot show."""


class SceneError(Vega3dError, ValueError):
    """A scene cannot be read, lacks what was asked of it, or its geometry cannot be true."""


class AlignmentError(Vega3dError, ValueError):
    """A feature map, a token grid and a token count do not fit together."""


class FusionError(Vega3dError, ValueError):
    """A fuser was asked for something its method cannot do."""


class StoreError(Vega3dError):
    """A feature store holds features of another prior, or a file in it is damaged."""


class SavedBranchError(Vega3dError):
    """A saved branch does not fit the model, the prior or this version of the library."""


def near_misses(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` when something close is known, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    if not close:
        return ""
    return f" Did you mean {' or '.join(repr(c) for c in close)}?"
