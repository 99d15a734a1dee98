"""The model card that is saved beside a branch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

TEMPLATE = """---
library_name: vega3d-plugin
tags: [vega3d, spatial-reasoning, multimodal]
---

# Generative branch for `{host}`

A VEGA-3D branch ("Generation Models Know Space", arXiv 2603.19235): features of a frozen video generator, fused into
the visual tokens of a multimodal LLM. This repository holds the branch alone ({parameters:,} parameters): neither the
host's weights nor the generator's.

| | |
|---|---|
| host | `{host}`, hidden size {hidden_size} |
| prior | `{prior}` from `{source}`, fingerprint `{fingerprint}` |
| fusion | `{fusion}` |
| written by | vega3d-plugin {version} |

```python
import vega3d
model = ...  # the host, as its family is loaded
vega3d.load_pretrained(model, "PATH_OR_ID")
```

Settings:

```yaml
{settings}```
"""


def model_card(record: Mapping[str, Any], parameters: int) -> str:
    """Markdown from a branch's record and its number of parameters."""
    return TEMPLATE.format(
        host=record["host"]["name"],
        hidden_size=record["host"]["hidden_size"],
        prior=record["prior"]["name"],
        source=record["prior"]["source"],
        fingerprint=record["prior"]["fingerprint"],
        fusion=record["settings"]["fusion"]["name"],
        version=record["library_version"],
        parameters=parameters,
        settings=yaml.safe_dump(record["settings"], sort_keys=False),
    )
