"""``vega3d look``: answers with and without the branch, and what is drawn, on one's own video or pictures."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import vega3d
from vega3d_plugin.cli.app import app
from vega3d_plugin.scenes.rendered import render_room
from vega3d_plugin.scenes.video import read_video, write_video
from vega3d_plugin.training.job import make_job
from vega3d_qwen_vl import tiny as qwen

pytestmark = pytest.mark.once
ASK = ["--question", "Which box is nearer?", "--max-new-tokens", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA checkpoint, one of a whole host, a branch alone, and a video."""
    root = tmp_path_factory.mktemp("look")
    common = ["train.max_steps=1", "train.report_rows=0", "train.learning_rate=0.05", "train.warmup_ratio=0.0"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_job("qwen_vl/smoke", [*common, f"train.output_dir={root}/lora"]).run()
        make_job(
            "qwen_vl/smoke", [*common, "lora=null", "tune={language: full}", f"train.output_dir={root}/full"]
        ).run()
        model = vega3d.patch(qwen.tiny_model(), "tiny-wan", projector={"name": "mlp", "hidden_dim": 32})
    vega3d.save_pretrained(model, root / "branch")
    write_video(root / "mine.mp4", render_room(6, (64, 96), 0).frames)
    return root


def look(*arguments: Any, out: Path) -> Result:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CliRunner().invoke(app, ["look", *map(str, arguments), *ASK, "--out", str(out)])


def test_answers_shares_and_pictures_of_a_video(folder: Path, tmp_path: Path) -> None:
    result = look(folder / "lora/checkpoint-1", "--video", folder / "mine.mp4", out=tmp_path)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "answers.json").read_text())
    assert list(found["answers"]) == ["base", "patched", "off", "zeroed"]
    (clip,) = found["clips"]
    # One step of Adam, either way.
    assert abs(clip["scale"]) == pytest.approx(0.05, rel=0.01)
    assert 0 < clip["generative"] < 0.05
    assert clip["host"] == pytest.approx(1 - clip["generative"])
    assert clip["change"] > 0
    for name in ("shares.png", "features.png"):
        assert np.ptp(np.asarray(Image.open(tmp_path / name))) > 100
    frames = read_video(tmp_path / "look.mp4")
    height, width = frames.shape[1:3]
    # The frame, the share over it, the features.
    assert width == 3 * round(height * 96 / 64 / 2) * 2
    page = (tmp_path / "look.html").read_text()
    assert "Which box is nearer?" in page
    assert "the branch switched off" in page
    assert f"generative {clip['generative']:.4g} (a = {clip['scale']:.4g})" in result.stdout.replace("\n", " ")


def test_pictures_of_several_sizes(folder: Path, tmp_path: Path) -> None:
    for name, size in (("a.png", (64, 64)), ("b.png", (96, 64))):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)).save(tmp_path / name)
    pictures = ["--images", tmp_path / "a.png", "--images", tmp_path / "b.png"]
    result = look(folder / "lora/checkpoint-1", *pictures, "--json", out=tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert sum(clip["grid"][0] for clip in found["clips"]) == 2
    assert Path(found["files"]["page"]).is_file()


def test_the_checkpoint_of_a_whole_host(folder: Path, tmp_path: Path) -> None:
    result = look(folder / "full/checkpoint-1", "--video", folder / "mine.mp4", "--frames", 2, out=tmp_path)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "answers.json").read_text())
    # The host as it was before is not in the checkpoint.
    assert list(found["answers"]) == ["patched", "off", "zeroed"]


def test_a_branch_alone_takes_its_host_by_name(folder: Path, tmp_path: Path) -> None:
    result = look(folder / "branch", "--video", folder / "mine.mp4", out=tmp_path)
    assert "does not say which host it belongs to. Name it: --host MODEL" in str(result.exception)
    torch.manual_seed(0)
    qwen.tiny_model().save_pretrained(tmp_path / "host")
    qwen.tiny_processor().save_pretrained(tmp_path / "host")
    named = look(folder / "branch", "--video", folder / "mine.mp4", "--host", tmp_path / "host", out=tmp_path / "out")
    assert named.exit_code == 0, named.output
    found = json.loads((tmp_path / "out/answers.json").read_text())
    # A fresh branch is the host alone.
    assert [(clip["host"], clip["change"]) for clip in found["clips"]] == [(1, 0)]
    assert found["answers"]["patched"] == found["answers"]["off"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --video or --images"),
        (["--video", "no.mp4"], "no.mp4 does not exist"),
        (["--video", "no.mp4", "--images", "a.png"], "either --video or --images"),
    ],
)
def test_what_cannot_be_looked_at(folder: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = look(folder / "lora/checkpoint-1", *arguments, out=tmp_path)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
