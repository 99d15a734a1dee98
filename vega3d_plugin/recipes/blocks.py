"""The blocks ``data``, ``train`` and ``tune`` of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ..contracts.settings import Float, Int, Positive, Settings, _known_name
from ..features.forms import FORMS
from .problems import SettingsClashError

FORM_NAMES = tuple(map(str, FORMS))
Bool = Annotated[bool, Field(strict=True)]
Rate = Annotated[Float, Field(gt=0)]

#: What ``data.preset: released`` stands for: the defaults of the released training scripts.
_RELEASED = {
    "video_as": "images",
    "resize": "width_518",
    "sampling": "fps",
    "frames": 8,
    "folder_fps": 1.0,
    "system": "You are a helpful assistant.",
}


class DataSettings(Settings):
    """Which rows to train on, and how their pictures reach the host.

    Attributes:
        preset: ``released``: read rows as the released spatial-reasoning code does. It sorts frames of a folder by
            their names as text, rounds the number of frames down, and replaces ``<video>`` by as many ``<image>``
            without a line break after them. It also sets ``video_as: images``, ``resize: width_518``,
            ``sampling: fps``, ``fps: 0.5``, ``min_frames: 4``, ``frames: 8``, ``folder_fps: 1`` and the system text
            "You are a helpful assistant.", unless you set them yourself.
        files: one or several ``.json`` or ``.jsonl`` files, or patterns such as ``data/*.jsonl``.
        eval_files: files of held-out rows, given like ``files``. The validation loss is measured on them.
        media_root: folder from which relative paths of images and videos start. Default: the folder of each file.
        format: ``llava``: rows with ``conversations`` and placeholders in the text. ``chat``: rows with ``messages``.
            ``auto``: decided by the keys of each row.
        frames: number of frames taken from a video. With ``sampling: fps``, the largest number.
        sampling: ``uniform``: ``frames`` frames, spread evenly over the video, first and last included. ``fps``:
            ``fps`` frames a second, at least ``min_frames`` and at most ``frames``.
        fps, min_frames: frames per second and smallest number of frames, for ``sampling: fps``.
        folder_fps: frames per second of folders of frames. Default: folders have no times. Lists of frames use the
            rate in their row, if it has one.
        video_as: ``video``: use the host's video input. ``images``: show each frame as an image of its own, as VG-LLM
            does with Qwen2.5-VL. A list of views is handled like a video.
        resize: ``width_518``: before the processor's own resizing, scale images to a width of 518 pixels (bicubic),
            keep at most the middle 518 rows, and crop to whole tokens. Default: only the processor's resizing. Needs
            ``video_as: images``.
        video_max_pixels: largest area of a video frame after the processor's resizing. Default: the processor's.
        skip_bad_rows: leave out rows that cannot be used, count them and list them. Otherwise the run stops.
        image_token, video_token: placeholders in the text of ``llava`` rows.
        system: text of the system turn, for rows that have none.
        workers: number of processes that read rows ahead, per training process.
    """

    preset: Literal["released"] | None = None
    files: tuple[str, ...]
    eval_files: tuple[str, ...] = ()
    media_root: str | None = None
    format: Literal["llava", "chat", "auto"] = "auto"
    frames: Positive = 8
    sampling: Literal["uniform", "fps"] = "uniform"
    fps: Rate | None = None
    min_frames: Positive = 1
    folder_fps: Rate | None = None
    video_as: Literal["video", "images"] = "video"
    resize: Literal["width_518"] | None = None
    video_max_pixels: Positive | None = None
    skip_bad_rows: Bool = False
    image_token: str = "<image>"
    video_token: str = "<video>"
    system: str | None = None
    workers: Annotated[Int, Field(ge=0, le=1024)] = 0

    @model_validator(mode="before")
    @classmethod
    def _as_released(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("preset") != "released":
            return values
        frames = values.get("frames")
        least = min(4, frames) if isinstance(frames, int) else 4
        timed = {"fps": 0.5, "min_frames": least} if values.get("sampling", "fps") == "fps" else {}
        return {**_RELEASED, **timed, **values}

    @field_validator("files", "eval_files", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("files")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one file of rows")
        return value

    @model_validator(mode="after")
    def _rate(self) -> DataSettings:
        if self.sampling == "fps" and self.fps is None:
            raise SettingsClashError("`sampling: fps` needs `fps`, the number of frames per second", "sampling", "fps")
        if self.sampling != "fps" and self.fps is not None:
            raise SettingsClashError(
                f"`fps` is for `sampling: fps` alone, and `sampling` is {self.sampling}. `fps: null` removes it",
                "sampling",
                "fps",
            )
        if self.min_frames > self.frames:
            raise SettingsClashError(
                f"min_frames {self.min_frames} is larger than frames {self.frames}", "min_frames", "frames"
            )
        if self.video_as != "images" and (self.resize or self.preset):
            word = f"resize: {self.resize}" if self.resize else f"preset: {self.preset}"
            raise SettingsClashError(
                f"`{word}` applies to images, so it needs `video_as: images`", word.split(":")[0], "video_as"
            )
        return self


class TrainSettings(Settings):
    """The numbers of a training run.

    Attributes:
        trainer: ``hf``: Trainer of transformers; ``trl``: SFTTrainer of TRL.
        learning_rate, schedule, warmup_ratio, weight_decay: settings of the optimiser. The warmup is a share of all
            steps.
        decay_steps, decay_factor: for ``schedule: step``: after each ``decay_steps`` steps the learning rate is
            multiplied by ``decay_factor``.
        max_grad_norm: larger gradients are scaled down to this norm.
        epochs: passes over the data.
        max_steps: number of optimiser steps, instead of ``epochs``.
        batch_size: samples per optimiser step, over all processes and accumulation steps.
        per_device_batch_size: samples per forward on one device.
        max_length: largest length of a sample in tokens. Longer samples are bad rows, because cutting them could lose
            pictures or the answer.
        gradient_checkpointing: less memory and more time, with the same result.
        bf16: autocast to bfloat16. Default: true if ``host.dtype`` is bfloat16.
        master_float32: keep trainable weights in float32, because small steps are lost in bfloat16. Default: true,
            except with DeepSpeed, which keeps float32 copies itself.
        optimiser: a name of ``TrainingArguments.optim``.
        save_steps, save_total_limit: steps between two checkpoints, and how many are kept (None: all). The checkpoint
            with the lowest validation loss is kept as well.
        eval_steps: steps between two measurements of the validation loss on ``data.eval_files``. Default:
            ``save_steps``. The loss is also measured before the first step and at each checkpoint.
        report_rows: number of rows whose pictures and answers the report shows, held-out rows if there are any. 0:
            none.
        logging_steps: steps between two lines of the log.
        seed: seed of new weights, of the order of rows and of dropout.
        report_to: trackers by their names in transformers, such as ``tensorboard`` and ``wandb``.
        deepspeed: DeepSpeed's configuration, as a JSON file or a mapping.
        fsdp: the options of ``TrainingArguments.fsdp`` as text, or the mapping ``fsdp_config`` for full sharding.
        output_dir: folder for checkpoints. Default: ``outputs/`` and the recipe's name.
    """

    trainer: Literal["hf", "trl"] = "hf"
    learning_rate: Rate
    schedule: Literal["constant", "linear", "cosine", "step"] = "cosine"
    warmup_ratio: Annotated[Float, Field(ge=0, lt=1)] = 0.0
    decay_steps: Positive | None = None
    decay_factor: Annotated[Float, Field(gt=0, lt=1)] = 0.1
    weight_decay: Annotated[Float, Field(ge=0)] = 0.0
    max_grad_norm: Rate = 1.0
    epochs: Positive = 1
    max_steps: Positive | None = None
    batch_size: Positive
    per_device_batch_size: Positive = 1
    max_length: Positive | None = None
    gradient_checkpointing: Bool = False
    bf16: Bool | None = None
    master_float32: Bool | None = None
    optimiser: str = "adamw_torch"
    save_steps: Positive = 500
    save_total_limit: Positive | None = None
    eval_steps: Positive | None = None
    report_rows: Annotated[Int, Field(ge=0, le=64)] = 4
    logging_steps: Positive = 10
    seed: Annotated[Int, Field(ge=0, lt=1 << 32)] = 0
    report_to: tuple[str, ...] = ()
    deepspeed: str | dict[str, Any] | None = None
    fsdp: str | dict[str, Any] | None = None
    output_dir: str | None = None

    @field_validator("report_to", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fit(self) -> TrainSettings:
        if self.schedule == "step" and self.decay_steps is None:
            raise SettingsClashError(
                "`schedule: step` needs `decay_steps`, the steps after which the rate falls", "schedule", "decay_steps"
            )
        if self.schedule != "step" and self.decay_steps is not None:
            raise SettingsClashError(
                f"`decay_steps` is for `schedule: step` alone, and `schedule` is {self.schedule}. "
                "`decay_steps: null` removes it",
                "schedule",
                "decay_steps",
            )
        if self.batch_size % self.per_device_batch_size:
            raise SettingsClashError(
                f"batch_size {self.batch_size} is not a multiple of per_device_batch_size {self.per_device_batch_size}",
                "batch_size",
                "per_device_batch_size",
            )
        return self


class StoreSettings(Settings):
    """Where features are kept. A text alone stands for ``{url: TEXT}``.

    Attributes:
        url: a folder, or a URL that fsspec opens, such as ``s3://bucket/features``.
        form: how features are kept: ``native``, or ``aligned`` (on the host's token grid: smaller, with equal results).
            ``-bf16`` or ``-int8`` behind either rounds them (smaller still).
        cache_gb: for a URL: largest size of the local cache, in GB. 0: no cache.
    """

    url: Annotated[str, Field(min_length=1)]
    form: str = "native"
    cache_gb: Annotated[Int, Field(ge=0, le=1 << 20)] = 50

    @model_validator(mode="before")
    @classmethod
    def _text(cls, values: Any) -> Any:
        return {"url": values} if isinstance(values, str) else values

    @field_validator("form")
    @classmethod
    def _known(cls, name: str) -> str:
        return _known_name("form of features", name, FORM_NAMES)


class PartSettings(Settings):
    """How one part of the model trains. A word such as ``full`` stands for ``{mode: full}``.

    Attributes:
        mode: ``frozen``: not trained. ``full``: every weight is trained. ``lora``: low-rank adapters, set by the block
            ``lora``.
        learning_rate: learning rate of this part. Default: that of ``train``.
    """

    mode: Literal["frozen", "full", "lora"]
    learning_rate: Rate | None = None

    @model_validator(mode="before")
    @classmethod
    def _word(cls, values: Any) -> Any:
        return {"mode": values} if isinstance(values, str) else values

    @model_validator(mode="after")
    def _used(self) -> PartSettings:
        if self.mode == "frozen" and self.learning_rate is not None:
            raise SettingsClashError("a frozen part has no learning_rate", "mode", "learning_rate")
        return self


class BranchPart(PartSettings):
    """The branch is small and new: it trains in full or not at all."""

    mode: Literal["frozen", "full"]


class TuneSettings(Settings):
    """Which parts of the model train, and how fast.

    Attributes:
        vision: the host's vision tower. Default: ``frozen``.
        projector: the host's own projector (Qwen-VL's merger). Default: ``frozen``.
        language: the language model and its head. Default: ``lora`` in a recipe with that block, else ``full``.
        branch: what ``patch`` adds. Default: ``full``.
    """

    vision: PartSettings = Field(default_factory=lambda: PartSettings(mode="frozen"))
    projector: PartSettings = Field(default_factory=lambda: PartSettings(mode="frozen"))
    language: PartSettings | None = None
    branch: BranchPart = Field(default_factory=lambda: BranchPart(mode="full"))

    def parts(self, lora: bool) -> Mapping[str, PartSettings]:
        """The four parts by name, with the language model's default filled in.

        Args:
            lora: whether the recipe has a block ``lora``.
        """
        language = self.language or PartSettings(mode="lora" if lora else "full")
        return {"vision": self.vision, "projector": self.projector, "language": language, "branch": self.branch}
