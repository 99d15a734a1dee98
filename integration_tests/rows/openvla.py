"""Rows of the adapter ``openvla``: doubles, and the real OpenVLA and OpenVLA-OFT where there are checkouts.

The real ones need transformers 4, timm 0.9 and ``VEGA3D_HOST_SOURCES``. OpenVLA's HF code is loaded as a package of
its own; OFT's imports ``prismatic``, whose ``__init__`` pulls in heavy dependencies, so that is entered by its path.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from doubles import openvla as double
from host_sources import host_source
from torch import Tensor, nn

from vega3d_plugin.contracts.clips import PixelStatistics

from .host import Batch, Host

SIDE = 56
GRID = (1, 4, 4)
IMAGENET = PixelStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = PixelStatistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IGNORE_INDEX, STOP_INDEX = -100, 2


def pictures(batch: int = 1, images: int = 1, seed: int = 0) -> Tensor:
    """Pictures of noise, ``[B, images, 3, 56, 56]`` in [0, 1]."""
    return torch.rand(batch, images, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def stacked(shown: Tensor, *statistics: PixelStatistics) -> Tensor:
    """``pixel_values`` of pictures: for each image the channels of each tower."""
    groups = [s.normalise(shown) for s in statistics or (IMAGENET, HALF)]
    return torch.cat(groups, dim=2).flatten(1, 2)


def batch_of(shown: Tensor) -> Batch:
    """One prompt for each observation."""
    ids = torch.tensor([[1, 5, 6, 7, 8, 9, 10]]).repeat(shown.shape[0], 1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": stacked(shown)}


def text_batch() -> Batch:
    """A prompt of words."""
    ids = torch.tensor([[1, 5, 6, 7, 8]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@dataclass(frozen=True)
class OFT:
    """OpenVLA-OFT, a double or the real one.

    Attributes:
        name: for test ids.
        build: makes a model; equal on every call.
        film: makes the wrapper of a vision backbone.
        l1_head, diffusion_head, noisy_projector, proprio_projector: make these modules.
        actions: actions in a chunk and numbers in an action.
        proprio: numbers in the robot's state.
        first_action: id of an action token.
    """

    name: str
    build: Callable[..., nn.Module]
    film: Callable[[nn.Module, int], nn.Module]
    l1_head: Callable[[], nn.Module]
    diffusion_head: Callable[[], nn.Module]
    noisy_projector: Callable[[], nn.Module]
    proprio_projector: Callable[[], nn.Module]
    actions: tuple[int, int]
    proprio: int
    first_action: int

    def model(self, images: int = 2, **settings: Any) -> Any:
        """A model that is set to that many images."""
        model: Any = self.build(**settings)
        model.vision_backbone.set_num_images_in_input(images)
        return model

    def batch(self, shown: Tensor) -> Batch:
        """A training batch: the prompt, then a chunk of action tokens, which the labels mark."""
        prompt = batch_of(shown)
        count = self.actions[0] * self.actions[1]
        acted = self.first_action + torch.arange(count) % 16
        answer = torch.cat([acted, torch.tensor([STOP_INDEX])]).repeat(shown.shape[0], 1)
        ids = torch.cat([prompt["input_ids"], answer], dim=1)
        labels = torch.cat([torch.full_like(prompt["input_ids"], IGNORE_INDEX), answer], dim=1)
        return {**prompt, "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    def act(self, model: Any, batch: Batch, **options: Any) -> Tensor:
        """Hidden states of the actions that the policy predicts, ``[1, n, D]``."""
        words = batch["labels"][0] == IGNORE_INDEX if "labels" in batch else slice(None)
        ids = batch["input_ids"][:, words]
        with torch.no_grad():
            _, hidden = model.predict_action(
                input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=batch["pixel_values"],
                unnorm_key="bridge", **options,
            )  # fmt: skip
        return hidden


def seeded(make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What ``make`` makes, equal on every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(*args, **kwargs)


def oft_double() -> OFT:
    """The double."""
    return OFT(
        "oft_double",
        build=lambda **settings: double.double_model(double.OFTForActionPrediction, **settings),
        film=double.FiLMedPrismaticVisionBackbone,
        l1_head=lambda: seeded(double.L1RegressionActionHead, 32),
        diffusion_head=lambda: seeded(double.DiffusionActionHead, 32),
        noisy_projector=lambda: seeded(double.MLP, 1, 32),
        proprio_projector=lambda: seeded(double.MLP, double.PROPRIO_DIM, 32),
        actions=(double.CHUNK, double.ACTION_DIM),
        proprio=double.PROPRIO_DIM,
        first_action=double.ACTION_TOKEN_BEGIN_IDX + 1,
    )


# The real ones.


def can_run() -> bool:
    """True where OpenVLA's code runs: it refuses other versions of timm, and transformers 5 lacks what it imports."""
    import transformers

    if int(transformers.__version__.partition(".")[0]) >= 5 or importlib.util.find_spec("timm") is None:
        return False
    import timm

    return str(timm.__version__).startswith("0.9.")


