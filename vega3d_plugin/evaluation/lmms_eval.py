"""The model class that lmms-eval asks. Imported by lmms-eval alone, see :mod:`vega3d_plugin.lmms_eval_plugin`."""

from __future__ import annotations

import os
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
        """Questions are asked one at a time."""
        return 1

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """Answer each request, in order."""
        results = []
        bar = tqdm(requests, disable=self.rank != 0 or bool(os.environ.get("TQDM_DISABLE")), desc="Answering")
        for request in bar:
            context, to_messages, options, doc, task, split = request.args
            messages = to_messages(self.task_dict[task][split][doc])
            text, count = self.host.ask(messages, options)
            self.cache_hook.add_partial("generate_until", (context, options), text)
            results.append(GenerationResult(text=text, token_counts=TokenCounts(output_tokens=count)))
        return results

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        """Not for models that are handed messages: lmms-eval never asks them."""
        raise EvaluationError("--model vega3d answers tasks that generate; this one asks for likelihoods.")

    def generate_until_multi_round(self, requests: list[Any]) -> list[Any]:
        """Not implemented."""
        raise EvaluationError("--model vega3d answers one question at a time; this task has several rounds.")


def _texts(arguments: dict[str, Any]) -> dict[str, Any]:
    """lmms-eval reads a folder called ``500`` as a number."""
    texts = {key for key, field in HostArguments.model_fields.items() if field.annotation in (str, str | None)}
    return {
        key: str(value) if key in texts and isinstance(value, int | float) else value
        for key, value in arguments.items()
    }
