"""The small host of the comparison: an adapter's toy with a token for each word of the questions, and its inputs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...contracts.seeded import seeded
from .clips import RoomClips
from .host import DemoHost, tiny_host
from .samples import Batch, Sample, encode

END = "<|im_end|>"
#: What lies along the tokens; filled up on the left, so that each answer stands at the end.
_ALONG = ("input_ids", "attention_mask", "mm_token_type_ids")


def small_host(questions: Iterable[Any], seed: int) -> DemoHost:
    """A random toy host whose tokenizer knows the words of some questions, so that an answer is one token.

    Args:
        questions: with ``text`` and ``choices``.
        seed: of the weights of the words.
    """
    from tokenizers import AddedToken

    host = tiny_host()
    words = {word for q in questions for text in (q.text, *q.choices) for word in re.findall(r"[A-Za-z]+", text)}
    tokens = [AddedToken(word, single_word=True, lstrip=True, normalized=False) for word in sorted(words)]
    host.processor.tokenizer.add_tokens(tokens)

    def build() -> Any:
        model: Any = host.build()
        with seeded(seed):
            model.resize_token_embeddings(len(host.processor.tokenizer), mean_resizing=False)
        return model

    return DemoHost(build, host.processor, tiny=True)


class EncodedClips:
    """Questions as the host takes them: each clip and each text goes through its processor once.

    Args:
        processor: of the host, whose tokenizer has a token for each answer.
        rows: clips and questions.
    """

    def __init__(self, processor: Any, rows: RoomClips) -> None:
        self.rows = rows
        tokenizer = processor.tokenizer
        first = {int(clip): row for row, clip in reversed(list(enumerate(rows.clip)))}
        shown = {clip: self._encoded(processor, rows, row) for clip, row in first.items()}
        self.clips = {clip: {k: v for k, v in batch.items() if k not in _ALONG} for clip, batch in shown.items()}
        self.texts = {rows.questions[row].text: shown[clip] for clip, row in first.items()}
        for row, question in enumerate(rows.questions):
            if question.text not in self.texts:
                self.texts[question.text] = self._encoded(processor, rows, row)
        self.pad = tokenizer.pad_token_id
        self.answer = torch.tensor([_token(tokenizer, question.answer) for question in rows.questions])
        end = torch.full_like(self.answer, tokenizer.convert_tokens_to_ids(END))
        #: What follows a prompt: the answer, and the end of its turn.
        self.learned = torch.stack([self.answer, end], dim=1)
        self.choices = torch.tensor([[_token(tokenizer, word) for word in q.choices] for q in rows.questions])

    def batch(self, numbers: Tensor, *, answered: bool = False) -> Batch:
        """Some questions as one batch, filled up on the left; ``answered``: with their answers behind them."""
        texts = [self.texts[self.rows.questions[number].text] for number in numbers.tolist()]
        clips = [self.clips[int(self.rows.clip[number])] for number in numbers.tolist()]
        longest = max(text["input_ids"].shape[1] for text in texts)
        batch: Batch = {key: torch.cat([clip[key] for clip in clips]) for key in clips[0]}
        for key in (key for key in _ALONG if key in texts[0]):
            fill = self.pad if key == "input_ids" else 0
            filled = [
                torch.nn.functional.pad(text[key], (longest - text[key].shape[1], 0), value=fill) for text in texts
            ]
            batch[key] = torch.cat(filled)
            if answered:
                more = {"input_ids": self.answer[numbers], "attention_mask": torch.ones_like(numbers)}
                behind = more.get(key, torch.zeros_like(numbers))
                batch[key] = torch.cat([batch[key], behind[:, None].to(batch[key].dtype)], dim=1)
        return batch

    def _encoded(self, processor: Any, rows: RoomClips, row: int) -> Batch:
        frames = np.ascontiguousarray(rows.clips[rows.clip[row]])
        return encode(processor, Sample(frames, rows.questions[row].text))


def _token(tokenizer: Any, word: str) -> int:
    (token,) = tokenizer(word, add_special_tokens=False)["input_ids"]
    return int(token)
