"""The card of a trainer's checkpoint: what it is, and the lines that load it, in their order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .model_card import as_code

_LOAD = {
    "host": 'model = transformers.{class_name}.from_pretrained({host!r}, {dtype}="auto")',
    "tiny": "model = ...  # the adapter's own small model, as for `host.model: tiny`",
    "processor": "processor = transformers.AutoProcessor.from_pretrained({checkpoint!r})",
    "branch": "vega3d.load_pretrained(model, {checkpoint!r}, processor=processor)  # {number}. the branch",
    "adapter": "model = peft.PeftModel.from_pretrained(model, {checkpoint!r})  # {number}. the adapter",
}
_TEMPLATE = """---
library_name: {library}
tags: [vega3d]
{base}---

# Checkpoint of step {step}

| | |
|---|---|
| recipe | {recipe} |
| host | {host} |
| prior | {prior} |
| validation loss | {loss} |
| written by | vega3d-plugin {version} |

To load it{order}:

```python
{code}
```

{why}Settings, versions, seeds and data of the run are in `vega3d_run.json`.
"""
_WHY = (
    "The order matters: an adapter that is loaded into a host without the branch drops the branch's weights, and says "
    "nothing.\n\n"
)


@dataclass(frozen=True)
class CheckpointParts:
    """What a checkpoint holds.

    Attributes:
        class_name: of the host in transformers.
        adapter: it holds a PEFT adapter, and not the host's own weights.
        branch: it holds a branch.
        dtype: what the argument of that name is called: `torch_dtype` before transformers 4.56.
        tiny: the host is the adapter's own small model, which no hub has.
    """

    class_name: str
    adapter: bool
    branch: bool
    dtype: str = "dtype"
    tiny: bool = False


def checkpoint_card(
    manifest: Mapping[str, Any], parts: CheckpointParts, checkpoint: Path, step: int, loss: float | None
) -> str:
    """Markdown, with the lines that load the checkpoint from where it lies.

    Args:
        manifest: of the run.
        parts: what is in the checkpoint.
        checkpoint: its folder, as it will be named.
        step: after which it was written.
        loss: the validation loss there.
    """
    host = manifest["revisions"]["host"]["model"]
    prior = manifest["revisions"].get("prior") or {}
    lines = [
        "import transformers",
        *(["import peft"] if parts.adapter else []),
        *(["import vega3d"] if parts.branch else []),
    ]
    wanted = ["tiny" if parts.adapter and parts.tiny else "host", *(["processor"] if parts.branch else [])]
    wanted += [*(["branch"] if parts.branch else []), *(["adapter"] if parts.adapter else [])]
    number = 0
    code = [*sorted(lines), ""]
    for name in wanted:
        number += name in ("branch", "adapter")
        source = host if parts.adapter else str(checkpoint)
        code.append(
            _LOAD[name].format(
                class_name=parts.class_name, dtype=parts.dtype, host=source, checkpoint=str(checkpoint), number=number
            )
        )
    both = parts.branch and parts.adapter
    return _TEMPLATE.format(
        library="peft" if parts.adapter else "transformers",
        base=f"base_model: {_plain(host)}\n" if parts.adapter and not parts.tiny and not Path(host).exists() else "",
        step=step,
        recipe=as_code(manifest.get("recipe")),
        host=as_code(host),
        prior=as_code(prior["name"]) if prior else "none: a baseline without a branch",
        loss="not measured" if loss is None else f"{loss:.4f}",
        version=manifest.get("versions", {}).get("vega3d-plugin", "unknown"),
        order=", first the branch, then the adapter" if both else "",
        code="\n".join(code),
        why=_WHY if both else "",
    )


def _plain(host: str) -> str:
    """A hub id; anything else would be YAML of others."""
    return host if all(c.isalnum() or c in "/-_." for c in host) else "unknown"
