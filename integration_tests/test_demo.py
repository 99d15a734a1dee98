"""The demo does the whole job, reports what went wrong, and takes the user's own video and host."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vega3d_plugin.contracts import errors
from vega3d_plugin.evaluation.demo import job
from vega3d_plugin.evaluation.demo.job import run
from vega3d_plugin.evaluation.demo.outcome import Job
from vega3d_plugin.evaluation.demo.page import answer_in_words
from vega3d_plugin.evaluation.verdicts import gain, share
from vega3d_plugin.scenes.rendered import render_room
from vega3d_plugin.scenes.video import write_video
from vega3d_qwen_vl.tiny import tiny_model, tiny_processor


def test_the_embedded_default(tmp_path: Path) -> None:
    said: list[str] = []
    ticks: list[tuple[int, int]] = []
    report = run(Job(tmp_path, steps=12, questions=6, rooms=6), said.append, lambda *tick: ticks.append(tick))
    assert report.passed, [check for check in report.checks if check.passed is False]
    assert sum(check.passed is True for check in report.checks) >= 7
    assert len(said) == 10
    assert ticks.count((12, 12)) == 2
    for path in report.files.values():
        assert path.exists()
    for name in ("shares.png", "features.png", "compared_shares.png"):
        assert np.asarray(Image.open(tmp_path / name).convert("RGB")).std() > 20
    assert {"depth", "world_to_camera", "intrinsics"} <= set(np.load(tmp_path / "room.npz").files)
    compared = report.compared
    assert compared is not None
    # Equal starts and equal rows: what differs is the branch, which began as an identity or nearly so.
    assert abs(compared.alone.losses[0] - compared.branch.losses[0]) < 0.5
    assert compared.alone.losses[1:] != compared.branch.losses[1:]
    assert compared.prior_parameters > 1_000_000
    assert not {*compared.train.room.tolist()} & {*compared.test.room.tolist()}
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["passed"]
    assert [check["name"] for check in written["checks"]] == [check.name for check in report.checks]
    for arm in (compared.alone, compared.branch):
        assert written["compared"]["arms"][arm.name]["right"]["all"]["value"] == round(float(arm.right.mean()), 4)
    page = (tmp_path / "report.html").read_text()
    assert answer_in_words(compared).split("(")[0] in page
    assert all(compared.test.questions[number].text in page for number in compared.shown())


def test_a_verdict_says_that_one_seed_was_trained() -> None:
    rooms = np.repeat(np.arange(20), 5)
    right = np.ones((1, 100))
    difference = gain(right, np.zeros_like(right), rooms)
    compared: Any = SimpleNamespace(
        difference=difference, alone=None, branch=None, prior="some-prior", test=SimpleNamespace(room=rooms)
    )
    compared.share = lambda arm: share(right, rooms)
    said = answer_in_words(compared)
    assert "On 20 rooms" in said
    assert "The branch is better: the interval does not contain 0. Intervals are over rooms alone: one seed" in said


@pytest.mark.once
def test_a_broken_promise_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leaky(model: torch.nn.Module) -> torch.nn.Module:
        return model

    monkeypatch.setattr(job, "unpatch", leaky)
    report = run(Job(tmp_path, steps=1, questions=3, rooms=4))
    assert not report.passed
    failed = [check.name for check in report.checks if check.passed is False]
    assert failed == ["unpatch gives the base back", "no key of the branch is left"]


@pytest.mark.once
def test_the_users_own_video_and_host(tmp_path: Path) -> None:
    video, host = tmp_path / "mine.mp4", tmp_path / "host"
    write_video(video, render_room(12, (96, 128), seed=3).frames)
    tiny_model().save_pretrained(host)
    tiny_processor().save_pretrained(host)
    report = run(Job(tmp_path / "out", host=str(host), video=video, question="Is it a room?", steps=2, questions=4))
    assert report.compared is None
    names = [check.name for check in report.checks]
    assert "answer to 'Is it a room?'" in names
    fresh = next(check for check in report.checks if check.name == "fresh patch changes nothing")
    assert fresh.passed


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"video": Path("mine.mp4")}, errors.SettingsError, "go together"),
        ({"question": "What?"}, errors.SettingsError, "go together"),
        ({"video": Path("none.mp4"), "question": "What?"}, errors.VideoError, "does not exist"),
        ({"host": "/no/such/host"}, errors.HostError, "does not exist"),
        ({"prior": "tiny-wann"}, errors.Vega3dError, "tiny-wan"),
        ({"rooms": 1}, errors.SettingsError, "at least 4"),
    ],
)
def test_mistakes(tmp_path: Path, options: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        run(Job(tmp_path, **{"steps": 1, "questions": 4, "rooms": 4, **options}))
