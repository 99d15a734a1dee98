"""Families of generators: what all models of a family share, and a row for each model with what differs.

A row is data: where the weights come from, how wide and deep the model is, its tap, frame size and window. A family
knows how weights of its layout become a prior.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ...contracts.priors import Prior, PriorSpec
from ...contracts.settings import NoOptions, PriorSettings, Settings
from ...storage.reading import JsonObject
from ...storage.weights import Tensors
from ..frozen.components import load_component, locate, read_config, until
from ..frozen.prior import resolved_tap
from ..prompts.by_pipeline import pipeline_prompt
from .prior import ALL_CONTEXTS
from .video_transformer import VideoTransformerPrior, load_encoder, number_of


class Family(ABC):
    """What all models of a family share.

    Attributes:
        prior: the class of its priors.
        options: settings of this family alone.
        presets: settings by the name of a preset.
        licence: of the weights, one line.
        taps: what the numbers of the taps count.
    """

    prior: Callable[..., Prior]
    options: type[Settings] = NoOptions
    presets: Mapping[str, Mapping[str, Any]] = {}
    licence: str = "Apache 2.0"
    taps: str = "blocks of the transformer"

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

    def row(
        self,
        name: str,
        summary: str,
        *,
        source: str,
        width: int,
        blocks: int,
        tap: int,
        size: tuple[int, int],
        window: int,
        parameters: float,
        overlap: int = 4,
        **more: Any,
    ) -> PriorSpec:
        """A model of this family.

        Args:
            name: what users write.
            summary: one line for ``vega3d ls priors``.
            source: hub id of the weights.
            width: channels of a feature.
            blocks: of the transformer.
            tap: the default one; two thirds of the depth is the paper's place in Wan.
            size: default height and width in pixels.
            window: latent steps that the model was trained on at once.
            parameters: of what is loaded with the default tap, in billions.
            overlap: latent steps that neighbouring windows share.
            **more: ``licence`` and ``taps`` where they differ; all else are defaults of settings.
        """
        licence, taps = more.pop("licence", self.licence), more.pop("taps", f"0 to {blocks - 1}: {self.taps}")
        return PriorSpec(
            name,
            self.load,
            summary,
            source=source,
            feature_dim=width,
            contexts=ALL_CONTEXTS,
            defaults={"tap": tap, "size": size, "window": window, "overlap": overlap, **more},
            presets=self.presets,
            options=self.options,
            prompt=self.prompt,
            licence=licence,
            taps=taps,
            parameters=parameters,
            kind=self.prior if isinstance(self.prior, type) else None,
        )


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
