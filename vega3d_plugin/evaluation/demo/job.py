"""The whole job on one video: patch, train, answer, save, load, unpatch, with a check for every promise."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...analysis.pictures import feature_picture, share_overlay
from ...branch.handle import get_handle
from ...branch.switches import record_shares
from ...checkpoints.saving import load_pretrained, save_pretrained
from ...contracts.clips import Clip, uniform_indices
from ...contracts.errors import SettingsError, TrainError
from ...hosts.probing import watching
from ...patching import patch, unpatch
from ...scenes.rendered import RoomClip, render_room, save_geometry
from ...scenes.video import read_video, write_video
from ...storage.claims import claim_folder
from ...storage.writing import write_json
from .host import DemoHost, real_host, tiny_host
from .questions import ask
from .samples import Sample, answer, encode, logits_of, mean_loss
from .training import train, with_lora

WINDOW = 8  # frames per question
ROOM_FRAMES = 24
ROOM_SIZE = (112, 168)


@dataclass(frozen=True)
class Check:
    """One line of the report: what was checked, whether it holds (None: a figure, not a check), and what was seen."""

    name: str
    passed: bool | None
    seen: str


@dataclass
class Report:
    """What the demo found. ``files`` maps a short name to a path."""

    checks: list[Check] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """True when no check failed."""
        return all(check.passed is not False for check in self.checks)


@dataclass(frozen=True)
class Job:
    """Settings of the demo.

    Attributes:
        out: folder for everything it leaves.
        host: folder or hub id of a Qwen-VL model; None builds a tiny one.
        prior: a registered prior.
        pretrained: its weights.
        video: the user's own video file; None renders a room.
        question: about that video.
        steps: optimiser steps.
        questions: how many questions about the room to train on.
        seed: of the room, the questions and the training.
    """

    out: Path
    host: str | None = None
    prior: str = "tiny-wan"
    pretrained: str | None = None
    video: Path | None = None
    question: str | None = None
    steps: int = 200
    questions: int = 12
    seed: int = 0


def run(job: Job, say: Callable[[str], None] = lambda _: None) -> Report:
    """Run the demo; ``say`` is told what is going on.

    Raises:
        SettingsError: a video without a question, or the other way round.
        TrainError: another demo writes to that folder.
    """
    if (job.video is None) != (job.question is None):
        raise SettingsError("--video and --question go together: a question about your video, or neither.")
    claim = claim_folder(job.out, TrainError, "another demo", "Give it another folder: --out DIR.")
    try:
        return _run(job, say)
    finally:
        claim.release()


def _run(job: Job, say: Callable[[str], None]) -> Report:
    started = time.perf_counter()
    torch.manual_seed(job.seed)
    report = Report()
    shown = None if job.video is None else Sample(read_video(job.video, WINDOW), job.question or "")

    say("Rendering a fly-through of a room, writing it as a video and reading it back")
    samples = _room(job, report)
    say("Building the host" if job.host is None else f"Loading {job.host}")
    host = tiny_host() if job.host is None else real_host(job.host)
    batches = [encode(host.processor, sample) for sample in samples]
    shown = shown or Sample(samples[0].frames, samples[0].question)
    prompt = encode(host.processor, shown)
    model = host.build()
    before = logits_of(model, prompt)

    say(f"Patching with {job.prior}")
    _patch(job, report, host, model)
    _equal(report, "fresh patch changes nothing", before, logits_of(model, prompt))

    say(f"Training branch and LoRA with HF Trainer for {job.steps} steps")
    tuned = with_lora(model)
    _counts(report, tuned)
    loss = mean_loss(tuned, batches)
    checkpoint = train(tuned, batches, job.steps, job.out / "trainer", lr=5e-3 if host.tiny else 1e-4, seed=job.seed)
    tuned.eval()
    trained = mean_loss(tuned, batches)
    report.checks.append(Check("training lowers the loss", trained < loss, f"{loss:.3f} -> {trained:.3f}"))
    after = logits_of(tuned, prompt)
    report.checks.append(_moved("trained model differs from the base", before, after))

    say("Generating an answer, drawing shares and features")
    _pictures(job, report, tuned, host, shown, prompt)
    text = answer(tuned, host.processor, prompt)
    report.checks.append(Check(f"answer to {shown.question!r}", None, repr(text)))

    say("Saving, and loading into a fresh base")
    report.files["branch"] = save_pretrained(tuned, job.out / "branch")
    report.files["Trainer's checkpoint"] = checkpoint
    _equal(report, "checkpoint + fresh base = trained model", after, logits_of(_rebuilt(host, checkpoint, job), prompt))

    say("Taking the branch out again")
    bare = tuned.unload()
    unpatch(bare)
    _equal(report, "unpatch gives the base back", before, logits_of(bare, prompt))
    keys = set(bare.state_dict()) == set(host.build().state_dict()) if host.tiny else None
    if keys is not None:
        report.checks.append(Check("no key of the branch is left", keys, f"{len(bare.state_dict())} keys"))
    report.seconds = time.perf_counter() - started
    _write(job, report)
    return report


def _patch(job: Job, report: Report, host: DemoHost, model: nn.Module) -> None:
    settings: dict[str, Any] = {"projector": {"name": "mlp", "hidden_dim": 128}} if host.tiny else {}
    if job.prior == "tiny-wan":
        # The room's own aspect, so that nothing is cropped; large enough for a picture of the features.
        settings["size"] = (2 * ROOM_SIZE[0], 2 * ROOM_SIZE[1])
    store = job.out / "features"
    patch(model, job.prior, pretrained=job.pretrained, processor=host.processor, store=store, **settings)
    handle = get_handle(model)
    report.checks.append(
        Check("host, seam, prior", None, f"{handle.host}, {handle.seam.path}, {handle.settings.prior.name}")
    )


def _room(job: Job, report: Report) -> list[Sample]:
    """Questions about a rendered room, with the frames as a video file gives them back."""
    clip = render_room(ROOM_FRAMES, ROOM_SIZE, job.seed)
    report.files["room"] = job.out / "room.mp4"
    report.files["room's geometry"] = job.out / "room.npz"
    write_video(report.files["room"], clip.frames)
    save_geometry(clip, report.files["room's geometry"])
    frames = read_video(report.files["room"])
    report.checks.append(_same_video(clip, frames))
    return [
        Sample(frames[slice(*question.frames)], question.text, question.answer)
        for question in ask(clip, WINDOW, job.seed, job.questions)
    ]


def _same_video(clip: RoomClip, frames: NDArray[np.uint8]) -> Check:
    same = frames.shape == clip.frames.shape
    error = float(np.abs(frames.astype(float) - clip.frames).mean()) if same else float("inf")
    count, height, width = frames.shape[:3]
    return Check(
        "video survives mp4", same and error < 6, f"{count} frames {height}x{width}, mean error {error:.1f}/255"
    )


def _rebuilt(host: DemoHost, checkpoint: Path, job: Job) -> nn.Module:
    """The two lines that rebuild a trained model from what Trainer wrote."""
    from peft import PeftModel

    model = load_pretrained(host.build(), checkpoint, pretrained=job.pretrained, processor=host.processor)
    loaded: nn.Module = PeftModel.from_pretrained(model, checkpoint).eval()
    return loaded


def _pictures(
    job: Job, report: Report, model: nn.Module, host: DemoHost, shown: Sample, prompt: dict[str, Any]
) -> None:
    """The effective share over the frames, and the prior's feature map as colours."""
    with record_shares(model) as shares:
        logits_of(model, prompt)
    (share,) = shares
    if share.generative is not None:
        report.files["shares"] = job.out / "shares.png"
        share_overlay(
            shown.frames,
            share.generative.cpu().numpy(),
            report.files["shares"],
            title="After training: effective share of the generative tokens",
        )
    report.checks.append(Check("effective share per token", None, str(share)))
    (clip,) = _clips(model, prompt)
    features = get_handle(model).branch.features(clip).float().cpu()
    chosen = uniform_indices(features.shape[0], min(4, features.shape[0]))
    report.files["features"] = job.out / "features.png"
    name = get_handle(model).settings.prior.name
    note = " (random weights)" if name == "tiny-wan" else ""
    feature_picture(
        shown.frames,
        features.numpy()[chosen],
        report.files["features"],
        title=f"Features of {name}{note}, three main components as RGB",
        first_frames=[round(i * clip.frames.shape[0] / features.shape[0]) for i in chosen],
    )


