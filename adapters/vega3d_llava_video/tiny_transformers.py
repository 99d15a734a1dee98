"""Tiny random LLaVA models of transformers' real classes, with their real processors, offline: for demos and tests."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from vega3d_plugin.contracts.seeded import seeded

#: Family, as ``config.model_type`` says it, to the prefix of its classes.
CLASSES = {
    "llava": "Llava",
    "vipllava": "VipLlava",
    "llava_next": "LlavaNext",
    "llava_next_video": "LlavaNextVideo",
    "llava_onevision": "LlavaOnevision",
    "video_llava": "VideoLlava",
}
SPECIAL = ("<pad>", "<s>", "</s>", "<image>", "<video>")
PATCH = 14
#: Odd for LLaVA-OneVision, whose pooling rounds up.
SIDES = {"llava_onevision": 5 * PATCH}
SIDE = 4 * PATCH

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: "
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% elif part.type == 'video' %}<video>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def side_of(family: str) -> int:
    """Side of the square pictures that the vision tower of a family takes, in pixels."""
    return SIDES.get(family, SIDE)


def tiny_model(family: str = "llava_onevision", *, hidden_size: int = 64, layers: int = 2, seed: int = 0) -> Any:
    """A random ``...ForConditionalGeneration`` of a family, in float32 and eval mode.

    Args:
        family: a key of :data:`CLASSES`.
        hidden_size: of the LLM, divisible by 4.
        layers: of the LLM.
        seed: of the weights.
    """
    import transformers

    tokenizer = tiny_tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    text = {
        "model_type": "qwen2" if family == "llava_onevision" else "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "pad_token_id": ids["<pad>"],
        "bos_token_id": ids["<s>"],
        "eos_token_id": ids["</s>"],
    }
    side = side_of(family)
    vision = {
        "model_type": "siglip_vision_model" if family == "llava_onevision" else "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": PATCH,
        # SigLIP's tower pools with a head of its own, which LLaVA leaves out.
        **({"vision_use_head": False} if family == "llava_onevision" else {}),
    }
    config_class = getattr(transformers, f"{CLASSES[family]}Config")
    values: dict[str, Any] = {
        "text_config": text,
        "vision_config": vision,
        "image_token_index": ids["<image>"],
        "tie_word_embeddings": False,
    }
    if family in ("llava_next_video", "llava_onevision", "video_llava"):
        values["video_token_index"] = ids["<video>"]
    if family in ("llava", "llava_next", "video_llava"):
        values["image_seq_length"] = (side // PATCH) ** 2
    if family in ("llava_next", "llava_next_video", "llava_onevision"):
        values["image_grid_pinpoints"] = pinpoints(side)
    if family == "vipllava":
        values["vision_feature_layers"] = [-2, 1]
    config = config_class(**values)
    with seeded(seed):
        model = getattr(transformers, f"{CLASSES[family]}ForConditionalGeneration")(config)
    model.generation_config.eos_token_id = ids["</s>"]
    model.generation_config.pad_token_id = ids["<pad>"]
    model.generation_config.do_sample = False
    return model.eval()


def tiny_processor(family: str = "llava_onevision") -> Any:
    """The family's processor: real image and video processors, byte-level tokenizer without merges.

    Args:
        family: a key of :data:`CLASSES`.
    """
    import transformers

    side = side_of(family)
    prefix = "Llava" if family == "vipllava" else CLASSES[family]
    processor_class = getattr(transformers, f"{prefix}Processor")
    given = inspect.signature(processor_class.__init__).parameters
    square = {"height": side, "width": side}
    crop = {"size": {"shortest_edge": side}, "crop_size": square}
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    expected = getattr(processor_class, "tokenizer_class", "")
    # The only one that insists, before transformers 5.
    name = "LlamaTokenizerFast" if "LlamaTokenizerFast" in expected else "PreTrainedTokenizerFast"
    parts: dict[str, Any] = {"tokenizer": tiny_tokenizer(class_name=name), "chat_template": TEMPLATE}
    if family in ("llava", "vipllava"):
        parts["image_processor"] = transformers.CLIPImageProcessor(**crop)
    elif family in ("llava_next", "llava_next_video"):
        parts["image_processor"] = transformers.LlavaNextImageProcessor(image_grid_pinpoints=pinpoints(side), **crop)
    elif family == "llava_onevision":
        images = transformers.LlavaOnevisionImageProcessor
        parts["image_processor"] = images(image_grid_pinpoints=pinpoints(side), size=square, **half)
    elif "video_processor" in given:
        parts["image_processor"] = transformers.CLIPImageProcessor(**crop)
    else:
        # One processor for both, before transformers 4.53.
        parts["image_processor"] = transformers.VideoLlavaImageProcessor(**crop)
    if "video_processor" in given:
        parts["video_processor"] = _video_processor(family, side, crop, half)
    if "num_image_tokens" in given:
        parts["num_image_tokens"] = (side // PATCH) ** 2
    if "patch_size" in given:
        # CLIP's class token, which "default" drops again.
        parts |= {"patch_size": PATCH, "num_additional_image_tokens": 1}
    strategy = "full" if family == "llava_onevision" else "default"
    return processor_class(**parts, vision_feature_select_strategy=strategy)


def tiny_tokenizer(special: Sequence[str] = SPECIAL, class_name: str = "PreTrainedTokenizerFast") -> Any:
    """One token per byte and the special tokens; no merges, so nothing to download.

    Args:
        special: further tokens; padding, begin and end are the first three.
        class_name: of the tokenizer.
    """
    import transformers
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    pad, begin, end = special[:3]
    fast = getattr(transformers, class_name)(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=begin,
        eos_token=end,
        unk_token=pad,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )
    fast.add_special_tokens({"additional_special_tokens": list(special[3:])})
    return fast


def pinpoints(side: int) -> list[list[int]]:
    """Resolutions (height, width) that a picture is cut into tiles of: two beside or above each other, and four."""
    return [[side, 2 * side], [2 * side, side], [2 * side, 2 * side]]


def _video_processor(family: str, side: int, crop: dict[str, Any], half: dict[str, Any]) -> Any:
    import transformers

    # Until transformers 4.52 LLaVA-NeXT-Video had an image processor for its videos.
    names = (f"{CLASSES[family]}VideoProcessor", f"{CLASSES[family]}ImageProcessor")
    video_class = next(getattr(transformers, name) for name in names if hasattr(transformers, name))
    if family == "llava_onevision":
        return video_class(size={"height": side, "width": side}, **half)
    return video_class(**crop)


__all__ = ["CLASSES", "PATCH", "SPECIAL", "pinpoints", "side_of", "tiny_model", "tiny_processor", "tiny_tokenizer"]
