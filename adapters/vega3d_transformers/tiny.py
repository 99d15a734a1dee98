"""Tiny random models of transformers' real classes, with their real image processors, offline: for demos and tests."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from vega3d_plugin.contracts.seeded import seeded

PATCH = 14
SIDE = 8 * PATCH
HIDDEN = 32
VOCABULARY = 64
#: Stand for one visual token of a picture and of a video in ``input_ids``.
IMAGE, VIDEO = 60, 61


@dataclass(frozen=True)
class Family:
    """How a model of a family is made small.

    Attributes:
        prefix: of its classes.
        processor: name of its image processor, and what it is made with.
        vision: its vision config.
        text: its text config.
        config: its own settings.
        video: its video processor, for families whose videos go another way than pictures.
    """

    prefix: str
    processor: tuple[str, Mapping[str, Any]]
    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    video: tuple[str, Mapping[str, Any]] | None = None


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

# What the GLM family shares.
GLM_SIZE = {"shortest_edge": 2 * 28 * 28, "longest_edge": 2 * SIDE * SIDE}
GLM_VISION = {
    "depth": 2, "hidden_size": 24, "num_heads": 2, "image_size": SIDE, "patch_size": PATCH, "out_hidden_size": HIDDEN,
    "intermediate_size": 48, "temporal_patch_size": 2, "spatial_merge_size": 2,
}  # fmt: skip
GLM = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "image_start_token_id": 56, "image_end_token_id": 57,
    "video_start_token_id": 58, "video_end_token_id": 59,
}  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}
BLIP_TEXT = _text("opt", word_embed_proj_dim=HIDDEN, ffn_dim=64)
BLIP = {
    "image_token_index": IMAGE, "num_query_tokens": 16,
    "qformer_config": {
        "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
        "encoder_hidden_size": 24, "vocab_size": VOCABULARY,
    },
}  # fmt: skip

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
        ("GotOcr2ImageProcessor", {"size": {"height": 256, "width": 256}}),
        {
            "hidden_size": 24,
            "output_channels": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 256,
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
        "Blip2", ("BlipImageProcessor", {"size": SQUARE}), _vision("blip_2_vision_model"), BLIP_TEXT, BLIP
    ),
    "instructblip": Family(
        "InstructBlip", ("BlipImageProcessor", {"size": SQUARE}), _vision("instructblip_vision_model"), BLIP_TEXT, BLIP
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
        ("Glm4vImageProcessor", {"size": GLM_SIZE}),
        GLM_VISION,
        _text("glm4v_text", rope_parameters=MROPE),
        GLM,
        ("Glm4vVideoProcessor", {"size": GLM_SIZE}),
    ),
    "glm4v_moe": Family(
        "Glm4vMoe",
        ("Glm4vImageProcessor", {"size": GLM_SIZE}),
        GLM_VISION,
        _text(
            "glm4v_moe_text",
            rope_parameters=MROPE,
            moe_intermediate_size=16,
            n_routed_experts=4,
            num_experts_per_tok=2,
            first_k_dense_replace=1,
        ),
        GLM,
        ("Glm4vVideoProcessor", {"size": GLM_SIZE}),
    ),
    "glm46v": Family(
        "Glm46V",
        ("Glm46VImageProcessor", {"size": GLM_SIZE}),
        {**GLM_VISION, "model_type": "glm4v_vision"},
        _text("glm4v_text", rope_parameters=MROPE),
        GLM,
        ("Glm46VVideoProcessor", {"size": GLM_SIZE}),
    ),
    "video_llama_3": Family(
        "VideoLlama3",
        (
            "VideoLlama3ImageProcessor",
            {"size": {"shortest_edge": 4 * 28 * 28, "longest_edge": SIDE * SIDE}, "patch_size": PATCH},
        ),
        _vision("video_llama_3_vision"),
        _text("qwen2"),
        {"image_token_id": IMAGE, "video_token_id": VIDEO},
        (
            "VideoLlama3VideoProcessor",
            {"size": {"shortest_edge": 4 * 28 * 28, "longest_edge": 4 * SIDE * SIDE}, "patch_size": PATCH},
        ),
    ),
    "llama4": Family(
        "Llama4",
        ("Llama4ImageProcessor", {"size": SQUARE, "max_patches": 1}),
        _vision(
            "llama4_vision_model",
            intermediate_size=96,
            vision_output_dim=32,
            projector_input_dim=32,
            projector_output_dim=32,
        ),
        _text("llama4_text", num_local_experts=2, intermediate_size_mlp=64, attention_chunk_size=64),
        {"image_token_index": IMAGE},
    ),
    "chameleon": Family(
        "Chameleon",
        ("ChameleonImageProcessor", {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}),
        {},
        {},
        {
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "image_token_id": IMAGE,
            "vq_config": {
                "embed_dim": 8,
                "num_embeddings": 16,
                "latent_channels": 8,
                "base_channels": 32,
                "channel_multiplier": [1, 1],
                "num_res_blocks": 1,
                "resolution": 64,
            },
            "vocabulary_map": {"<image>": IMAGE, **{f"IMGIMG{chr(65 + code)}AZ": code for code in range(16)}},
        },
    ),
    "kosmos2": Family(
        "Kosmos2",
        ("CLIPImageProcessor", {"size": SQUARE, "crop_size": SQUARE}),
        _vision("kosmos_2_vision_model"),
        {"vocab_size": VOCABULARY, "embed_dim": HIDDEN, "layers": 2, "ffn_dim": 64, "attention_heads": 4},
        {"latent_query_num": 16},
    ),
    "gemma4": Family(
        "Gemma4",
        ("Gemma4ImageProcessor", {}),
        _vision("gemma4_vision", num_key_value_heads=2, head_dim=12),
        _text("gemma4_text"),
        {"image_token_id": IMAGE},
    ),
    "paddleocr_vl": Family(
        "PaddleOCRVL",
        (
            "PaddleOCRVLImageProcessor",
            {"size": {"shortest_edge": 4 * 28 * 28, "longest_edge": SIDE * SIDE}},
        ),
        _vision("paddleocr_vl_vision"),
        _text("paddleocr_vl_text", rope_parameters=MROPE),
        {"image_token_id": IMAGE, "video_token_id": VIDEO},
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

    # The names alone: to ask for a class is to import its model's code.
    known = set(dir(transformers))
    return [name for name, family in FAMILIES.items() if f"{family.prefix}ForConditionalGeneration" in known]


def tiny_model(family: str, *, seed: int = 0, vocabulary: int = VOCABULARY, image: int = IMAGE) -> Any:
    """A random ``...ForConditionalGeneration`` of a family, in float32 and eval mode.

    Args:
        family: a key of :data:`FAMILIES`.
        seed: of the weights.
        vocabulary, image: number of tokens and the one that stands for a picture, to fit a tokenizer.
    """
    import transformers

    # Configs write into what they are given.
    wanted = copy.deepcopy(FAMILIES[family])
    text = {**wanted.text, "vocab_size": vocabulary} if wanted.text else {}
    parts = {"vision_config": wanted.vision, "text_config": text}
    own = {name: image if name in ("image_token_id", "image_token_index") else v for name, v in wanted.config.items()}
    config = getattr(transformers, f"{wanted.prefix}Config")(
        **{name: value for name, value in parts.items() if value}, **own, tie_word_embeddings=False
    )
    with seeded(seed):
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


def tiny_video_processor(family: str) -> Any:
    """The family's real video processor, which takes every frame that it is given.

    Raises:
        ValueError: its videos are rows of pictures, made by the image processor, or it takes none.
    """
    import transformers

    video = FAMILIES[family].video
    if video is None:
        raise ValueError(f"{family!r} has no video processor of its own here.")
    name, settings = video
    return getattr(transformers, name)(**settings, do_sample_frames=False)
