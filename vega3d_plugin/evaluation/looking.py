"""One question about one's own video or pictures: the answers, what the prior adds to each token, and what it sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from ..analysis.pictures import feature_picture, feature_rgb, heated, share_overlay
from ..analysis.report import Card, Cards, Facts, Gallery, Page, Picture, Section, Table, write_page
from ..branch.handle import get_handle
from ..branch.switches import disabled, zeroed
from ..checkpoints.reading import saved_folder
from ..checkpoints.saving import load_pretrained
from ..checkpoints.trainer_folder import find_trained, with_adapter
from ..contracts.clips import Clip
from ..contracts.errors import SavedBranchError
from ..contracts.printable import one_line
from ..contracts.shares import Shares
from ..recipes.blocks import DataSettings
from ..scenes.video import write_video
from ..storage.record import read_run
from ..storage.writing import write_json
from ..training.answers import encode_question, generate, takes_points
from ..training.rows.conversation import Medium, Turn
from ..training.rows.encoding import Encoder
from ..training.samples import clip_pixels, recording
from .harness_host import trained_host, trained_processor

#: Settings of the data that say how frames reach the host; by default those of training.
_SHOWN = ("preset", "frames", "sampling", "fps", "min_frames", "folder_fps", "video_as", "resize", "video_max_pixels")
#: Clips of which pictures are drawn, and frames a second of the video.
_CLIPS, _FPS = 4, 2
_HEIGHT = 240  # of the video, pixels
NAMES = {
    "base": "the host alone, without adapter and branch",
    "patched": "as trained, with the branch",
    "off": "the branch switched off",
    "zeroed": "the generative tokens zero",
}


@dataclass(frozen=True)
class Looked:
    """What was found.

    Attributes:
        question: that was asked.
        answers: by a name of :data:`NAMES`.
        clips: what the branch was given, with the shares of its tokens.
        features: the prior's feature map of each clip, float32 ``[T', C, h, w]``.
        prior: its name.
        files: what was written, by a short name.
    """

    question: str
    answers: dict[str, str]
    clips: list[tuple[Clip, Shares]]
    features: list[NDArray[np.float32]]
    prior: str
    files: dict[str, Path] = field(default_factory=dict)


def look(
    checkpoint: str | Path,
    question: str,
    *,
    out: Path,
    video: Path | None = None,
    images: Sequence[Path] = (),
    host: str | None = None,
    pretrained: str | None = None,
    frames: int | None = None,
    max_new_tokens: int = 64,
    device: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Looked:
    """Ask a trained branch one question, and draw what it does.

    Args:
        checkpoint: a saved branch, or a checkpoint of a trainer.
        question: about the video or the images.
        out: folder for pictures, video, page and answers.
        video: a video, or a folder of its frames.
        images: pictures, instead of a video.
        host: folder or hub id of the host; default: that which the checkpoint says it was trained on.
        pretrained: the prior's weights.
        frames: of the video; default: as in training, else 8.
        max_new_tokens: of an answer.
        device: default: CUDA when there is any.
        say: is told what is going on.

    Raises:
        SavedBranchError: no branch, or it is not known what host it belongs to.
        RowError: a picture or video that cannot be read.
    """
    say("Loading host, branch and prior")
    model, encoder = _loaded(checkpoint, host, pretrained, frames, device)
    media = [Medium("image", path) for path in images] if video is None else [Medium("video", _frames_of(video))]
    turns = [Turn("user", (*media, question))]
    if encoder.settings.system is not None:
        turns.insert(0, Turn("system", (encoder.settings.system,)))
    prompt = encode_question(encoder, turns)
    clips: list[tuple[Clip, Shares]] = []
    answers = {}
    for name, context in _variants(model).items():
        say(f"Answering: {NAMES[name]}")
        with context, recording(model, clips) if name == "patched" else nullcontext():
            answers[name], _ = generate(model, encoder.processor, prompt, max_new_tokens=max_new_tokens)
    branch = get_handle(model).branch
    say("Drawing")
    features = [branch.features(clip).float().cpu().numpy() for clip, _ in clips[:_CLIPS]]
    found = Looked(question, answers, clips, features, branch.settings.prior.name)
    _write(found, out)
    return found


def _loaded(
    checkpoint: str | Path, host: str | None, pretrained: str | None, frames: int | None, device: str | None
) -> tuple[nn.Module, Encoder]:
    """The trained model, and what encodes questions as in training."""
    folder = saved_folder(checkpoint)
    run = read_run(folder, SavedBranchError)
    host = host or (None if run is None else (run["settings"].get("host") or {}).get("model"))
    if host is None:
        raise SavedBranchError(f"{checkpoint} does not say which host it belongs to. Name it: --host MODEL.")
    trained = find_trained(host, checkpoint)
    if trained.branch is None:
        raise SavedBranchError(f"{checkpoint} holds no branch.")
    processor = trained_processor(trained)
    model = trained_host(trained, device=device)
    load_pretrained(model, trained.branch, pretrained=pretrained, processor=processor)
    shown = {key: trained.data[key] for key in (*_SHOWN, "system") if trained.data.get(key) is not None}
    if frames is not None:
        shown |= {"frames": frames, "min_frames": min(frames, shown.get("min_frames", 1))}
    settings = DataSettings.parse({"files": ("-",), **shown})
    model = with_adapter(model, trained.adapter).eval()
    return model, Encoder(processor, settings, points=takes_points(model))


def _variants(model: nn.Module) -> dict[str, AbstractContextManager[Any]]:
    """What is asked, in order."""
    found: dict[str, AbstractContextManager[Any]] = {}
    if hasattr(model, "disable_adapter"):
        found["base"] = _alone(model)
    return {**found, "patched": nullcontext(), "off": disabled(model), "zeroed": zeroed(model)}


@contextmanager
def _alone(model: Any) -> Iterator[None]:
    """The host without its adapter and without the branch."""
    with model.disable_adapter(), disabled(model):
        yield


def _frames_of(video: Path) -> Any:
    from ..scenes.images import find_images, in_order

    return in_order(find_images(video)) if video.is_dir() else video


def _write(found: Looked, out: Path) -> None:
    pictures: list[Picture] = []
    for number, ((clip, shares), features) in enumerate(zip(found.clips, found.features, strict=False), 1):
        more = "" if len(found.clips) == 1 else f"_{number}"
        if shares.generative is not None:
            path = found.files[f"shares{more}"] = out / f"shares{more}.png"
            rows = [clip.frames.shape[0] * row // clip.grid.t for row in range(clip.grid.t)]
            title = "Effective share of the generative tokens"
            share_overlay(clip_pixels(clip), shares.generative.cpu().numpy(), path, title, rows)
            pictures.append(Picture(path.read_bytes(), f"{title}: {shares}", str(shares)))
        path = found.files[f"features{more}"] = out / f"features{more}.png"
        title = f"Features of {found.prior}, three main components as RGB"
        firsts = [clip.frames.shape[0] * step // len(features) for step in range(len(features))]
        feature_picture(clip_pixels(clip), features, path, title, firsts)
        pictures.append(Picture(path.read_bytes(), title))
    moments = _moments(found)
    if moments:
        found.files["video"] = out / "look.mp4"
        write_video(found.files["video"], np.stack(moments), fps=_FPS)
    found.files["answers"] = out / "answers.json"
    write_json(found.files["answers"], as_values(found))
    found.files["page"] = out / "look.html"
    write_page(_page(found, pictures), found.files["page"])


def as_values(found: Looked) -> dict[str, Any]:
    """Plain values for JSON."""
    return {
        "question": found.question,
        "answers": found.answers,
        "prior": found.prior,
        "clips": [
            {
                "kind": clip.kind,
                "grid": [clip.grid.t, clip.grid.h, clip.grid.w],
                "measure": shares.measure,
                "host": None if shares.host is None else float(shares.host.mean()),
                "generative": None if shares.generative is None else float(shares.generative.mean()),
                "change": float(shares.change.mean()),
                "scale": shares.scale,
            }
            for clip, shares in found.clips
        ],
        "files": {name: str(path) for name, path in found.files.items()},
    }


def _moments(found: Looked) -> list[NDArray[np.uint8]]:
    """Frames of the video: the frame, the prior's share over it, and the features as colours, side by side."""
    moments: list[NDArray[np.uint8]] = []
    highest = max((float(s.generative.max()) for _, s in found.clips if s.generative is not None), default=0.0)
    size: tuple[int, int] | None = None
    for (clip, shares), features in zip(found.clips, found.features, strict=False):
        frames, colours = clip_pixels(clip), feature_rgb(features)
        if size is None:
            size = (max(2, round(frames.shape[2] * _HEIGHT / frames.shape[1] / 2) * 2), _HEIGHT)
        for place, pixels in enumerate(frames):
            frame = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
            panels = [frame]
            if shares.generative is not None:
                plane = shares.generative[place * clip.grid.t // len(frames)].double().cpu().numpy()
                panels.append(heated(frame, plane / highest if highest > 0 else np.zeros_like(plane)))
            colour = Image.fromarray(colours[place * len(colours) // len(frames)])
            panels.append(colour.resize(size, Image.Resampling.NEAREST))
            moments.append(np.concatenate([np.asarray(panel) for panel in panels], axis=1))
    return moments


def _page(found: Looked, pictures: Sequence[Picture]) -> Page:
    rows = [(NAMES[name], one_line(said) or "(nothing)") for name, said in found.answers.items()]
    sections = [
        Section("Answers", [Table(["", "answer"], rows, [list(found.answers).index("patched")], numeric=False)])
    ]
    if pictures:
        lead = "How much of each fused token comes from the prior, and what the prior sees in the frames."
        sections.append(Section("Shares and features", [Gallery(pictures, wide=True)], lead))
    facts = [("prior", found.prior), *((name, path.name) for name, path in found.files.items() if name != "page")]
    sections.append(Section("Files", [Facts(facts)]))
    return Page(found.question, sections, "vega3d look", top=[Cards(_cards(found))])


def _cards(found: Looked) -> list[Card]:
    if not found.clips:
        return [Card("clips", "0", "the branch was given none", "bad")]
    shares = found.clips[0][1]
    cards = [Card("relative change of a token", f"{float(shares.change.mean()):.4g}", "mean over the first clip")]
    if shares.generative is not None:
        cards.insert(0, Card("share of the prior", f"{float(shares.generative.mean()):.4g}", shares.measure))
    if shares.scale is not None:
        cards.append(Card("learned scale a", f"{shares.scale:.4g}"))
    return cards
