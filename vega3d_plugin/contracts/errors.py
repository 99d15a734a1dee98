"""Typed errors. Each message says what failed, where, what was found and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from .printable import brief, one_line, printable

#: A longer name is no slip of the finger, and comparing it takes time.
_LONGEST_NAME = 200
#: Fewer letters begin too many names; and more suggestions than this are no help.
_LEAST_LETTERS, _MOST_BEGUN = 3, 4


class Vega3dError(Exception):
    """Base class of every error this library raises on purpose.

    Messages quote names and values out of files; ``str`` of an error is safe to print, whatever these hold.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class UnknownNameError(Vega3dError, KeyError):
    """A host, prior, fuser, projector or recipe name that nobody registered."""

    def __init__(
        self, kind: str, name: object, known: Iterable[str], *, hint: str = "", broken: Mapping[str, str] | None = None
    ) -> None:
        """``hint`` says where to look, in place of a list of all that is known; ``broken``: plugins that failed."""
        names = sorted(known)
        hint = hint or f"Known: {', '.join(names) or 'none'}."
        super().__init__(f"Unknown {kind} {brief(name)}.{near_misses(str(name), names)} {hint}{_not_loaded(broken)}")

    def __str__(self) -> str:
        # KeyError would print the message in quotes.
        return printable(str(self.args[0]))


class SettingsError(Vega3dError, ValueError):
    """One or more settings are wrong; the message lists every one of them with its path.

    Attributes:
        mistakes: the keys and the message of each, where it is known which setting is wrong.
    """

    def __init__(self, message: str, mistakes: Iterable[tuple[tuple[int | str, ...], str]] = ()) -> None:
        super().__init__(message)
        self.mistakes = tuple(mistakes)


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
    """Return `` Did you mean 'x'?`` when something close is known, else an empty string.

    Names that begin as ``name`` does, whatever the case and the punctuation, count as closer than any other:
    ``Wan2.1`` means one of Wan 2.1.
    """
    if len(name) > _LONGEST_NAME:
        return ""
    plain = _plain(name)
    names = list(known)
    begun = [each for each in names if len(plain) >= _LEAST_LETTERS and _plain(each).startswith(plain)]
    close = begun[:_MOST_BEGUN] or difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if not close:
        return ""
    return f" Did you mean {' or '.join(repr(c) for c in close)}?"


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name)).lower()


def _not_loaded(broken: Mapping[str, str] | None) -> str:
    if not broken:
        return ""
    plugins = "; ".join(f"{name!r} ({one_line(reason)})" for name, reason in sorted(broken.items()))
    return f" Or it comes with a plugin that failed to load: {plugins}. `vega3d doctor` lists all plugins."


def was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is at the root of an error: others tell one during their imports as a missing module."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


# The one category of warnings, so that users can filter it or turn it into an error.
class Vega3dWarning(UserWarning):
    """Something works, but not as the user is likely to expect."""


class SeamMissedWarning(Vega3dWarning):
    """Images reached the host without passing the seam, so they were not fused."""


class RowError(Vega3dError, ValueError):
    """A row of the data cannot be used; the message says which one and why."""


class BadRowsError(Vega3dError, ValueError):
    """Some rows of the data cannot be used; the message lists them."""


class TrainError(Vega3dError):
    """A run cannot be started or go on: the recipe, the model, the output folder or a checkpoint does not fit."""


class BadRowWarning(Vega3dWarning):
    """A row turned out bad only when its pictures were read; another took its place."""
