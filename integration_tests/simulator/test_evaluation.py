"""OpenVLA-OFT's real ``run_libero_eval.py`` through ``vega3d run``, in the real simulator: success rate and videos."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from scripts import said
from test_run_hosts import action_tokenizer

from simulator import policy
from simulator.tasks import needs_libero
from vega3d_plugin.scenes.video import read_video

pytestmark = needs_libero
STEPS, EPISODES = 20, 2


@dataclass(frozen=True)
class Evaluation:
    """What one run left.

    Attributes:
        checkpoint: that was evaluated.
        log: of OFT's script.
        lines: that ``vega3d run`` said.
        videos: folder of them.
    """

    checkpoint: Path
    log: str
    lines: list[str]
    videos: Path


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """One task of libero_spatial, 20 steps an episode; the policy looks at every step."""
    folder = tmp_path_factory.mktemp("libero")
    recipe = policy.write_recipe(folder / "recipe.yaml", history=3)
    checkpoint = policy.write_checkpoint(folder / "tiny--4_chkpt", recipe, action_tokenizer())
    options = ("--num_trials_per_task", EPISODES, "--num_open_loop_steps", 1, "--env_img_res", 128)
    run = ("--record", folder / "videos")
    log, text = policy.evaluate(recipe, checkpoint, folder / "logs", STEPS, 0, *options, run=run)
    return Evaluation(checkpoint, log, said(text), folder / "videos")


def observations(evaluation: Evaluation) -> list[list[dict]]:
    """For each episode what was recorded of each observation."""
    files = sorted(evaluation.videos.glob("*.json"))
    return [json.loads(file.read_text())["observations"] for file in files]


def test_the_script_prints_its_success_rate(evaluation: Evaluation) -> None:
    # The script catches what goes wrong in an episode, counts it as failed, and goes on.
    assert "Episode error" not in evaluation.log
    assert f"Total episodes: {EPISODES}" in evaluation.log
    # A random policy does not solve the task in 20 steps; the figure is the simulator's own.
    assert re.search(r"Overall success rate: 0\.0000 \(0\.0%\)", evaluation.log)


def test_the_checkpoints_branch_is_restored(evaluation: Evaluation) -> None:
    line = f"OpenVLAForActionPrediction from {evaluation.checkpoint} has the branch of {evaluation.checkpoint}"
    assert line in evaluation.lines


def test_the_seam_fires_at_every_step_with_both_cameras(evaluation: Evaluation) -> None:
    for episode in observations(evaluation):
        assert len(episode) == STEPS
        assert [row["views"] for row in episode] == [2] * STEPS


def test_every_episode_begins_without_a_past(evaluation: Evaluation) -> None:
    # Two cameras, three observations at most.
    assert [[sum(row["earlier_frames"]) for row in e] for e in observations(evaluation)] == [
        [0, 2, *[4] * (STEPS - 2)]
    ] * EPISODES
    assert any("an episode begins at each call of robosuite" in line for line in evaluation.lines)


def test_the_videos_show_two_pictures_that_change(evaluation: Evaluation) -> None:
    videos = sorted(evaluation.videos.glob("*.mp4"))
    assert len(videos) == EPISODES
    for video in videos:
        frames = read_video(video)
        assert len(frames) == STEPS
        left, right = frames[:, 22:182, :160], frames[:, 22:182, 168:328]
        # Table and hand: both lit, neither the other's copy, and the hand's camera moves with the arm.
        assert left.std() > 20
        assert right.std() > 20
        assert abs(left[0].astype(float) - right[0]).mean() > 10
        assert abs(right[0].astype(float) - right[-1]).mean() > 1


def test_the_shares_are_those_of_a_trained_branch(evaluation: Evaluation) -> None:
    for episode in observations(evaluation):
        assert all(row["scale"] == pytest.approx(0.6, abs=0.01) for row in episode)
        assert all(0.05 < share < 0.6 for row in episode for share in row["generative_share"])
