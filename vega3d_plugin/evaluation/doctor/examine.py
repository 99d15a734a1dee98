"""``vega3d doctor``: is this host patched where it should be, and does the branch reach the answer?

:func:`examine` runs the checks in order on a model in memory, :func:`diagnose` on a checkpoint. Nothing is left behind:
the model is unpatched at the end.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ...branch.handle import is_patched
from ...checkpoints.reading import read_saved
from ...checkpoints.saving import load_pretrained
from ...contracts.errors import HostError, SeamMissedWarning, Vega3dError
from ...contracts.priors import Prior
from ...contracts.tables import HOSTS, PRIORS
from ...hosts.finding import find_host
from ...hosts.loading import check_supported, load_host, load_processor, read_source
from ...hosts.probing import Probe, make_probe, words
from ...patching import patch, unpatch
from ...priors.load import load_prior
from ...priors.wan.tiny import RandomWeightsWarning
from .checks import (
    Baseline,
    Check,
    check_branch,
    check_host,
    check_identity,
    check_load,
    check_patch,
    check_pixels,
    check_processor,
    check_saved,
    check_seam,
    check_unpatch,
    check_vision,
)

#: The checks of a host in order, each with what is being done meanwhile.
HOST_STEPS = {
    "load": "loading the host",
    "host": "looking for the seam",
    "processor": "putting pictures through the processor",
    "vision": "showing the host a black and a white picture",
    "patch": "loading the prior and patching",
    "pixels": "comparing the branch's frames with the picture",
    "seam": "counting calls of the seam",
    "identity": "comparing logits before and after the patch",
    "branch": "showing the branch black and white frames",
    "unpatch": "comparing logits before and after",
}
#: The checks of a saved branch on a host.
BRANCH_STEPS = {
    **{step: HOST_STEPS[step] for step in ("load", "host", "processor")},
    "saved": "loading the prior and the saved branch",
    **{step: HOST_STEPS[step] for step in ("pixels", "seam", "branch")},
}

#: A branch that is not shut as a fresh one is.
OPEN = {"name": "token_gated_residual", "init": "released", "residual_scale": 1.0}


def diagnose(
    source: str | Path,
    *,
    processor: str | Path | None = None,
    prior: str = "tiny-wan",
    pretrained: str | None = None,
    branch: str | Path | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    host: str | None = None,
) -> Iterator[Check]:
    """Load a host and check it. Yields each check when it is done; what is wrong with the host is a check that failed.

    Args:
        source: the host, a folder or a hub id.
        processor: folder or hub id of its processor, when it is not beside the model.
        prior, pretrained: to patch with; with a branch, only where its prior's weights are.
        branch: a saved branch, to be checked on this host.
        device: default: CUDA when there is any.
        trust_remote_code: code that comes with the host and its processor may run.
        host: name of the adapter; default: found by looking at the model.

    Raises:
        UnknownNameError, SavedBranchError: no such prior or adapter, or no branch there; found out before the host is
            loaded.
    """
    steps = HOST_STEPS
    PRIORS.get(prior)
    if host is not None:
        HOSTS.get(host)
    if branch is not None:
        steps = BRANCH_STEPS
        read_saved(branch)
    name = "load"
    try:
        found = read_source(source, trust_remote_code=trust_remote_code)
        name = "host"
        check_supported(found, host)
        name = "load"
        loaded = load_host(found, device=device)
    except HostError as error:
        yield _failure(name, error)
        yield from _skip((step for step in steps if step != name), f"{name} failed")
        return
    yield check_load(loaded)
    images, problem = None, ""
    try:
        images = load_processor(processor or source, trust_remote_code=trust_remote_code)
    except HostError as error:
        problem = str(error)
    if branch is not None:
        yield from examine_branch(loaded.model, branch, images, pretrained=pretrained, problem=problem, host=host)
    else:
        yield from examine(loaded.model, images, prior=prior, pretrained=pretrained, problem=problem, host=host)


def examine(
    model: nn.Module,
    processor: Any = None,
    *,
    prior: str | Prior = "tiny-wan",
    pretrained: str | None = None,
    problem: str = "No processor was given.",
    host: str | None = None,
) -> Iterator[Check]:
    """Check a host in memory; it is unpatched at the end. Yields each check when it is done.

    Args:
        model: a supported host, not patched, in eval mode.
        processor: the host's processor. Without one no pictures can be made, and most checks are skipped.
        prior, pretrained: to patch with. The default has random weights and nothing to download: what is checked is
            the way of the frames, not the features.
        problem: why there is no processor.
        host: name of the adapter; default: found by looking at the model.
    """
    found = _host(model, processor, problem, host)
    yield found
    if found.status == "FAIL":
        yield from _skip(_after("host", HOST_STEPS), "host failed")
        return
    check, probe = _processor(model, processor, problem, host)
    yield check
    try:
        baseline = Baseline.of(model, probe.picture if probe else words(model))
    except Exception as error:
        yield from _give_up("vision", error, HOST_STEPS)
        return
    yield _look("vision", probe, lambda p: check_vision(model, p, baseline))
    try:
        loaded = _load_prior(prior, pretrained)
        patch(model, loaded, processor=processor, host=host)
    except Exception as error:
        yield from _give_up("patch", error, HOST_STEPS)
        return
    try:
        yield check_patch(model)
        yield _look("pixels", probe, lambda p: check_pixels(model, p))
        yield _look("seam", probe, lambda p: check_seam(model, p))
        yield _attempt("identity", lambda: check_identity(model, baseline))
        yield _look("branch", probe, lambda p: _check_open_branch(model, p, loaded, processor, host))
    finally:
        if is_patched(model):
            unpatch(model)
    yield _attempt("unpatch", lambda: check_unpatch(model, baseline))


def examine_branch(
    model: nn.Module,
    branch: str | Path,
    processor: Any = None,
    *,
    pretrained: str | None = None,
    problem: str = "No processor was given.",
    host: str | None = None,
) -> Iterator[Check]:
    """Check a saved branch on a host in memory; it is unpatched at the end. Yields each check when it is done.

    Args:
        model: the host, not patched, in eval mode.
        branch: what ``save_pretrained`` or a trainer wrote; a folder or a hub id.
        processor: the host's processor.
        pretrained: where the prior's weights are on this machine, when not where they were.
        problem: why there is no processor.
        host: name of the adapter; default: found by looking at the model.
    """
    found = _host(model, processor, problem, host)
    yield found
    if found.status == "FAIL":
        yield from _skip(_after("host", BRANCH_STEPS), "host failed")
        return
    check, probe = _processor(model, processor, problem, host)
    yield check
    try:
        with _random_weights_are_meant():
            load_pretrained(model, branch, pretrained=pretrained, processor=processor, host=host)
    except Exception as error:
        yield from _give_up("saved", error, BRANCH_STEPS)
        return
    try:
        yield check_saved(model)
        yield _look("pixels", probe, lambda p: check_pixels(model, p))
        yield _look("seam", probe, lambda p: check_seam(model, p))
        yield _look("branch", probe, lambda p: check_branch(model, p))
    finally:
        unpatch(model)


def _host(model: nn.Module, processor: Any, problem: str, host: str | None) -> Check:
    """The check ``host``. An adapter that is named may need a processor for it."""
    check = _attempt("host", lambda: check_host(model, processor, host))
    if check.status == "FAIL" and host is not None and processor is None:
        return replace(check, advice=problem)
    return check


def _processor(model: nn.Module, processor: Any, problem: str, host: str | None) -> tuple[Check, Probe | None]:
    """The check ``processor``, and the pictures as the processor gives them."""
    if processor is None:
        statistics = find_host(model, host).seams(model)[0].statistics
        check = Check(
            "processor",
            "FAIL",
            f"{problem} Going on with the family's own {statistics}",
            "Name the hub id or folder of the model's processor with --processor.",
        )
        return check, None
    try:
        return check_processor(model, processor, host), make_probe(processor, model, host)
    except Exception as error:
        return _failure("processor", error), None


def _check_open_branch(model: nn.Module, probe: Probe, prior: Prior, processor: Any, host: str | None) -> Check:
    """A fresh branch changes nothing, so there would be nothing to see: check one that is wide open."""
    unpatch(model)
    patch(model, prior, processor=processor, fusion=OPEN, host=host)
    return check_branch(model, probe)


def _load_prior(prior: str | Prior, pretrained: str | None) -> Prior:
    if isinstance(prior, Prior):
        return prior
    with _random_weights_are_meant():
        return load_prior(prior, pretrained=pretrained)


@contextmanager
def _random_weights_are_meant() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RandomWeightsWarning)
        yield


def _attempt(name: str, check: Callable[[], Check]) -> Check:
    try:
        with warnings.catch_warnings():
            # The check `seam` looks for these itself.
            warnings.simplefilter("ignore", SeamMissedWarning)
            return check()
    except Exception as error:
        return _failure(name, error)


def _look(name: str, probe: Probe | None, check: Callable[[Probe], Check]) -> Check:
    """A check that needs pictures."""
    if probe is None:
        return Check(name, "SKIP", "no pictures without a processor")
    return _attempt(name, lambda: check(probe))


def _failure(name: str, error: Exception) -> Check:
    if os.environ.get("VEGA3D_TRACEBACK") == "1":
        raise error
    if isinstance(error, Vega3dError):
        return Check(name, "FAIL", str(error))
    return Check(name, "FAIL", f"{type(error).__name__}: {error}", "VEGA3D_TRACEBACK=1 shows where.")


def _give_up(name: str, error: Exception, steps: Iterable[str]) -> Iterator[Check]:
    yield _failure(name, error)
    yield from _skip(_after(name, steps), f"{name} failed")


def _skip(names: Iterable[str], reason: str) -> Iterator[Check]:
    for name in names:
        yield Check(name, "SKIP", reason)


def _after(name: str, steps: Iterable[str]) -> list[str]:
    names = list(steps)
    return names[names.index(name) + 1 :]
