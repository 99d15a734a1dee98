"""OpenVLA and OpenVLA-OFT: where their seam is, by structure and class name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from vega3d_plugin.contracts.clips import PixelStatistics
from vega3d_plugin.contracts.errors import HostError
from vega3d_plugin.contracts.seams import Seam, SeamPoint

from .about import BASE, OPENVLA
from .pixels import Stacking
from .reader import PROCESS, OpenVLAReader, images_per_sample

TOWERS = ("featurizer", "fused_featurizer")
PROMPT = "In: What action should the robot take to find what is left of the door?\nOut:"
IGNORE_INDEX = -100


class OpenVLAAdapter:
    """OpenVLA, OpenVLA-OFT and Prismatic models in their own code; see :class:`~vega3d_plugin.seams.HostAdapter`.

    The seam is the forward of ``projector``. The pixels are noted where they come in: at the model's forward and, in
    OpenVLA-OFT, at the method that encodes images. So ``vision_backbone`` may be replaced, as OFT's FiLM wrapper does,
    before or after.
    """

    name, summary, seen_with = OPENVLA.name, OPENVLA.summary, OPENVLA.seen_with
    classes: Sequence[str] = OPENVLA.classes

    def matches(self, model: nn.Module) -> bool:
        """True for the classes of the HF code, their subclasses and forks."""
        return any(cls.__name__ == BASE for cls in type(model).__mro__)

    def seams(self, model: nn.Module, processor: Any = None) -> Sequence[Seam]:
        """The projector; see the protocol."""
        projector = _part(model, "projector")
        backbone = _backbone(model)
        names = TOWERS if getattr(backbone, "use_fused_vision_backbone", False) else TOWERS[:1]
        towers = [_part(backbone, name, "vision_backbone.") for name in names]
        statistics, source = _statistics(towers, names, processor)
        points = [SeamPoint("", role="note"), SeamPoint("projector")]
        if callable(getattr(type(model), PROCESS, None)):
            points.insert(1, SeamPoint("", PROCESS, "note"))
        return [
            Seam(
                path="projector",
                entry="",
                hidden_size=_hidden_size(model, projector),
                merge=1,
                statistics=statistics[0],
                statistics_source=source,
                reader=OpenVLAReader(Stacking(statistics, names, source), _grid(towers[0])),
                points=tuple(points),
                policy=True,
                prompt_methods=("generate", "predict_action"),
            )
        ]

    def notices(self, model: nn.Module) -> list[str]:
        """What a user of their code should know of copies and, in OpenVLA-OFT, of attention; see the protocol."""
        return [*_copies(_backbone(model)), *_attention(model)]

    def probe_batch(self, processor: Any, model: nn.Module, picture: Any) -> Mapping[str, Any]:
        """The inputs for one picture ``[H, W, 3]`` uint8, shown as every image of an observation; see the protocol."""
        from PIL import Image

        batch: dict[str, Any] = dict(processor(PROMPT, Image.fromarray(picture)))
        batch["pixel_values"] = batch["pixel_values"].repeat(1, images_per_sample(model), 1, 1)
        if callable(getattr(type(model), PROCESS, None)):
            # OFT's forward finds the action tokens in the labels; this prompt has none.
            batch["labels"] = batch["input_ids"].new_full(batch["input_ids"].shape, IGNORE_INDEX)
            batch["use_film"] = _backbone(model) is not model.vision_backbone
        return batch


def _copies(backbone: Any) -> list[str]:
    """Whose weights the towers run."""
    owners = {name: _ran_by(getattr(backbone, name, None)) for name in TOWERS}
    copied = [name for name, owner in owners.items() if owner not in (None, getattr(backbone, name, None))]
    if copied:
        return [
            f"This model is a deep copy: {' and '.join(copied)} of its vision backbone still run the original's "
            "weights, as OpenVLA's code ties their forward to the module it was made for. What is loaded into or "
            "trained in the copy's vision tower has no effect. Build a second model with from_pretrained instead."
        ]
    if any(owner is not None for owner in owners.values()):
        return [
            "OpenVLA's code ties the forward of its vision towers to this very model: a copy.deepcopy of it runs "
            "this model's vision towers, and it cannot be pickled. Build a second model with from_pretrained; save "
            "with save_pretrained."
        ]
    return []


def _attention(model: Any) -> list[str]:
    """OFT predicts all actions at once and is trained with attention in both directions; measured on three tokens."""
    if not callable(getattr(type(model), PROCESS, None)):
        return []
    like = model.get_input_embeddings().weight
    prompts = torch.tensor([[1, 2, 3], [1, 2, 4]], device=like.device).split(1)
    with torch.no_grad():
        first, second = (
            model.language_model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 0] for ids in prompts
        )
    if not torch.equal(first, second):
        return []
    return [
        f"The language model attends to earlier tokens alone ({_versions()}). OpenVLA-OFT's parallel decoding is made "
        "for attention in both directions, which its own fork of transformers 4.40.1 brings; a released OFT checkpoint "
        "acts wrongly without it, patched or not. The page on OpenVLA (docs/openvla.md) has the lines for this "
        "transformers."
    ]


def _part(owner: nn.Module, name: str, where: str = "") -> Any:
    part = getattr(owner, name, None)
    if isinstance(part, nn.Module):
        return part
    raise HostError(
        f"Host 'openvla' expects {where}{name}, found {type(part).__name__} on {type(owner).__name__} "
        f"({_versions()}), whose children are: {', '.join(n for n, _ in owner.named_children()) or 'none'}. Load the "
        f"whole model with from_pretrained; OpenVLA was tested with {OPENVLA.seen_with}."
    )


def _backbone(model: nn.Module) -> Any:
    """The module that holds the towers; OFT's FiLM wrapper holds it as its child."""
    backbone: Any = _part(model, "vision_backbone")
    return getattr(backbone, "vision_backbone", backbone)


