"""From frames, a question and an answer to the host's inputs, by its own processor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

Batch = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """Attributes: ``frames`` uint8 ``[T, H, W, 3]``; ``question``; ``answer``, empty when it is to be generated."""

    frames: NDArray[np.uint8]
    question: str
    answer: str = ""


def encode(processor: Any, sample: Sample) -> Batch:
    """The inputs of one sample, with ``labels`` on the answer alone when there is one."""
    content = [{"type": "video"}, {"type": "text", "text": sample.question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    answer = f"{sample.answer}<|im_end|>" if sample.answer else ""
    options: dict[str, Any] = {}
    if hasattr(processor, "video_processor"):
        # The frames are chosen already.
        options["do_sample_frames"] = False
    video = torch.from_numpy(np.ascontiguousarray(sample.frames.transpose(0, 3, 1, 2)))
    batch = dict(processor(text=[prompt + answer], videos=[video], return_tensors="pt", **options))
    batch = {key: torch.tensor(value) if isinstance(value, list) else value for key, value in batch.items()}
    if answer:
        length = len(processor.tokenizer(answer)["input_ids"])
        batch["labels"] = torch.full_like(batch["input_ids"], -100)
        batch["labels"][:, -length:] = batch["input_ids"][:, -length:]
    return batch


class Encoded(Dataset[Batch]):
    """Encoded samples, for HF Trainer with :func:`only`."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        return self.batches[index]


def only(batches: list[Batch]) -> Batch:
    """Collate batches of size one."""
    (batch,) = batches
    return dict(batch)


def on_device(batches: list[Batch], model: nn.Module) -> Iterator[Batch]:
    """The batches on the model's device."""
    device = next(model.parameters()).device
    for batch in batches:
        yield {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


@torch.no_grad()
def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """The logits of one batch, on the CPU."""
    (moved,) = on_device([{k: v for k, v in batch.items() if k != "labels"}], model)
    out: Tensor = model(**moved).logits
    return out.cpu()


@torch.no_grad()
def mean_loss(model: nn.Module, batches: list[Batch]) -> float:
    """Mean loss over batches in eval mode."""
    was_training = model.training
    model.eval()
    losses = [float(model(**batch).loss) for batch in on_device(batches, model)]
    model.train(was_training)
    return sum(losses) / len(losses)


@torch.no_grad()
def answer(model: Any, processor: Any, batch: Batch, tokens: int = 24) -> str:
    """Generate an answer to one encoded question."""
    (moved,) = on_device([{k: v for k, v in batch.items() if k != "labels"}], model)
    out = model.generate(**moved, max_new_tokens=tokens, do_sample=False)
    text: str = processor.tokenizer.decode(out[0, moved["input_ids"].shape[1] :], skip_special_tokens=True)
    return text.strip()
