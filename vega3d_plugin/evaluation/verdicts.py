"""What a difference allows to say: an estimate, its interval, the size of the effect, and a verdict in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: Fewer pictures have no interval: if all of five differ in one direction, chance alone does so once in 16 times.
FEWEST = 6
#: Resamples that are drawn at once.
_CHUNK = 256
#: Of shares and gains, of which a report has dozens.
_RESAMPLES = 2000


@dataclass(frozen=True)
class Measure:
    """What is measured of an answer.

    Attributes:
        name: in tables.
        higher: whether higher is better.
        smallest: a difference below it is none, whatever its interval: half a point of a share, a hundredth of a nat.
        unit: ``share`` (shown in percent), ``nats`` or ``ratio``.
        what: in a sentence.
    """

    name: str
    higher: bool
    smallest: float
    unit: str
    what: str

    def shown(self, value: float | None, *, signed: bool = False) -> str:
        """A value as a table shows it."""
        if value is None:
            return "-"
        if not math.isfinite(value):
            return str(value)
        if self.unit == "share":
            return f"{100 * value:{'+' if signed else ''}.1f}{' pt' if signed else '%'}"
        return f"{value:{'+' if signed else ''}.4f}"


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("exact", True, 0.005, "share", "the answer is the expected one but for case, space and a final stop"),
        Measure("choice", True, 0.005, "share", "the answer begins with the letter of the right choice"),
        Measure("MRA", True, 0.005, "share", "mean relative accuracy of the first number in the answer"),
        Measure("relative error", False, 0.005, "ratio", "of the first number; answers without a number are left out"),
        Measure("nll", False, 0.01, "nats", "negative log-likelihood of the expected answer, its end included"),
    )
}


def verdict(measure: Measure, mean: float, low: float | None, high: float | None, who: str = "first") -> str:
    """In words, and no more than the interval allows; never on scores that are not finite.

    Args:
        measure: what was measured.
        mean: ``who`` minus the other.
        low, high: of the 95% interval; None where there is none.
        who: the subject of the sentence.
    """
    if not all(math.isfinite(value) for value in (mean, low, high) if value is not None):
        return "no verdict: some scores are NaN or infinite"
    if low is None or high is None:
        return f"no verdict: fewer than {FEWEST} pictures or rows have no interval"
    if low == high == 0:
        return "the same on every answer"
    if low <= 0 <= high:
        return "no difference shown: the interval contains 0"
    if abs(mean) < measure.smallest:
        least = measure.shown(measure.smallest, signed=True).lstrip("+")
        return f"no difference shown: below {least}, too small to matter"
    better = (mean > 0) == measure.higher
    return f"{who} is {'better' if better else 'worse'}: the interval does not contain 0"


@dataclass(frozen=True)
class Effect:
    """One measure of a first set of answers minus that of a second, over the same questions.

    Attributes:
        first, second: names.
        type: of the questions, or ``all``.
        measure: a name of :data:`MEASURES`.
        values: both means.
        difference: first minus second.
        low, high: of its 95% percentile interval of the paired bootstrap; None where it has none.
        size: the difference in standard deviations of the differences between answers (Cohen's d_z); None where all
            are equal.
        questions, groups: how many, and of how many pictures.
        seeds: runs of each side.
    """

    first: str
    second: str
    type: str
    measure: str
    values: tuple[float, float]
    difference: float
    low: float | None
    high: float | None
    size: float | None
    questions: int
    groups: int
    seeds: tuple[int, int]

    @property
    def verdict(self) -> str:
        """See :func:`verdict`."""
        return verdict(MEASURES[self.measure], self.difference, self.low, self.high, self.first)

    @property
    def shown(self) -> tuple[str, str, str]:
        """Difference, interval and size of the effect, as tables show them."""
        show = MEASURES[self.measure].shown
        interval = "-" if self.low is None else f"{show(self.low, signed=True)} to {show(self.high, signed=True)}"
        return show(self.difference, signed=True), interval, "-" if self.size is None else f"{self.size:+.2f}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is not finite is null."""
        return {**finite(asdict(self)), "verdict": self.verdict}


def compared(
    first: Floats,
    second: Floats,
    groups: Sequence[Any] | Ints,
    *,
    same_runs: bool = False,
    seed: int = 0,
    resamples: int = 10_000,
) -> tuple[float, float | None, float | None, float | None]:
    """The mean difference of paired values, both ends of its interval, and the size of the effect.

    Rows and runs are both drawn with replacement: whole groups of rows, for both sides the same, and of each side one
    run fewer than it has, since as many would make the spread of a few seeds too small (Rao and Wu 1988). A side of one
    run has no spread of runs, which the interval then lacks.

    Args:
        first, second: ``[runs, rows]``.
        groups: ``[rows]``; rows of a group are drawn together.
        same_runs: run by run, both sides are one model (a control), so that the same runs are drawn for both.
        seed, resamples: of the bootstrap.

    Returns:
        Mean, low, high, size; the ends are None below :data:`FEWEST` groups.
    """
    each = first.mean(axis=0) - second.mean(axis=0)
    mean = float(each.mean())
    unit = np.unique(np.asarray(groups), return_inverse=True)[1]
    if not np.isfinite(each).all():
        return mean, math.nan, math.nan, None
    if not each.any():
        # What is the same on every answer needs no interval.
        return 0.0, 0.0, 0.0, None
    spread = float(each.std(ddof=1)) if len(each) > 1 else 0.0
    size = mean / spread if spread > 1e-12 else None
    if unit.max(initial=-1) + 1 < FEWEST:
        return mean, None, None, size
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [
            _drawn(rng, first, second, unit, min(_CHUNK, resamples - start), same_runs)
            for start in range(0, resamples, _CHUNK)
        ]
    )
    low, high = np.percentile(means, [2.5, 97.5])
    return mean, float(low), float(high), size


