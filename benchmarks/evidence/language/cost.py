"""What each arm costs beside what it gains: parameters, milliseconds and bytes, measured in one run on one thread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

import vega3d
from vega3d_plugin.priors.frozen.prior import FrozenPrior

from .arms import ARMS, Experiment, KeptInHalf
from .judging import Answers

TIMES = 3
SEEDS = 20  # more than were ever run
#: Arms that differ in what runs. A shuffled or a blind one costs what its like costs.
MEASURED = ("host", "twin", "trained")


@torch.no_grad()
def costs(experiment: Experiment) -> Iterator[str]:
    """Lines of Markdown. Each time is the median of :data:`TIMES` calls in CPU time, the arms in turn."""
    host = experiment.host
    _, asked = host.encoded(blind=False)
    batch = host.glance(asked)
    answers = Answers(experiment, range(SEEDS))
    models, frames = {}, 0
    for arm in MEASURED:
        models[arm] = host.build(0)
        if arm != "host":
            prior = host.prior()
            host.patch(models[arm], prior if arm == "trained" else vega3d.analysis.untrained_twin(prior, seed=0))
    branches = {arm: vega3d.get_handle(models[arm]).branch for arm in MEASURED if arm != "host"}
    seen = dict.fromkeys(branches, None)
    for arm, branch in branches.items():
        branch.store = KeptInHalf()
        models[arm](**batch)
        seen[arm] = branch.store
    (clip_shape,) = {tuple(each.shape) for each in seen["trained"].features.values()}
    frames = clip_shape[0]
    questions = len(batch["input_ids"])
    kept = _medians({arm: (lambda model=model: model(**batch)) for arm, model in models.items()})
    anew = _medians({arm: (lambda arm=arm: _anew(models[arm], branches[arm], batch)) for arm in branches})
    yield (
        "| arm | gain over the host alone | it trains | frozen in the prior | a question, ms, features kept | "
        "features, ms a frame | features, bytes a frame |"
    )
    yield "| --- |" + " --- |" * 6
    for arm in MEASURED:
        cells = ["", f"{_count(models[arm]):,}", "0", f"{1000 * kept[arm] / questions:.1f}", "0", "0"]
        if arm in branches:
            maps = seen[arm].features
            each = next(iter(maps.values()))
            known = arm in answers.results and "host" in answers.results
            gain = answers.difference(arm, "host") if known else None
            cells[0] = "not run" if gain is None else f"{gain.points}: {gain.verdict(arm).partition(':')[0]}"
            cells[1] = f"{_count(models['host']):,} + {_count(vega3d.get_handle(models[arm])):,}"
            cells[2] = f"{_frozen(branches[arm].prior):,}"
            cells[4] = f"{1000 * (anew[arm] - kept[arm]) / (len(maps) * frames):.1f}"
            cells[5] = f"{each.numel() * each.element_size() // frames:,}"
        yield f"| {ARMS[arm].meaning} | " + " | ".join(cells) + " |"


def _anew(model: Any, branch: Any, batch: Mapping[str, Any]) -> None:
    """A forward that computes all features."""
    store, branch.store = branch.store, None
    try:
        model(**batch)
    finally:
        branch.store = store


def _medians(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Seconds of CPU of each call, taken in turn so that a busy machine slows all alike."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(TIMES):
        for name, call in calls.items():
            started = time.process_time()
            call()
            found[name].append(time.process_time() - started)
    return {name: statistics.median(times) for name, times in found.items()}


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _frozen(prior: Any) -> int:
    modules = prior.models.values() if isinstance(prior, FrozenPrior) else ()
    return sum(_count(module) for module in modules)
