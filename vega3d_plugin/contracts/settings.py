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
        name: a registered prior, ``vega3d ls priors``.
        pretrained: hub id or folder, in diffusers' layout or in the original one.
        revision: branch, tag or commit on the hub.
        tower: file, folder or hub id whose tower replaces the weights of ``pretrained``: a released checkpoint, or
            ``vega3d_tower.safetensors`` beside a branch, see :mod:`~vega3d_plugin.priors.frozen.towers`.
        timestep: noise level as a timestep of the schedule, 0 to 1000 (paper: 300).
        shift: of the flow-matching schedule (paper: 5).
        tap: block whose output is the feature, 0-based; negative counts from the end (the released default is -1,
            its scripts pass 20 of 30).
        size: height and width in pixels that frames are resized to.
        resize: ``crop``: cover the size and crop the centre, as released; tokens beyond the cut then have no features
            (0). ``stretch``: keep the whole frame.
        context: how much of a clip the prior sees at once: ``frame``: each frame alone, as released; ``views``: every
            frame its own latent frame, attended jointly (sparse views); ``video``: the causal video VAE.
        seed: of the noise; one seed gives a clip one feature map.
        preset: ``released``: the oddities of the released code, for checkpoints trained with it: the map of a cut is
            fused as if it were of the whole frame. What else it sets can be
            seen with ``vega3d prior info``, and is overruled by what is given beside it.
        window: contexts ``views`` and ``video``: latent steps that are attended jointly; longer clips are cut into
            overlapping windows. None: the prior's own, about the length it was trained on.
        overlap: steps that neighbouring windows share at least; features are averaged there.
        every: context ``frame``, approximate: of a clip's frames every n-th and the last are seen by the prior, and the
            features of those between are interpolated linearly. 1: all are seen.
        int8: approximate, Wan on a CPU: the linear layers of the transformer's blocks multiply in 8-bit integers, with
            a scale for each token and each output channel.
        chunk_frames: frames per forward where each is on its own (context ``frame``; the VAE in ``views``); changes
            memory, not features. None: as many as ``max_tokens`` allows.
        max_tokens: tokens of the denoiser per forward in context ``frame``; changes memory, not features.
        fast: the exact reductions of the fast path: true, false, or a list of their names (``vega3d prior info``).
        compile: ``torch.compile`` the blocks; the first clip of every size and length then takes up to minutes.
        offload: between calls the prior waits in the CPU's memory.
        dtype: compute dtype; default bfloat16 on CUDA, float32 elsewhere.
        device: where the prior lives; default: wherever the frames are.
        options: settings of one family of priors alone (``vega3d prior info``).
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
    every: Positive = 1
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
        name: a registered fuser, ``vega3d ls fusers``.
        init: ``identity``: the patched model starts as the host; ``released``: as the released code starts.
        num_heads, num_layers, dropout: of ``cross_attention``.
        residual_scale: start of ``a`` in ``token_gated_residual`` with ``init: released``.
        options: of a third party's fuser.
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
        hidden_dim: width of the MLP; default 4096 for the merge projectors, the hidden size for ``mlp2x_gelu``.
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
        prior, fusion, projector: of its parts.
        space: alignment in space, ``bilinear`` (released Qwen branch) or ``adaptive_avg`` (released LLaVA branch).
        images: ``separate``: every image is a clip of its own, as released; ``scene``: the images of one sample are the
            views of one clip, whatever their sizes. Matters for a prior with context ``views`` or ``video``.
        history: observations, the current one included, that a policy's clip holds while it acts (not in training):
            1 is none before. Call ``vega3d.get_handle(model).reset()`` when an episode starts.
        positions: ``sin3d``: after the fusion, each token is given a sinusoid of the world point that it shows, as in
            the paper's host; the call must then be given ``vega3d_points``, see
            :func:`~vega3d_plugin.scenes.view_points.view_points`. It has no weights, and no start as identity.
        placement: of the map of a cut frame (``resize: crop``). ``own``: each token meets the features of its own
            place, and tokens beyond the cut have none; ``stretched``: the map is taken for one of the whole frame, as
            in the released code. Default: ``own``; ``stretched`` with the prior's ``preset: released``, and for
            branches that were saved without this setting.
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
