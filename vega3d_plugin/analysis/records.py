"""What a correspondence run found: every pair's figures. Tables and pictures of them are made elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..contracts.errors import AnalysisError
from .controls import CONTROLS
from .intervals import Interval, mean_interval

if TYPE_CHECKING:
    pass

FORMAT = 1
#: Name of a prior's own features among its controls.
ITSELF = "itself"
#: Edges of the bins of relative rotation, degrees (Probe3D's).
ANGLES = (0.0, 15.0, 30.0, 60.0, 180.0)
_LARGEST = 1 << 29  # bytes of a result that are read

R = TypeVar("R", bound="Result")


class Record(BaseModel):
    """A part of a result: plain finite values, none of them unknown, none changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Result(Record):
    """A result that is written to a file and read back."""

    def to_json(self) -> str:
        """JSON text; :meth:`from_json` gives the same result back."""
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls: type[R], text: str | bytes, where: str = "the text") -> R:
        """Read what :meth:`to_json` wrote.

        Raises:
            AnalysisError: it is no such result; the message names the first key that is wrong.
        """
        try:
            return cls.model_validate_json(text)
        except (ValidationError, ValueError, RecursionError) as error:
            raise AnalysisError(f"{where} is no {_kind(cls)}: {_first(error)}") from None

    @classmethod
    def read(cls: type[R], path: str | Path) -> R:
        """Read a file that holds :meth:`to_json`.

        Raises:
            AnalysisError: no such file, or no such result in it.
        """
        path = Path(path)
        try:
            if path.stat().st_size > _LARGEST:
                raise AnalysisError(f"{path} has {path.stat().st_size} bytes; a result has {_LARGEST} at most.")
            text = path.read_bytes()
        except OSError as error:
            raise AnalysisError(f"{path} cannot be read: {error.strerror or error}.") from None
        return cls.from_json(text, str(path))


class SceneScores(Record):
    """One scene's figures.

    Attributes:
        scene, source, fingerprint: which scene, and the content of the judged views.
        views: names of the judged views.
        grid: (h, w) of the prior's map.
        seen: (height, width) in pixels that the prior sees of a frame.
        pairs: indices into ``views``.
        angles: degrees of rotation of each pair.
        shared: what each pair shares (tokens, voxels or pixels, as the protocol has it).
        left_out: pairs that share too little.
        repeated: frames of the clip that stand for views that the scene does not have (context ``video``).
        values: by control (``itself`` for the prior) and figure: a value for each pair, None where there is none.
        absent: controls that there are not, and why.
    """

    scene: str
    source: str
    fingerprint: str
    views: tuple[str, ...]
    grid: tuple[int, int]
    seen: tuple[int, int]
    pairs: tuple[tuple[int, int], ...]
    angles: tuple[float, ...]
    shared: tuple[int, ...]
    left_out: int = 0
    repeated: int = 0
    values: dict[str, dict[str, tuple[float | None, ...]]]
    absent: dict[str, str] = {}

    @model_validator(mode="after")
    def _fits(self) -> SceneScores:
        count = len(self.pairs)
        lengths = [("angles", len(self.angles)), ("shared", len(self.shared))]
        lengths += [(f"values.{c}.{f}", len(v)) for c, by in self.values.items() for f, v in by.items()]
        for name, length in lengths:
            if length != count:
                raise ValueError(f"{name} has {length} entries for {count} pairs")
        if any(not 0 <= view < len(self.views) for pair in self.pairs for view in pair):
            raise ValueError("pairs name views that are not there")
        if ITSELF not in self.values:
            raise ValueError(f"values lacks {ITSELF!r}")
        return self

    def numbers(self, control: str, figure: str) -> list[float]:
        """The values of all pairs, NaN for None."""
        found = self.values.get(control, {}).get(figure)
        return [math.nan if v is None else v for v in found] if found else [math.nan] * len(self.pairs)


