"""The model card that is saved beside a branch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from ..contracts.printable import one_line

TEMPLATE = """---
library_name: vega3d-plugin
tags: [vega3d, spatial-reasoning, multimodal]
---

# Generative branch for {host}

A VEGA-3D branch ("Generation Models Know Space", arXiv 2603.19235): features of a frozen video generator, fused into
the visual tokens of a multimodal LLM. This repository holds the branch alone ({parameters:,} parameters): neither the
host's weights nor the generator's.

| | |
|---|---|
| host | {host}, hidden size {hidden_size} |
| prior | {prior} from {source}, fingerprint {fingerprint} |
| fusion | {fusion} |
{share}| written by | vega3d-plugin {version} |

```python
import vega3d
model = ...  # the host, as its family is loaded
vega3d.load_pretrained(model, "PATH_OR_ID")
```

Settings:

{fence}yaml
{settings}{fence}
"""

_PLAIN = re.compile(r"[\w./:@+ -]+", re.ASCII)


def model_card(record: Mapping[str, Any], parameters: int, share: str | None = None) -> str:
    """Markdown from a branch's record and its number of parameters.

    Args:
        record: of the branch.
        parameters: their number.
        share: the effective share of the generative tokens that the weights allow, in words; None leaves it out.

    Whatever the record holds stands as code: it makes no heading, link, table or HTML.
    """
    # In the form of earlier versions, so that their cards are known as theirs.
    settings = yaml.safe_dump(record["settings"], sort_keys=False)
    return TEMPLATE.format(
        host=as_code(record["host"]["name"]),
        hidden_size=_word(record["host"]["hidden_size"]),
        prior=as_code(record["prior"]["name"]),
        source=as_code(record["prior"]["source"]),
        fingerprint=as_code(record["prior"]["fingerprint"]),
        fusion=as_code(record["settings"]["fusion"]["name"]),
        share="" if share is None else f"| effective share of the generative tokens | {as_code(share)} |\n",
        version=_word(record["library_version"]),
        parameters=parameters,
        settings=settings,
        fence="`" * max(3, _longest_run(settings) + 1),
    )


def _word(value: Any) -> str:
    """A number or a version as it is; anything else as code."""
    return str(value) if re.fullmatch(r"[\w.+-]+", str(value), re.ASCII) else as_code(value)


def as_code(value: Any) -> str:
    """A value as code on one line, in a heading or in a cell of a table."""
    text = one_line(str(value))
    if _PLAIN.fullmatch(text):
        return f"`{text}`"
    # Names may come out of others' files. What is written by number is never taken for markup, here or in a table.
    return f"<code>{''.join(c if _PLAIN.fullmatch(c) else f'&#{ord(c)};' for c in text)}</code>"


def _longest_run(text: str) -> int:
    """Of backticks."""
    return max((len(run) for run in re.findall("`+", text)), default=0)
