"""What ``vega3d doctor`` asks of a host, one question per function: it runs the model and returns a :class:`Check`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...branch.handle import get_handle, is_patched
from ...branch.learned_scalars import learned_scalars
from ...branch.switches import disabled
from ...contracts.clips import RANGE_TOLERANCE
from ...contracts.errors import HostError, PatchError, SeamMissedWarning
from ...hosts.finding import find_host
from ...hosts.loading import LoadedHost
from ...hosts.probing import (
    PICTURE_TOLERANCE,
    Batch,
    Probe,
    answer,
    as_frame,
    frames_of_one_colour,
    known_picture,
    logits,
    watching,
)

Status = Literal["PASS", "WARN", "FAIL", "SKIP"]

# Differences smaller than this many times the host's own noise are noise. Most hosts have none.
NOISE_MARGIN = 10.0
REPORT = "Report this with the versions that `vega3d doctor` prints."


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


def check_host(model: nn.Module, processor: Any = None, host: str | None = None) -> Check:
    """An adapter matches or was named, and finds its seam. WARN: it has something to say about this model."""
    if is_patched(model):
        raise PatchError("The model is already patched. Call vega3d.unpatch(model) first.")
    adapter = find_host(model, host)
    try:
        seam = adapter.seams(model)[0]
    except HostError:
        # Some need the processor for it.
        if processor is None:
            raise
        seam = adapter.seams(model, processor)[0]
    measured = f"{adapter.name}, seam {seam.path!r}, tokens of size {seam.hidden_size}, merge {seam.merge}"
    notices: list[str] = getattr(adapter, "notices", lambda model: [])(model)
    return Check("host", "WARN" if notices else "PASS", measured, " ".join(notices))


def check_processor(model: nn.Module, processor: Any, host: str | None = None) -> Check:
    """The processor normalises pixels as the family's does, so that ``patch`` is right without it too."""
    adapter = find_host(model, host)
    found, name = adapter.seams(model, processor)[0].statistics, type(processor).__name__
    try:
        known = adapter.seams(model)[0].statistics
    except HostError:
        # No family that is known, so `patch` asks for the processor.
        return Check("processor", "PASS", f"{name}, {found}; patch this host with it")
    if known == found:
        return Check("processor", "PASS", f"{name}, {found}")
    return Check(
        "processor",
        "WARN",
        f"{name} normalises pixels with {found}; the family's models were trained with {known}",
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
            f"{measured}: the pixel statistics are wrong ({statistics}, from the "
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
        # A policy's branch may keep earlier observations.
        get_handle(model).reset()
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


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max())


def _noise(baseline: Baseline) -> str:
    return f" (the host's own noise is {baseline.noise:.2g})" if baseline.noise else ""


def _count(number: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return str(number)


def _times(count: int) -> str:
    return "1 call" if count == 1 else f"{count} calls"
