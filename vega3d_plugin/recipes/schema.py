"""What a recipe may say: one schema, of which every block is checked by its own settings class."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from ..contracts.settings import BranchSettings, Int, Positive, PriorSettings, Settings, registered_name
from .blocks import DataSettings, StoreSettings, TrainSettings, TuneSettings
from .layers import VERSION
from .problems import SettingsClashError

#: Stands for a small random model with a processor, which the adapter builds itself: nothing is downloaded.
TINY = "tiny"

VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class HostSettings(Settings):
    """Which host, and what its processor is given.

    Attributes:
        adapter: a registered host (``vega3d ls hosts``).
        model: hub id or folder. ``tiny``: the adapter's own small random model, which needs no download.
        dtype: dtype of the host's weights.
        min_pixels, max_pixels: smallest and largest area of an image after the processor's resizing.
    """

    adapter: str
    model: Annotated[str, Field(min_length=1)]
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    min_pixels: Positive | None = None
    max_pixels: Positive | None = None

    @field_validator("adapter")
    @classmethod
    def _known(cls, name: str) -> str:
        return registered_name("host", name)

    @model_validator(mode="after")
    def _ordered(self) -> HostSettings:
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise SettingsClashError(
                f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}", "min_pixels", "max_pixels"
            )
        return self


class RecipeSettings(BranchSettings):
    """All settings of a recipe: those of the branch, and the rest of the experiment.

    Attributes:
        version: version of the recipe format.
        env: environment variables that values may use as ``${NAME}``, each with a description.
        host: the host and its processor.
        prior: as for ``patch``. None: the host trains without a branch, as a baseline.
        lora: arguments of ``peft.LoraConfig``. None: no LoRA.
        data: the rows to train on.
        train: the training run.
        tune: which parts of the host train.
        store: where features are kept, so that each clip is encoded once. ``--store`` overrides it.
    """

    version: Annotated[Int, Field(ge=1, le=VERSION)] = VERSION
    env: dict[VariableName, str] = Field(default_factory=dict)
    host: HostSettings
    prior: PriorSettings | None = Field(  # type: ignore[assignment]  # patch has no use for None, a recipe has
        default_factory=lambda: PriorSettings()
    )
    lora: dict[str, Any] | None = None
    data: DataSettings | None = None
    train: TrainSettings | None = None
    tune: TuneSettings | None = None
    store: StoreSettings | None = None
