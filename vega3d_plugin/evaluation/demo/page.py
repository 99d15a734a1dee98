"""The demo's report: what was asked, what both models said, and what may be concluded."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ...analysis.report import (
    Card,
    Cards,
    Details,
    DotPanel,
    DotRow,
    Dots,
    Facts,
    Finding,
    Findings,
    Gallery,
    Line,
    Lines,
    Page,
    Picture,
    PictureRow,
    PictureRows,
    Prose,
    Section,
    Table,
)
from ...analysis.report.blocks import Tone
from ...storage.versions import package_version
from ..verdicts import Estimate
from .clips import CLIPS, FRAMES
from .compared import WHO, Compared
from .outcome import Job, Report

SMOOTH = 16  # steps that a point of the loss is the mean of
_PACKAGES = ("torch", "transformers", "peft", "diffusers")

#: Behind every verdict.
ONE_SEED = "Intervals are over rooms alone: one seed was trained, and another one may turn out otherwise."
ONE_RUN = (
    "The intervals say how sure a figure is on other rooms like these. They do not say what another seed of the "
    "training would give: this is one run of a toy. `benchmarks/evidence/language_experiment.py` repeats it with "
    "several seeds, an untrained twin and the features of other clips. Kinds of questions are judged one by one, so "
    "one of three that looks better may be chance."
)


def demo_page(report: Report, compared: Compared, job: Job) -> Page:
    """The page of a demo that compared two small models."""
    return Page(
        "Does the branch help answer where things are?",
        [
            _questions(compared),
            _accuracy(compared),
            _inside(report, compared),
            _parts(report),
            _made(compared, job),
        ],
        eyebrow="vega3d demo",
        lead=answer_in_words(compared),
        top=[_cards(compared)],
    )


def answer_in_words(compared: Compared) -> str:
    """The outcome in a few sentences."""
    difference = compared.difference
    alone, branch = compared.share(compared.alone), compared.share(compared.branch)
    rooms = len(set(compared.test.room.tolist()))
    found = f"On {rooms} rooms that neither model saw, the host alone answers {alone.percent} of the questions "
    found += f"rightly, and with the branch ({compared.prior}) {branch.percent}. "
    return f"{found}The difference is {difference.points}. {difference.verdict(WHO).capitalize()}. {ONE_SEED}"


def _tone(difference: Estimate) -> Tone:
    if difference.better is None:
        return "open"
    return "good" if difference.better else "bad"


def _cards(compared: Compared) -> Cards:
    alone, branch, difference = (
        compared.share(compared.alone),
        compared.share(compared.branch),
        compared.difference,
    )
    return Cards(
        [
            Card("host alone", f"{100 * alone.value:.0f}%", alone.percent),
            Card(f"host + branch ({compared.prior})", f"{100 * branch.value:.0f}%", branch.percent),
            Card(
                "difference, one seed",
                f"{100 * difference.value:+.1f}",
                f"{difference.points}: {difference.verdict(WHO)}",
                _tone(difference),
            ),
            Card("a model that sees nothing", "50%", "each answer to a question is equally frequent"),
        ]
    )


def _questions(compared: Compared) -> Section:
    rows = []
    for number in compared.shown():
        question = compared.test.questions[number]
        frames = compared.test.clips[compared.test.clip[number]]
        said = ", ".join(f"{arm.name}: {compared.said(arm, number)}" for arm in (compared.alone, compared.branch))
        pictures = [
            Picture.of(Image.fromarray(frame), f"frame {index + 1} of a rendered room", pixelated=True)
            for index, frame in enumerate(frames)
        ]
        rows.append(PictureRow(f"{question.text} Right: {question.answer}. {said}", pictures))
    columns = [f"frame {index + 1}" for index in range(FRAMES)]
    return Section(
        "What was asked",
        [PictureRows(columns, rows)],
        "Rooms are rendered, so every answer is known exactly. One question of each kind, and one that the models "
        "answer differently, if there is one.",
    )


def _accuracy(compared: Compared) -> Section:
    panels = [
        DotPanel(
            kind,
            [
                DotRow(arm.name, *_three(compared.share(arm, kind)), strong=arm is compared.branch)
                for arm in compared.arms
            ],
            f"{int((compared.test.kinds == kind).sum())} questions",
        )
        for kind in compared.kinds
    ]
    gains = [(kind or "all", compared.gain(kind)) for kind in (None, *compared.kinds)]
    rows = [[kind, gain.points, gain.verdict(WHO)] for kind, gain in gains]
    head = ("questions", "branch minus host alone", "verdict (over rooms, one seed)")
    table = Table(head, rows, strong=(0,), numeric=False)
    losses = Lines(
        "Loss while training",
        [Line(arm.name, _smooth(arm.losses)) for arm in (compared.alone, compared.branch)],
        below="step",
        about=f"Both start from equal weights and see equal rows in an equal order; means of {SMOOTH} steps.",
    )
    return Section(
        "How often they are right",
        [Dots(panels), table, losses, Prose([ONE_RUN], small=True)],
        "Held-out rooms alone; intervals are 95%, drawn over whole rooms. `features zero` is the model with the "
        "branch, its features replaced by zeros after training: what it loses is what it reads from them.",
    )


def _three(found: Estimate) -> tuple[float, float, float]:
    """Without an interval, the value alone."""
    low, high = (found.value if end is None else end for end in (found.low, found.high))
    return found.value, low, high


def _smooth(losses: list[float]) -> list[tuple[float, float]]:
    starts = range(0, len(losses), SMOOTH)
    return [(float(start + 1), float(np.mean(losses[start : start + SMOOTH]))) for start in starts]


def _inside(report: Report, compared: Compared) -> Section:
    over = compared.gain(over=compared.zeroed)
    items = [
        Finding(
            f"The model with the branch minus the same model with its features zero: {over.points}. "
            + ("It reads them." if over.better else "Nothing shows that it needs them."),
            "good" if over.better else "open",
        )
    ]
    blocks = []
    share = compared.effective_share
    if share is not None:
        items.append(
            Finding(
                f"The generative tokens' effective share of a fused token is {share.mean():.3f} on the pictures below, "
                f"from {share.min():.3f} to {share.max():.3f}. It was about 0.1 before training: the start is open, "
                "because in so few steps an identity start would keep the branch nearly closed.",
                "note",
            )
        )
    captions = {
        "branch over frames": "Effective share of the generative tokens after training, on a held-out clip.",
        "features": f"What {compared.prior} makes of the same frames: three main components as colours.",
    }
    pictures = [
        Picture(report.files[name].read_bytes(), caption, caption)
        for name, caption in captions.items()
        if name in report.files
    ]
    if pictures:
        blocks.append(Gallery(pictures, wide=True))
    cost = Table(
        ("what it costs", "host alone", "host + branch"),
        [
            ["parameters that train", f"{compared.alone.parameters:,}", f"{compared.branch.parameters:,}"],
            ["frozen parameters of the prior", "0", f"{compared.prior_parameters:,}"],
            ["a training step, ms", *(f"{1000 * arm.seconds / compared.steps:.0f}" for arm in compared.arms[:2])],
            ["the prior, ms a frame, once", "0", f"{1000 * compared.prior_seconds / FRAMES:.1f}"],
            ["features, bytes a frame", "0", f"{compared.feature_bytes // FRAMES:,}"],
        ],
    )
    return Section("Where the branch acts, and what it costs", [Findings(items), *blocks, cost])


def _parts(report: Report) -> Section:
    marks = {True: "pass", False: "FAIL", None: "figure"}
    rows = [[check.name, marks[check.passed], check.seen] for check in report.checks]
    failed = [check.name for check in report.checks if check.passed is False]
    lead = f"These failed: {', '.join(failed)}." if failed else "Every promise that was checked holds."
    return Section("The parts keep their word", [Table(("check", "", "seen"), rows, numeric=False)], lead)


def _made(compared: Compared, job: Job) -> Section:
    train, test = compared.train, compared.test
    pairs = [
        ("host", "a random Qwen2.5-VL of toy size, with a token for each word of the questions"),
        ("prior", ", ".join(f"{key} {value}" for key, value in compared.settings.items() if value is not None)),
        ("rooms", f"{len(set(train.room.tolist()))} to train on, {len(set(test.room.tolist()))} held out"),
        ("clips", f"{len(train.clips)} and {len(test.clips)}, up to {CLIPS} a room and each backwards too"),
        ("questions", f"{len(train)} and {len(test)}"),
        ("training", f"{compared.steps} steps, {compared.optimiser}, every parameter of the host"),
        ("seed", str(job.seed)),
        *((name, package_version(name) or "not installed") for name in _PACKAGES),
    ]
    return Section("How it was made", [Details("Settings and versions", [Facts(pairs)])])
