"""The file of answers while it grows: a folder with a part for each process, which becomes the file when all is there.

``answers.jsonl.parts/`` holds ``run.json``, what the run is, and for each process a folder ``SHARD-of-SHARDS`` with its
own ``answers.jsonl``. A line is written whole or, by a kill, cut off; such an end is removed when the run is resumed.
When every question has a line, the lines become ``answers.jsonl`` in the order of the questions, ``answers.run.json``
is written beside it, and the folder goes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...contracts.errors import Vega3dError
from ...contracts.printable import brief
from ...storage.claims import FolderClaim, claim_folder
from ...storage.reading import JsonObject, read_json
from ...storage.writing import create_text, sweep, write_json, write_text

FORMAT = 1
RUN, ANSWERS = "run.json", "answers.jsonl"


class AnswersError(Vega3dError):
    """A file of answers cannot be written, resumed or read."""


def run_file(out: Path) -> Path:
    """What is written beside a file of answers: ``answers.jsonl`` has ``answers.run.json``."""
    return out.with_suffix(".run.json")


def digest(settings: Mapping[str, Any]) -> str:
    """Of the settings that make the answers what they are: 12 hex digits."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Parts:
    """Where the answers of one run go.

    Args:
        out: the file that they become, ``.jsonl``.
        settings: what makes the answers what they are; compared when the run is resumed.
        about: what else a reader has to know; not compared.
        total: questions.
        what: is written of each, for messages.

    Attributes:
        complete: the file is there already, of this very run.

    Raises:
        AnswersError: the file or its parts are of another run; lists every setting that differs, with both values.
    """

    def __init__(
        self,
        out: Path,
        settings: Mapping[str, Any],
        about: Mapping[str, Any],
        total: int,
        what: str = "answers",
    ) -> None:
        # As they come back from JSON, so that they can be compared.
        self.run = json.loads(
            json.dumps({"format": FORMAT, "settings": settings, "about": about, "questions": total}, default=str)
        )
        self.what = what
        self.out, self.folder, self.total = out, out.with_name(f"{out.name}.parts"), total
        self.name = digest(self.run["settings"])
        self._claim: FolderClaim | None = None
        sweep(out.parent)
        self.complete = self._check_out()
        if self.complete:
            # A kill after the file was written.
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            self._check_parts()

    def open(self, shard: int, shards: int) -> None:
        """Claim the part of this process, and remove the end that a kill cut off.

        Raises:
            AnswersError: another process writes it.
        """
        place = self.folder / f"{shard}-of-{shards}"
        self._claim = claim_folder(
            place,
            AnswersError,
            f"another process writes {self.what} of the same questions",
            "Wait for it, or choose another --out.",
        )
        self._file = place / ANSWERS
        if self._file.exists():
            data = self._file.read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                with self._file.open("r+b") as file:
                    file.truncate(whole)

    def close(self) -> None:
        """Let go of the part of this process."""
        if self._claim is not None:
            self._claim.release()

    def done(self) -> dict[int, dict[str, Any]]:
        """The lines of all parts by the number of their question, whoever wrote them."""
        lines: dict[int, dict[str, Any]] = {}
        for part in sorted(self.folder.glob(f"*-of-*/{ANSWERS}")):
            for line in _lines(part):
                lines.setdefault(line["number"], line)
        return lines

    def write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append lines to the part of this process: ``number``, and ``row`` or ``left_out``.

        Raises:
            AnswersError: the disk is full, or cannot be written to. What was written before is kept.
        """
        text = "".join(json.dumps(line, ensure_ascii=True, default=str) + "\n" for line in lines)
        try:
            with self._file.open("ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise AnswersError(
                f"{self._file} cannot be written: {error}. The {self.what} before are kept; give the command again to "
                "resume."
            ) from error

    def merge(self) -> int:
        """Write the file of answers if every question has a line; returns how many have none yet."""
        lines = self.done()
        missing = self.total - len(lines)
        if missing:
            return missing
        rows = [{**line["row"], "run": self.name} for _, line in sorted(lines.items()) if "row" in line]
        left_out = [line["left_out"] for _, line in sorted(lines.items()) if "left_out" in line]
        about = {**self.run["about"], "left_out": [*self.run["about"].get("left_out", []), *left_out]}
        try:
            # What it is before it: a file of answers never stands there without.
            write_json(run_file(self.out), {**self.run, "about": about, self.what: len(rows), "run": self.name})
            write_text(self.out, "".join(json.dumps(row, ensure_ascii=True, default=str) + "\n" for row in rows))
        except OSError as error:
            raise AnswersError(f"{self.out} cannot be written: {error}. All of it is in {self.folder}.") from error
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        return 0

    def _check_out(self) -> bool:
        if not self.out.exists():
            return False
        if not run_file(self.out).is_file():
            raise AnswersError(
                f"{self.out} exists, and no {run_file(self.out).name} beside it says what it is. Choose another --out."
            )
        self._compare(read_json(run_file(self.out), AnswersError), self.out)
        checked_run(self.out)
        return True

    def _check_parts(self) -> None:
        path = self.folder / RUN
        try:
            create_text(path, json.dumps(self.run, indent=2, default=str) + "\n")
        except FileExistsError:
            self._compare(read_json(path, AnswersError), self.folder)
        except OSError as error:
            raise AnswersError(f"{self.folder} cannot be written: {error}. Choose another --out.") from error

    def _compare(self, there: Mapping[str, Any], where: Path) -> None:
        different = list(_differences(there.get("settings"), self.run["settings"]))
        if there.get("format") != FORMAT:
            different.insert(0, f"format: {brief(there.get('format'))} there, {FORMAT} here")
        if different:
            raise AnswersError(
                f"{where} holds {self.what} of another run:\n  "
                + "\n  ".join(different)
                + "\nGive the settings it was "
                "begun with to resume it, or choose another --out."
            )


def read_run(out: Path) -> JsonObject | None:
    """What a finished file of answers is, from the file beside it; None where there is none.

    Raises:
        AnswersError: the file beside it is damaged.
    """
    path = run_file(out)
    return read_json(path, AnswersError) if path.is_file() else None


def checked_run(out: Path) -> JsonObject | None:
    """As :func:`read_run`, and it has to be of the very rows that the file of answers holds.

    Raises:
        AnswersError: the file beside the answers is damaged, is of another run than a row, or of more or fewer rows.
    """
    run = read_run(out)
    if run is None:
        return None
    rows = list(_rows(out))
    others = {row.get("run") for row in rows} - {run.get("run")}
    if others:
        raise AnswersError(
            f"{out} and {run_file(out).name} are not of one run: the latter is of {brief(run.get('run'))}, rows are of "
            f"{', '.join(sorted(brief(other) for other in others))}. Bring both files of one run together, or remove "
            f"{run_file(out).name} to use the rows without it."
        )
    written = run.get("answers")
    if isinstance(written, int) and written != len(rows):
        raise AnswersError(
            f"{out} holds {len(rows):,} answers, and its run wrote {written:,} ({run_file(out).name}): rows were "
            f"removed, added or cut off. Answer again with another --out, or remove {run_file(out).name} to use the "
            "rows as they are."
        )
    return run


def described_run(out: Path) -> dict[str, Any] | None:
    """What a score of these answers has to say of where they come from; None where no file beside them tells.

    Returns:
        ``control``, ``host``, ``branch`` (fingerprint, prior, fusion; None: without), ``adapter``, ``run`` (digest of
        all settings), ``left_out`` (how many questions).

    Raises:
        AnswersError: the file beside the answers is damaged, or is of another run than a row.
    """
    run = checked_run(out)
    if run is None:
        return None
    settings = run.mapping("settings")
    model = settings.mapping("model")
    released = model.get("released")
    return {
        "control": settings["control"],
        "host": model.mapping("host").get("id"),
        "branch": model.get("branch") if released is None else {"released": released},
        "adapter": model.get("adapter"),
        "run": run["run"],
        "left_out": len(run.mapping("about").get("left_out") or []),
    }


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows that are objects; what else is there is the reader's to tell."""
    with path.open("rb") as file:
        for text in file:
            with suppress(ValueError, RecursionError):
                row = json.loads(text)
                if isinstance(row, dict):
                    yield row


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    data = path.read_bytes()
    # What stands behind the last line break is being written, or was cut off by a kill.
    for number, text in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            line = json.loads(text)
            if not isinstance(line["number"], int) or not ("row" in line or "left_out" in line):
                raise ValueError("no number of a question")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise AnswersError(
                f"{path}, line {number} is damaged: {error}. Remove the line; its question is answered again."
            ) from None
        yield line


def _differences(there: Any, here: Any, path: str = "") -> Iterator[str]:
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in sorted({*there, *here}):
            yield from _differences(there.get(key), here.get(key), f"{path}.{key}" if path else str(key))
    elif there != here:
        yield f"{path}: {brief(there)} there, {brief(here)} here"
