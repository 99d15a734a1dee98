"""Ask a host in transformers: let it generate an answer, or tell how likely a given one is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..branch.handle import get_handle, is_patched
from ..branch.instructions import answered
from ..scenes.view_points import POINTS
from .rows.conversation import Conversation, Turn
from .rows.encoding import IGNORED, Encoded, Encoder, stack_media


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


def takes_points(model: nn.Module) -> bool:
    """Whether the model's branch adds positions, so that its batches must have world points."""
    return is_patched(model) and get_handle(model).settings.positions != "none"


def on_model(model: nn.Module, batch: Encoded) -> Encoded:
    """The batch on the model's device, floating-point values in its dtype; world points for a branch that uses them."""
    if not takes_points(model):
        batch = {key: value for key, value in batch.items() if key != POINTS}
    like = next(p for p in model.parameters() if p.is_floating_point())
    return {
        key: value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)
        if isinstance(value, Tensor)
        else value
        for key, value in batch.items()
    }


def generate(model: Any, processor: Any, prompt: Encoded, **options: Any) -> tuple[str, int]:
    """The answer to one prompt; see :func:`generate_batch`."""
    return generate_batch(model, processor, [prompt], **options)[0]


@torch.no_grad()
def generate_batch(model: Any, processor: Any, prompts: Sequence[Encoded], **options: Any) -> list[tuple[str, int]]:
    """The answers to several prompts, stripped, and how many tokens each has, its end included.

    Prompts whose pictures fit into one batch are answered together, padded on the left; others one after the other.
    A prompt's answer is what it gets alone, but for rounding: kernels round by the shape of a batch, so that in half
    precision two tokens that are equally likely may change places.

    Args:
        model, processor: of the host.
        prompts: from :func:`encode_question` or :func:`split_answer`.
        options: of ``generate``; greedy unless they say otherwise.
    """
    chosen = {"do_sample": False, **options}
    if not chosen["do_sample"]:
        # Sampling settings, a checkpoint's own too, would only cause warnings.
        chosen |= {"temperature": None, "top_p": None, "top_k": None}
    tokenizer = processor.tokenizer
    if tokenizer.pad_token_id is not None:
        chosen.setdefault("pad_token_id", tokenizer.pad_token_id)
    answers: list[tuple[str, int]] = [("", 0)] * len(prompts)
    for places in fitting(prompts):
        batch = padded([prompts[place] for place in places], pad_token(tokenizer))
        out = model.generate(**on_model(model, batch), **chosen)[:, batch["input_ids"].shape[1] :]
        for place, new in zip(places, out, strict=True):
            answer = _until_end(new, _ends(model, tokenizer))
            text: str = tokenizer.decode(answer, skip_special_tokens=True)
            answers[place] = text.strip(), int(answer.shape[0])
    return answers


def fitting(prompts: Sequence[Encoded]) -> list[list[int]]:
    """Places of prompts that go into one batch: with the same kinds of inputs, of sizes that can be stacked."""
    groups: dict[Any, list[int]] = {}
    for place, prompt in enumerate(prompts):
        shapes = [(key, _inner(key, value)) for key, value in prompt.items() if not _along(value, prompt)]
        groups.setdefault((frozenset(prompt), tuple(sorted(shapes))), []).append(place)
    return list(groups.values())


def _inner(key: str, value: Any) -> tuple[int, ...]:
    """The shape that inputs of one batch share; a differing number of crops is filled up when they are stacked."""
    if not isinstance(value, Tensor):
        return ()
    return tuple(value.shape[2:] if key == "pixel_values" and value.ndim == 5 else value.shape[1:])


def padded(prompts: Sequence[Encoded], pad: int) -> Encoded:
    """One batch, padded on the left, where an answer does not begin: ``[B, L]`` along the tokens."""
    if len(prompts) == 1:
        return dict(prompts[0])
    longest = max(prompt["input_ids"].shape[1] for prompt in prompts)
    batch: Encoded = {}
    for key, value in prompts[0].items():
        parts = [prompt[key] for prompt in prompts]
        if _along(value, prompts[0]):
            fill = pad if key == "input_ids" else 0
            parts = [F.pad(part, (longest - part.shape[1], 0), value=fill) for part in parts]
            batch[key] = torch.cat(parts)
        else:
            batch[key] = stack_media(key, parts) if isinstance(value, Tensor) else value
    return batch


def _along(value: Any, prompt: Encoded) -> bool:
    return isinstance(value, Tensor) and value.shape == prompt["input_ids"].shape


def pad_token(tokenizer: Any) -> int:
    """What a tokenizer's shorter prompts are filled up with."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = tokenizer.eos_token_id if ends is None else ends
    return [] if ends is None else [int(end) for end in (ends if isinstance(ends, list | tuple) else [ends])]


def _until_end(tokens: Tensor, ends: Sequence[int]) -> Tensor:
    """The tokens of one answer up to its end; behind it stands padding, where others of the batch went on."""
    found = torch.isin(tokens, torch.tensor(ends, device=tokens.device, dtype=tokens.dtype)).nonzero()
    return tokens[: int(found[0]) + 1] if len(found) else tokens


@torch.no_grad()
def answer_likelihood(model: Any, encoded: Encoded) -> Tensor:
    """Negative log-likelihood in nats of each token of the last answer, its end included: float64, on the CPU."""
    _, count = split_answer(encoded)
    batch = on_model(model, {key: value for key, value in encoded.items() if key != "labels"})
    with answered(model, batch["input_ids"], encoded["labels"]):
        logits = model(**batch).logits[0, -count - 1 : -1].float()
    return F.cross_entropy(logits, batch["input_ids"][0, -count:], reduction="none").double().cpu()
