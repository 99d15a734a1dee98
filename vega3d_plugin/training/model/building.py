"""A recipe to a model that is ready to train: host, branch, LoRA, and what is frozen."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...branch.handle import get_handle, is_patched
from ...contracts.errors import TrainError, Vega3dWarning
from ...contracts.printable import first_line
from ...contracts.tables import HOSTS
from ...features.store import FeatureStore
from ...hosts.loading import load_host, load_processor, read_source, small_host
from ...hosts.lora_targets import check_lora_targets
from ...hosts.pixel_area import set_pixel_area
from ...patching import patch
from ...recipes.blocks import PartSettings, TrainSettings, TuneSettings
from ...recipes.library import branch_settings
from ...recipes.schema import TINY, HostSettings, RecipeSettings
from .parts import check_trainable, part_of, projector_modules, set_trainable


@dataclass(frozen=True)
class Prepared:
    """A model that is ready to train.

    Attributes:
        model: the host with its branch, in a ``PeftModel`` where the recipe has LoRA.
        processor: the host's.
        parts: how each part trains.
    """

    model: Any
    processor: Any
    parts: Mapping[str, PartSettings]


def prepare(recipe: RecipeSettings, train: TrainSettings, store: FeatureStore | None = None) -> Prepared:
    """Load the host, patch it, put LoRA on, and freeze what is to stay as it is.

    Raises:
        HostError, PriorError, TrainError: see there.
    """
    from transformers import set_seed

    tune = recipe.tune or TuneSettings()
    parts = tune.parts(recipe.lora is not None)
    model, processor = load(recipe.host)
    # New weights, those of the branch and of LoRA, are the same in every process and every run.
    set_seed(train.seed)
    if recipe.prior is not None:
        patch(model, config=branch_settings(recipe), processor=processor, store=store, host=recipe.host.adapter)
    if recipe.lora is not None:
        model = _with_lora(model, recipe.lora, parts)
    else:
        set_trainable(model, parts)
    if recipe.prior is not None:
        handle = get_handle(model)
        if parts["branch"].mode == "frozen":
            _tell_never_trained()
            handle.freeze()
        else:
            handle.unfreeze()
    check_trainable(model, parts)
    if holds_master_weights(recipe, train):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return Prepared(model, processor, parts)


def _tell_never_trained() -> None:
    warnings.warn(
        "tune.branch is frozen and the branch is new, so it stays as it began: this run trains the host beside a "
        "branch that has learned nothing, at the cost of the prior. Write prior=null for a baseline without a branch.",
        Vega3dWarning,
        stacklevel=3,
    )


def load(host: HostSettings) -> tuple[nn.Module, Any]:
    """The host on the CPU and its processor, as the recipe names them.

    Raises:
        HostError: they cannot be loaded.
        TrainError: a checkpoint that lacks weights; and as :func:`check_host`.
    """
    model: Any
    check_host(host)
    tiny = tiny_host(host.adapter)
    if host.model == TINY and tiny is not None:
        model, processor = tiny()
        model = model.to(getattr(torch, host.dtype))
    else:
        found = read_source(host.model)
        # Before the weights, which take longer: what the processor needs may not be installed.
        processor = load_processor(host.model)
        loaded = load_host(found, device="cpu", dtype=host.dtype)
        if loaded.missing:
            raise TrainError(
                f"{host.model} lacks {len(loaded.missing)} weights of its own model, the first is "
                f"{loaded.missing[0]!r}; they would be random. Name a whole checkpoint in host.model."
            )
        model = loaded.model
    limit_pixels(processor, host)
    return model, processor


def check_host(host: HostSettings) -> None:
    """Refuse a host that only its own script can train.

    Raises:
        TrainError: transformers has none of the adapter's classes; or a small model is asked for, and there is none.
    """
    import transformers

    adapter: Any = HOSTS.get(host.adapter)
    tiny = host.model == TINY
    if tiny and tiny_host(host.adapter) is not None:
        return
    if adapter.classes and not any(hasattr(transformers, name) for name in adapter.classes):
        raise TrainError(
            f"host.adapter: {host.adapter}: `vega3d train` trains classes of transformers, and it has none of this "
            f"host's ({', '.join(adapter.classes)}). Train it by its own script: vega3d run --recipe RECIPE -- SCRIPT "
            "ARGS; the command is in the recipe's first lines."
        )
    if tiny:
        raise TrainError(f"host.model: {TINY}: the adapter {host.adapter!r} has no small model. Name a model.")


def uses_bf16(recipe: RecipeSettings, train: TrainSettings) -> bool:
    """Whether forward and backward are autocast to bfloat16."""
    return recipe.host.dtype == "bfloat16" if train.bf16 is None else train.bf16


def holds_master_weights(recipe: RecipeSettings, train: TrainSettings) -> bool:
    """Whether what trains is held in float32."""
    if train.master_float32 is not None:
        return train.master_float32
    # Without autocast, float32 weights would meet the host's half precision.
    return train.deepspeed is None and (uses_bf16(recipe, train) or recipe.host.dtype == "float32")


def _with_lora(model: Any, lora: Mapping[str, Any], parts: Mapping[str, PartSettings]) -> Any:
    from peft import LoraConfig, get_peft_model

    if parts["vision"].mode == "full":
        raise TrainError(
            "tune.vision is full beside lora: PEFT would wrap the whole vision tower, and the branch in it. Write "
            "tune.vision: lora (and let lora.target_modules match it), or lora: null."
        )
    home = get_handle(model).seam.path if is_patched(model) else ""
    if parts["projector"].mode == "full" and part_of(home) == "projector":
        raise TrainError(
            f"tune.projector is full beside lora: PEFT would wrap {home!r}, and the branch in it. Write "
            "tune.projector: lora (and let lora.target_modules match it), or lora: null."
        )
    values = dict(lora)
    check_lora_targets(model, values)
    if parts["projector"].mode == "full":
        # PEFT freezes what it does not know; these modules it trains and saves whole.
        values["modules_to_save"] = [*(values.get("modules_to_save") or []), *projector_modules(model)]
    try:
        return get_peft_model(model, LoraConfig(**values))
    except (TypeError, ValueError) as error:
        raise TrainError(f"PEFT refuses the block `lora`: {first_line(error)}") from error


def tiny_host(adapter: str) -> Callable[[], tuple[nn.Module, Any]] | None:
    """What builds the adapter's small model, where it has one."""
    if getattr(HOSTS.get(adapter), "tiny", None) is None:
        return None

    def build() -> tuple[nn.Module, Any]:
        built = small_host(adapter)
        assert built is not None
        return built

    return build


def limit_pixels(processor: Any, host: HostSettings) -> None:
    """Bounds of an image's area, as the recipe has them. Raises :class:`TrainError`."""
    set_pixel_area(processor, host.min_pixels, host.max_pixels, TrainError, "host.")
