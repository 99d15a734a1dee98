"""Does a branch's record fit its tensors? Asked before anything of its sizes is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..branch.fusers.build import build_fuser
from ..branch.projectors import build_projector
from ..contracts.errors import SavedBranchError, Vega3dError
from ..contracts.printable import first_line, one_line
from ..contracts.settings import PROJECTORS, FusionSettings, ProjectorSettings
from ..contracts.tables import FUSERS

_SHOWN = 10


def check_fit(where: str, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Compare the tensors' names and shapes with those that a branch of this record has.

    Projector and fuser are made without memory, so a record that claims a billion numbers costs nothing. A fuser or
    projector that is not installed here cannot be made and is not compared.

    Raises:
        SavedBranchError: lists what is missing, surplus or of another shape.
    """
    expected = _shapes(where, record)
    if expected is None:
        return
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    problems = [f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in found]
    problems += [f"not part of this branch: {one_line(name)}" for name in found if name not in expected]
    problems += [
        f"{name}: saved {list(found[name])}, its settings make {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise SavedBranchError(
            f"{where} is damaged: its tensors do not fit its settings:\n  " + "\n  ".join([*problems[:_SHOWN], *more])
        )


def _shapes(where: str, record: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | None:
    settings, size = record["settings"], record["host"]["hidden_size"]
    if settings["fusion"].get("name") not in FUSERS or settings["projector"].get("name", "mlp") not in PROJECTORS:
        return None
    try:
        fusion = FusionSettings.parse(settings["fusion"], f"{where}, settings.fusion")
        projector = ProjectorSettings.parse(settings["projector"], f"{where}, settings.projector")
        with torch.device("meta"):
            modules = {
                "projector": build_projector(
                    projector.name,
                    record["prior"]["feature_dim"],
                    size,
                    hidden_dim=projector.hidden_dim,
                    merge=record["host"]["merge"],
                ),
                "fuser": build_fuser(fusion.name, size, **fusion.options_for()),
            }
    except Vega3dError as error:
        raise SavedBranchError(f"{where}: its settings make no branch: {error}") from error
    except Exception as error:
        raise SavedBranchError(f"{where}: its settings make no branch: {first_line(error)}") from error
    return {
        f"{part}.{name}": tuple(tensor.shape)
        for part, module in modules.items()
        for name, tensor in module.state_dict().items()
    }
