"""The data set and the collator, for HF Trainer, TRL's SFTTrainer or a loop of your own."""

from __future__ import annotations

import importlib
import warnings
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..contracts.errors import BadRowsError, BadRowWarning, RowError, Vega3dWarning
from ..recipes.blocks import DataSettings
from .manifest import rank
from .rows.conversation import Conversation, Medium, read_conversation
from .rows.encoding import IGNORED, Encoded, Encoder, check_points, stack_media
from .rows.files import Rows
from .rows.keys import UnknownKeys

SHOWN = 10
#: Column of an encoded row in the data set for TRL.
WRAPPED = "encoded"


@dataclass(frozen=True)
class BadRow:
    """Attributes: ``name``: file and row number, from 1; ``reason``: what is wrong with it."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass
class ConversationData(Dataset[Encoded]):
    """Rows of files, encoded when they are asked for; nothing is held in memory, so workers may copy it.

    Attributes:
        rows: of the files.
        encoder: with the host's processor.
        usable: which rows are used, from :meth:`check`; default: all.
        report: a file that receives a line for every row that turns out bad only when its pictures are read.
        ahead: told of the media of each row that was encoded, so that their features can be read ahead.
    """

    rows: Rows
    encoder: Encoder
    usable: Sequence[int] | None = None
    report: Path | None = None
    ahead: Callable[[Sequence[Medium]], object] | None = None
    _noted: set[int] = field(default_factory=set, repr=False)

    @property
    def settings(self) -> DataSettings:
        """How rows are read."""
        return self.encoder.settings

    @property
    def collator(self) -> Collator:
        """Makes batches of these rows."""
        return Collator(self.encoder)

    def __len__(self) -> int:
        return len(self.rows) if self.usable is None else len(self.usable)

    def __getitem__(self, index: int) -> Encoded:
        """One encoded row.

        Raises:
            BadRowsError: it cannot be used, and ``skip_bad_rows`` is off; or none can.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        for step in range(len(self)):
            place = (index + step) % len(self)
            number = place if self.usable is None else self.usable[place]
            try:
                conversation = self.conversation(number)
                encoded = self.encoder(conversation)
                if self.ahead is not None:
                    self.ahead(conversation.media)
                return encoded
            except RowError as error:
                bad = BadRow(self.rows.name(number), str(error))
                if not self.settings.skip_bad_rows:
                    raise BadRowsError(f"{bad}. Correct it, or pass --skip-bad-rows.") from error
                self._note(number, bad)
        raise BadRowsError(f"None of the {len(self)} rows can be used.")

    def conversation(self, number: int) -> Conversation:
        """A row as a conversation, its pictures unopened.

        Args:
            number: of the row among all rows, usable or not.

        Raises:
            RowError: it cannot be used.
        """
        return read_conversation(self.rows[number], self.settings, self._root(number))

    def check(
        self, progress: Callable[[Sequence[int]], Any] = iter, refuse: Callable[[Conversation], str] | None = None
    ) -> list[BadRow]:
        """Look at every row without opening its pictures, and keep the usable ones.

        Keys that have no effect are told once, in one warning, with their counts.

        Args:
            progress: wraps the numbers of the rows, such as ``tqdm``.
            refuse: says what else is wrong with a conversation; an empty text where nothing is.

        Returns:
            The rows that are left out, with ``skip_bad_rows``.

        Raises:
            BadRowsError: there are bad rows and ``skip_bad_rows`` is off, or there are no others.
        """
        # An array: workers share its memory, where a list of numbers is copied as it is read.
        bad, good, unknown = [], array("q"), UnknownKeys()
        for number in progress(range(len(self.rows))):
            try:
                row = self.rows[number]
                conversation = read_conversation(row, self.settings, self._root(number))
                problem = "" if refuse is None else refuse(conversation)
                if problem:
                    raise RowError(problem)
                unknown.add(row)
                good.append(number)
            except RowError as error:
                bad.append(BadRow(self.rows.name(number), str(error)))
        if bad and not (self.settings.skip_bad_rows and good):
            advice = "" if self.settings.skip_bad_rows else " Correct them, or pass --skip-bad-rows to leave them out."
            raise BadRowsError(f"{_counted(bad, len(self.rows))}:\n{list_rows(bad)}\n{advice.strip()}".rstrip())
        self.usable = good if bad else None
        text = unknown.message(len(good))
        if text is not None and rank() == 0:
            warnings.warn(text, Vega3dWarning, stacklevel=2)
        return bad

    def for_trl(self) -> Any:
        """The same rows, as lazily read, as the ``datasets.Dataset`` that TRL insists on; to be used with our collator.

        Raises:
            ImportError: the package ``datasets``, which comes with TRL, is not installed.
        """
        # Optional, and without type hints.
        datasets: Any = importlib.import_module("datasets")
        numbers = datasets.Dataset.from_dict({"row": list(range(len(self)))})
        return numbers.with_transform(self._wrapped)

    def _wrapped(self, rows: Mapping[str, Sequence[int]]) -> dict[str, list[Encoded]]:
        return {WRAPPED: [self[number] for number in rows["row"]]}

    def _root(self, number: int) -> Path:
        root = self.settings.media_root
        return self.rows.file_of(number).parent if root is None else Path(root).expanduser()

    def _note(self, number: int, bad: BadRow) -> None:
        if number in self._noted:
            return
        # Each epoch comes by it again.
        self._noted.add(number)
        warnings.warn(f"{bad}. The next row took its place.", BadRowWarning, stacklevel=3)
        if self.report is not None:
            # One short write to the end of a file is whole, whichever process makes it.
            with self.report.open("a", encoding="utf-8") as file:
                file.write(f"{bad}\n")


