"""Features computed elsewhere."""

from __future__ import annotations

from typing import Literal

from ...contracts.settings import Positive, Settings
from ...contracts.specs import PriorSpec
from .family import later


class ExternalOptions(Settings):
    """Settings of ``external`` alone.

    Attributes:
        key: how files are named. ``content``: by the hash of the frames, ``vega3d.clip_key(frames)``.
        layout: axes of the maps in the files: ``tchw`` is ``[T', C, h, w]``, ``thwc`` is ``[T', h, w, C]``.
        feature_dim: channels of the maps. Default: those of the first file.
        made_by: a name for the model and settings that made the features. The fingerprint then contains this name
            instead of the files, so you may add files, or evaluate with another folder than the one of the training.
    """

    key: Literal["content"] = "content"
    layout: Literal["tchw", "thwc"] = "tchw"
    feature_dim: Positive | None = None
    made_by: str = ""


SPECS = (
    PriorSpec(
        "external",
        later("yours.external:load_external"),
        "reads features that you computed elsewhere: a folder (`pretrained`) with one file per clip",
        # Whoever computed them saw what he saw; here a clip is looked up as a whole.
        contexts=("views",),
        defaults={"context": "views"},
        options=ExternalOptions,
        licence="of the model that computed them",
        kind=later("yours.external:ExternalPrior"),
    ),
)
