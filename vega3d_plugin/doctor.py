"""The checks of ``vega3d doctor``: is this host patched where it should be, and does the branch reach the answer?

Each check is a function that runs the model and returns a :class:`Check`; :func:`examine` runs them in order on a model
in memory, :func:`diagnose` on a checkpoint. Nothing is left behind: the model is unpatched at the end.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .checkpoint import read_saved
from .clips import RANGE_TOLERANCE, PixelStatistics
from .controls import disabled
from .errors import HostError, PatchError, Vega3dError
from .hooks import SeamMissedWarning
from .host_loading import LoadedHost, check_supported, load_host, load_processor, read_source
from .patching import find_host, get_handle, is_patched, patch, unpatch
from .plugins import plugin_manager
from .priors.base import Prior
from .priors.load import load_prior
from .priors.tiny_wan import RandomWeightsWarning
from .probe import (
    Batch,
    Probe,
    answer,
    as_frame,
    frames_of_one_colour,
    known_picture,
    logits,
    make_probe,
    watching,
    words,
)
from .saving import load_pretrained
from .scalars import learned_scalars

Status = Literal["PASS", "WARN", "FAIL", "SKIP"]

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

# The mean difference in [0, 1] between a picture and what a host's own resizing makes of it stays well below this.
PICTURE_TOLERANCE = 0.04
# Differences smaller than this many times the host's own noise are noise. Most hosts have none.
NOISE_MARGIN = 10.0
REPORT = "Report this with the versions that `vega3d doctor` prints."
#: A branch that is not shut as a fresh one is.
OPEN = {"name": "token_gated_residual", "init": "released", "residual_scale": 1.0}


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: a key of :data:`HOST_STEPS` or :data:`BRANCH_STEPS`.
        status: SKIP when an earlier failure leaves nothing to check.
        measured: what was found.
        advice: what to do next, when it did not pass.
    """

    name: str
    status: Status
    measured: str
    advice: str = ""


def diagnose(
    source: str | Path,
    *,
    processor: str | Path | None = None,
    prior: str = "tiny-wan",
    pretrained: str | None = None,
    branch: str | Path | None = None,
    device: str | None = None,
) -> Iterator[Check]:
    """Load a host and check it. Yields each check when it is done; what is wrong with the host is a check that failed.

    Args:
        source: the host, a folder or a hub id.
        processor: folder or hub id of its processor, when it is not beside the model.
        prior, pretrained: to patch with; with a branch, only where its prior's weights are.
        branch: a saved branch, to be checked on this host.
        device: default: CUDA when there is any.

    Raises:
        UnknownNameError, SavedBranchError: no such prior, or no branch there; found out before the host is loaded.
    """
    steps = HOST_STEPS
    plugin_manager().priors.get(prior)
    if branch is not None:
        steps = BRANCH_STEPS
        read_saved(branch)
    name = "load"
    try:
        found = read_source(source)
        name = "host"
        check_supported(found)
        name = "load"
        loaded = load_host(found, device=device)
    except HostError as error:
        yield _failure(name, error)
        yield from _skip((step for step in steps if step != name), f"{name} failed")
        return
    yield check_load(loaded)
    images, problem = None, ""
    try:
        images = load_processor(processor or source)
    except HostError as error:
        problem = str(error)
    if branch is not None:
        yield from examine_branch(loaded.model, branch, images, pretrained=pretrained, problem=problem)
    else:
        yield from examine(loaded.model, images, prior=prior, pretrained=pretrained, problem=problem)


