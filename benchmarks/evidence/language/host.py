"""The host: LLaVA's class in transformers at toy size, with words for tokens, trained here from nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vega3d_plugin.contracts.seeded import seeded

from vega3d_plugin.scenes.rendered import COLOURS

from .rooms import PATCH, SIDE, Rows

TOKENS = (SIDE // PATCH) ** 2
MEAN = STD = 0.5
#: Of new weights: at this width the 0.02 of large models would leave every token alike.
SPREAD = 0.08
SPECIAL = ("<pad>", "<image>", "<answer>")
WORDS = (
    "where in the first picture is box left of nearer than did camera move or right come closer to yes no "
    "red green blue yellow purple orange"
).split()
CELLS = tuple(f"<{cell}>" for cell in range(TOKENS))
VOCABULARY = {word: number for number, word in enumerate((*SPECIAL, *WORDS, *CELLS))}
#: In a description, this word begins the second picture.
SECOND = "or"


def build_host(seed: int, width: int = 96, layers: int = 3) -> Any:
    """A ``LlavaForConditionalGeneration`` with random weights: CLIP's tower and Llama's language model."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    text = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        pad_token_id=VOCABULARY["<pad>"],
        initializer_range=SPREAD,
    )
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        initializer_range=SPREAD,
    )
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=VOCABULARY["<image>"],
        image_seq_length=TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    with seeded(seed):
        return LlavaForConditionalGeneration(config)


class Statistics:
    """What the plugin reads of a processor: how pixels were normalised."""

    image_mean = (MEAN,) * 3
    image_std = (STD,) * 3
    do_normalize = True


@dataclass(frozen=True)
class Batch:
    """Inputs of the host, the place of the answer being the last one."""

    input_ids: Tensor
    attention_mask: Tensor
    pixel_values: Tensor
    answer: Tensor
    choices: Tensor


class Encoded:
    """Rows as tokens, once; pictures are normalised when a batch is drawn."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        asked = [question.text.split() for question in rows.questions]
        longest = max(map(len, asked))
        ids = torch.full((len(rows), 2 * TOKENS + longest + 1), VOCABULARY["<pad>"])
        ids[:, -1] = VOCABULARY["<answer>"]
        for row, words in enumerate(asked):
            text = torch.tensor([VOCABULARY[word] for word in words])
            ids[row, -1 - len(words) : -1] = text
            ids[row, -1 - len(words) - 2 * TOKENS : -1 - len(words)] = VOCABULARY["<image>"]
        self.ids = ids
        self.answer = torch.tensor([VOCABULARY[question.answer] for question in rows.questions])
        self.choices = torch.tensor([[VOCABULARY[word] for word in question.choices] for question in rows.questions])

    def batch(self, numbers: Tensor, *, blind: bool = False) -> Batch:
        """Some of the rows; ``blind`` shows grey pictures."""
        ids = self.ids[numbers]
        pictures = self.rows.pictures[torch.as_tensor(self.rows.clip)[numbers]].flatten(0, 1)
        pixels = (pictures.float() / 255 - MEAN) / STD
        return Batch(
            ids,
            (ids != VOCABULARY["<pad>"]).long(),
            torch.zeros_like(pixels) if blind else pixels,
            self.answer[numbers],
            self.choices[numbers],
        )


def describe(rows: Rows, numbers: Tensor, draw: torch.Generator) -> tuple[Batch, Tensor]:
    """Clips with a description behind them: each box that is seen and its cell, first picture first, in drawn order.

    Returns:
        The inputs, and the labels of every token: the cells, and -100 elsewhere.
    """
    names = [VOCABULARY[name] for name in COLOURS]
    texts = []
    for clip in numbers.tolist():
        words: list[int] = []
        for place in (0, 1):
            words += [VOCABULARY[SECOND]] if place else []
            for box in torch.randperm(len(names), generator=draw).tolist():
                cell = int(rows.cells[clip, place, box])
                words += [names[box], VOCABULARY[CELLS[cell]]] if cell >= 0 else []
        texts.append(words)
    longest = max(map(len, texts))
    ids = torch.full((len(texts), 2 * TOKENS + longest), VOCABULARY["<pad>"])
    for row, words in enumerate(texts):
        ids[row, longest - len(words) : longest - len(words) + 2 * TOKENS] = VOCABULARY["<image>"]
        ids[row, ids.shape[1] - len(words) :] = torch.tensor(words)
    labels = torch.where(ids >= VOCABULARY[CELLS[0]], ids, -100)
    pixels = (rows.pictures[numbers].flatten(0, 1).float() / 255 - MEAN) / STD
    nothing = torch.zeros(0)
    return Batch(ids, (ids != VOCABULARY["<pad>"]).long(), pixels, nothing, nothing), labels


def answer_logits(model: Any, batch: Batch) -> Tensor:
    """``[rows, words]``: what the model says behind the question."""
    out = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        pixel_values=batch.pixel_values,
        logits_to_keep=1,
        use_cache=False,
    )
    logits: Tensor = out.logits[:, -1].float()
    return logits
