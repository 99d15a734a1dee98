"""What a sweep found: every timestep and tap. Tables and pictures of it are made elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from ..contracts.errors import AnalysisError
from .controls import CONTROLS
from .intervals import Interval, mean_interval
from .records import ITSELF, Record, Result, SceneScores


class Cell(Record):
    """One timestep and tap.

    Attributes:
        timestep: None for a prior without any.
        tap: the block.
        values: by scene and figure, a value for each pair of views, None where there is none.
        readout: figures of the read-out, by name; empty where none was asked for.
    """

    timestep: int | None
    tap: int
    values: tuple[dict[str, tuple[float | None, ...]], ...]
    readout: dict[str, float] = Field(default_factory=dict)


class SweepScores(Result):
    """What :func:`vega3d.analysis.sweep` found.

    Attributes:
        kind, format: of the file.
        prior, context, settings: what was swept; the settings are those of the last tap.
        protocol, options, figures, headline: as in a correspondence result.
        library: version that wrote it.
        timesteps, taps: the grid.
        cells: every timestep and tap.
        scenes: the pairs of views that were judged, and controls at the best timestep and tap.
        forwards: how often the prior was run on each scene, for each timestep.
    """

    kind: Literal["sweep"] = "sweep"
    format: Literal[1] = 1
    prior: str
    context: str
    settings: dict[str, Any]
    protocol: str
    options: dict[str, Any]
    figures: dict[str, str]
    headline: str
    library: str
    timesteps: Annotated[tuple[int | None, ...], Field(min_length=1)]
    taps: Annotated[tuple[int, ...], Field(min_length=1)]
    cells: tuple[Cell, ...]
    scenes: Annotated[tuple[SceneScores, ...], Field(min_length=1)]
    readouts: dict[str, str] = Field(default_factory=dict)
    forwards: int = 1

    @model_validator(mode="after")
    def _fits(self) -> SweepScores:
        wanted = {(timestep, tap) for timestep in self.timesteps for tap in self.taps}
        if {(cell.timestep, cell.tap) for cell in self.cells} != wanted or len(self.cells) != len(wanted):
            raise ValueError("cells are not those of the grid")
        if self.headline not in self.figures:
            raise ValueError("the headline is none of the figures")
        if any(set(cell.readout) != set(self.readouts) for cell in self.cells):
            raise ValueError("a cell's read-out has other figures than those that are told")
        for cell in self.cells:
            if any(set(by) != set(self.figures) for by in cell.values):
                raise ValueError(f"values of timestep {cell.timestep}, tap {cell.tap} are not those of its figures")
            lengths = [len(values) for by in cell.values for values in by.values()]
            expected = [len(scene.pairs) for scene in self.scenes for _ in self.figures]
            if len(cell.values) != len(self.scenes) or lengths != expected:
                raise ValueError(f"values of timestep {cell.timestep}, tap {cell.tap} do not fit the scenes' pairs")
        return self

    def cell(self, timestep: int | None, tap: int) -> Cell:
        """One cell of the grid.

        Raises:
            AnalysisError: it is not in the grid.
        """
        for cell in self.cells:
            if (cell.timestep, cell.tap) == (timestep, tap):
                return cell
        raise AnalysisError(
            f"The sweep has no timestep {timestep}, tap {tap}. It has timesteps {list(self.timesteps)} and taps "
            f"{list(self.taps)}."
        )

    def units(self, cell: Cell, figure: str) -> list[float]:
        """What intervals are drawn over: scenes, or the pairs of views of one scene."""
        numbers = [[math.nan if v is None else v for v in by[figure]] for by in cell.values]
        return numbers[0] if len(numbers) == 1 else [_mean(values) for values in numbers]

    def figure(self, cell: Cell, figure: str) -> Interval:
        """A figure of a cell with its interval."""
        return mean_interval(self.units(cell, figure))

    def best(self, figure: str | None = None) -> Cell:
        """The cell with the highest figure, by default the headline."""
        known = [(self.figure(cell, figure or self.headline).value, -k) for k, cell in enumerate(self.cells)]
        return self.cells[-max(known, key=lambda each: (-math.inf if math.isnan(each[0]) else each[0], each[1]))[1]]

    def behind(self, cell: Cell, figure: str | None = None) -> Interval:
        """How far a cell is behind the best one, paired over the units, with its interval."""
        name = figure or self.headline
        return mean_interval(np.asarray(self.units(self.best(name), name)) - np.asarray(self.units(cell, name)))

    def within_noise(self, figure: str | None = None) -> list[Cell]:
        """Cells that are not clearly behind the best one: the interval of their difference to it includes 0.

        The best cell was chosen on the same scenes, so even a clear lead is somewhat flattered.
        """
        best = self.best(figure)
        return [cell for cell in self.cells if cell is not best and not self.behind(cell, figure).low > 0]

    def grid(self, figure: str) -> list[list[float]]:
        """Means ``[tap][timestep]`` of a figure, or of a figure of the read-out."""
        if figure in self.figures:
            return [[self.figure(self.cell(t, tap), figure).value for t in self.timesteps] for tap in self.taps]
        return [[self.cell(t, tap).readout.get(figure, math.nan) for t in self.timesteps] for tap in self.taps]

    @property
    def over(self) -> str:
        """What intervals are drawn over."""
        return f"{len(self.scenes)} scenes" if len(self.scenes) > 1 else "the pairs of one scene"

    @property
    def controls(self) -> list[str]:
        """Itself at the best timestep and tap, then the controls there."""
        return [ITSELF, *(name for name in CONTROLS if any(name in scene.values for scene in self.scenes))]

    def control(self, control: str, figure: str) -> Interval:
        """A control's figure, beside the best timestep and tap."""
        return mean_interval(self._control_units(control, figure))

    def ahead(self, control: str, figure: str) -> Interval:
        """How far the best timestep and tap is above a control, paired, with its interval."""
        own, other = (self._control_units(name, figure) for name in (ITSELF, control))
        return mean_interval(np.asarray(own) - np.asarray(other))

    def _control_units(self, control: str, figure: str) -> list[float]:
        numbers = [scene.numbers(control, figure) for scene in self.scenes]
        return numbers[0] if len(numbers) == 1 else [_mean(values) for values in numbers]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
