"""What read-outs found: figures of every held-out scene, with the controls. Tables and
pictures of them are made elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from ..intervals import Interval, difference_interval, mean_interval
from ..records import ITSELF, Record, Result, prior_of

if TYPE_CHECKING:
    pass

FORMAT = 1
#: Held-out scenes below which nothing is said of a difference.
FEW = 5
#: The figures that sentences and pictures are made of, where there are so many.
HEADLINES = ("points", "depth", "auc@30", "d1")
#: Controls of a read-out, in the order of tables, and what each shows.
CONTROLS: dict[str, str] = {
    "untrained twin": "the same class and size with random weights: what is left was not learned",
    "VAE alone": "the latents that the denoiser is given, without noise: what the VAE knows",
    "pixels": "the pixels of each token, 4x4 colours",
    "position only": "where a token lies in its frame, and nothing else: what all scenes have in common",
    "random": "independent noise: chance, and what the head makes of positions",
    "other scenes": "each scene with another scene's features: nothing of what is asked can be in them",
}


class DepthExample(Record):
    """One held-out view: what the prior saw, true and predicted depth.

    Attributes:
        scene, view: names.
        frame: what the prior saw, a JPEG picture in base64.
        size: (height, width) of the depth maps.
        true, predicted: millimetres, 16-bit PNG pictures in base64; 0 where there is none. Predictions by control.
    """

    scene: str
    view: str
    size: tuple[int, int]
    frame: str
    true: str
    predicted: dict[str, str]


class SceneFigures(Record):
    """One scene's figures, by control (``itself`` for the prior) and figure."""

    scene: str
    source: str
    fingerprint: str
    values: dict[str, dict[str, float]]


class PriorReadout(Record):
    """One prior in one context.

    Attributes:
        prior, context, fingerprint: which.
        settings: all of its settings; empty for a prior without any.
        feature_dim: channels.
        grid: (h, w) of its map, as it was read out.
        seen: (height, width) in pixels that it sees of a frame.
        held_out: the scenes that count; at least two.
        training: the scenes that the read-outs were trained on, with the figures that show how much was learned by
            heart.
        absent: controls that there are not, and why.
        examples: views to look at.
    """

    prior: str
    context: str
    fingerprint: str
    settings: dict[str, Any] = Field(default_factory=dict)
    feature_dim: int
    grid: tuple[int, int]
    seen: tuple[int, int]
    held_out: Annotated[tuple[SceneFigures, ...], Field(min_length=2)]
    training: Annotated[tuple[SceneFigures, ...], Field(min_length=1)]
    absent: dict[str, str] = Field(default_factory=dict)
    examples: tuple[DepthExample, ...] = ()

    @model_validator(mode="after")
    def _disjoint(self) -> PriorReadout:
        both = {scene.fingerprint for scene in self.held_out} & {scene.fingerprint for scene in self.training}
        if both:
            raise ValueError(f"scenes both trained on and held out: {', '.join(sorted(both))}")
        if any(ITSELF not in scene.values for scene in self.held_out):
            raise ValueError(f"a held-out scene lacks {ITSELF!r}")
        return self

    @property
    def label(self) -> str:
        """Such as ``tiny-wan (views)``."""
        return f"{self.prior} ({self.context})"

    @property
    def controls(self) -> list[str]:
        """Itself first, then every control there is, in the order of tables."""
        return [ITSELF, *(name for name in CONTROLS if any(name in scene.values for scene in self.held_out))]

    def units(self, figure: str, control: str = ITSELF, training: bool = False) -> list[float]:
        """A figure of each scene, NaN where there is none."""
        scenes = self.training if training else self.held_out
        return [scene.values.get(control, {}).get(figure, math.nan) for scene in scenes]

    def figure(self, figure: str, control: str = ITSELF, training: bool = False) -> Interval:
        """The mean over scenes, with its interval."""
        return mean_interval(self.units(figure, control, training))

    def difference(self, figure: str, control: str) -> Interval:
        """How much more the prior has than a control, paired over held-out scenes, with its interval."""
        return difference_interval(self.units(figure), self.units(figure, control))


class ReadoutScores(Result):
    """What :func:`vega3d.analysis.readout` found.

    Attributes:
        kind, format: of the file.
        options: of the training, and how views and scenes were chosen.
        figures: what each figure is.
        higher: figures of which more is better.
        library: version that wrote it.
        priors: each prior in each context.
        notes: what was left out.
    """

    kind: Literal["readout"] = "readout"
    format: Literal[1] = 1
    options: dict[str, Any]
    figures: Annotated[dict[str, str], Field(min_length=1)]
    higher: tuple[str, ...]
    library: str
    priors: Annotated[tuple[PriorReadout, ...], Field(min_length=1)]
    notes: tuple[str, ...] = ()

    @property
    def headlines(self) -> list[str]:
        """The figures that sentences and pictures are made of."""
        return [name for name in HEADLINES if name in self.figures]

    def of(self, prior: str, context: str | None = None) -> PriorReadout:
        """One prior's read-outs.

        Raises:
            AnalysisError: it is not among them.
        """
        return prior_of(self.priors, prior, context)

    def rows(self) -> Iterator[tuple[PriorReadout, str, dict[str, Interval]]]:
        """Every prior and control, with every figure."""
        for readout in self.priors:
            for control in readout.controls:
                yield readout, control, {name: readout.figure(name, control) for name in self.figures}

    def better(self, figure: str, difference: Interval) -> bool | None:
        """Whether a difference of prior minus control speaks for the prior.

        None while its interval contains 0, or is drawn over fewer than five scenes.
        """
        if not difference.is_known or difference.units < FEW or difference.low <= 0 <= difference.high:
            return None
        return (difference.value > 0) == (figure in self.higher)