@dataclass(frozen=True)
class Estimate:
    """A share of right answers, or a difference of two, with its 95% interval; see :func:`share` and :func:`gain`.

    Attributes:
        value: from 0 to 1, of a difference from -1.
        low, high: of the interval; None below :data:`FEWEST` groups.
    """

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        return f"{self.value:.3f}{self._between(lambda end: f'{end:.3f}')}"

    @property
    def percent(self) -> str:
        """Of a share."""
        return f"{100 * self.value:.0f}%{self._between(lambda end: f'{100 * end:.0f}')}"

    @property
    def points(self) -> str:
        """Of a difference, in percentage points."""
        return f"{100 * self.value:+.1f} points{self._between(lambda end: f'{100 * end:+.1f}')}"

    def verdict(self, who: str) -> str:
        """Of a difference, see :func:`verdict`."""
        return verdict(MEASURES["choice"], self.value, self.low, self.high, who)

    @property
    def better(self) -> bool | None:
        """Of a difference: for the better, for the worse, or None where nothing may be said."""
        said = self.verdict("it")
        return said.startswith("it is better") if said.startswith("it is") else None

    def to_dict(self) -> dict[str, float | None]:
        """Plain values for JSON."""
        return {key: None if value is None else round(value, 4) for key, value in asdict(self).items()}

    def _between(self, shown: Callable[[float], str]) -> str:
        return "" if self.low is None or self.high is None else f" ({shown(self.low)} to {shown(self.high)})"


def share(right: Floats, groups: Sequence[Any] | Ints) -> Estimate:
    """The share of right answers.

    Args:
        right: ``[runs, rows]``, 1 where an answer is right.
        groups: ``[rows]``, see :func:`compared`.
    """
    return gain(right, np.zeros_like(right), groups)


def gain(first: Floats, second: Floats, groups: Sequence[Any] | Ints) -> Estimate:
    """The difference of two shares over the same rows; runs are paired, since they begin with one seed.

    Args:
        first, second: ``[runs, rows]``, 1 where an answer is right.
        groups: ``[rows]``, see :func:`compared`.
    """
    return Estimate(*compared(first, second, groups, same_runs=True, resamples=_RESAMPLES)[:3])


def _drawn(rng: np.random.Generator, first: Floats, second: Floats, unit: Ints, draws: int, same_runs: bool) -> Floats:
    """Differences of ``draws`` resamples."""
    count = int(unit.max()) + 1
    # Sums of each group, so that a draw costs as many steps as there are groups.
    sums = [np.stack([np.bincount(unit, run, count) for run in side]) for side in (first, second)]
    sizes = np.bincount(unit, minlength=count)
    rows = _times(rng, draws, count)
    left = _runs(rng, draws, len(first))
    right = left if same_runs else _runs(rng, draws, len(second))
    a, b = ((shares @ side * rows).sum(axis=1) for shares, side in ((left, sums[0]), (right, sums[1])))
    found: Floats = (a - b) / (rows @ sizes)
    return found


def _runs(rng: np.random.Generator, draws: int, count: int) -> Floats:
    """The share of each run in each resample: ``[draws, count]``."""
    take = max(1, count - 1)
    return _times(rng, draws, count, take) / take


def _times(rng: np.random.Generator, draws: int, count: int, take: int | None = None) -> Floats:
    """How often each of ``count`` things comes up in ``take`` draws with replacement, by default as many.

    Returns:
        ``[draws, count]``.
    """
    drawn = rng.integers(0, count, size=(draws, take or count)) + count * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * count).reshape(draws, count).astype(np.float64)


def finite(value: Any) -> Any:
    """Plain values with null for what JSON has no word for: NaN and infinities."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