def enter(name: str, folder: Path) -> None:
    """A package that is only its folder, without what its ``__init__`` would import."""
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package


@cache
def register_towers() -> tuple[str, str]:
    """Tiny vision transformers of timm, with the statistics of DINOv2 and of SigLIP."""
    from timm.models import register_model
    from timm.models.vision_transformer import _create_vision_transformer

    def made(name: str, statistics: PixelStatistics, own: dict[str, Any], given: dict[str, Any]) -> Any:
        given["pretrained_cfg"] = {"mean": statistics.mean, "std": statistics.std}
        return _create_vision_transformer(name, pretrained=False, **{"patch_size": 14, "depth": 3, **own, **given})

    def vega3d_tiny_dino(pretrained: bool = False, **given: Any) -> Any:
        own = {"embed_dim": 24, "num_heads": 2, "reg_tokens": 2, "init_values": 0.1}
        return made("vega3d_tiny_dino", IMAGENET, own, given)

    def vega3d_tiny_siglip(pretrained: bool = False, **given: Any) -> Any:
        own = {"embed_dim": 16, "num_heads": 2, "class_token": False, "global_pool": "map"}
        return made("vega3d_tiny_siglip", HALF, own, given)

    register_model(vega3d_tiny_dino)
    register_model(vega3d_tiny_siglip)
    return "vega3d_tiny_dino", "vega3d_tiny_siglip"


def config_values(fused: bool = True) -> dict[str, Any]:
    """Of a tiny model. The vocabulary is Llama's, whose last ids are actions."""
    dino, siglip = register_towers()
    limits = {key: [value] * 7 for key, value in {"q01": -1.0, "q99": 1.0, "min": -1.0, "max": 1.0}.items()}
    text = {
        "vocab_size": 32064, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512, "pad_token_id": 0,
    }  # fmt: skip
    return {
        "vision_backbone_id": "dinosiglip-vit-so-224px" if fused else "siglip-vit-so400m",
        "llm_backbone_id": "llama2-7b-pure", "text_config": text, "pad_token_id": 0,
        "timm_model_ids": [dino, siglip] if fused else [siglip], "image_sizes": [SIDE] * (1 + fused),
        "norm_stats": {"bridge": {"action": limits}},
    }  # fmt: skip


def real_module(name: str, part: str = "modeling_prismatic") -> Any:
    """A module of the checkout's HF code."""
    folder = host_source(name)
    assert folder is not None
    if name == "openvla":
        if "openvla_hf" not in sys.modules:
            enter("openvla_hf", folder / "prismatic" / "extern" / "hf")
        return importlib.import_module(f"openvla_hf.{part}")
    return oft_module(f"extern.hf.{part}")


