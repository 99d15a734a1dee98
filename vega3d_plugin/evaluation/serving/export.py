"""A run that writes the fused tokens of every question, whatever happens on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...branch.handle import is_patched
from ...branch.switches import disabled
from ...contracts.errors import BadRowsError, RowError
from ...hosts.peft import base_model
from ...recipes.blocks import DataSettings
from ...training.answers import pad_token, split_answer
from ..answering.parts import Parts
from ..answering.questions import Question
from ..answering.run import Answered, Asked, Tick, answer_row, share
from ..harness_host import EvaluatedHost, HostArguments
from .files import INDEX, ServingError, counts, file_of, fused_tokens_in, read_tokens, times, write_tokens
from .fused import FusedTokens
from .tokens import fused_tokens_of, logits_of, placeholders, runs


def export_embeddings(
    arguments: HostArguments,
    files: Sequence[str | Path],
    out: str | Path,
    *,
    data: Mapping[str, Any] | None = None,
    limit: int | None = None,
    batch_size: int = 1,
    shard: tuple[int, int] = (0, 1),
    verify: int = 1,
    start: Callable[[int, int], Tick] = lambda total, found: lambda count: None,
    host: Callable[[HostArguments, DataSettings], EvaluatedHost] = EvaluatedHost,
) -> Answered:
    """Write the fused visual tokens of every question in rows; see :mod:`.files` for the folder.

    The vision tower and the branch run once for each question; the language model runs for those that are verified
    alone. A run that ended early, in whatever way, is resumed by the same call.

    Args:
        arguments: the model; ``branch="none"`` for the tokens of the host alone.
        files, data, limit, shard, start, host: as for :func:`~vega3d_plugin.evaluation.answering.run.answer`.
        out: a folder.
        batch_size: questions whose pictures go through tower and branch together.
        verify: of how many questions the logits are compared, bit for bit: those of the patched host, and those of the
            host without its branch which is given the file's tokens and blank pictures. These questions go alone.

    Raises:
        ServingError: logits differ; or a file cannot be written, or is gone though the index names it.
        As :func:`~vega3d_plugin.evaluation.answering.run.answer` otherwise.
    """
    out, asked = Path(out).expanduser(), Asked.of(arguments, files, data, limit)
    parts = Parts(
        out / INDEX,
        {
            "embeddings": 1,
            **asked.identity(),
            "prompt": {"history": "as the rows have it", "system_prompt": arguments.system_prompt},
        },
        {**asked.about(), "batch_size": batch_size},
        len(asked.questions),
        "fused tokens",
    )
    found = Answered(out / INDEX, len(asked.questions), left_out=[str(bad) for bad in asked.questions.left_out])
    if parts.complete:
        _check_there(out)
        return found
    parts.open(*shard)
    try:
        done = parts.done()
        mine = share(len(asked.questions), *shard)
        todo = [n for n in mine if n not in done or ("row" in done[n] and not (out / file_of(n)).is_file())]
        found.share, found.found = len(mine), len(mine) - len(todo)
        if todo:
            tick, writer = start(len(mine), found.found), _Writer(host(arguments, asked.settings), out)
            for numbers, checked in _batches(todo, batch_size, verify):
                lines = writer.lines([asked.questions[number] for number in numbers], verify=checked)
                parts.write(line for line in lines if line["number"] not in done)
                tick(len(numbers))
        found.missing = parts.merge()
    finally:
        parts.close()
    return found


def _batches(numbers: Sequence[int], size: int, verify: int) -> Iterator[tuple[Sequence[int], bool]]:
    """Questions that go together, and whether their logits are compared: the first ones alone, then ``size`` at once.

    The tokens of a batch are rounded in another way than those of one, so they could not be compared bit for bit.
    """
    yield from (([number], True) for number in numbers[:verify])
    for start in range(verify, len(numbers), size):
        yield numbers[start : start + size], False


class _Writer:
    """Writes the tokens of questions, some at once."""

    def __init__(self, host: EvaluatedHost, out: Path) -> None:
        self.host, self.out = host, out
        self.tokens = placeholders(base_model(host.model))

    def lines(self, questions: Sequence[Question], *, verify: bool) -> list[dict[str, Any]]:
        """Their lines of the index; a question that cannot be used is left out, where the settings allow."""
        found, usable = [], []
        for question in questions:
            try:
                inputs = split_answer(self.host.encoder(question.conversation))[0]
                usable.append((question, inputs, self.host.encoder.prompt(question.conversation)))
            except RowError as error:
                if not self.host.encoder.settings.skip_bad_rows:
                    raise BadRowsError(
                        f"{question.where}: {error}. Correct it, or pass --skip-bad-rows. The tokens before are kept."
                    ) from error
                found.append({"number": question.number, "left_out": f"{question.where}: {error}"})
        prompts, pad = [inputs for _, inputs, _ in usable], pad_token(self.host.processor.tokenizer)
        for (question, inputs, prompt), tokens in zip(
            usable, fused_tokens_of(self.host.model, prompts, pad), strict=True
        ):
            about = self._written(question, inputs, prompt, tokens)
            if verify:
                self._verify(question, inputs, about)
            found.append({"number": question.number, "row": answer_row(question, None, about)})
        return found

    def _written(
        self, question: Question, inputs: Mapping[str, Any], prompt: str, tokens: FusedTokens
    ) -> dict[str, Any]:
        """Write the tokens of a question; what its line says of them."""
        ids, name = inputs["input_ids"][0].tolist(), file_of(question.number)
        tokenizer = self.host.processor.tokenizer
        seconds = None
        if "video" in tokens.embeds:
            placeholder = tokenizer.decode([self.tokens["video"]])
            seconds = times(tokenizer.decode(ids), placeholder, inputs.get("video_grid_thw"))
        return {
            "file": name,
            "hidden_size": tokens.hidden_size,
            **counts(tokens, inputs, {kind: runs(ids, token) for kind, token in self.tokens.items()}),
            "checksum": write_tokens(self.out / name, tokens, inputs),
            "prompt": prompt,
            **({} if seconds is None else {"timestamps": seconds}),
        }

    def _verify(self, question: Question, inputs: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        model = self.host.model
        read = fused_tokens_in(read_tokens(self.out, about), about)
        online = logits_of(model, inputs)
        if is_patched(model):
            with disabled(model):
                served = logits_of(model, inputs, read)
        else:
            served = logits_of(model, inputs, read)
        if not torch.equal(online, served):
            error = float((online.float() - served.float()).abs().max())
            raise ServingError(
                f"{question.where}: given these tokens, the host says something else than with its branch: logits "
                f"differ by up to {error:.2g}. {type(base_model(model)).__name__} uses pictures in another way too, "
                "so it cannot be served from fused tokens."
            )


def _check_there(out: Path) -> None:
    """Every file that a finished index names is there.

    Raises:
        ServingError: names the first that is not.
    """
    for text in (out / INDEX).read_text(encoding="utf-8").splitlines():
        name = json.loads(text).get("file")
        if name and not (out / name).is_file():
            raise ServingError(f"{out / name} is missing, though {INDEX} names it. Remove {out / INDEX}, and resume.")
