"""Clips side by side: agreement, its control, and the video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from judged import giving, picked, room
from typer.testing import CliRunner

import vega3d
from vega3d_plugin.analysis import adjacent
from vega3d_plugin.analysis.side_by_side import side_by_side
from vega3d_plugin.cli.app import app
from vega3d_plugin.demo.video import read_video, write_video
from vega3d_plugin.errors import AnalysisError
from vega3d_plugin.scenes.scene import Scene


def moving(views: int = 6) -> Scene:
    """A clip whose frames have nothing in common."""
    frames = torch.rand(views, 3, 48, 64, generator=torch.Generator().manual_seed(1))
    return Scene.from_arrays(frames, name="noise", source="made")


def test_one_clip_agrees_with_itself_at_the_same_time_only() -> None:
    prior = vega3d.CallablePrior(torch.nn.AvgPool2d(8), 3, fingerprint="pooled")
    found = side_by_side(prior, [moving(), moving()], 6)
    (each,) = found.agreements
    assert found.names == ("noise (1)", "noise (2)")
    assert each.centred == pytest.approx([1.0] * 6, abs=1e-5)
    assert max(each.other_time) < 0.99
    assert "another time" in found.table()


def test_the_consistency_is_the_released_one() -> None:
    prior = vega3d.load_prior("tiny-wan", size=(48, 80))
    found = side_by_side(prior, [picked(room(0)), picked(room(1))], 4)
    (each,) = found.agreements
    expected = [adjacent.token_consistency(found.features[0][t], found.features[1][t]) for t in range(4)]
    assert each.raw == pytest.approx(expected)


def test_pictures_show_three_clips_of_different_sizes() -> None:
    prior = vega3d.load_prior("tiny-wan", size=(48, 80), context="video")
    clips = [picked(room(0)), picked(room(1)), moving(5)]
    found = side_by_side(prior, clips, 12)
    assert [len(frames) for frames in found.frames] == [5, 5, 5]
    assert [len(maps) for maps in found.features] == [5, 5, 5]
    assert len(found.agreements) == 3
    pictures = found.pictures()
    assert pictures.dtype == np.uint8
    assert pictures.shape[0] == 5
    assert pictures.shape[1] % 2 == pictures.shape[2] % 2 == 0
    assert (pictures[0] != pictures[1]).any()


def test_what_cannot_be_compared() -> None:
    prior = giving(torch.rand(2, 3, 4, 4), "random")
    with pytest.raises(AnalysisError, match="Two or three clips"):
        side_by_side(prior, [moving()])
    with pytest.raises(AnalysisError, match=r"'noise' has 1"):
        side_by_side(prior, [moving(1), moving()])
    broken = giving(torch.full((6, 3, 4, 4), float("nan")), "broken")
    with pytest.raises(AnalysisError, match="on clip 'noise'"):
        side_by_side(broken, [moving(), moving()])


def test_the_command(tmp_path: Path) -> None:
    frames = (picked(room(0)).frames().permute(0, 2, 3, 1) * 255).byte().numpy()
    write_video(tmp_path / "agent.mp4", frames)
    out = tmp_path / "out" / "both.mp4"
    arguments = [
        "triview",
        str(tmp_path / "agent.mp4"),
        "room:1?views=5&size=72x96",
        "--prior",
        "tiny-wan?size=[48,80]",
    ]
    result = CliRunner().invoke(app, ["analyse", *arguments, "--frames", "4", "--out", str(out)])
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert "agent and room_0001" in result.output
    assert len(read_video(out)) == 4
    assert [path.name for path in out.parent.iterdir()] == ["both.mp4"]
