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
    "own": "model = ...  # {class_name} from {host!r}, loaded as the script loads it",
    "processor": "processor = transformers.AutoProcessor.from_pretrained({checkpoint!r})",
    "branch": "vega3d.load_pretrained(model, {checkpoint!r}, processor=processor)  # {number}. the branch",
    "own branch": "vega3d.load_pretrained(model, {checkpoint!r})  # {number}. the branch",
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
_ADAPTER = """---
library_name: peft
tags: [vega3d]
{base}---

# Adapter with a generative branch

| | |
|---|---|
| host | {host} |
| prior | {prior} |
| written by | vega3d-plugin {version}, beside what the training script saved |

To load it, first the branch, then the adapter:

```python
{code}
```

{why}The branch's settings are in `vega3d_config.json`; `vega3d info` shows them.
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
        own_code: transformers has no such class; the host's own code loads it.
    """

    class_name: str
    adapter: bool
    branch: bool
    dtype: str = "dtype"
    tiny: bool = False
    own_code: bool = False


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
    both = parts.branch and parts.adapter
    return _TEMPLATE.format(
        library="peft" if parts.adapter else "transformers",
        base=_base(host) if parts.adapter and not parts.tiny else "",
        step=step,
        recipe=as_code(manifest.get("recipe")),
        host=as_code(host),
        prior=as_code(prior["name"]) if prior else "none: a baseline without a branch",
        loss="not measured" if loss is None else f"{loss:.4f}",
        version=manifest.get("versions", {}).get("vega3d-plugin", "unknown"),
        order=", first the branch, then the adapter" if both else "",
        code=_code(parts, host, checkpoint),
        why=_WHY if both else "",
    )


def adapter_card(parts: CheckpointParts, host: str, prior: str, folder: Path, version: str | None) -> str:
    """Markdown for an adapter that a script of the host's own has saved, with the lines that load it.

    Args:
        parts: what is in the folder.
        host: folder or hub id of the host that it was trained on.
        prior: name of the branch's prior.
        folder: where it lies.
        version: of this library.
    """
    return _ADAPTER.format(
        base=_base(host),
        host=as_code(host),
        prior=as_code(prior),
        version=version or "unknown",
        code=_code(parts, host, folder),
        why=_WHY,
    )


def _code(parts: CheckpointParts, host: str, checkpoint: Path) -> str:
    """The lines that load a checkpoint, in their order."""
    imports = [
        *([] if parts.own_code else ["import transformers"]),
        *(["import peft"] if parts.adapter else []),
        *(["import vega3d"] if parts.branch else []),
    ]
    if parts.own_code:
        wanted = ["own", *(["own branch"] if parts.branch else [])]
    else:
        wanted = ["tiny" if parts.adapter and parts.tiny else "host"]
        wanted += ["processor", "branch"] if parts.branch else []
    wanted += ["adapter"] if parts.adapter else []
    number, lines = 0, [*sorted(imports), ""]
    for name in wanted:
        number += name in ("branch", "own branch", "adapter")
        source = host if parts.adapter else str(checkpoint)
        lines.append(
            _LOAD[name].format(
                class_name=parts.class_name, dtype=parts.dtype, host=source, checkpoint=str(checkpoint), number=number
            )
        )
    return "\n".join(lines)


def _base(host: str) -> str:
    """A line for the hub, which a folder of one's own is not on."""
    return "" if Path(host).exists() else f"base_model: {_plain(host)}\n"


def _plain(host: str) -> str:
    """A hub id; anything else would be YAML of others."""
    return host if all(c.isalnum() or c in "/-_." for c in host) else "unknown"
