"""The whole job: does the branch help two small models, and do patch, LoRA, save, load and unpatch keep their word."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...analysis.pictures import feature_picture, share_overlay
from ...analysis.report import write_page
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
from .compared import SMALL_BRANCH, STEPS, WHO, Compared, Tick, compare
from .host import DemoHost, real_host, tiny_host
from .outcome import Check, Job, Report
from .page import demo_page
from .questions import ask
from .samples import Sample, answer, encode, logits_of, mean_loss
from .training import train, with_lora

WINDOW = 8  # frames per question
ROOM_FRAMES = 24
ROOM_SIZE = (112, 168)
LEAST_ROOMS = 4
HOST_STEPS = 200  # of a real host
LORA_STEPS = 40  # of a small one, which has been trained already


def run(job: Job, say: Callable[[str], None] = lambda _: None, tick: Tick = lambda done, total: None) -> Report:
    """Run the demo.

    Without a host two small ones are trained and compared; the rest is then shown on the one without the branch.

    Args:
        job: settings.
        say: is told what is going on.
        tick: is told how many steps of the two trainings are done, and of how many.

    Raises:
        SettingsError: a video without a question, or the other way round; too few rooms.
        TrainError: another demo writes to that folder.
    """
    if (job.video is None) != (job.question is None):
        raise SettingsError("--video and --question go together: a question about your video, or neither.")
    if job.rooms < LEAST_ROOMS:
        raise SettingsError(f"rooms is {job.rooms}: give at least {LEAST_ROOMS}, so that some can be held out.")
    claim = claim_folder(job.out, TrainError, "another demo", "Give it another folder: --out DIR.")
    try:
        return _run(job, say, tick)
    finally:
        claim.release()


def _run(job: Job, say: Callable[[str], None], tick: Tick) -> Report:
    started = time.perf_counter()
    report = Report()
    shown = None if job.video is None else Sample(read_video(job.video, WINDOW), job.question or "")
    if job.host is None:
        # Before rooms are rendered: what the small host needs may not be installed.
        tiny_host()
    torch.manual_seed(job.seed)
    say("Rendering a fly-through of a room, writing it as a video and reading it back")
    samples = _room(job, report)
    if job.host is None:
        compared = compare(job.prior, job.pretrained, job.rooms, job.steps or STEPS, job.seed, say, tick)
        report.compared = compared
        _figures(job, report, compared)
        host, samples = compared.host, compared.samples(job.questions)
        steps = LORA_STEPS
    else:
        say(f"Loading {job.host}")
        host, steps = real_host(job.host), job.steps or HOST_STEPS
    _parts(job, report, host, samples, shown or Sample(samples[0].frames, samples[0].question), steps, say)
    report.seconds = time.perf_counter() - started
    _write(job, report)
    return report


def _figures(job: Job, report: Report, compared: Compared) -> None:
    """The comparison as lines and a picture; figures and no checks, because either outcome is one."""
    for arm in compared.arms:
        report.checks.append(Check(f"right answers, {arm.name}", None, compared.share(arm).percent))
    difference = compared.difference
    seen = f"{difference.points}: {difference.verdict(WHO)} (over rooms, one seed)"
    report.checks.append(Check("difference, branch minus host", None, seen))
    if (share := compared.effective_share) is not None:
        report.files["branch over frames"] = job.out / "compared_shares.png"
        frames = compared.test.clips[compared.test.clip[compared.example]]
        share_overlay(frames, share, report.files["branch over frames"], title="Share of the generative tokens")


def _parts(
    job: Job,
    report: Report,
    host: DemoHost,
    samples: list[Sample],
    shown: Sample,
    steps: int,
    say: Callable[[str], None],
) -> None:
    """Patch, train with LoRA, answer, save, load and unpatch, each with its check."""
    torch.manual_seed(job.seed)
    batches = [encode(host.processor, sample) for sample in samples]
    prompt = encode(host.processor, shown)
    model = host.build()
    before = logits_of(model, prompt)

    say(f"Patching with {job.prior}")
    _patch(job, report, host, model)
    _equal(report, "fresh patch changes nothing", before, logits_of(model, prompt))

    say(f"Training branch and LoRA with HF Trainer for {steps} steps")
    tuned = with_lora(model)
    _counts(report, tuned)
    loss = mean_loss(tuned, batches)
    checkpoint = train(tuned, batches, steps, job.out / "trainer", lr=5e-3 if host.tiny else 1e-4, seed=job.seed)
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


def _patch(job: Job, report: Report, host: DemoHost, model: nn.Module) -> None:
    settings: dict[str, Any] = dict(SMALL_BRANCH) if host.tiny else {}
    if job.prior == "tiny-wan" and not host.tiny:
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
    if report.compared is not None:
        report.files["report"] = write_page(demo_page(report, report.compared, job), job.out / "report.html")
    report.files["figures"] = job.out / "report.json"
    values = {
        "passed": report.passed,
        "seconds": round(report.seconds, 1),
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(job).items()},
        "checks": [asdict(check) for check in report.checks],
    }
    if report.compared is not None:
        values["compared"] = report.compared.to_dict()
    write_json(report.files["figures"], values)
