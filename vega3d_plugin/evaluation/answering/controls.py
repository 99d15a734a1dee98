"""The controls of an evaluation: what the branch is given, or kept from, while a question is answered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ...branch.handle import get_handle, is_patched
from ...branch.switches import disabled, zeroed
from ...contracts.errors import BadRowsError
from ...features.forms import Form
from ...training.answers import on_model
from ..harness_host import use_twin
from .questions import Question, Questions

Control = Literal["on", "off", "zeroed", "shuffled", "twin"]
CONTROLS: tuple[Control, ...] = get_args(Control)
#: What each is, in a few words.
MEANING = {
    "on": "as trained",
    "off": "branch switched off",
    "zeroed": "generative tokens zero",
    "shuffled": "features of another question's pictures",
    "twin": "prior with untrained weights",
}


class Kept:
    """Feature maps by the key of their clip, of the questions at hand alone; takes the place of a feature store."""

    form = Form()

    def __init__(self) -> None:
        self.features: OrderedDict[str, Tensor] = OrderedDict()

    def get(self, key: str) -> Tensor | None:
        """The map of a clip, or None."""
        return self.features.get(key)

    def put(self, key: str, features: Tensor) -> Tensor:
        """Keep the map of a clip, and give it back."""
        self.features[key] = features
        return features


class _Given(Kept):
    """Gives each clip of a question a map of another question, whatever the clip shows."""

    def __init__(self, own: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        super().__init__()
        self.own, self.others = own, others

    def get(self, key: str) -> Tensor | None:
        """The next map that was not given yet; for a clip that was here before, its map again."""
        if key not in self.features:
            place = len(self.features)
            steps = self.own[place % len(self.own)].shape[0]
            other = self.others[place % len(self.others)]
            # As many steps in time as the clip's own map has, evenly spread.
            chosen = torch.linspace(0, other.shape[0] - 1, steps).round().long().to(other.device)
            self.features[key] = other[chosen]
        return self.features[key]


class Controlled:
    """A patched model under a control.

    Args:
        model: patched, or, for ``on``, not.
        control: which.
        questions: all of the run, in which a question's partner for ``shuffled`` is found: the next one with other
            pictures, whichever process answers.
        encode: gives the host's inputs of a question.

    Raises:
        AnalysisError: the prior has no untrained twin.
        BadRowsError: ``shuffled``, and all questions have the same pictures.
    """

    def __init__(
        self, model: nn.Module, control: Control, questions: Questions, encode: Callable[[Question], Any]
    ) -> None:
        self.model, self.control, self.questions, self.encode = model, control, questions, encode
        self._maps: OrderedDict[str, list[Tensor]] = OrderedDict()
        if control == "twin":
            use_twin(model)

    @property
    def at_once(self) -> int | None:
        """How many questions may be answered at once; None: any number."""
        return 1 if self.control == "shuffled" else None

    @contextmanager
    def during(self, questions: Sequence[Question], *, keep: bool) -> Iterator[None]:
        """The control holds inside; ``keep``: the features of these questions are kept until its end."""
        if self.control == "off":
            with disabled(self.model):
                yield
        elif self.control == "zeroed":
            with zeroed(self.model):
                yield
        elif self.control == "shuffled":
            (question,) = questions
            with self._store(_Given(self._features(question), self._features(self._partner(question)))):
                yield
        elif keep and is_patched(self.model) and get_handle(self.model).branch.store is None:
            with self._store(Kept()):
                yield
        else:
            yield

    @contextmanager
    def _store(self, kept: Kept) -> Iterator[None]:
        branch = get_handle(self.model).branch
        before = branch.store
        branch.store = kept  # type: ignore[assignment]
        try:
            yield
        finally:
            branch.store = before

    def _partner(self, question: Question) -> Question:
        count = len(self.questions)
        for step in range(1, count):
            other: Question = self.questions[(question.number + step) % count]
            if other.conversation.media and other.media != question.media:
                return other
        raise BadRowsError("The control `shuffled` needs questions about at least two different pictures or videos.")

    @torch.no_grad()
    def _features(self, question: Question) -> list[Tensor]:
        """The feature map of each clip of a question, in the order in which the host shows them."""
        if question.media not in self._maps:
            with self._store(kept := Kept()):
                self.model(**on_model(self.model, self.encode(question)))
            self._maps[question.media] = list(kept.features.values())
            # A question's partner is mostly the next question.
            while len(self._maps) > 4:
                self._maps.popitem(last=False)
        return self._maps[question.media]
