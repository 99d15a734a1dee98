"""Tiny random Qwen-VL models of the real classes, with their real processors, built offline: for demos and tests."""

from __future__ import annotations

import inspect
import json
import tempfile
from pathlib import Path
from typing import Any

from vega3d_plugin.contracts.seeded import seeded

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip

#: Family, as ``config.model_type`` says it, to the prefix of its classes.
CLASSES = {
    "qwen2_vl": "Qwen2VL",
    "qwen2_5_vl": "Qwen2_5_VL",
    "qwen3_vl": "Qwen3VL",
    "qwen3_vl_moe": "Qwen3VLMoe",
    "qwen3_5": "Qwen3_5",
    "qwen3_5_moe": "Qwen3_5Moe",
}

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def available_families() -> list[str]:
    """Families that the installed transformers has."""
    import transformers

    return [f for f, prefix in CLASSES.items() if hasattr(transformers, f"{prefix}ForConditionalGeneration")]


def tiny_model(family: str = "qwen2_5_vl", *, hidden_size: int = 64, layers: int = 2, seed: int = 0) -> Any:
    """A random ``...ForConditionalGeneration`` of a family, in float32 and eval mode.

    Args:
        family: a key of :data:`CLASSES`.
        hidden_size: of the LLM, divisible by 16.
        layers: of the LLM.
        seed: of the weights.
    """
    import transformers

    prefix = CLASSES[family]
    config_class = getattr(transformers, f"{prefix}Config")
    tokenizer = tiny_tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden_size // 4,
        "max_position_embeddings": 8192,
        # Sections of the rotary half dimension for time, height and width.
        "rope_scaling": {"rope_type": "default", "type": "default", "mrope_section": _sections(hidden_size // 8)},
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    if family.startswith("qwen2"):
        del text["head_dim"]
    if family.startswith("qwen3_5"):
        # A linear-attention layer, then a full one; rotary on all channels, so that the sections fit.
        text |= {
            "layer_types": ["linear_attention" if i % 2 == 0 else "full_attention" for i in range(layers)],
            "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
            "linear_value_head_dim": 16, "partial_rotary_factor": 1.0,
        }  # fmt: skip
        text["rope_parameters"] = {
            **text.pop("rope_scaling"), "rope_theta": text.pop("rope_theta"), "partial_rotary_factor": 1.0,
            "mrope_interleaved": True,
        }  # fmt: skip
    if family.endswith("moe"):
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
        if family.startswith("qwen3_5"):
            text["shared_expert_intermediate_size"] = 32
    common = {
        "vision_config": _vision(family, hidden_size),
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": False,
    }
    # Before transformers 4.52 the text settings lay flat in the config.
    nested = "text_config" in getattr(config_class, "sub_configs", {})
    config = config_class(text_config=text, **common) if nested else config_class(**{**text, **common})
    with seeded(seed):
        model = getattr(transformers, f"{prefix}ForConditionalGeneration")(config)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    model.generation_config.do_sample = False
    return model.eval()


def tiny_processor(family: str = "qwen2_5_vl", *, max_pixels: int = 128 * 28 * 28) -> Any:
    """The family's processor: real image and video processors, byte-level tokenizer without merges.

    Args:
        family: a key of :data:`CLASSES`.
        max_pixels: upper bound of an image's area after resizing.
    """
    import transformers
    from transformers.models.qwen2_vl import image_processing_qwen2_vl

    # The families share the image processor and differ in its values.
    three = family.startswith("qwen3")
    patch = 16 if three else 14
    values: dict[str, Any] = {"patch_size": patch, "temporal_patch_size": 2, "merge_size": 2}
    if three:
        values |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    # The name lost its "Pil" twin only in transformers 5, where the plain one runs on torchvision.
    images = image_processing_qwen2_vl.Qwen2VLImageProcessor(
        min_pixels=(2 * patch) ** 2, max_pixels=max_pixels, **values
    )
    prefix = {"qwen3_vl_moe": "Qwen3VL", "qwen3_5": "Qwen3VL", "qwen3_5_moe": "Qwen3VL"}.get(family, CLASSES[family])
    processor_class = getattr(transformers, f"{prefix}Processor")
    parts: dict[str, Any] = {"image_processor": images, "tokenizer": tiny_tokenizer(), "chat_template": TEMPLATE}
    if "video_processor" in inspect.signature(processor_class.__init__).parameters:
        name = "Qwen3VLVideoProcessor" if three else "Qwen2VLVideoProcessor"
        size = {"shortest_edge": (2 * patch) ** 2, "longest_edge": max_pixels * 32}
        parts["video_processor"] = getattr(transformers, name)(size=size, do_sample_frames=False, **values)
    return processor_class(**parts)


def tiny_tokenizer() -> Any:
    """Qwen's tokenizer class with one token per byte and the special tokens; no merges, so nothing to download."""
    import transformers
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = {symbol: index for index, symbol in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer_class = transformers.Qwen2TokenizerFast
    special = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>", "unk_token": None}
    if "vocab" in inspect.signature(tokenizer_class.__init__).parameters:
        tokenizer = tokenizer_class(vocab=vocabulary, merges=[], **special)
    else:
        with tempfile.TemporaryDirectory() as folder:
            vocab_file, merges_file = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
            vocab_file.write_text(json.dumps(vocabulary), encoding="utf-8")
            merges_file.write_text("#version: 0.2\n", encoding="utf-8")
            tokenizer = tokenizer_class(vocab_file=str(vocab_file), merges_file=str(merges_file), **special)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    return tokenizer


def _sections(half: int) -> list[int]:
    """Split a rotary half dimension into time, height and width."""
    side = half * 3 // 8
    return [half - 2 * side, side, side]


def _vision(family: str, hidden_size: int) -> dict[str, Any]:
    shared = {"depth": 2, "num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2}
    if family == "qwen2_vl":
        return {**shared, "embed_dim": 32, "hidden_size": hidden_size, "mlp_ratio": 2, "patch_size": 14}
    if family == "qwen2_5_vl":
        return {
            **shared, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": hidden_size, "patch_size": 14,
            "window_size": 56, "fullatt_block_indexes": [1],
        }  # fmt: skip
    vision = {
        **shared, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": hidden_size, "patch_size": 16,
        "num_position_embeddings": 64,
    }  # fmt: skip
    return vision if family.startswith("qwen3_5") else {**vision, "deepstack_visual_indexes": [0]}