def oft_module(path: str) -> Any:
    """A module of OFT's ``prismatic``."""
    folder = host_source("openvla-oft")
    assert folder is not None
    if "prismatic" not in sys.modules:
        for below in ("", "extern", "extern.hf", "models", "training", "vla"):
            enter(f"prismatic.{below}".rstrip("."), folder.joinpath("prismatic", *below.split(".")))
    # Its constants look for the name of a robot in the command line.
    given, sys.argv = sys.argv, ["libero"]
    try:
        return importlib.import_module(f"prismatic.{path}")
    finally:
        sys.argv = given


def real_model(name: str = "openvla", fused: bool = True) -> Any:
    """The real ``OpenVLAForActionPrediction`` of a checkout, tiny and random, in eval mode."""
    config = real_module(name, "configuration_prismatic").OpenVLAConfig(**config_values(fused))
    model = seeded(real_module(name).OpenVLAForActionPrediction, config)
    model.generation_config.do_sample = False
    return model.eval()


def real_processor(name: str = "openvla") -> Any:
    """The real ``PrismaticProcessor`` of a checkout, with a tokenizer that knows no word."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    code = real_module(name, "processing_prismatic")
    images = code.PrismaticImageProcessor(
        use_fused_vision_backbone=True, image_resize_strategy="resize-naive", input_sizes=[(3, SIDE, SIDE)] * 2,
        interpolations=["bicubic"] * 2, means=[IMAGENET.mean, HALF.mean], stds=[IMAGENET.std, HALF.std],
    )  # fmt: skip
    words = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    return code.PrismaticProcessor(images, words)


def real_names() -> list[str]:
    """Checkouts that are there and can run."""
    return [name for name in ("openvla", "openvla-oft") if can_run() and host_source(name) is not None]


def oft_real() -> OFT:
    """The real one."""
    heads, projectors = oft_module("models.action_heads"), oft_module("models.projectors")
    return OFT(
        "openvla_oft",
        build=lambda **settings: real_model("openvla-oft", **settings),
        film=oft_module("models.film_vit_wrapper").FiLMedPrismaticVisionBackbone,
        l1_head=lambda: seeded(heads.L1RegressionActionHead, 32, 32, 7),
        diffusion_head=lambda: seeded(heads.DiffusionActionHead, 32, 32, 7),
        noisy_projector=lambda: seeded(projectors.NoisyActionProjector, 32),
        proprio_projector=lambda: seeded(projectors.ProprioProjector, 32, 8),
        actions=(8, 7),
        proprio=8,
        first_action=31744,
    )


def available_ofts() -> list[OFT]:
    """The double, and the real one where it is there."""
    return [oft_double(), *([oft_real()] if "openvla-oft" in real_names() else [])]


def available_models() -> dict[str, Callable[..., nn.Module]]:
    """OpenVLA before OFT: the double, and the real one where it is there."""
    return {"openvla_double": double.double_model, **({"openvla": real_model} if "openvla" in real_names() else {})}


LIMITS = {
    "test_generate_with_beams": "OpenVLA's prepare_inputs_for_generation refuses more than one row",
    "test_pickle_and_torch_save": "the forward of OpenVLA's vision towers is a closure, which cannot be pickled",
}


def _oft_row(oft: OFT) -> Host:
    return Host(
        oft.name,
        "openvla",
        build=oft.model,
        batch=lambda: oft.batch(pictures(images=2)),
        text_batch=text_batch,
        grids=(GRID, GRID),
        generate=lambda model, batch, **_: oft.act(model, batch),
        limits={
            "test_pickle_and_torch_save": LIMITS["test_pickle_and_torch_save"],
            "test_the_hosts_own_checkpoint_only_gains_keys": "OpenVLA-OFT does not save how many images it is set to; "
            "test_openvla.py has this test with the number set again",
        },
    )


ROWS = [
    *(
        Host(name, "openvla", build, lambda: batch_of(pictures()), text_batch, (GRID,), limits=LIMITS)
        for name, build in available_models().items()
    ),
    *(_oft_row(oft) for oft in available_ofts()),
]