def examine(
    model: nn.Module,
    processor: Any = None,
    *,
    prior: str | Prior = "tiny-wan",
    pretrained: str | None = None,
    problem: str = "No processor was given.",
) -> Iterator[Check]:
    """Check a host in memory; it is unpatched at the end. Yields each check when it is done.

    Args:
        model: a supported host, not patched, in eval mode.
        processor: the host's processor. Without one no pictures can be made, and most checks are skipped.
        prior, pretrained: to patch with. The default has random weights and nothing to download: what is checked is
            the way of the frames, not the features.
        problem: why there is no processor.
    """
    host = _attempt("host", lambda: check_host(model))
    yield host
    if host.status == "FAIL":
        yield from _skip(_after("host", HOST_STEPS), "host failed")
        return
    check, probe = _processor(model, processor, problem)
    yield check
    try:
        baseline = Baseline.of(model, probe.picture if probe else words(model))
    except Exception as error:
        yield from _give_up("vision", error, HOST_STEPS)
        return
    yield _look("vision", probe, lambda p: check_vision(model, p, baseline))
    try:
        loaded = _load_prior(prior, pretrained)
        patch(model, loaded, processor=processor)
    except Exception as error:
        yield from _give_up("patch", error, HOST_STEPS)
        return
    try:
        yield check_patch(model)
        yield _look("pixels", probe, lambda p: check_pixels(model, p))
        yield _look("seam", probe, lambda p: check_seam(model, p))
        yield _attempt("identity", lambda: check_identity(model, baseline))
        yield _look("branch", probe, lambda p: _check_open_branch(model, p, loaded, processor))
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
) -> Iterator[Check]:
    """Check a saved branch on a host in memory; it is unpatched at the end. Yields each check when it is done.

    Args:
        model: the host, not patched, in eval mode.
        branch: what ``save_pretrained`` or a trainer wrote; a folder or a hub id.
        processor: the host's processor.
        pretrained: where the prior's weights are on this machine, when not where they were.
        problem: why there is no processor.
    """
    host = _attempt("host", lambda: check_host(model))
    yield host
    if host.status == "FAIL":
        yield from _skip(_after("host", BRANCH_STEPS), "host failed")
        return
    check, probe = _processor(model, processor, problem)
    yield check
    try:
        with _random_weights_are_meant():
            load_pretrained(model, branch, pretrained=pretrained, processor=processor)
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


@dataclass(frozen=True)
class Baseline:
    """The host before it was touched.

    Attributes:
        batch: what it was given.
        logits: its answer, ``[1, L, V]``.
        noise: the largest difference between two runs of the same input; zero for most hosts.
        keys: of its state dict.
    """

    batch: Batch
    logits: Tensor
    noise: float
    keys: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module, batch: Batch) -> Baseline:
        """Run the batch twice."""
        first, second = logits(model, batch), logits(model, batch)
        return cls(batch, first, _difference(first, second), tuple(model.state_dict()))


def check_load(loaded: LoadedHost) -> Check:
    """The weights were all there."""
    model = loaded.model
    parameter = next(p for p in model.parameters() if p.is_floating_point())
    count = sum(p.numel() for p in model.parameters())
    measured = (
        f"{type(model).__name__}, {_count(count)} parameters, {str(parameter.dtype).removeprefix('torch.')} on "
        f"{parameter.device}"
    )
    if loaded.missing:
        return Check(
            "load",
            "WARN",
            f"{measured}; {len(loaded.missing)} tensors are not in the checkpoint and hold random numbers, first "
            f"{loaded.missing[0]}",
            "Check that this is the whole model and that this transformers fits it.",
        )
    if any(".vega3d." in name for name in loaded.surplus):
        return Check("load", "PASS", f"{measured}; the checkpoint also holds a branch: check it with --branch")
    return Check("load", "PASS", measured)


def check_host(model: nn.Module) -> Check:
    """An adapter matches, and finds its seam."""
    if is_patched(model):
        raise PatchError("The model is already patched. Call vega3d.unpatch(model) first.")
    adapter = find_host(model)
    seam = adapter.seams(model)[0]
    return Check(
        "host", "PASS", f"{adapter.name}, seam {seam.path!r}, tokens of size {seam.hidden_size}, merge {seam.merge}"
    )


def check_processor(model: nn.Module, processor: Any) -> Check:
    """The processor normalises pixels as the family's does, so that ``patch`` is right without it too."""
    adapter = find_host(model)
    known, found = (adapter.seams(model, given)[0].statistics for given in (None, processor))
    name = type(processor).__name__
    if known == found:
        return Check("processor", "PASS", f"{name}, {_statistics(found)}")
    return Check(
        "processor",
        "WARN",
        f"{name} normalises pixels with {_statistics(found)}; the family's models were trained with "
        f"{_statistics(known)}",
        "Check that this is the model's own processor; if it is, always call vega3d.patch(model, processor=processor).",
    )


def check_vision(model: nn.Module, probe: Probe, baseline: Baseline) -> Check:
    """The host itself sees: a black and a white picture give other answers, all else equal."""
    if not bool(torch.isfinite(baseline.logits).all()):
        return Check("vision", "FAIL", "the host's logits are NaN or infinite", "Load it in bfloat16 or float32.")
    moved = _difference(answer(model, probe.black), answer(model, probe.white))
    if moved > NOISE_MARGIN * baseline.noise:
        return Check(
            "vision", "PASS", f"black against white moves the answer's logits by up to {moved:.2g}{_noise(baseline)}"
        )
    return Check(
        "vision",
        "FAIL",
        f"the host gives the same answer to a black and a white picture (logits differ by {moved:.2g}"
        f"{_noise(baseline)}): it ignores its images",
        "Nothing added to the visual tokens can help before this is mended. Check the weights, the image token of the "
        "config and the processor, and the version of transformers.",
    )