def _clips(model: nn.Module, batch: dict[str, Any]) -> list[Clip]:
    """The clips that the seam sees in one forward."""
    with watching(model) as records:
        logits_of(model, batch)
    return [clip for record in records for clip in record.clips]


def _counts(report: Report, model: nn.Module) -> None:
    branch = {id(p) for p in get_handle(model).parameters()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    ours = sum(p.numel() for p in trainable if id(p) in branch)
    lora = sum(p.numel() for p in trainable if id(p) not in branch)
    report.checks.append(Check("branch trains under PEFT", ours > 0, f"branch {ours:,} + LoRA {lora:,} parameters"))


def _equal(report: Report, name: str, expected: Tensor, found: Tensor) -> None:
    difference = float((expected - found).abs().max())
    report.checks.append(Check(name, torch.equal(expected, found), f"largest difference of the logits: {difference:g}"))


def _moved(name: str, before: Tensor, after: Tensor) -> Check:
    difference = float((before - after).abs().max())
    return Check(name, difference > 0, f"largest difference of the logits: {difference:.3g}")


def _write(job: Job, report: Report) -> None:
    report.files["report"] = job.out / "report.json"
    values = {
        "passed": report.passed,
        "seconds": round(report.seconds, 1),
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(job).items()},
        "checks": [asdict(check) for check in report.checks],
    }
    write_json(report.files["report"], values)
