"""Damage to files, by their kind: bytes, keys and values of JSON, lines of text, headers of safetensors.

Every function takes the bytes of a whole file and gives those of a damaged one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

#: What stands in place of a value. Each of them is read by somebody as something that it is not.
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 7, 0.5, 1e308, float("nan"), float("inf"), 10**9, 2**31, 2**63, 10**30,
    "", "0", "x" * 300, "~nosuchuser/x", "../../../etc/passwd", "/dev/zero", "\x1b[31mred\x1b]0;x\x07",
    "# <b>h</b>\n\n---\n", "a\0b", "\ud800",
    [], {}, [1, 2], [[[]]], {"a": {"b": 1}}, ["x"] * 50, [10**9, 10**9], "wan2.1-t2v-1.3b", [None],
    {"": ""},
)  # fmt: skip
#: Texts in place of a whole document, or of one value in it.
DEEP = (b"[" * 1000 + b"]" * 1000, b'{"a":' * 1000 + b"1" + b"}" * 1000, b"[" * 200_000)
DIGITS = b"9" * 5000
YAML = (
    b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 9)) for i in range(9)),
    b"prior: !!python/object/apply:os.system ['touch ran']\n", b"prior: {name: tiny-wan}\nprior: {name: tiny-wan}\n",
    b"a: " + b"{a: " * 1000, b"? [1, 2]\n: 3\n", b"%YAML 9.9\n---\n", b"---\na: 1\n---\nb: 2\n", b"\tprior: 1\n",
)  # fmt: skip
Damage = Callable[[bytes, random.Random], bytes]


def damaged(name: str, data: bytes, rng: random.Random) -> bytes:
    """A damaged copy of a file's bytes; how depends on the end of its name."""
    suffix = name.rpartition(".")[2]
    ways: list[Damage] = [in_bytes]
    if suffix in ("json", "jsonl"):
        ways += [in_json, in_json, in_json]
    elif suffix in ("yaml", "yml"):
        ways += [in_yaml, in_lines]
    elif suffix == "safetensors":
        ways += [in_header, in_header]
    elif suffix in ("txt", "csv", "tsv"):
        ways += [in_lines, in_lines]
    return rng.choice(ways)(data, rng)


def in_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flipped, overwritten, cut, doubled, empty, or something else altogether."""
    at = rng.randrange(len(data) + 1)
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        if changed:
            changed[rng.randrange(len(changed))] = rng.choice([rng.randrange(256), 0, 255])
    filled = data[:at] + b"\xff" * min(8, len(data) - at) + data[at + 8 :]
    other = [b"", b"\0", b"null", b"PK\x03\x04" + data, b"\x80\x04K\x01.", data.decode("latin-1").encode("utf-16")]
    return rng.choice(
        [data[:at], bytes(changed), bytes(changed), filled, data + data[:at], data[at:], rng.choice(other)]
    )


def in_lines(data: bytes, rng: random.Random) -> bytes:
    """A line or a word of a text left out, twice, or of another kind."""
    lines = data.splitlines(keepends=True) or [b""]
    at = rng.randrange(len(lines))
    words = lines[at].split(b" ")
    words[rng.randrange(len(words))] = rng.choice(
        [b"nan", b"-inf", b"1e999", DIGITS, b"x" * 300, b"\xff", b"~nosuchuser", b""]
    )
    return b"".join(rng.choice([
        lines[:at] + lines[at + 1 :], lines[: at + 1] + lines[at:], [*lines[:at], b" ".join(words), *lines[at + 1 :]],
        [*lines[:at], b"x" * 100_000, *lines[at:]],
    ]))  # fmt: skip


def in_yaml(data: bytes, rng: random.Random) -> bytes:
    """A value of another kind, or what only YAML can do."""
    if rng.random() < 0.3:
        return rng.choice([*YAML, *DEEP, data + data])
    lines = data.splitlines(keepends=True)
    at = rng.choice([i for i, line in enumerate(lines) if b":" in line] or [0])
    key = lines[at].partition(b":")[0]
    value = _written(rng.choice(VALUES)) if rng.random() < 0.9 else rng.choice([DIGITS, DEEP[0]])
    return b"".join([*lines[:at], key + b": " + value + b"\n", *lines[at + 1 :]])


def in_json(data: bytes, rng: random.Random) -> bytes:
    """A key left out, renamed or there twice; a value of another kind."""
    text, line = data, -1
    rows = data.splitlines(keepends=True)
    if data.strip()[:1] == b"{" and len(rows) > 1 and rows[0].strip().endswith(b"}"):
        # JSON lines: one of them.
        line = rng.randrange(len(rows))
        text = rows[line]
    new = _changed(json.loads(text), rng)
    if line >= 0:
        rows[line] = new + b"\n"
        return b"".join(rows)
    return new


def in_header(data: bytes, rng: random.Random) -> bytes:
    """The header of a file of safetensors, with a length that fits it or one that does not."""
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.2:
        wrong = rng.choice([0, 1, length - 1, length + 1, 10**9, 2**63, len(data)])
        return wrong.to_bytes(8, "little") + data[8:]
    new = _changed(json.loads(data[8 : 8 + length]), rng)
    new += b" " * (-len(new) % 8)
    return len(new).to_bytes(8, "little") + new + data[8 + length :]


def _changed(value: Any, rng: random.Random) -> bytes:
    """A document with one place changed, as JSON text."""
    places = list(_places(value))
    if not places:
        return _written(rng.choice(VALUES))
    holder, key = rng.choice(places)
    kind = rng.randrange(9)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice([f"{key}x", key.upper(), "", "x" * 300, "\x1b[1m", "__class__"])] = holder.pop(key)
    elif kind == 2:
        holder[key] = "@@"
        inside = rng.choice([DIGITS, *DEEP[:2], b'{"a": 1, "a": 2}', b"1e999", b"-" + DIGITS, b'"\\ud800"'])
        return _written(value).replace(b'"@@"', inside)
    elif kind == 3:
        return rng.choice(
            [*DEEP, b"[]", b"{}", b"null", b'"x"', _written(value) + b"]", b"\xef\xbb\xbf" + _written(value)]
        )
    else:
        holder[key] = rng.choice(VALUES)
    return _written(value)


def _places(value: Any) -> Any:
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _written(value: Any) -> bytes:
    return json.dumps(value).encode()
