"""The card of an adapter that a host's own script has saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ...branch.handle import get_handle
from ...checkpoints.branch_files import CARD_FILE
from ...checkpoints.checkpoint_card import CheckpointParts, adapter_card
from ...hosts.peft import base_model, is_peft_model
from ...storage.versions import library_version
from ...storage.writing import write_text

#: PEFT's card is a form in which nothing is filled in.
_EMPTY = "[More Information Needed]"


def write_adapter_card(model: nn.Module, folder: Path) -> None:
    """Put a card with the lines that load an adapter in place of PEFT's empty one; any other card is left alone."""
    card = folder / CARD_FILE
    if not is_peft_model(model) or not (card.is_file() and _EMPTY in card.read_text(encoding="utf-8")):
        return
    import transformers

    host: Any = base_model(model)
    adapter: Any = model
    source = next(filter(None, (config.base_model_name_or_path for config in adapter.peft_config.values())), "MODEL")
    parts = CheckpointParts(
        type(host).__name__,
        adapter=True,
        branch=True,
        dtype="dtype" if hasattr(host.config, "dtype") else "torch_dtype",
        own_code=type(host).__module__.partition(".")[0] != "transformers"
        or not hasattr(transformers, type(host).__name__),
    )
    settings = get_handle(model).branch.settings.prior
    write_text(card, adapter_card(parts, str(source), settings.name, folder, library_version()))
