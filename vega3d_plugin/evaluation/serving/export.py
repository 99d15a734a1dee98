"""A run that writes the fused tokens of every question, whatever happens on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...branch.handle import is_patched
from ...branch.switches import disabled
from ...contracts.errors import BadRowsError, RowError
from ...hosts.peft import base_model
from ...recipes.blocks import DataSettings
from ...training.answers import split_answer
from ..answering.parts import Parts
from ..answering.questions import Question
from ..answering.run import Answered, Asked, Tick, answer_row, share
from ..harness_host import EvaluatedHost, HostArguments
from .files import INDEX, ServingError, counts, file_of, fused_tokens_in, read_tokens, times, write_tokens
from .tokens import fused_tokens, logits_of, placeholders, runs


def export_embeddings(
    arguments: HostArguments,
    files: Sequence[str | Path],
    out: str | Path,
    *,
    data: Mapping[str, Any] | None = None,
    limit: int | None = None,
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
        verify: of how many questions the logits are compared, bit for bit: those of the patched host, and those of the
            host without its branch which is given the file's tokens and blank pictures.

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
        asked.about(),
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
            for place, number in enumerate(todo):
                line = writer.line(asked.questions[number], verify=place < verify)
                if number not in done:
                    parts.write([line])
                tick(1)
        found.missing = parts.merge()
    finally:
        parts.close()
    return found


class _Writer:
    """Writes the tokens of questions, one after the other."""

    def __init__(self, host: EvaluatedHost, out: Path) -> None:
        self.host, self.out = host, out
        self.tokens = placeholders(base_model(host.model))

    def line(self, question: Question, *, verify: bool) -> dict[str, Any]:
        """The line of the index; a question that cannot be used is left out, where the settings allow."""
        try:
            inputs = split_answer(self.host.encoder(question.conversation))[0]
            prompt = self.host.encoder.prompt(question.conversation)
        except RowError as error:
            if not self.host.encoder.settings.skip_bad_rows:
                raise BadRowsError(
                    f"{question.where}: {error}. Correct it, or pass --skip-bad-rows. The tokens before are kept."
                ) from error
            return {"number": question.number, "left_out": f"{question.where}: {error}"}
        tokens = fused_tokens(self.host.model, inputs)
        ids, name = inputs["input_ids"][0].tolist(), file_of(question.number)
        tokenizer = self.host.processor.tokenizer
        seconds = None
        if "video" in tokens.embeds:
            placeholder = tokenizer.decode([self.tokens["video"]])
            seconds = times(tokenizer.decode(ids), placeholder, inputs.get("video_grid_thw"))
        about = {
            "file": name,
            "hidden_size": tokens.hidden_size,
            **counts(tokens, inputs, {kind: runs(ids, token) for kind, token in self.tokens.items()}),
            "checksum": write_tokens(self.out / name, tokens, inputs),
            "prompt": prompt,
            **({} if seconds is None else {"timestamps": seconds}),
        }
        if verify:
            self._verify(question, inputs, about)
        return {"number": question.number, "row": answer_row(question, None, about)}

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
