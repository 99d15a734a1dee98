"""Tiny random models of transformers' real classes, with their real image processors, offline: for demos and tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

PATCH = 14
SIDE = 8 * PATCH
HIDDEN = 32
VOCABULARY = 64
#: Stands for one visual token in ``input_ids``.
IMAGE = 60


@dataclass(frozen=True)
class Family:
    """How a model of a family is made small.

    Attributes:
        prefix: of its classes.
        processor: name of its image processor, and what it is made with.
        vision: its vision config.
        text: its text config.
        config: its own settings.
    """

    prefix: str
    processor: tuple[str, Mapping[str, Any]]
    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)


def _text(model_type: str, **more: Any) -> dict[str, Any]:
    return {
        "model_type": model_type, "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": HIDDEN // 4,
        "max_position_embeddings": 4096, "tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, **more,
    }  # fmt: skip


def _vision(model_type: str, **more: Any) -> dict[str, Any]:
    return {
        "model_type": model_type, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH, **more,
    }  # fmt: skip


HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
SQUARE = {"height": SIDE, "width": SIDE}
SIGLIP = _vision("siglip_vision_model", vision_use_head=False)

#: By ``config.model_type``: what an attempt was made with, those that are refused too.
FAMILIES: dict[str, Family] = {
    "internvl": Family(
        "InternVL",
        ("GotOcr2ImageProcessor", {"size": SQUARE, "crop_to_patches": False}),
        _vision("internvl_vision", image_size=[SIDE, SIDE], patch_size=[PATCH, PATCH]),
        _text("qwen2"),
        {"image_token_id": IMAGE, "image_seq_length": 16},
    ),
    "idefics3": Family(
        "Idefics3",
        ("Idefics3ImageProcessor", {"size": {"longest_edge": SIDE}, "max_image_size": {"longest_edge": SIDE}}),
        _vision("idefics3_vision"),
        _text("llama"),
        {"image_token_id": IMAGE, "scale_factor": 2},
    ),
    "smolvlm": Family(
        "SmolVLM",
        ("SmolVLMImageProcessor", {"size": {"longest_edge": SIDE}, "max_image_size": {"longest_edge": SIDE}}),
        _vision("smolvlm_vision"),
        _text("llama"),
        {"image_token_id": IMAGE, "scale_factor": 2},
    ),
    "gemma3": Family(
        "Gemma3",
        ("Gemma3ImageProcessor", {"size": SQUARE}),
        SIGLIP,
        _text("gemma3_text", query_pre_attn_scalar=8, sliding_window=256),
        {"image_token_index": IMAGE, "mm_tokens_per_image": 16},
    ),
    "paligemma": Family(
        "PaliGemma",
        ("SiglipImageProcessor", {"size": SQUARE}),
        {**SIGLIP, "projection_dim": HIDDEN},
        _text("gemma"),
        {"image_token_index": IMAGE, "projection_dim": HIDDEN, "hidden_size": HIDDEN},
    ),
    "aya_vision": Family(
        "AyaVision",
        ("GotOcr2ImageProcessor", {"size": SQUARE, "crop_to_patches": False, **HALF}),
        SIGLIP,
        _text("cohere2", sliding_window=256),
        {"image_token_index": IMAGE},
    ),
    "cohere2_vision": Family(
        "Cohere2Vision",
        ("Cohere2VisionImageProcessor", {"size": SQUARE, "crop_to_patches": False}),
        SIGLIP,
        _text("cohere2", sliding_window=256),
        {"image_token_id": IMAGE, "alignment_intermediate_size": 64},
    ),
    "mistral3": Family(
        "Mistral3",
        ("PixtralImageProcessor", {"size": {"longest_edge": SIDE}, "patch_size": 2 * PATCH}),
        _vision("pixtral"),
        _text("mistral"),
        {"image_token_index": IMAGE, "spatial_merge_size": 2},
    ),
    "got_ocr2": Family(
        "GotOcr2",
        ("GotOcr2ImageProcessor", {"size": {"height": 128, "width": 128}}),
        {
            "hidden_size": 24,
            "output_channels": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 128,
            "patch_size": 8,
            "window_size": 4,
            "global_attn_indexes": [1],
            "mlp_dim": 48,
            "initializer_range": 0.02,
        },
        _text("qwen2"),
        {"image_token_index": IMAGE},
    ),
    "janus": Family(
        "Janus",
        ("JanusImageProcessor", {"size": SQUARE}),
        _vision("janus_vision_model", num_image_tokens=64, projection_dim=HIDDEN, mlp_ratio=2.0),
        _text("llama"),
        {
            "image_token_id": IMAGE,
            "vq_config": {
                "embed_dim": 8,
                "num_embeddings": 16,
                "latent_channels": 8,
                "base_channels": 32,
                "channel_multiplier": [1, 1],
                "num_res_blocks": 1,
                "num_patches": 8,
                "projection_dim": HIDDEN,
                "image_token_embed_dim": HIDDEN,
            },
        },
    ),
    "ovis2": Family(
        "Ovis2",
        ("Ovis2ImageProcessor", {"size": SQUARE, "crop_to_patches": False}),
        _vision("ovis2_vision", vocab_size=32, num_visual_indicator_tokens=5),
        _text("qwen2"),
        {
            "image_token_id": IMAGE,
            "visual_indicator_token_ids": [50, 51, 52, 53, 54],
            "hidden_size": HIDDEN,
            "vocab_size": VOCABULARY,
        },
    ),
    "aria": Family(
        "Aria",
        ("AriaImageProcessor", {"max_image_size": 490, "min_image_size": 336}),
        _vision("idefics3_vision", image_size=490),
        _text("aria_text", moe_num_experts=2, moe_topk=1, moe_num_shared_experts=1),
        {"image_token_index": IMAGE, "projector_patch_to_query_dict": {1225: 16}},
    ),
    "blip_2": Family(
        "Blip2",
        ("BlipImageProcessor", {"size": SQUARE}),
        _vision("blip_2_vision_model"),
        _text("opt", word_embed_proj_dim=HIDDEN, ffn_dim=64),
        {
            "image_token_index": IMAGE,
            "num_query_tokens": 16,
            "qformer_config": {
                "hidden_size": HIDDEN,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 48,
                "encoder_hidden_size": 24,
                "vocab_size": VOCABULARY,
            },
        },
    ),
    "deepseek_vl": Family(
        "DeepseekVL",
        ("DeepseekVLImageProcessor", {"size": SQUARE}),
        SIGLIP,
        _text("llama"),
        {"image_token_id": IMAGE},
    ),
    "lighton_ocr": Family(
        "LightOnOcr",
        ("PixtralImageProcessor", {"size": {"longest_edge": SIDE}, "patch_size": 2 * PATCH}),
        _vision("pixtral"),
        _text("qwen3"),
        {"image_token_id": IMAGE, "spatial_merge_size": 2},
    ),
    "idefics2": Family(
        "Idefics2",
        (
            "Idefics2ImageProcessor",
            {"size": {"longest_edge": SIDE, "shortest_edge": SIDE}, "do_image_splitting": False},
        ),
        _vision("idefics2_vision"),
        _text("mistral"),
        {
            "image_token_id": IMAGE,
            "perceiver_config": {
                "hidden_size": HIDDEN,
                "resampler_n_latents": 16,
                "resampler_depth": 2,
                "resampler_n_heads": 2,
                "resampler_head_dim": 16,
                "num_key_value_heads": 2,
            },
        },
    ),
    "glm4v": Family(
        "Glm4v",
        ("Glm4vImageProcessor", {"size": {"shortest_edge": 28 * 28, "longest_edge": SIDE * SIDE}}),
        _vision("glm4v_vision", depth=2, num_heads=2, out_hidden_size=HIDDEN, temporal_patch_size=2),
        _text("glm4v_text"),
        {"image_token_id": IMAGE},
    ),
    "video_llama_3": Family(
        "VideoLlama3",
        ("VideoLlama3ImageProcessor", {}),
        _vision("video_llama_3_vision"),
        _text("qwen2"),
        {"image_token_id": IMAGE},
    ),
    "lfm2_vl": Family(
        "Lfm2Vl",
        ("Lfm2VlImageProcessor", {}),
        _vision("siglip2_vision_model", num_patches=64),
        _text("lfm2"),
        {"image_token_id": IMAGE},
    ),
}


def available_families() -> list[str]:
    """Families that the installed transformers has."""
    import transformers

    return [
        name for name, family in FAMILIES.items() if hasattr(transformers, f"{family.prefix}ForConditionalGeneration")
    ]


def tiny_model(family: str, *, seed: int = 0) -> Any:
    """A random ``...ForConditionalGeneration`` of a family, in float32 and eval mode.

    Args:
        family: a key of :data:`FAMILIES`.
        seed: of the weights.
    """
    import transformers

    wanted = FAMILIES[family]
    parts = {"vision_config": dict(wanted.vision), "text_config": dict(wanted.text)}
    config = getattr(transformers, f"{wanted.prefix}Config")(
        **{name: value for name, value in parts.items() if value}, **wanted.config, tie_word_embeddings=False
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, f"{wanted.prefix}ForConditionalGeneration")(config)
        for parameter in model.parameters():
            # Gemma 3 makes its projection of zeros, to be loaded.
            if parameter.ndim == 2 and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 0
    model.generation_config.do_sample = False
    return model.eval()


def tiny_processor(family: str) -> Any:
    """The family's real image processor, for small pictures."""
    import transformers

    name, settings = FAMILIES[family].processor
    return getattr(transformers, name)(**settings)
