"""What a run has logged, line by line in a file of its own: it is there whenever and however the run ends."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Folder in a run's output folder, of everything that its report is made from.
FILES = "report_files"
LOG = "log.jsonl"


class RunLog:
    """Appends to the log of a run.

    Args:
        output: folder of the run.
    """

    def __init__(self, output: Path) -> None:
        self.path = output / FILES / LOG

    def begin(self, step: int) -> None:
        """A run begins, or resumes, after this many steps: what an earlier one logged beyond them does not count."""
        self._write({"event": "begin", "step": step, "time": time.time()})

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """A line of the log."""
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        self._write({"step": step, "time": time.time(), **numbers})

    def end(self, how: str, reason: str = "") -> None:
        """The run ends: ``finished``, ``interrupted`` or ``failed``."""
        self._write({"event": "end", "how": how, "reason": reason, "time": time.time()})

    def _write(self, line: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


@dataclass(frozen=True)
class Logged:
    """What a run has logged.

    Attributes:
        lines: in order of their steps.
        how: it ended: ``finished``, ``interrupted``, ``failed``, or empty where it has not, or was killed.
        reason: why it failed.
        seconds: that it has taken, without pauses between resumed parts.
    """

    lines: list[dict[str, Any]] = field(default_factory=list)
    how: str = ""
    reason: str = ""
    seconds: float = 0.0

    @property
    def step(self) -> int:
        """The last step that was logged."""
        return max((int(line["step"]) for line in self.lines), default=0)

    @property
    def names(self) -> list[str]:
        """Of all values, in the order in which they first appear."""
        return list(dict.fromkeys(name for line in self.lines for name in line if name not in ("step", "time")))

    def points(self, name: str) -> list[tuple[float, float]]:
        """Steps and values of one name."""
        return [(float(line["step"]), float(line[name])) for line in self.lines if name in line]


def read_log(output: Path) -> Logged:
    """The log of a run; empty where there is none. A last line that was cut short by a kill is left out."""
    path = output / FILES / LOG
    lines: list[dict[str, Any]] = []
    how = reason = ""
    seconds, since, last = 0.0, None, None
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Logged()
    for part in text.splitlines():
        line = _parsed(part)
        if line is None:
            continue
        moment = line["time"]
        if line.get("event") == "begin":
            lines = [known for known in lines if known["step"] <= line["step"]]
            how, reason = "", ""
            seconds += (last - since) if since is not None and last is not None else 0.0
            since = moment
        elif line.get("event") == "end":
            how, reason = str(line.get("how", "")), str(line.get("reason", ""))
        else:
            lines.append({name: value for name, value in line.items() if isinstance(value, int | float)})
        last = moment
    seconds += (last - since) if since is not None and last is not None else 0.0
    return Logged(lines, how, reason, seconds)


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    if not isinstance(line, dict) or not isinstance(line.get("time"), int | float):
        return None
    known = line.get("event") == "end" or isinstance(line.get("step"), int)
    return line if known else None
