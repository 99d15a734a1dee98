"""The entry point of lmms-eval (group ``lmms_eval.models``): what ``lmms_eval --model vega3d`` is."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """lmms-eval calls this when it is imported, so nothing is loaded but its own class of manifests.

    Raises:
        ImportError: lmms-eval before 0.7, which has no such manifests.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="vega3d", chat_class_path="vega3d_plugin.evaluation.lmms_eval.Vega3dModel")
