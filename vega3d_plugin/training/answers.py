"""Ask a host in transformers: let it generate an answer, or tell how likely a given one is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rows.conversation import Conversation, Turn
from .rows.encoding import IGNORED, Encoded, Encoder


def encode_question(encoder: Encoder, turns: Sequence[Turn]) -> Encoded:
    """Inputs of turns that end with a question, as the host generates from: on the CPU, ``[1, L]`` along the tokens.

    Raises:
        RowError: a picture cannot be read, or the text holds the host's own placeholder.
    """
    # The encoder learns from answers, so it wants one; what it makes of it is cut off.
    return split_answer(encoder(Conversation((*turns, Turn("assistant", ("-",))))))[0]


def split_answer(encoded: Encoded) -> tuple[Encoded, int]:
    """The prompt before the last answer of an encoded conversation, and how many tokens the answer has."""
    asked = encoded["labels"][0] == IGNORED
    length = int(asked.nonzero()[-1]) + 1
    ids = encoded["input_ids"]
    prompt = {
        key: value[:, :length] if isinstance(value, Tensor) and value.shape == ids.shape else value
        for key, value in encoded.items()
        if key != "labels"
    }
    return prompt, ids.shape[1] - length


def on_model(model: nn.Module, batch: Encoded) -> Encoded:
    """The batch on the model's device, and floating-point values in its dtype."""
    like = next(p for p in model.parameters() if p.is_floating_point())
    return {
        key: value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)
        if isinstance(value, Tensor)
        else value
        for key, value in batch.items()
    }


@torch.no_grad()
def generate(model: Any, processor: Any, prompt: Encoded, **options: Any) -> tuple[str, int]:
    """The answer to a prompt, stripped, and how many tokens were generated.

    Args:
        model, processor: of the host.
        prompt: from :func:`encode_question` or :func:`split_answer`.
        options: of ``generate``; greedy unless they say otherwise.
    """
    chosen = {"do_sample": False, **options}
    if not chosen["do_sample"]:
        # Sampling settings, a checkpoint's own too, would only cause warnings.
        chosen |= {"temperature": None, "top_p": None, "top_k": None}
    tokenizer = processor.tokenizer
    if tokenizer.pad_token_id is not None:
        chosen.setdefault("pad_token_id", tokenizer.pad_token_id)
    out = model.generate(**on_model(model, prompt), **chosen)
    new = out[0, prompt["input_ids"].shape[1] :]
    text: str = tokenizer.decode(new, skip_special_tokens=True)
    return text.strip(), int(new.shape[0])


@torch.no_grad()
def answer_likelihood(model: Any, encoded: Encoded) -> Tensor:
    """Negative log-likelihood in nats of each token of the last answer, its end included: float64, on the CPU."""
    _, count = split_answer(encoded)
    batch = on_model(model, {key: value for key, value in encoded.items() if key != "labels"})
    logits = model(**batch).logits[0, -count - 1 : -1].float()
    return F.cross_entropy(logits, batch["input_ids"][0, -count:], reduction="none").double().cpu()
