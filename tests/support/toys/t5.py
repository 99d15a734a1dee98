"""A tiny T5 text encoder and its tokenizer, as the repositories of text-to-video models have them."""

from __future__ import annotations

import json
from pathlib import Path

import torch

TEXT_DIM = 16
#: Pieces beside the special ones; what T5's SentencePiece model is made of.
PIECES = ("▁", "▁a", "b", "c", "▁cat")


def write_t5(folder: Path, pipeline: str, *, seed: int = 7) -> None:
    """Write ``text_encoder/``, ``tokenizer/`` (with ``tokenizer.json``) and ``model_index.json``."""
    from transformers import T5Config, T5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = T5Config(
            vocab_size=32,
            d_model=TEXT_DIM,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.1,
        )
        model = T5EncoderModel(config)
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(torch.randn_like(weight) * 0.3)
    model.save_pretrained(folder / "text_encoder")
    write_tokenizer(folder / "tokenizer")
    index = {
        "_class_name": pipeline,
        "_diffusers_version": "0.36.0",
        "scheduler": ["diffusers", "Scheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "Transformer"],
        "vae": ["diffusers", "Vae"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def write_tokenizer(folder: Path) -> None:
    """A T5 tokenizer without SentencePiece: the same pipeline, as ``tokenizers`` writes it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import T5TokenizerFast

    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -2.0) for piece in PIECES)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)]
    )
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "plain.json"))
    T5TokenizerFast(
        tokenizer_file=str(folder / "plain.json"), extra_ids=0, additional_special_tokens=None, model_max_length=512
    ).save_pretrained(folder)
    (folder / "plain.json").unlink()
