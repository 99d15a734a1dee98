"""A released checkpoint's own tower: compared with the published weights, and taken where it differs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from ...contracts.errors import Vega3dWarning
from ...contracts.priors import Prior
from ...contracts.settings import PriorSettings
from ...priors.frozen.towers import Tower, TowerError, compare_tower, has_released_tower, use_tower
from ...priors.load import load_prior
from ...storage.weights import Stored


@dataclass(frozen=True)
class TowerChoice:
    """Which tower a branch has.

    Attributes:
        prior: loaded, with the tower that was chosen; None where nothing was loaded.
        tower: the checkpoint's own, where that is the prior's; None for the published one.
        line: what was found and done, one or two sentences.
    """

    prior: Prior | None
    tower: Tower | None
    line: str


def tower_of(source: str | Path, revision: str | None, entries: dict[str, Stored]) -> Tower | None:
    """The tower in a checkpoint that was read, by a name under which it is found again; None when it holds none."""
    if not entries:
        return None
    path = Path(source).expanduser()
    name = str(path.resolve()) if path.exists() else f"{source}@{revision}" if revision else str(source)
    return Tower(name, entries)


def load_with_tower(settings: PriorSettings, tower: Tower) -> TowerChoice:
    """Load a prior; when a checkpoint's own tower is another than the published one, with that."""
    prior = load_prior(settings)
    try:
        found = compare_tower(prior, tower)
        if not found.different:
            line = f"Its tower is the published one: all {found.parameters:,} parameters are equal."
            return TowerChoice(prior, None, line)
        use_tower(prior, tower)
    except TowerError as error:
        return TowerChoice(prior, None, _tell_left(error, tower))
    line = (
        f"Its tower is not the published one: {found.different:,} of {found.parameters:,} parameters differ. The prior "
        f"has the checkpoint's own tower; what else it needs is from {settings.pretrained or settings.name}."
    )
    return TowerChoice(prior, tower, line)


def keep_tower(tower: Tower) -> TowerChoice:
    """Keep a checkpoint's own tower without comparing it, where the published weights are not at hand."""
    line = (
        f"Its tower ({len(tower.entries)} tensors) is kept, and was not compared with the published one, whose weights "
        "were not loaded."
    )
    return TowerChoice(None, tower, line)


def leave_tower(tower: Tower, why: str) -> TowerChoice:
    """Go without a checkpoint's own tower, as the caller wants it."""
    return TowerChoice(None, None, f"Its own tower ({len(tower.entries)} tensors) is not used: {why}.")


def tell_given(tower: Tower, prior: Prior) -> str:
    """What is to be said of a checkpoint's own tower where a loaded prior is given, which stays as it is.

    One of the released towers' kinds is compared, while it is as it was loaded; when it is another, a warning says so.
    A prior of another kind is a choice, and is noted.
    """
    unused = f"Its own tower ({len(tower.entries)} tensors) is not used: a loaded prior was given."
    if prior.settings is None or prior.settings.tower is not None or not has_released_tower(prior):
        return unused
    if getattr(prior, "_ready", None) is not None:
        return _tell_left("a prior was given that has run already, so its weights can no longer be compared", tower)
    try:
        found = compare_tower(prior, tower)
    except TowerError as error:
        return _tell_left(error, tower)
    if not found.different:
        return f"Its tower is that of the prior that was given: all {found.parameters:,} parameters are equal."
    return _tell_left(
        f"{found.different:,} of {found.parameters:,} parameters of the prior that was given differ", tower
    )


def _tell_left(why: object, tower: Tower) -> str:
    line = (
        f"The checkpoint's own tower ({len(tower.entries)} tensors) is not used, so features and answers differ from "
        f"those it was trained with: {str(why).rstrip('.')}."
    )
    warnings.warn(
        f"{line} Pass the prior by name, with pretrained=, to have the tower compared and used.",
        Vega3dWarning,
        stacklevel=4,
    )
    return line
