"""What VG-LLM's script needs: a tiny Qwen2.5-VL with the released ids of tokens, and rows in its layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vega3d_qwen_vl.tiny import SPECIAL, TEMPLATE, tiny_model, tiny_processor

#: The script counts positions by numbers of tokens that are written into its code.
FIRST_SPECIAL = 151643
NAMES = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip


def released_tokenizer(folder: Path) -> Any:
    """One token per byte, then fillers, then the special tokens at their released places."""
    import transformers
    from tokenizers.pre_tokenizers import ByteLevel

    symbols = sorted(ByteLevel.alphabet())
    symbols += [f"filler{index}" for index in range(FIRST_SPECIAL - len(symbols))]
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    vocab.write_text(json.dumps({symbol: index for index, symbol in enumerate(symbols)}), encoding="utf-8")
    merges.write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = transformers.Qwen2Tokenizer(
        str(vocab), str(merges), pad_token=NAMES[0], eos_token=NAMES[2], unk_token=None
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(NAMES)})
    assert tokenizer.convert_tokens_to_ids("<|image_pad|>") == 151655
    assert {*SPECIAL} <= {*NAMES}
    return tokenizer


def save_base(folder: Path) -> Path:
    """The model in bfloat16, its processor and ``chat_template.json``, which the script copies."""
    folder.mkdir(parents=True)
    tokenizer, model = released_tokenizer(folder), tiny_model()
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in NAMES}
    model.resize_token_embeddings(FIRST_SPECIAL + len(NAMES))
    model.config.image_token_id, model.config.video_token_id = ids["<|image_pad|>"], ids["<|video_pad|>"]
    model.config.vision_start_token_id, model.config.vision_end_token_id = (
        ids["<|vision_start|>"],
        ids["<|vision_end|>"],
    )
    model.config.eos_token_id, model.config.pad_token_id = ids["<|im_end|>"], ids["<|endoftext|>"]
    model.config.bos_token_id = ids["<|endoftext|>"]
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = ids["<|im_end|>"], ids["<|endoftext|>"]
    model.to(torch.bfloat16).save_pretrained(folder)
    tiny_processor().image_processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return folder


def write_rows(root: Path) -> Path:
    """``data`` as both checkouts read it: rows of SPAR with marks, and of LLaVA-Hound with folders of frames."""
    rng, media = np.random.default_rng(0), root / "media"
    for folder, names in {"scene": ["40.jpg", "120.jpg"], "walk": [f"{i}.jpg" for i in range(1, 13)]}.items():
        (media / folder).mkdir(parents=True)
        for name in names:
            Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(media / folder / name)
    marks = {"red_point": [[310, 420]], "blue_point": [[702, 388]], "point_img_idx": [[0, 1]]}
    spar = {
        "images": ["scene/40.jpg", "scene/120.jpg"],
        "spar_info": json.dumps({**marks, "type": "depth_prediction_oc_mv"}),
        "conversations": _talk("<image>\n<image>\nHow much deeper is the blue point than the red one?", "0.7"),
    }
    hound = {"video": "walk", "data_source": "llava_hound", "conversations": _talk("<video>\nWhat happens?", "A walk.")}
    spars = [{"id": f"spar_{index}", **spar} for index in range(200)]
    hounds = [{"id": f"hound_{index}", **hound} for index in range(24)]
    train = root / "train"
    train.mkdir()
    (train / "spar_7m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in spars))
    (train / "spar_234k.json").write_text(json.dumps(spars[:6]))
    (train / "llava_hound_255k.json").write_text(json.dumps(hounds))
    (train / "llava_hound_64k.json").write_text(json.dumps(hounds[:6]))
    return root


def _talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