def check_patch(model: nn.Module) -> Check:
    """What was added."""
    handle = get_handle(model)
    count = _count(sum(p.numel() for p in handle.parameters()))
    name = handle.settings.prior.name
    note = " (random weights: this tests the way of the frames, not the features)" if name == "tiny-wan" else ""
    return Check("patch", "PASS", f"prior {name}{note}, fusion {handle.settings.fusion.name}, {count} parameters train")


def check_saved(model: nn.Module) -> Check:
    """What the saved branch is, and how far training has opened it."""
    branch = get_handle(model).branch
    fusion = branch.settings.fusion
    scalars = learned_scalars(branch.state_dict(), fusion, branch.seam.hidden_size)
    learned = ", ".join(
        f"{s.name} {s.value:.4g}" + ("" if s.start is None else f" (started at {s.start:g})") for s in scalars
    )
    count = _count(sum(p.numel() for p in branch.parameters()))
    measured = f"prior {branch.settings.prior.name}, fusion {fusion.name}, {count} parameters"
    return Check("saved", "PASS", f"{measured}; {learned}" if learned else measured)


def check_pixels(model: nn.Module, probe: Probe) -> Check:
    """The frames that the seam recovers are the picture that went into the processor.

    The branch is switched off meanwhile: a prior refuses frames out of range before they could be looked at.
    """
    with disabled(model), watching(model) as records:
        logits(model, probe.picture)
    if not records:
        return Check("pixels", "SKIP", "no frames reached the branch, see seam")
    frame = records[0].clips[0].frames[0].float().cpu()
    expected = as_frame(known_picture(), *frame.shape[-2:])
    low, high = (float(value) for value in frame.aminmax())
    off = float((frame - expected).abs().mean())
    alike = float(torch.corrcoef(torch.stack([frame.flatten(), expected.flatten()]))[0, 1])
    size = f"{frame.shape[-1]}x{frame.shape[-2]}"
    measured = (
        f"frame {size} in [{low:.2f}, {high:.2f}], off the picture by {off:.4f} on average, correlation {alike:.3f}"
    )
    statistics = get_handle(model).seam.statistics
    if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE or (off > PICTURE_TOLERANCE and alike > 0.9):
        return Check(
            "pixels",
            "FAIL",
            f"{measured}: the pixel statistics are wrong ({_statistics(statistics)}, from the "
            f"{get_handle(model).seam.statistics_source})",
            "Call vega3d.patch(model, processor=processor) with the processor that makes the pixels.",
        )
    if off > PICTURE_TOLERANCE:
        return Check(
            "pixels",
            "FAIL",
            f"{measured}: the branch does not see the picture that the host was given",
            f"The processor crops, or packs patches in an order that the adapter does not know. {REPORT}",
        )
    return Check("pixels", "PASS", measured)


def check_seam(model: nn.Module, probe: Probe) -> Check:
    """The seam fires for an image, and for a video when the host takes videos. The prior is not run."""
    found, problems = [], []
    for kind, batch in (("image", probe.picture), ("video", probe.video)):
        if batch is None:
            continue
        with warnings.catch_warnings(record=True) as caught, disabled(model), watching(model) as records:
            warnings.simplefilter("always", SeamMissedWarning)
            logits(model, batch)
        missed = [str(w.message) for w in caught if issubclass(w.category, SeamMissedWarning)]
        clips = [clip for record in records for clip in record.clips]
        grids = ", ".join(f"{c.grid.t}x{c.grid.h}x{c.grid.w}" for c in clips) or "no"
        found.append(f"{kind}: {_times(len(records))}, {grids} tokens")
        problems += missed or ([] if records else [f"The branch did not see the {kind}."])
    if probe.video is None:
        found.append(f"video: {probe.no_video}")
    if problems:
        return Check(
            "seam",
            "FAIL",
            f"{'; '.join(found)}. {problems[0]}",
            f"This transformers does not call the seam as the adapter expects. {REPORT}",
        )
    refused = probe.video is None and "refuses" in probe.no_video
    return Check("seam", "WARN" if refused else "PASS", "; ".join(found))


def check_identity(model: nn.Module, baseline: Baseline) -> Check:
    """A fresh patch leaves every logit as it was, bit for bit."""
    return _same("identity", model, baseline, "with the fresh branch")


