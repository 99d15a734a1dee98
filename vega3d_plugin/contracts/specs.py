"""What is known of a prior before it is loaded: the row that a plugin registers. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .later import Later

if TYPE_CHECKING:
    from torch import Tensor

    from .priors import Prior
    from .settings import PriorSettings, Settings

#: All ways of looking at a clip, see :class:`~vega3d_plugin.contracts.settings.PriorSettings`.
ALL_CONTEXTS = ("frame", "views", "video")


@dataclass(frozen=True)
class PriorSpec:
    """A registered prior.

    Attributes:
        name: what users write.
        load: makes the prior from settings; heavy imports belong inside, or behind a
            :class:`~vega3d_plugin.contracts.later.Later`.
        summary: one line for ``vega3d ls priors``.
        source: where its weights come from, the default of ``pretrained``; empty when it needs none.
        feature_dim: channels of its feature map, when known before loading.
        contexts: the ``context`` settings that make sense.
        defaults: settings that differ from those of :class:`~vega3d_plugin.contracts.settings.PriorSettings`.
        presets: settings by the name of a preset (``released``).
        options: a :class:`~vega3d_plugin.config.Settings` class for settings of this family alone; None takes any.
        prompt: computes the tensors that stand for the empty prompt from the checkpoint's own text encoder, by name,
            as ``vega3d prior export-prompt`` writes them; None for a prior without text.
        licence: of the weights, one line; the source's own page decides.
        parameters: of what is loaded with the default tap, in billions, when known.
        taps: what its taps are, one line; empty where there is no choice.
        kind: the class of what ``load`` makes, or where it is; tells before loading what the fast path is made of and
            which settings change a feature.
    """

    name: str
    load: Callable[[PriorSettings], Prior]
    summary: str
    source: str = ""
    feature_dim: int | None = None
    contexts: tuple[str, ...] = ("frame",)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    options: type[Settings] | None = None
    prompt: Callable[[PriorSettings], Mapping[str, Tensor]] | None = None
    licence: str = ""
    parameters: float | None = None
    taps: str = ""
    kind: type[Prior] | Later | None = None

    def prior_class(self) -> type[Prior] | None:
        """:attr:`kind`, imported; None where it is not said."""
        return self.kind.get() if isinstance(self.kind, Later) else self.kind