class Collator:
    """Makes a batch of encoded rows, or of rows as they are in the data; images and videos alike.

    Tokens are padded on the right, labels with -100, and the pictures of all samples lie one after the other, as
    Qwen-VL and LLaVA take them. Usable as ``data_collator`` of any trainer.

    Args:
        encoder: encodes rows that are not yet encoded; its tokenizer says what to pad with.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        tokenizer = encoder.processor.tokenizer
        pad = tokenizer.pad_token_id
        self.pad = {"input_ids": tokenizer.eos_token_id if pad is None else pad, "labels": IGNORED}

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """``[B, L]`` for tokens; for pictures what the host takes, all samples' along the first axis.

        Raises:
            RowError: a row cannot be used, or the pictures do not fit into one batch.
        """
        parts = [self._encoded(sample) for sample in samples]
        longest = max(part["input_ids"].shape[1] for part in parts)
        batch: dict[str, Tensor] = {}
        along = {k for part in parts for k, v in part.items() if v.shape == part["input_ids"].shape}
        for key in dict.fromkeys(key for part in parts for key in part):
            if key in along:
                rows = [part[key] if key in part else torch.zeros_like(part["input_ids"]) for part in parts]
                value = self.pad.get(key, 0)
                rows = [torch.nn.functional.pad(row, (0, longest - row.shape[1]), value=value) for row in rows]
                batch[key] = torch.cat(rows)
            else:
                batch[key] = stack_media(key, [part[key] for part in parts if key in part])
        return batch

    def _encoded(self, sample: Mapping[str, Any]) -> Encoded:
        sample = sample.get(WRAPPED, sample)
        return dict(sample) if "input_ids" in sample else self.encoder(sample)


def read_data(
    processor: Any,
    files: str | Path | Sequence[str | Path],
    *,
    max_length: int | None = None,
    points: bool = False,
    **settings: Any,
) -> ConversationData:
    """Rows for a training script of one's own: a data set, with its collator as ``.collator``.

    Args:
        processor: the host's.
        files: one or several ``.json`` or ``.jsonl`` files, or patterns.
        max_length: tokens of a sample at most.
        points: batches hold world points of the rows' scenes, for a branch with ``positions="sin3d"``.
        settings: of :class:`~vega3d_plugin.recipes.blocks.DataSettings`, such as ``frames`` and ``media_root``.

    Raises:
        SettingsError: a wrong setting.
        TrainError: files that cannot be read.
        BadRowsError: rows that cannot be used; with ``skip_bad_rows=True`` only when there are no others.
    """
    several = [files] if isinstance(files, str | Path) else files
    parsed = DataSettings.parse({**settings, "files": tuple(map(str, several))})
    data = ConversationData(Rows(parsed.files), Encoder(processor, parsed, max_length, points=points))
    data.check(refuse=check_points if points else None)
    return data


def list_rows(bad: Sequence[BadRow], shown: int = SHOWN) -> str:
    """The first bad rows, one a line."""
    more = [f"  ... and {len(bad) - shown} more"] if len(bad) > shown else []
    return "\n".join([f"  {row}" for row in bad[:shown]] + more)


def _counted(bad: Sequence[BadRow], total: int) -> str:
    return f"{len(bad)} of {total} rows cannot be used" if len(bad) != 1 else f"1 of {total} rows cannot be used"
