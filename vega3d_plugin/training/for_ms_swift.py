"""A plugin for ms-swift: models that it loads have the branch, in training, inference and export alike.

Usage::

    VEGA3D_PRIOR=wan2.1-t2v-1.3b swift sft --model Qwen/Qwen2.5-VL-3B-Instruct --modules_to_save vega3d \
        --external_plugins "$(python -m vega3d_plugin.swift_plugin)" ...

``python -m vega3d_plugin.swift_plugin`` prints the path of the plugin file. What to patch with comes from the
environment:

- ``VEGA3D_CONFIG``: a YAML or JSON file of :class:`~vega3d_plugin.contracts.settings.BranchSettings`;
- ``VEGA3D_PRIOR``, ``VEGA3D_PRETRAINED``: a prior and its weights, over those of the file;
- ``VEGA3D_BRANCH``: a saved branch or checkpoint to load instead; default: the model's own folder when it holds one;
- ``VEGA3D_STORE``: folder of a feature store.

Nothing of this library depends on this file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..branch.handle import get_handle, is_patched
from ..checkpoints.reading import holds_branch
from ..checkpoints.saving import load_pretrained
from ..contracts.errors import SettingsError
from ..patching import DEFAULT_PRIOR, patch

KNOWN = ("CONFIG", "PRIOR", "PRETRAINED", "BRANCH", "STORE")


def attach(
    model: nn.Module, processor: Any = None, folder: str | Path | None = None, environ: Mapping[str, str] = os.environ
) -> nn.Module:
    """Give a freshly loaded model its branch, as the environment says.

    Args:
        model: changed in place.
        processor: of the host.
        folder: where the model was loaded from.
        environ: with the variables named above.

    Raises:
        SettingsError: variables that exclude each other.
        HostError, SavedBranchError, ...: the model cannot be patched, or the branch cannot be loaded.
    """
    if is_patched(model):
        return model
    given = {name: environ[f"VEGA3D_{name}"] for name in KNOWN if environ.get(f"VEGA3D_{name}")}
    branch = given.get("BRANCH")
    if branch is None and folder is not None and Path(folder).is_dir() and holds_branch(Path(folder)):
        branch = str(folder)
    pretrained, store = given.get("PRETRAINED"), given.get("STORE")
    if branch is None:
        prior, config = given.get("PRIOR", DEFAULT_PRIOR), given.get("CONFIG")
        patch(model, prior, pretrained=pretrained, config=config, processor=processor, store=store)
    elif "BRANCH" in given and {"CONFIG", "PRIOR"} & set(given):
        raise SettingsError(
            "VEGA3D_BRANCH names a saved branch, which has its own settings: unset VEGA3D_CONFIG and VEGA3D_PRIOR."
        )
    else:
        load_pretrained(model, branch, pretrained=pretrained, processor=processor, store=store)
    return model


def with_branch(loader: type[Any]) -> type[Any]:
    """The loader of a model family, whose models have the branch. Loaders that are such already stay."""
    if getattr(loader, "loads_vega3d", False):
        return loader

    class Loader(loader):  # type: ignore[misc]
        """Loads the model and attaches the branch."""

        loads_vega3d = True

        def load(self) -> tuple[Any, Any]:
            """What ms-swift calls: the model, None where only the processor is wanted, and the processor."""
            model, processor = super().load()
            if model is not None and not getattr(self, "return_dummy_model", False):
                folder = getattr(getattr(self, "model_info", None), "model_dir", None)
                attach(model, processor, folder)
                print(f"vega3d: {get_handle(model)}")
            return model, processor

    Loader.__name__ = Loader.__qualname__ = loader.__name__
    return Loader


def install() -> list[str]:
    """Have ms-swift load every multimodal model with the branch.

    Returns:
        The model types.

    Raises:
        ImportError: no ms-swift, or one before 4.0, whose models are loaded by functions.
    """
    from swift.model.model_meta import MODEL_MAPPING

    changed = []
    for name, meta in MODEL_MAPPING.items():
        if meta.is_multimodal and not meta.is_reward:
            meta.loader = with_branch(meta.loader)
            changed.append(str(name))
    return changed


def file_for_ms_swift() -> Path:
    """What ms-swift is given as ``--external_plugins``."""
    return Path(__file__).resolve().parent / "ms_swift" / "vega3d_for_swift.py"
