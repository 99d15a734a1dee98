"""The two programs of pycocoevalcap that run on Java: METEOR 1.5 and the tokeniser of the Stanford parser.

Neither has a stand-in here: where Java or the package is missing, what needs them is not computed.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..bootstrap import Floats
from ..errors import ScoreError

NOT_COMPUTED = "not computed: needs Java and pycocoevalcap"
METEOR, TOKENISER = Path("meteor/meteor-1.5.jar"), Path("tokenizer/stanford-corenlp-3.4.1.jar")
#: Tokens that the package takes out after tokenising (its ``ptbtokenizer.py``). Words are in lower case by then, so
#: the names of brackets, in capitals, never match: ``-lrb-`` stays.
PUNCTUATION = frozenset(
    ("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";")
)
#: Both programs read one text a line; these would start another.
_LINE_ENDS = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
#: Numbers that METEOR counts on a text, and the place among them of its runs of matches in a row.
STATISTICS, RUNS = 23, 20


@dataclass(frozen=True)
class JavaTools:
    """Where they are.

    Attributes:
        java: the program.
        package: the folder of pycocoevalcap.
    """

    java: str
    package: Path

    @classmethod
    def find(cls) -> JavaTools | None:
        """Java on the path and pycocoevalcap in this environment; None where one of them is missing."""
        java, spec = shutil.which("java"), importlib.util.find_spec("pycocoevalcap")
        folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
        package = next((folder for folder in folders if all((folder / jar).is_file() for jar in JARS)), None)
        return cls(java, package) if java and package else None

    def tokenise(self, texts: Sequence[str]) -> list[str]:
        """Texts as the tokeniser of the Penn Treebank splits them: lower case, without tokens of punctuation.

        Raises:
            ScoreError: Java failed.
        """
        if not texts:
            return []
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "texts"
            file.write_bytes("".join(f"{one_line(text)}\n" for text in texts).encode())
            program = "edu.stanford.nlp.process.PTBTokenizer"
            command = [*self._java("-cp", str(self.package / TOKENISER)), program, "-preserveLines", "-lowerCase"]
            done = subprocess.run([*command, str(file)], capture_output=True, env=_environment())
        *lines, rest = done.stdout.decode(errors="replace").split("\n")
        if rest or done.returncode or len(lines) != len(texts):
            raise _failed("the tokeniser", done.stderr, f"{len(lines)} lines came back for {len(texts)} texts")
        return [" ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATION) for line in lines]

    def meteor(self) -> Meteor:
        """METEOR. It takes seconds to start, so one runs for all, until this process ends."""
        # A forked process must not talk to its parent's.
        key = (self, os.getpid())
        running = _RUNNING.get(key)
        if running is None or running.program.poll() is not None:
            running = _RUNNING[key] = Meteor(self._java("-Xmx2G", "-jar", str(self.package / METEOR)))
        return running

    def _java(self, *options: str) -> list[str]:
        return [self.java, "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", *options]


class Meteor:
    """METEOR 1.5 for English, normalising, as pycocoevalcap starts it: a program that is asked line by line.

    Args:
        command: that starts it, without METEOR's own options.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = os.getpid()
        self.program = subprocess.Popen(
            [*command, "-", "-", "-stdio", "-l", "en", "-norm"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, env=_environment(),
        )  # fmt: skip
        # A question and its answer belong together.
        self.lock = threading.RLock()
        atexit.register(self.close)

    def close(self) -> None:
        """End the program."""
        atexit.unregister(self.close)
        if self.process != os.getpid():
            return
        self.program.kill()
        self.program.communicate()
        self.errors.close()

    def statistics(self, candidate: str, references: Sequence[str]) -> Floats:
        """What METEOR counts on a text: ``[23]``."""
        # As pycocoevalcap writes it, and besides no line ends, and no separators within references.
        text = one_line(candidate).replace("|||", "").replace("  ", " ")
        others = [one_line(reference).replace("|||", "") for reference in references]
        with self.lock:
            self._write(" ||| ".join(["SCORE", *others, text]))
            line = self._read()
        try:
            numbers = [float(number) for number in line.split()]
        except ValueError:
            numbers = []
        if len(numbers) != STATISTICS:
            raise _failed("METEOR", self._stderr(), f"it said {line[:80]!r} to {text[:80]!r}")
        return np.array(numbers)

    def scores(self, statistics: Floats) -> tuple[Floats, float]:
        """Scores of texts, given their statistics ``[N, 23]``: each ``[N]``, and all together, as fractions."""
        lines = [" ".join(repr(float(number)) for number in row) for row in statistics]
        with self.lock:
            self._write(" ||| ".join(["EVAL", *lines]))
            found = [self._number() for _ in range(len(statistics) + 1)]
        return np.array(found[:-1]), found[-1]

    def _number(self) -> float:
        line = self._read()
        try:
            return float(line)
        except ValueError:
            raise _failed("METEOR", self._stderr(), f"it said {line[:80]!r} in place of a score") from None

    def _write(self, line: str) -> None:
        assert self.program.stdin is not None
        try:
            self.program.stdin.write(f"{line}\n".encode())
            self.program.stdin.flush()
        except OSError as error:
            raise _failed("METEOR", self._stderr(), str(error)) from error

    def _read(self) -> str:
        assert self.program.stdout is not None
        line = self.program.stdout.readline()
        if not line:
            raise _failed("METEOR", self._stderr(), "it ended")
        return line.decode(errors="replace").strip()

    def _stderr(self) -> bytes:
        self.errors.seek(0)
        return self.errors.read()


JARS = (METEOR, TOKENISER)
_RUNNING: dict[tuple[JavaTools, int], Meteor] = {}


def one_line(text: str) -> str:
    """The text with spaces in place of line ends."""
    return _LINE_ENDS.sub(" ", text)


def _environment() -> dict[str, str]:
    # Java before 18 writes in the encoding of the locale.
    return {**os.environ, "LC_ALL": "C.UTF-8"}


def _failed(what: str, stderr: bytes, found: str) -> ScoreError:
    said = stderr.decode(errors="replace").strip().splitlines()
    return ScoreError(f"Java failed in {what}: {found}. It wrote: {said[-1] if said else 'nothing'}.")
