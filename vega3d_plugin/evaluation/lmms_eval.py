"""The model class that lmms-eval asks. Imported by lmms-eval alone, see :mod:`vega3d_plugin.lmms_eval_plugin`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from tqdm import tqdm

from .harness_host import EvaluatedHost, EvaluationError, HostArguments


class Vega3dModel(lmms):  # type: ignore[misc]
    """A host of transformers with its branch, for every task that generates answers.

    Args:
        arguments: ``--model_args``, see :class:`~vega3d_plugin.evaluation.harness_host.HostArguments`.

    Raises:
        SettingsError: lists every argument that is wrong.
    """

    # lmms-eval then hands over messages, with the pictures in them.
    is_simple = False

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        parsed = HostArguments.parse(_texts(arguments), where="--model_args")
        accelerator = Accelerator()
        if accelerator.num_processes > 1:
            # Every process has the whole model and a part of the questions.
            self.accelerator = accelerator
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes
            if torch.cuda.is_available():
                parsed = parsed.model_copy(update={"device": f"cuda:{accelerator.local_process_index}"})
        elif parsed.device == "cuda" and not torch.cuda.is_available():
            # lmms-eval's own default, where there is none.
            parsed = parsed.model_copy(update={"device": None})
        self.host = EvaluatedHost(parsed)

    @property
    def device(self) -> torch.device:
        """Where the host is."""
        return next(self.host.model.parameters()).device

    @property
    def batch_size(self) -> int:
        """Questions that are asked at once: ``--batch_size``, where ``auto`` is 1."""
        size = str(self.host.arguments.batch_size or 1)
        return int(size) if size.isdecimal() and int(size) else 1

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """Answer requests in batches of those with the same options; the answers are in the order of the requests."""
        results: dict[int, Any] = {}
        quiet = self.rank != 0 or bool(os.environ.get("TQDM_DISABLE"))
        with tqdm(total=len(requests), disable=quiet, desc="Answering") as bar:
            for places in _batches(requests, self.batch_size):
                found = self._answer([requests[place] for place in places])
                results |= dict(zip(places, found, strict=True))
                bar.update(len(places))
        return [results[place] for place in range(len(requests))]

    def _answer(self, requests: list[Any]) -> list[Any]:
        """Answer requests that have the same options."""
        questions = []
        for request in requests:
            _, to_messages, _, doc, task, split = request.args
            questions.append(to_messages(self.task_dict[task][split][doc]))
        options = requests[0].args[2]
        said = self.host.ask_all(questions, options)
        for request, (text, _) in zip(requests, said, strict=True):
            self.cache_hook.add_partial("generate_until", (request.args[0], options), text)
        return [GenerationResult(text=text, token_counts=TokenCounts(output_tokens=count)) for text, count in said]

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        """Not for models that are handed messages: lmms-eval never asks them."""
        raise EvaluationError("--model vega3d answers tasks that generate; this one asks for likelihoods.")

    def generate_until_multi_round(self, requests: list[Any]) -> list[Any]:
        """Not implemented."""
        raise EvaluationError("--model vega3d answers one question at a time; this task has several rounds.")


def _batches(requests: list[Any], size: int) -> Iterator[list[int]]:
    """Places of requests in batches of at most ``size``; those of one batch have the same options."""
    alike: dict[str, list[int]] = {}
    for place, request in enumerate(requests):
        alike.setdefault(repr(sorted(request.args[2].items())), []).append(place)
    for places in alike.values():
        yield from (places[start : start + size] for start in range(0, len(places), size))


def _texts(arguments: dict[str, Any]) -> dict[str, Any]:
    """lmms-eval reads a folder called ``500`` as a number."""
    texts = {key for key, field in HostArguments.model_fields.items() if field.annotation in (str, str | None)}
    return {
        key: str(value) if key in texts and isinstance(value, int | float) else value
        for key, value in arguments.items()
    }
