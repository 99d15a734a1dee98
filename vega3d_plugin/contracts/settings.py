"""Typed settings, YAML and JSON in and out, every mistake reported at once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from .documents import DocumentError, decode, is_deep, parse_json, read_bytes
from .errors import SettingsError, UnknownNameError, near_misses
from .paths import given_path
from .printable import brief, one_line
from .registry import table
from .yaml_text import Mistake, dump_yaml, parse_yaml

ProjectorName = Literal["mlp2x_gelu", "mlp", "avg"]
PROJECTORS: tuple[str, ...] = ("mlp2x_gelu", "mlp", "avg")


S = TypeVar("S", bound="Settings")


def _of_64_bits(value: int) -> int:
    if not -(1 << 63) <= value < 1 << 63:
        raise PydanticCustomError("too_large", "Input should be a whole number of at most 64 bits")
    return value


# Strict: a quoted number or a truth value in a YAML file is a mistake, not a number.
# A bound of its own would be lost where a field has one, so it is checked beside those.
Int = Annotated[int, Field(strict=True), AfterValidator(_of_64_bits)]
Float = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[int, Field(strict=True, gt=0, le=1 << 53)]
# Far above what any model has, and far below what a typing error or a hostile file can make an allocator try.
Side = Annotated[int, Field(strict=True, gt=0, le=1 << 14)]
Width = Annotated[int, Field(strict=True, gt=0, le=1 << 20)]
Layers = Annotated[int, Field(strict=True, gt=0, le=1000)]
#: What a generator of random numbers takes.
Seed = Annotated[int, Field(strict=True, ge=-(1 << 63), lt=1 << 64)]
#: Mistakes that a message lists; a file of nothing but mistakes has thousands.
SHOWN = 50


class Settings(BaseModel):
    """Base of all settings: immutable, no unknown keys, no silent conversion of numbers from strings."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @classmethod
    def parse(cls: type[S], values: Mapping[str, Any] | S, where: str = "", inside: tuple[str, ...] = ()) -> S:
        """Build settings from a mapping.

        Args:
            values: names and values.
            where: for messages.
            inside: keys under which these settings stand in larger ones, for :attr:`SettingsError.mistakes`.

        Raises:
            SettingsError: lists every unknown key, wrong type, value out of range and unknown name, with its path
                and close matches.
        """
        if isinstance(values, cls):
            return values
        if not isinstance(values, Mapping):
            raise SettingsError(f"{where or cls.__name__} must be a mapping of settings, got {type(values).__name__}.")
        values = dict(values)
        if is_deep(values):
            raise SettingsError(f"{where or cls.__name__}: the values are nested too deeply to be settings.")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            found = _mistakes(cls, error)
            inner = ((inside + keys, message) for keys, message in found)
            raise SettingsError(_report(found, error.error_count(), where), inner) from None

    @classmethod
    def read(cls: type[S], path: str | Path) -> S:
        """Read settings from a ``.yaml``, ``.yml`` or ``.json`` file.

        Raises:
            SettingsError: no such file, one that cannot be read, a key that is there twice, and as :meth:`parse`.
        """
        path = given_path(path, SettingsError, "Settings file")
        try:
            text = decode(read_bytes(path))
            if path.suffix == ".json":
                values = parse_json(text)
            else:
                found = parse_yaml(text)
                values = found.value
                if found.mistakes:
                    raise SettingsError(_unreadable(path, found.mistakes))
        except FileNotFoundError:
            raise SettingsError(f"Settings file {path} does not exist.") from None
        except DocumentError as error:
            raise SettingsError(f"{path} cannot be read: {error}.") from None
        return cls.parse(values, where=str(path))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON and YAML have them."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """YAML text; :meth:`read` gives the same settings back."""
        return dump_yaml(self.to_dict())

    def to_json(self) -> str:
        """JSON text; :meth:`read` gives the same settings back."""
        return json.dumps(self.to_dict(), indent=2)


class PriorSettings(Settings):
    """Which prior, and how it looks at a clip. None means the prior's own default.

    Attributes:
        name: a registered prior (``vega3d ls priors``).
        pretrained: hub id or folder, in diffusers' layout or in the original one.
        revision: branch, tag or commit on the hub.
        tower: file, folder or hub id of transformer weights that replace those of ``pretrained``: a released
            checkpoint, or ``vega3d_tower.safetensors`` beside a branch.
        timestep: noise level as a timestep of the schedule, 0 to 1000 (paper: 300).
        shift: shift of the flow-matching schedule (paper: 5).
        tap: the block whose output is the feature, counted from 0; negative numbers count from the end. (Released
            code: -1 by default, 20 of 30 in its scripts.)
        size: height and width in pixels that frames are resized to.
        resize: ``crop``: scale the frame to cover ``size`` and crop its centre, as in the released code. Tokens outside
            the crop get no features (0). ``stretch``: keep the whole frame.
        context: how much of a clip the prior sees at once. ``frame``: each frame alone, as in the released code.
            ``views``: each frame is its own latent frame, and the transformer attends across all of them (for sparse
            views). ``video``: the causal video VAE encodes the clip as a video.
        seed: seed of the noise. With one seed a clip has one feature map.
        preset: ``released``: repeat oddities of the released code, for checkpoints trained with it. Among others, the
            features of a cropped frame are fused as if they covered the whole frame. ``vega3d prior info`` lists what
            it sets. A setting that you give yourself wins over the preset.
        window: in contexts ``views`` and ``video``: number of latent steps that attend to each other. Longer clips are
            cut into overlapping windows. None: the prior's own, about the length it was trained on.
        overlap: smallest number of steps that neighbouring windows share. Features are averaged there.
        every: an approximation, in context ``frame``: the prior sees every n-th frame of a clip and the last, and the
            features of the frames between are interpolated linearly. 1: it sees all frames. At most 64.
        int8: an approximation, for Wan on a CPU: the linear layers of the transformer's blocks multiply in 8-bit
            integers, with a scale for each token and each output channel.
        chunk_frames: frames per forward where frames are independent (context ``frame``, and the VAE in ``views``).
            Changes memory, not features. None: as many as ``max_tokens`` allows.
        max_tokens: largest number of tokens per forward of the denoiser in context ``frame``. Changes memory, not
            features.
        fast: the fast path: true, false, or a list of the parts to use (``vega3d prior info`` lists them). All are
            exact up to rounding.
        compile: use ``torch.compile`` for the blocks. The first clip of each size and length then takes up to minutes.
        offload: move the prior to the CPU between calls.
        dtype: dtype of the computation. Default: bfloat16 on CUDA, float32 elsewhere.
        device: device of the prior. Default: the device of the frames.
        options: settings that only this family of priors has (``vega3d prior info``).
    """

    name: str = "wan2.1-t2v-1.3b"
    pretrained: str | None = None
    revision: str | None = None
    tower: str | None = None
    timestep: Int = Field(default=300, ge=0, le=1000)
    shift: Float = Field(default=5.0, gt=0)
    tap: Int | None = None
    size: tuple[Side, Side] | None = None
    resize: Literal["crop", "stretch"] = "crop"
    context: Literal["frame", "views", "video"] = "frame"
    seed: Seed = 0
    preset: str | None = None
    window: Positive | None = None
    overlap: Int = Field(default=4, ge=0)
    every: Annotated[Int, Field(ge=1, le=64)] = 1
    int8: Annotated[bool, Field(strict=True)] = False
    chunk_frames: Positive | None = None
    max_tokens: Positive = 16384
    fast: bool | tuple[str, ...] = True
    compile: Annotated[bool, Field(strict=True)] = False
    offload: Annotated[bool, Field(strict=True)] = False
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    device: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _own(cls, values: Any) -> Any:
        """A family's own settings may be given by their names, beside those that all priors have."""
        name = values.get("name", cls.model_fields["name"].default) if isinstance(values, Mapping) else None
        priors = table("prior")
        options = priors.get(name).options if isinstance(name, str) and name in priors else None
        # Options that are no mapping are reported as they are.
        if options is None or not isinstance(values.get("options", {}), Mapping):
            return values
        known = list(options.model_fields)
        # One that is nearly right goes there too, where it is reported with the name it was meant to be.
        own = {k: v for k, v in values.items() if k not in cls.model_fields and near_misses(str(k), known)}
        if not own:
            return values
        shared = {k: v for k, v in values.items() if k not in own}
        return {**shared, "options": {**shared.get("options", {}), **own}}

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return registered_name("prior", name)

    @field_validator("size", mode="before")
    @classmethod
    def _height_and_width(cls, value: Any) -> Any:
        # As scenes and benchmarks take it, and as one types it first.
        if isinstance(value, str | int | float):
            raise PydanticCustomError("size", "Input should be [height, width], such as [480, 832]")
        return value

    @field_validator("pretrained", "tower", "dtype", "device", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        # A dtype or a device of torch, which is not imported to find out.
        if type(value).__module__ == "torch":
            return str(value).removeprefix("torch.")
        return str(value) if isinstance(value, Path) else value


class NoOptions(Settings):
    """Of a prior that has no settings of its own."""


# Options of fusers that are settings of their own, and checked as such.
_SHARED = ("num_heads", "num_layers", "dropout", "residual_scale")


class FusionSettings(Settings):
    """How semantic and generative tokens are mixed.

    Attributes:
        name: a registered fuser (``vega3d ls fusers``).
        init: ``identity``: a fresh patch computes what the host computes. ``released``: start as the released code
            does, which changes the host's output before training.
        num_heads, num_layers, dropout: settings of ``cross_attention``.
        residual_scale: start value of ``a`` in ``token_gated_residual`` with ``init: released``.
        options: options of a plugin's own fuser.
    """

    name: str = "token_gated_residual"
    init: Literal["identity", "released"] = "identity"
    num_heads: Width = 8
    num_layers: Layers = 1
    dropout: Float = Field(default=0.1, ge=0, lt=1)
    residual_scale: Float = 0.2
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return registered_name("fuser", name)

    @model_validator(mode="before")
    @classmethod
    def _own(cls, values: Any) -> Any:
        """What is a setting of its own is checked as one, also where it is given among ``options``."""
        given = values.get("options") if isinstance(values, Mapping) else None
        if not isinstance(given, Mapping):
            return values
        own = {key: value for key, value in given.items() if key in _SHARED and key not in values}
        return {**values, **own, "options": {key: value for key, value in given.items() if key not in own}}

    def options_for(self, name: str | None = None) -> dict[str, Any]:
        """What :func:`~vega3d_plugin.branch.fusers.build.build_fuser` takes besides name, size and start.

        Args:
            name: of the fuser; default: this one's.
        """
        chosen: dict[str, Any] = {key: getattr(self, key) for key in _SHARED if key != "residual_scale"}
        if (name or self.name) == "token_gated_residual":
            chosen["residual_scale"] = self.residual_scale
        return {**chosen, **self.options}


class ProjectorSettings(Settings):
    """How features reach the hidden size.

    Attributes:
        name: ``mlp`` or ``avg`` (merge projectors of the released Qwen branch), ``mlp2x_gelu`` (released LLaVA branch).
        hidden_dim: width of the MLP. Default: 4096 for the merge projectors, the host's hidden size for ``mlp2x_gelu``.
    """

    name: str = "mlp"
    hidden_dim: Width | None = None

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return _known_name("projector", name, PROJECTORS)


class BranchSettings(Settings):
    """All settings of a branch.

    Attributes:
        prior, fusion, projector: settings of the three parts.
        space: how features are resampled to the token grid: ``bilinear`` (released Qwen branch) or ``adaptive_avg``
            (released LLaVA branch).
        images: which images form a clip. ``separate``: each image is a clip of its own, as in the released code.
            ``scene``: the images of one sample are views of one clip, whatever their sizes. It has an effect with
            priors whose context is ``views`` or ``video``.
        history: number of observations, with the current one, that the clip of an acting policy holds (not in
            training). 1: only the current one. Call ``vega3d.get_handle(model).reset()`` when an episode starts.
        positions: ``sin3d``: after the fusion, add a sinusoidal embedding of the world point that each token shows, as
            in the paper's host. Every call then needs ``vega3d_points``, which ``vega3d.view_points(scene)`` makes. It
            has no weights, and it changes the host's output from the start.
        placement: which tokens get the features of a cropped frame (``resize: crop``). ``own``: each token gets the
            features of its own place, and tokens outside the crop get none. ``stretched``: the features are spread
            over the whole frame, as in the released code. Default: ``own``. With the prior's ``preset: released``,
            and for branches saved without this setting: ``stretched``.
    """

    prior: PriorSettings = Field(default_factory=lambda: PriorSettings())
    fusion: FusionSettings = Field(default_factory=lambda: FusionSettings())
    projector: ProjectorSettings = Field(default_factory=lambda: ProjectorSettings())
    space: Literal["bilinear", "adaptive_avg"] = "bilinear"
    images: Literal["separate", "scene"] = "separate"
    history: Positive = 1
    positions: Literal["none", "sin3d"] = "none"
    placement: Literal["own", "stretched"] | None = None

    def with_prior(self, prior: PriorSettings) -> BranchSettings:
        """These settings with a resolved prior, and with what depends on the prior filled in."""
        placement = self.placement or ("stretched" if prior.preset == "released" else "own")
        return self.model_copy(update={"prior": prior, "placement": placement})


def _unreadable(path: Path, mistakes: Sequence[Mistake]) -> str:
    """The mistakes of a YAML file that are none of single settings' values."""
    lines = [f"  line {each.line}, {setting_path(each.keys)}: {each.message}" for each in mistakes[:SHOWN]]
    return f"{path} cannot be read:\n" + "\n".join(lines)


def setting_path(keys: Sequence[int | str]) -> str:
    """Where a setting stands, as messages have it: ``prior.tap``."""
    return ".".join(one_line(str(key)) for key in keys) or "(top level)"


def _known_name(kind: str, name: str, known: tuple[str, ...] | list[str]) -> str:
    if name not in known:
        raise ValueError(str(UnknownNameError(kind, name, known)))
    return name


def registered_name(kind: str, name: str) -> str:
    """The name, if it is one of a plugin's hosts, priors or fusers. Raises ``ValueError``, for pydantic, if not."""
    known = table(kind)
    if name not in known:
        raise ValueError(str(known.unknown(name)))
    return name


def _mistakes(cls: type[Settings], error: ValidationError) -> list[tuple[tuple[int | str, ...], str]]:
    found = []
    for item in error.errors(include_url=False)[:SHOWN]:
        if item["type"] == "extra_forbidden":
            known = _fields_at(cls, item["loc"][:-1])
            message = f"unknown key.{near_misses(str(item['loc'][-1]), known)} Known: {', '.join(known) or 'none'}."
        else:
            message = item["msg"].removeprefix("Value error, ")
            if item["type"] != "value_error":
                message += f", found {brief(item['input'])}"
        found.append((item["loc"], message))
    return found


def _report(found: Sequence[tuple[tuple[int | str, ...], str]], total: int, where: str) -> str:
    lines = [f"  {setting_path(keys)}: {message}" for keys, message in found]
    if total > SHOWN:
        lines.append(f"  ... and {total - SHOWN} more")
    count = f"{total} setting{'s are' if total > 1 else ' is'} wrong"
    return f"{count}{f' in {where}' if where else ''}:\n" + "\n".join(lines)


def _fields_at(cls: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        annotation = cls.model_fields[str(part)].annotation if str(part) in cls.model_fields else None
        inner = next((a for a in (annotation, *get_args(annotation)) if _is_model(a)), None)
        if inner is None:
            return []
        cls = inner
    return list(cls.model_fields)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
