"""The figures of first_evening.md: the recipe's own plan, on models of the real shape and without weights.

`docs/refresh.py` writes them into the page. Rates of GPUs are their makers' data sheets'; nothing was measured on one.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import torch

from vega3d_plugin.branch.fusers import build_fuser
from vega3d_plugin.branch.projectors import build_projector
from vega3d_plugin.contracts.settings import PriorSettings
from vega3d_plugin.features.extraction.planning import DEVICES, REACHED, cost_of
from vega3d_plugin.features.forms import Form, entry_bytes
from vega3d_plugin.hosts.hollow import build_hollow
from vega3d_plugin.recipes.library import read_recipe
from vega3d_plugin.training.plan import memory_of

RECIPE = "qwen_vl/first_evening"
#: Rows, of which a third share a clip; frames of a phone's video, cut to whole tokens below the recipe's max_pixels.
ROWS, CLIPS, HELD_OUT = 3000, 1000, 300
FRAME, TEXT = (364, 504), 120
#: Qwen2.5-VL-3B, as its config.json has it.
LANGUAGE: dict[str, Any] = {
    "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
    "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip
VISION: dict[str, Any] = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048,
    "fullatt_block_indexes": [7, 15, 23, 31],
}  # fmt: skip
SHOWN = ("rtx4090", "l40s", "a100", "h100")


def figures() -> str:
    """Two tables: what a run takes, and how long it is on common cards."""
    recipe = read_recipe(RECIPE, blocks=("prior",))
    assert recipe.prior is not None
    assert recipe.data is not None
    assert recipe.train is not None
    prior = _prior(recipe.prior)
    prior_bytes = 2 * sum(p.numel() for model in prior.models.values() for p in model.parameters())
    tokens = _tokens(recipe.data.frames)
    model = _host(recipe, prior.feature_dim)
    job: Any = SimpleNamespace(prepared=SimpleNamespace(model=model), recipe=recipe, train=recipe.train, arguments=None)
    memory = {**memory_of(job, {"input_ids": torch.empty(1, tokens)}), "prior": prior_bytes}
    trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
    named = dict(model.named_parameters())
    language = sum(p.numel() for n, p in named.items() if "visual" not in n and "lora_" not in n)
    vision = sum(p.numel() for n, p in named.items() if "visual" in n and "vega3d" not in n)
    item = 2
    clip: Any = SimpleNamespace(frames=torch.zeros(recipe.data.frames, 3, *FRAME))
    grid = (recipe.data.frames, FRAME[0] // 14, FRAME[1] // 14)
    native = cost_of(prior, clip, Form(aligned=False, numbers=""), grid, item)
    aligned = entry_bytes((grid[0], prior.feature_dim, grid[1], grid[2]), Form(aligned=True, numbers=""), item)
    assert native.flops is not None
    extract = native.flops * (CLIPS + CLIPS * HELD_OUT // ROWS)
    # Forward, the same again for what checkpointing threw away, and the gradient of the activations; no gradient of
    # frozen weights. The frozen vision tower is run forward alone, four patches to a token.
    patches = 4 * recipe.data.frames * _grid()[0] * _grid()[1]
    train = recipe.train.epochs * ROWS * (6 * language * tokens + 2 * vision * patches)
    steps = recipe.train.epochs * ROWS // recipe.train.batch_size
    gib, whole = 2**30, (language + vision) / 1e9
    kept, smaller = (f"{(size or 0) * CLIPS / 1e9:.1f} GB" for size in (native.bytes, aligned))
    rows = [
        "| what | figure | from |",
        "|---|---|---|",
        f"| tokens of a sample | {tokens:,} | {recipe.data.frames} frames of {FRAME[1]}x{FRAME[0]}, {TEXT} of text |",
        f"| steps | {steps:,} | {ROWS:,} rows, {recipe.train.epochs} epochs, {recipe.train.batch_size} a step |",
        f"| parameters that train | {trains / 1e6:.0f} million | LoRA and branch, beside {whole:.1f} billion |",
        *(f"| memory: {name} | {size / gib:.1f} GiB | as `vega3d train --dry-run` |" for name, size in memory.items()),
        f"| memory, total | {sum(memory.values()) / gib:.1f} GiB | a card of 24 GB |",
        f"| disk: the host's weights | {2 * (language + vision) / 1e9:.1f} GB | bfloat16 |",
        f"| disk: features of {CLIPS:,} clips | {kept} | bfloat16, `store.form: native` |",
        f"| the same, aligned | {smaller} | `store.form: aligned`, equal results |",
        f"| FLOP: features, once | {extract:.2g} | Wan 1.3B up to block 20, with the fast path |",
        f"| FLOP: training | {train:.2g} | 6 a weight and token of the language model, 2 of the vision tower |",
    ]
    hours = ["", "| card | data sheet, bfloat16 | features | training | both |", "|---|---|---|---|---|"]
    for name in SHOWN:
        minutes = [work / (DEVICES[name] * 1e12 * REACHED) / 60 for work in (extract, train, extract + train)]
        rate = f"{DEVICES[name]:.0f} TFLOP/s"
        hours.append(f"| {name} | {rate} | " + " | ".join(f"{each:.0f} min" for each in minutes) + " |")
    return "\n".join([*rows, *hours])


def _grid() -> tuple[int, int]:
    """Tokens of a frame, each of 28 x 28 pixels."""
    return FRAME[0] // 28, FRAME[1] // 28


def _tokens(frames: int) -> int:
    return frames * (_grid()[0] * _grid()[1] + 2) + TEXT


def _prior(settings: PriorSettings) -> Any:
    """Wan 2.1 1.3B up to the tap, without weights."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    from vega3d_plugin.priors.wan.prior import WanPrior

    assert settings.tap is not None
    with torch.device("meta"):
        transformer = WanTransformer3DModel(
            num_layers=settings.tap + 1, num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, text_dim=4096
        )
        vae = AutoencoderKLWan()
    vae.decoder = None
    return WanPrior(transformer.eval(), vae.eval(), torch.zeros(1, 4096), settings)


def _host(recipe: Any, feature_dim: int) -> Any:
    """Qwen2.5-VL-3B with branch and LoRA as the recipe has them, without weights; what trains is in float32."""
    import transformers
    from peft import LoraConfig, get_peft_model

    # Before transformers 4.52 the language model's values stood in the config itself.
    kind = transformers.Qwen2_5_VLConfig
    nested = "text_config" in inspect.signature(kind.__init__).parameters
    text = {"text_config": LANGUAGE, "tie_word_embeddings": True} if nested else LANGUAGE
    config = kind(vision_config=VISION, **text)
    model: Any = build_hollow(transformers.Qwen2_5_VLForConditionalGeneration, config, "bfloat16")
    visual = model.model.visual if hasattr(model.model, "visual") else model.visual
    width = LANGUAGE["hidden_size"]
    with torch.device("meta"):
        projector = build_projector(recipe.projector.name, feature_dim, width, hidden_dim=recipe.projector.hidden_dim)
        fuser = build_fuser(recipe.fusion.name, width, **recipe.fusion.options_for())
    branch = torch.nn.Module()
    branch.projector, branch.fuser = projector, fuser
    visual.vega3d = branch.to(torch.bfloat16)
    with torch.device("meta"):
        model = get_peft_model(model, LoraConfig(**recipe.lora))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


if __name__ == "__main__":
    print(figures())