def check_branch(model: nn.Module, probe: Probe) -> Check:
    """What the branch sees reaches the answer, through the branch and no other way.

    The host is given ONE picture throughout. Where the seam hands its frames to the branch, they are replaced: by
    black ones, by black ones again, by white ones. So pixels, prompt, the host's own visual tokens and whatever else
    passes the seam by (Qwen3-VL's deepstack features) are the same in all three runs, and a difference can only have
    come by prior, projector and fuser. Two runs alike give the noise. That the real frames arrive at the seam is the
    check ``pixels``.
    """
    runs = []
    for value in (0.0, 0.0, 1.0):
        with frames_of_one_colour(model, value), watching(model) as records:
            reply = answer(model, probe.picture)
        if not records:
            return Check("branch", "SKIP", "no frames reached the branch, see seam")
        runs.append((reply, torch.cat([record.fused for record in records])))
    (black, black_tokens), (again, _), (white, white_tokens) = runs
    noise, moved = _difference(black, again), _difference(black, white)
    at_seam = _difference(black_tokens, white_tokens)
    size = float(black_tokens.abs().max())
    measured = (
        f"black against white frames for the branch alone move the tokens by up to {at_seam:.2g} (largest {size:.2g}) "
        f"and the answer's logits by up to {moved:.2g}"
    )
    if moved > NOISE_MARGIN * noise:
        return Check("branch", "PASS", measured)
    if at_seam == 0:
        return Check(
            "branch",
            "FAIL",
            "black and white frames give the same tokens: the branch has no effect",
            "Its learned scalar is still where an identity start puts it, or its output is zero: was it in the "
            "optimiser, and saved after training?",
        )
    return Check(
        "branch",
        "FAIL",
        f"{measured}: no more than noise ({noise:.2g})",
        "The language model does not use what leaves the seam. See the check vision.",
    )


def check_unpatch(model: nn.Module, baseline: Baseline) -> Check:
    """Without the branch, the host is what it was: logits and state-dict keys."""
    keys = tuple(model.state_dict())
    if is_patched(model) or keys != baseline.keys:
        left = sorted({*keys} ^ {*baseline.keys})
        return Check("unpatch", "FAIL", f"left behind or lost: {', '.join(left[:3]) or 'the branch'}")
    return _same("unpatch", model, baseline, "after unpatch")


def _processor(model: nn.Module, processor: Any, problem: str) -> tuple[Check, Probe | None]:
    """The check ``processor``, and the pictures as the processor gives them."""
    if processor is None:
        statistics = find_host(model).seams(model)[0].statistics
        check = Check(
            "processor",
            "FAIL",
            f"{problem} Going on with the family's own {_statistics(statistics)}",
            "Name the hub id or folder of the model's processor with --processor.",
        )
        return check, None
    try:
        return check_processor(model, processor), make_probe(processor, model)
    except Exception as error:
        return _failure("processor", error), None


def _check_open_branch(model: nn.Module, probe: Probe, prior: Prior, processor: Any) -> Check:
    """A fresh branch changes nothing, so there would be nothing to see: check one that is wide open."""
    unpatch(model)
    patch(model, prior, processor=processor, fusion=OPEN)
    return check_branch(model, probe)


def _load_prior(prior: str | Prior, pretrained: str | None) -> Prior:
    if isinstance(prior, Prior):
        return prior
    with _random_weights_are_meant():
        return load_prior(prior, pretrained=pretrained)


def _same(name: str, model: nn.Module, baseline: Baseline, when: str) -> Check:
    found = logits(model, baseline.batch)
    given = "" if len(baseline.batch) > 1 else ", on text alone"
    if torch.equal(found, baseline.logits):
        return Check(name, "PASS", f"all {found.numel():,} logits bit-identical {when}{given}")
    moved = _difference(found, baseline.logits)
    measured = f"logits differ by up to {moved:.2g} {when}{given}{_noise(baseline)}"
    if moved <= NOISE_MARGIN * baseline.noise:
        return Check(name, "WARN", f"{measured}: the host is not deterministic, so more cannot be said")
    return Check(name, "FAIL", measured, REPORT)


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


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max())


def _noise(baseline: Baseline) -> str:
    return f" (the host's own noise is {baseline.noise:.2g})" if baseline.noise else ""


def _statistics(statistics: PixelStatistics) -> str:
    mean, std = (", ".join(f"{v:.3g}" for v in values) for values in (statistics.mean, statistics.std))
    return f"mean ({mean}), std ({std})"


def _count(number: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return str(number)


def _times(count: int) -> str:
    return "1 call" if count == 1 else f"{count} calls"
