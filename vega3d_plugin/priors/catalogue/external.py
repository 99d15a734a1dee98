"""Features computed elsewhere."""

from __future__ import annotations

from typing import Literal

from ...contracts.settings import Positive, Settings
from ...contracts.specs import PriorSpec
from .family import later


class ExternalOptions(Settings):
    """Settings of ``external`` alone.

    Attributes:
        key: how files are named; ``content``: by ``vega3d_plugin.contracts.clips.clip_key``.
        layout: of the maps in the files: ``tchw`` is ``[T', C, h, w]``, ``thwc`` is ``[T', h, w, C]``.
        feature_dim: channels of the maps; default: those of the first file.
        made_by: names the model and the settings that made the features. It then stands for them in the fingerprint,
            so that one may add files, or evaluate with another folder than one trained with.
    """

    key: Literal["content"] = "content"
    layout: Literal["tchw", "thwc"] = "tchw"
    feature_dim: Positive | None = None
    made_by: str = ""


SPECS = (
    PriorSpec(
        "external",
        later("yours.external:load_external"),
        "features computed elsewhere, one file per clip in a folder (`pretrained`)",
        # Whoever computed them saw what he saw; here a clip is looked up as a whole.
        contexts=("views",),
        defaults={"context": "views"},
        options=ExternalOptions,
        licence="of the model that computed them",
        kind=later("yours.external:ExternalPrior"),
    ),
)
