"""Families of generators: how weights of a family's layout become a prior. Its models are rows of ``catalogue``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ...contracts.priors import Prior
from ...contracts.settings import PriorSettings
from ...storage.reading import JsonObject
from ...storage.weights import Tensors
from ..frozen.components import load_component, locate, read_config, until
from ..frozen.prior import resolved_tap
from ..prompts.by_pipeline import pipeline_prompt
from .video_transformer import VideoTransformerPrior, load_encoder, number_of


class Family(ABC):
    """How the weights of a family become a prior.

    Attributes:
        prior: the class of its priors.
    """

    prior: Callable[..., Prior]

    @abstractmethod
    def load(self, settings: PriorSettings) -> Prior:
        """Build a prior from resolved settings.

        Raises:
            CheckpointError: the folder is missing, incomplete, or holds another architecture.
            PromptError: no embedding of the empty prompt, and no text encoder to compute it.
            PriorError: a tap outside the blocks, or a size that does not fit.
        """

    @abstractmethod
    def prompt(self, settings: PriorSettings) -> Tensors:
        """The tensors that stand for the empty prompt, by name, without loading anything else."""


class DiffusersFamily(Family):
    """A family in diffusers' layout: ``transformer/``, ``vae/``, and a pipeline that encodes the empty prompt.

    Attributes:
        transformer, vae, pipeline: names of diffusers' classes.
        weights: patterns of what a hub repository is asked for.
        texts: patterns of what it is asked for when the empty prompt has to be computed.
    """

    prior: type[VideoTransformerPrior]
    transformer: ClassVar[str]
    vae: ClassVar[str]
    pipeline: ClassVar[str]
    weights: ClassVar[Sequence[str]] = ("transformer/*", "vae/*", "empty_prompt.safetensors")
    texts: ClassVar[Sequence[str]] = ("text_encoder/*", "tokenizer/*", "model_index.json")

    # What a family fills in

    def check(self, config: JsonObject, folder: Path) -> None:
        """Refuse a transformer's configuration that is of another kind of model."""

    def blocks(self, config: JsonObject) -> int:
        """How many blocks the transformer has."""
        return number_of(config, "num_layers", config.file)

    def cut(self, config: JsonObject, tap: int) -> tuple[Callable[[], Any], Callable[[str], bool]]:
        """What builds the transformer up to the tap, and which of the files' tensors it needs."""
        shorter = {**config, "num_layers": tap + 1}
        return lambda: diffusers_class(self.transformer).from_config(shorter), until("transformer_blocks", tap)

    @abstractmethod
    def encode(self, pipeline: Any, config: JsonObject) -> Tensors:
        """The empty prompt by the pipeline, which has its text encoders alone."""

    @abstractmethod
    def prompt_tensors(self, found: Tensors, config: JsonObject) -> Tensors:
        """What was found for the empty prompt, checked against the transformer's configuration."""

    def more(self, folder: Path) -> dict[str, Any]:
        """Further arguments of the prior, from the checkpoint's folder."""
        return {}

    # What all share

    def load(self, settings: PriorSettings) -> Prior:
        """As promised by :class:`Family`; later blocks and the VAE's decoder are never read."""
        folder, is_local = locate(settings, list(self.weights))
        config = self._config(folder)
        tap = resolved_tap(settings.tap, self.blocks(config), settings.name)
        vae_config = read_config(folder / "vae", self.vae)
        more = self.more(folder)
        prompt = self._prompt_of(folder, is_local, settings, config)
        build, wanted = self.cut(config, tap)
        transformer = load_component(folder / "transformer", build, wanted=wanted)
        vae = load_encoder(folder / "vae", lambda: diffusers_class(self.vae).from_config(vae_config))
        settings = settings.model_copy(update={"tap": tap})
        return self.prior(transformer, vae, prompt, settings, reload=self.load, **more)

    def prompt(self, settings: PriorSettings) -> Tensors:
        """As promised by :class:`Family`."""
        folder, is_local = locate(settings, list(self.weights))
        return self._prompt_of(folder, is_local, settings, self._config(folder))

    def _config(self, folder: Path) -> JsonObject:
        config = read_config(folder / "transformer", self.transformer)
        self.check(config, folder)
        return config

    def _prompt_of(self, folder: Path, is_local: bool, settings: PriorSettings, config: JsonObject) -> Tensors:
        found = pipeline_prompt(
            folder, settings, is_local, self.pipeline, lambda pipe: self.encode(pipe, config), list(self.texts)
        )
        return self.prompt_tensors(dict(found), config)


def diffusers_class(name: str) -> Any:
    """A class of diffusers, imported when it is needed."""
    import diffusers

    return getattr(diffusers, name)
