"""The four parts of a patched host, told apart by the names of its modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from ...contracts.errors import TrainError
from ...contracts.seams import CHILD
from ...recipes.blocks import PartSettings

#: Names of modules, as transformers and the hosts' own packages have them. What is none of these is the language model.
NAMES = {
    "branch": (CHILD,),
    "projector": (
        "merger", "merger_list", "deepstack_merger_list", "multi_modal_projector", "mm_projector", "image_newline",
    ),
    "vision": ("visual", "vision_tower", "image_tower", "video_tower", "vision_model", "vision_backbone"),
}  # fmt: skip
PARTS = ("vision", "projector", "language", "branch")


def part_of(name: str) -> str:
    """The part that a parameter or a module belongs to, by its dotted name."""
    segments = set(name.split("."))
    # In this order: Qwen-VL's merger lies in its vision tower, and the branch in either.
    return next((part for part, names in NAMES.items() if segments & set(names)), "language")


def by_part(model: nn.Module) -> Mapping[str, list[tuple[str, nn.Parameter]]]:
    """All parameters with their names, by part."""
    found: dict[str, list[tuple[str, nn.Parameter]]] = {part: [] for part in PARTS}
    for name, parameter in model.named_parameters():
        found[part_of(name)].append((name, parameter))
    return found


def projector_modules(model: nn.Module) -> list[str]:
    """Names of the modules that make up the host's projector, as PEFT's ``modules_to_save`` takes them."""
    found: dict[str, None] = {}
    for name, _ in model.named_modules():
        last = name.rpartition(".")[2]
        if part_of(name) == "projector" and last in NAMES["projector"]:
            found[last] = None
    return list(found)


def set_trainable(model: nn.Module, parts: Mapping[str, PartSettings]) -> None:
    """Without LoRA: train the parts that are ``full``, freeze the others."""
    for part, parameters in by_part(model).items():
        for _, parameter in parameters:
            parameter.requires_grad_(parts[part].mode == "full")


def check_trainable(model: nn.Module, parts: Mapping[str, PartSettings]) -> None:
    """Find out whether each part trains as it should.

    Raises:
        TrainError: LoRA where there should be none, none where there should be some, or a part that is frozen or
            not against its setting.
    """
    problems = []
    for part, parameters in by_part(model).items():
        mode = parts[part].mode
        lora = [name for name, _ in parameters if "lora_" in name]
        trains = [name for name, parameter in parameters if parameter.requires_grad]
        if mode == "lora" and not lora:
            problems.append(f"tune.{part} is lora, but lora.target_modules matches nothing in it")
        elif mode != "lora" and lora:
            problems.append(f"tune.{part} is {mode}, but lora.target_modules matches {_without_lora(lora[0])!r}")
        elif mode == "frozen" and trains:
            problems.append(f"tune.{part} is frozen, but {trains[0]!r} trains")
        elif mode == "full" and parameters and not trains:
            problems.append(f"tune.{part} is full, but nothing in it trains")
    if problems:
        raise TrainError("The recipe and the model do not fit:\n  " + "\n  ".join(problems))


def optimiser_groups(
    model: nn.Module, parts: Mapping[str, PartSettings], rate: float, decay: float, decayed: Iterator[str] | list[str]
) -> list[dict[str, Any]]:
    """Parameters that train, as groups of an optimiser: by part and with or without weight decay.

    Args:
        model: the host.
        parts: with their learning rates.
        rate: of parts without one.
        decay: weight decay.
        decayed: names of the parameters that are decayed.
    """
    names = set(decayed)
    groups = []
    for part, parameters in by_part(model).items():
        for with_decay in (True, False):
            chosen = [p for name, p in parameters if p.requires_grad and (name in names) == with_decay]
            if chosen:
                own = parts[part].learning_rate
                groups.append(
                    {
                        "params": chosen,
                        "lr": rate if own is None else own,
                        "weight_decay": decay if with_decay else 0.0,
                        "part": part,
                    }
                )
    return groups


def _without_lora(name: str) -> str:
    return name.partition(".lora_")[0]
