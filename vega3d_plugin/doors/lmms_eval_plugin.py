"""The entry point of lmms-eval (group ``lmms_eval.models``): what ``lmms_eval --model vega3d`` is.

``python -m vega3d_plugin.lmms_eval_plugin scanqa=rows.jsonl FOLDER`` writes tasks for it, see
:mod:`vega3d_plugin.evaluation.lmms_tasks`.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """lmms-eval calls this when it is imported, so nothing is loaded but its own class of manifests.

    Raises:
        ImportError: lmms-eval before 0.7, which has no such manifests.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="vega3d", chat_class_path="vega3d_plugin.evaluation.lmms_eval.Vega3dModel")


if __name__ == "__main__":
    import sys

    from vega3d_plugin.evaluation.lmms_tasks import main

    sys.exit(main(sys.argv[1:]))
