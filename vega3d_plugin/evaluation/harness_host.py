"""A host with its branch, loaded from what an evaluation harness passes on, and asked several questions at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from ..analysis.twin import untrained_twin
from ..branch.handle import get_handle
from ..branch.switches import disabled, zeroed
from ..checkpoints.released.loading import load_released
from ..checkpoints.saving import load_pretrained
from ..checkpoints.trainer_folder import NONE, TrainerFolder, find_trained, with_adapter
from ..contracts.errors import Vega3dError
from ..contracts.settings import Float, Int, Positive, Settings
from ..contracts.tables import HOSTS
from ..hosts.loading import load_host, load_processor, read_source, small_host
from ..hosts.pixel_area import set_pixel_area
from ..recipes.blocks import DataSettings
from ..recipes.schema import TINY
from ..training.answers import encode_question, generate_batch, takes_points
from ..training.rows.conversation import Medium, Turn
from ..training.rows.encoding import Encoder

# What harnesses call them, and what `generate` does not take.
_NOT_FOR_GENERATE = ("until", "image_aspect_ratio", "max_gen_toks")


class EvaluationError(Vega3dError):
    """A harness asks for something that the model cannot be asked."""


class HostArguments(Settings):
    """What to load and how to show pictures: the ``--model_args`` of lmms-eval.

    Attributes:
        pretrained: the host, folder or hub id.
        branch: a saved branch or a trainer's checkpoint, whose own host is taken where it holds a whole one; default:
            ``pretrained``, when it holds one; ``none``: the host alone, for a baseline.
        released: a checkpoint of the released code instead of ``branch``; its language model is loaded too.
        adapter: a PEFT adapter; default: ``branch``, when it holds one; ``none``: without it.
        prior_pretrained: the prior's weights.
        prior_device, store: where the prior lives, and a folder of a feature store.
        processor: of the host; default: that of the checkpoint, which has the limits of training, else the host's.
        control: ``off``: the branch switched off; ``zeroed``: the generative tokens zero; ``twin``: the prior with
            weights drawn from a seed, see :func:`vega3d.analysis.untrained_twin`.
        device, dtype, attn_implementation: of the host; by default CUDA when there is any, and the saved dtype.
        min_pixels, max_pixels: area of an image, for processors that take them; default: the processor's own.
        max_num_frames: frames of a video.
        fps: sample so many frames per second, ``max_num_frames`` at most, instead of spreading them.
        video_as: ``video``; or ``images``: each frame an image of its own, as VG-LLM and the released code evaluate;
            default: as it was trained, where the checkpoint says, else ``video``.
        video_max_pixels: area of a frame of a video.
        system_prompt: for questions without one.
        max_new_tokens: where a task does not say.
        batch_size: questions that are asked at once; ``max_batch_size``: no effect, since no size is looked for.
    """

    pretrained: str
    branch: str | None = None
    released: str | None = None
    adapter: str | None = None
    prior_pretrained: str | None = None
    prior_device: str | None = None
    store: str | None = None
    processor: str | None = None
    control: Literal["none", "off", "zeroed", "twin"] = "none"
    device: str | None = None
    dtype: str = "auto"
    attn_implementation: str | None = None
    min_pixels: Positive | None = None
    max_pixels: Positive | None = None
    max_num_frames: Positive = 32
    fps: Float | Int | None = Field(default=None, gt=0)
    video_as: Literal["video", "images"] | None = None
    video_max_pixels: Positive | None = None
    system_prompt: str | None = None
    max_new_tokens: Positive = 128
    batch_size: int | str | None = None
    max_batch_size: int | str | None = None

    @model_validator(mode="after")
    def _one(self) -> HostArguments:
        if self.branch is not None and self.released is not None:
            raise ValueError("branch and released exclude each other: a released checkpoint has its own branch")
        if self.branch == NONE and self.control != "none":
            raise ValueError(f"control={self.control} needs a branch")
        return self


def use_twin(model: nn.Module, seed: int = 0) -> None:
    """Put the untrained twin in the place of a patched model's prior. Features stored of the prior are not read then.

    Raises:
        AnalysisError: the prior has no twin, as stored features have none.
    """
    branch = get_handle(model).branch
    branch.prior, branch.store = untrained_twin(branch.prior, seed), None


def trained_folder(arguments: HostArguments) -> TrainerFolder:
    """Where the parts of what is evaluated are.

    Raises:
        SavedBranchError: as of :func:`~vega3d_plugin.checkpoints.trainer_folder.find_trained`.
    """
    a = arguments
    branch = NONE if a.released is not None else a.branch
    return find_trained(a.pretrained, branch, adapter=a.adapter, processor=a.processor)


def trained_processor(trained: TrainerFolder) -> Any:
    """The processor of what was trained; of an adapter's own small model, where nothing was saved, its own.

    Raises:
        HostError: it cannot be loaded.
    """
    small = _small(trained) if trained.processor == TINY else None
    return load_processor(trained.processor) if small is None else small[1]


def trained_host(trained: TrainerFolder, *, device: str | None = None, dtype: str = "auto", **options: Any) -> Any:
    """The host of what was trained; ``host.model: tiny`` of a recipe is built again, as the same weights.

    Raises:
        HostError: it cannot be loaded.
    """
    small = _small(trained) if trained.host == TINY else None
    if small is None:
        return load_host(read_source(trained.host), device=device, dtype=dtype, **options).model
    kind = None if dtype == "auto" else getattr(torch, dtype)
    return small[0].to(device=device or ("cuda" if torch.cuda.is_available() else "cpu"), dtype=kind)


def _small(trained: TrainerFolder) -> tuple[nn.Module, Any] | None:
    return small_host(trained.kind) if trained.kind is not None and trained.kind in HOSTS else None


def cut(text: str, until: str | Sequence[str] | None) -> str:
    """An answer before the first of the texts that end it, stripped."""
    for stop in [until] if isinstance(until, str) else until or []:
        text = text.partition(stop)[0] if stop else text
    return text.strip()


class EvaluatedHost:
    """A host, ready to be asked.

    Args:
        arguments: what to load.
        data: how pictures are shown, in place of what the arguments say of them.

    Raises:
        HostError, SavedBranchError, ...: it cannot be loaded.
    """

    def __init__(self, arguments: HostArguments, data: DataSettings | None = None) -> None:
        self.arguments = a = arguments
        self.trained = trained_folder(a)
        options = {} if a.attn_implementation is None else {"attn_implementation": a.attn_implementation}
        self.processor = trained_processor(self.trained)
        limit_pixels(self.processor, a.min_pixels, a.max_pixels)
        host = trained_host(self.trained, device=a.device, dtype=a.dtype, **options)
        self.model = self._with_branch(host).eval()
        self.encoder = self.encoder_for(data or self._data())

    def encoder_for(self, data: DataSettings) -> Encoder:
        """What makes this host's inputs of rows that are shown in this way."""
        return Encoder(self.processor, data, points=takes_points(self.model))

    def _data(self) -> DataSettings:
        a = self.arguments
        return DataSettings.parse(
            {
                # The questions come from the harness.
                "files": ("-",),
                "frames": a.max_num_frames,
                "sampling": "uniform" if a.fps is None else "fps",
                "fps": None if a.fps is None else float(a.fps),
                "video_max_pixels": a.video_max_pixels,
                **self._shown_as(),
            }
        )

    def _shown_as(self) -> dict[str, Any]:
        """How frames become pictures: as in training, unless the arguments say otherwise."""
        trained = self.trained.data
        video_as = self.arguments.video_as or trained.get("video_as", "video")
        kept: dict[str, Any] = {}
        if video_as == "images":
            kept = {key: trained[key] for key in ("preset", "resize") if key in trained}
        return {"video_as": video_as, **kept}

    def ask(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any] | None = None) -> tuple[str, int]:
        """Answer one question.

        Args:
            messages: turns with ``role`` and ``content``: text, or parts of type ``text``, ``image`` or ``video``,
                whose picture is under ``url`` or under their type (a path, a picture of PIL, or a list of such).
            options: of ``generate``, as tasks write them: ``max_new_tokens``, ``temperature`` (0: greedy), ``until``
                (the answer is cut before these), ...

        Returns:
            The answer, and how many tokens were generated.

        Raises:
            EvaluationError: something else than text, images and videos.
            RowError: a picture that cannot be read.
        """
        return self.ask_all([messages], options)[0]

    def ask_all(
        self, questions: Sequence[Sequence[Mapping[str, Any]]], options: Mapping[str, Any] | None = None
    ) -> list[tuple[str, int]]:
        """Answer several questions in one batch, as :meth:`ask` answers each; all with the same options."""
        asked = dict(options or {})
        prompts = [encode_question(self.encoder, self._turns(messages)) for messages in questions]
        with self._control():
            said = generate_batch(self.model, self.processor, prompts, **self._generation(asked))
        return [(cut(text, asked.get("until")), count) for text, count in said]

    def _turns(self, messages: Sequence[Mapping[str, Any]]) -> list[Turn]:
        turns = [Turn(str(message["role"]), tuple(_parts(message["content"]))) for message in messages]
        if self.arguments.system_prompt is not None and turns[0].role != "system":
            turns.insert(0, Turn("system", (self.arguments.system_prompt,)))
        return turns

    def _generation(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        chosen = {k: v for k, v in asked.items() if k not in _NOT_FOR_GENERATE and v is not None}
        # Tasks say greedy in two ways, and some in only one of them.
        temperature = float(chosen.get("temperature", 1 if chosen.get("do_sample") else 0))
        return {"max_new_tokens": self.arguments.max_new_tokens, **chosen, "do_sample": temperature > 0}

    def _with_branch(self, host: nn.Module) -> nn.Module:
        a = self.arguments
        prior = {} if a.prior_device is None else {"device": a.prior_device}
        common = {"pretrained": a.prior_pretrained, "processor": self.processor, "store": a.store, **prior}
        if a.released is not None:
            load_released(host, a.released, **common)
        elif self.trained.branch is not None:
            load_pretrained(host, self.trained.branch, **common)
        model = with_adapter(host, self.trained.adapter)
        if a.control == "twin":
            use_twin(model)
        return model

    def _control(self) -> AbstractContextManager[None]:
        controls = {"off": disabled, "zeroed": zeroed}
        control = controls.get(self.arguments.control)
        return nullcontext() if control is None else control(self.model)


def limit_pixels(processor: Any, smallest: int | None, largest: int | None) -> None:
    """Set the area between which a Qwen-VL processor resizes images, where given. Raises :class:`EvaluationError`."""
    set_pixel_area(processor, smallest, largest, EvaluationError)


def _parts(content: Any) -> list[str | Medium]:
    if isinstance(content, str):
        return [content]
    parts: list[str | Medium] = []
    for part in content:
        kind = part.get("type")
        if kind == "text":
            parts.append(str(part.get("text", "")))
        elif kind in ("image", "video"):
            source = part.get("url", part.get(kind))
            if part.get("start_time") is not None or part.get("end_time") is not None:
                raise EvaluationError(
                    f"A question is about {part.get('start_time')} to {part.get('end_time')} seconds of {source}; "
                    "cuts of a video cannot be shown. Cut the file first."
                )
            parts.append(Medium(kind, Path(source) if isinstance(source, str) else source))
        else:
            raise EvaluationError(f"A question has a part of type {kind!r}; text, image and video can be shown.")
    return parts