def _hidden_size(model: Any, projector: Any) -> int:
    hidden = getattr(getattr(model.config, "text_config", None), "hidden_size", None)
    if not isinstance(hidden, int) or hidden < 1:
        raise HostError(
            f"Host 'openvla' expects config.text_config.hidden_size to be a positive integer, found {hidden!r}."
        )
    last = getattr(projector, "fc3", getattr(projector, "fc2", None))
    width = getattr(last, "out_features", None)
    if width != hidden:
        raise HostError(
            f"Host 'openvla' expects projector.fc3 (or fc2) to give tokens of the LLM's hidden size {hidden}, "
            f"found {width!r}."
        )
    return hidden


def _grid(tower: Any) -> tuple[int, int]:
    grid = getattr(getattr(tower, "patch_embed", None), "grid_size", None)
    if grid is None:
        raise HostError(
            f"Host 'openvla' expects vision_backbone.featurizer.patch_embed.grid_size, not found on "
            f"{type(tower).__name__}: towers that are no vision transformers of timm have no known grid of tokens."
        )
    h, w = (int(side) for side in grid)
    return h, w


def _statistics(towers: Sequence[Any], names: Sequence[str], processor: Any) -> tuple[tuple[PixelStatistics, ...], str]:
    """For each tower: those of the processor that is given, else of the tower's own settings in timm."""
    if processor is not None:
        images = getattr(processor, "image_processor", processor)
        means, stds = getattr(images, "means", None), getattr(images, "stds", None)
        if means is None or stds is None or not len(means) == len(stds) == len(towers):
            raise HostError(
                f"Host 'openvla' expects a processor with {len(towers)} `means` and `stds`, one for each of "
                f"{', '.join(names)}; {type(images).__name__} has {means!r} and {stds!r}. Pass the model's own "
                "processor (AutoProcessor.from_pretrained(..., trust_remote_code=True))."
            )
        return tuple(PixelStatistics.of(mean, std) for mean, std in zip(means, stds, strict=True)), "processor"
    found = []
    for tower, name in zip(towers, names, strict=True):
        settings = getattr(tower, "default_cfg", None) or {}
        if settings.get("mean") is None or settings.get("std") is None:
            raise HostError(
                f"Host 'openvla': vision_backbone.{name}.default_cfg has no mean and std. Pass the processor that "
                "makes the pixels: vega3d.patch(model, processor=processor)."
            )
        found.append(PixelStatistics.of(settings["mean"], settings["std"]))
    return tuple(found), "vision tower"


def _ran_by(tower: Any) -> Any:
    """The module whose weights a tower's forward runs, when it is a closure over a partial of a bound method."""
    forward = vars(tower).get("forward") if isinstance(tower, nn.Module) else None
    for cell in getattr(forward, "__closure__", None) or ():
        held = cell.cell_contents
        if isinstance(held, partial):
            return getattr(held.func, "__self__", None)
    return None


def _versions() -> str:
    import sys

    found = [f"{name} {sys.modules[name].__version__}" for name in ("transformers", "timm") if name in sys.modules]
    return ", ".join(found) or "transformers not loaded"


__all__ = ["OpenVLAAdapter"]
