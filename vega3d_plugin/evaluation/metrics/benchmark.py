"""What a benchmark is: whose scorers it has, how its rows are read, and which figures come of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ...contracts.errors import near_misses
from .bootstrap import Bools, Ints
from .errors import RowProblem
from .estimators import Estimator
from .rows import Row


@dataclass(frozen=True)
class Protocol:
    """Whose way of scoring.

    Attributes:
        name: what ``as_`` takes.
        source: the repository and file that define it.
        form: what is done to the texts or boxes, in a few words, for the signature.
        differs: what to know of it before comparing figures.
    """

    name: str
    source: str
    form: str
    differs: str


@dataclass(frozen=True)
class Question:
    """What is asked, and what is right.

    Attributes:
        id: of the question.
        type: of the question, one of the benchmark's types.
        truth: what is right, in the benchmark's own form.
        scene: where it is asked; empty where the row does not say.
        where: the row it came from.
        extra: what else the benchmark keeps of the row.
    """

    id: str
    type: str
    truth: Any
    scene: str = ""
    where: str = ""
    extra: Any = None


@dataclass(frozen=True)
class Item:
    """A question with what the model said; ``answer`` is None for a question without one that counts nevertheless."""

    question: Question
    answer: Any


@dataclass(frozen=True)
class Quantity:
    """One figure to be reported.

    Attributes:
        type: of the questions it is taken over, or ``all``, ``overall``.
        measure: its name.
        estimator: computes it; None: not computed.
        members: ``[N]``, the questions it is taken over.
        unit: ``percent`` or ``fraction``, as the protocol's own script prints it.
        strata: ``[N]``; questions are drawn within each. None: from all members alike.
        why: it is not computed.
    """

    type: str
    measure: str
    estimator: Estimator | None
    members: Bools
    unit: str = "percent"
    strata: Ints | None = None
    why: str = ""


@dataclass(frozen=True)
class Evaluation:
    """What a benchmark makes of its items.

    Attributes:
        quantities: figures to be reported, in order.
        values: per item, what it scored and how its answer was understood.
        notes: what a reader of the figures has to know.
    """

    quantities: Sequence[Quantity]
    values: Sequence[dict[str, Any]]
    notes: Sequence[str] = field(default=())


class Benchmark(ABC):
    """One benchmark; its instances hold nothing.

    Attributes:
        name: what is typed.
        title: what it is called.
        split: the public one that is scored, and ``size``, how many questions that has (None: not known here).
        types: of its questions; None: any.
        protocols: whose scorers there are, the default first.
        headline: type and measure of the figures that a summary shows.
        rows: keys of its rows, for help texts.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    split: ClassVar[str]
    size: ClassVar[int | None]
    types: ClassVar[tuple[str, ...] | None]
    protocols: ClassVar[tuple[Protocol, ...]]
    headline: ClassVar[tuple[tuple[str, str], ...]]
    rows: ClassVar[str]
    #: Keys that name a question together, where a row has no id.
    id_parts: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def question(self, row: Row, protocol: Protocol) -> Question:
        """The question of a row. Raises :class:`RowProblem` when the row does not hold it."""

    @abstractmethod
    def answer(self, row: Row, protocol: Protocol) -> Any:
        """What the model said, by a row. Raises :class:`RowProblem`."""

    @abstractmethod
    def evaluate(self, items: Sequence[Item], protocol: Protocol) -> Evaluation:
        """Figures of a protocol over items, at least one."""

    def questions(self, rows: Iterable[Row], protocol: Protocol) -> tuple[list[Question], list[str]]:
        """The questions of a file of references, and messages about rows that hold none."""
        good, bad = [], []
        for row in rows:
            try:
                good.append(self.question(row, protocol))
            except RowProblem as problem:
                bad.append(str(problem))
        return good, bad

    def id(self, row: Row) -> str:
        """What names the question of a row."""
        return row.id(*self.id_parts)

    def aliases(self, name: str) -> tuple[str, ...]:
        """Under which other ids a question may be known, the likeliest first."""
        return ()

    def contradicts(self, question: Question, row: Row, protocol: Protocol) -> bool:
        """Whether a row of predictions holds another truth or type than the question does."""
        try:
            own = self.question(row, protocol)
        except RowProblem:
            return False
        return own.truth != question.truth or own.type != question.type

    @staticmethod
    def parts(items: Sequence[Item], types: Iterable[str]) -> dict[str, Bools]:
        """For each of ``types`` that occurs, its questions ``[N]``."""
        found = np.array([item.question.type for item in items], dtype=object)
        return {name: members for name in types if (members := np.asarray(found == name, dtype=bool)).any()}

    def type(self, row: Row, *keys: str) -> str:
        """The type of the question of a row, one of :attr:`types`."""
        key, value = row.need(*(keys or ("question_type",)))
        name = row.text(key, value)
        if self.types is not None and name not in self.types:
            raise row.problem(
                f"key {key!r} is {name!r}, no type of {self.title}.{near_misses(name, self.types)} "
                f"Known: {', '.join(self.types)}"
            )
        return name


def everything(items: Sequence[Item]) -> Bools:
    """All questions ``[N]``."""
    return np.ones(len(items), dtype=bool)