class PriorScores(Record):
    """One prior in one context.

    Attributes:
        prior, context, fingerprint: which.
        settings: all of its settings; empty for a prior without any.
        feature_dim: channels.
        scenes: figures of each scene; at least one.
    """

    prior: str
    context: str
    fingerprint: str
    settings: dict[str, Any] = {}
    feature_dim: int
    scenes: Annotated[tuple[SceneScores, ...], Field(min_length=1)]

    @property
    def label(self) -> str:
        """Such as ``tiny-wan (views)``."""
        return f"{self.prior} ({self.context})"

    @property
    def controls(self) -> list[str]:
        """Itself first, then every control that some scene has, in the order of tables."""
        found = {control for scene in self.scenes for control in scene.values}
        return [ITSELF, *(name for name in CONTROLS if name in found)]

    @property
    def absent(self) -> dict[str, str]:
        """Controls that there are not, and why."""
        return {name: reason for scene in self.scenes for name, reason in scene.absent.items()}

    @property
    def over(self) -> str:
        """What intervals are drawn over."""
        return f"{len(self.scenes)} scenes" if len(self.scenes) > 1 else "the pairs of one scene"

    def units(self, control: str, figure: str, angles: tuple[float, float] | None = None) -> list[float]:
        """What an interval is drawn over: the mean of each scene's pairs, or every pair where there is one scene.

        Args:
            control: ``itself`` or a control.
            figure: of the protocol.
            angles: only pairs with a rotation in ``[from, to)`` degrees, the last bin including 180.
        """
        by_scene = [
            [v for v, angle in zip(scene.numbers(control, figure), scene.angles, strict=True) if _within(angle, angles)]
            for scene in self.scenes
        ]
        return by_scene[0] if len(by_scene) == 1 else [_mean(values) for values in by_scene]

    def figure(self, figure: str, control: str = ITSELF, angles: tuple[float, float] | None = None) -> Interval:
        """A figure with its interval; see :meth:`units`."""
        return mean_interval(self.units(control, figure, angles))

    def difference(self, figure: str, control: str, angles: tuple[float, float] | None = None) -> Interval:
        """How much more the prior has than a control, paired, with its interval."""
        own, other = self.units(ITSELF, figure, angles), self.units(control, figure, angles)
        return mean_interval(np.asarray(own) - np.asarray(other))


class CorrespondenceScores(Result):
    """What :func:`vega3d.analysis.correspondence` found.

    Attributes:
        kind, format: of the file.
        protocol: its name.
        options: the protocol's options, and how views were chosen.
        figures: what each figure of the protocol is.
        headline: the figure that an offset shared by all tokens cannot raise.
        library: version that wrote it.
        priors: each prior in each context.
    """

    kind: Literal["correspondence"] = "correspondence"
    format: Literal[1] = 1
    protocol: str
    options: dict[str, Any]
    figures: dict[str, str]
    headline: str
    library: str
    priors: tuple[PriorScores, ...]

    @model_validator(mode="after")
    def _fits(self) -> CorrespondenceScores:
        if not self.priors or not self.figures or self.headline not in self.figures:
            raise ValueError("it has no priors, no figures, or a headline that is none of its figures")
        return self

    def of(self, prior: str, context: str | None = None) -> PriorScores:
        """One prior's scores.

        Raises:
            AnalysisError: it is not among them.
        """
        return prior_of(self.priors, prior, context)

    def rows(self) -> Iterator[tuple[PriorScores, str, dict[str, Interval]]]:
        """Every prior and control, with every figure."""
        for scores in self.priors:
            for control in scores.controls:
                yield scores, control, {name: scores.figure(name, control) for name in self.figures}


class _Labelled(Protocol):
    @property
    def prior(self) -> str: ...

    @property
    def context(self) -> str: ...

    @property
    def label(self) -> str: ...


L = TypeVar("L", bound=_Labelled)


def prior_of(priors: Sequence[L], prior: str, context: str | None) -> L:
    """The first of a result's priors with this name and, where it is given, in this context.

    Raises:
        AnalysisError: it is not among them.
    """
    found = [each for each in priors if each.prior == prior and context in (None, each.context)]
    if not found:
        names = ", ".join(each.label for each in priors)
        raise AnalysisError(f"This result has no {prior!r}{f' ({context})' if context else ''}. It has: {names}.")
    return found[0]


def bins(edges: Sequence[float] = ANGLES) -> list[tuple[float, float]]:
    """Bins of relative rotation, degrees."""
    return list(pairwise(edges))


def _within(angle: float, angles: tuple[float, float] | None) -> bool:
    if angles is None:
        return True
    low, high = angles
    return low <= angle < high or (high == ANGLES[-1] and angle == high)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _kind(cls: type[BaseModel]) -> str:
    return f"{cls.__name__}"


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first: Mapping[str, Any] = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"{place + ': ' if place else ''}{first['msg']}."
    return f"{error}."
