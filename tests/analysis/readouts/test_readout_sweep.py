"""The read-out of a sweep's cells."""

from __future__ import annotations

from dataclasses import replace

import pytest
import read_scenes

import vega3d
from vega3d_plugin.analysis.contexts import judged_views
from vega3d_plugin.analysis.readouts.for_sweeps import SHORT, SweepReadout
from vega3d_plugin.analysis.readouts.training import TrainingSettings
from vega3d_plugin.analysis.sweeping import sweep
from vega3d_plugin.errors import AnalysisError

SEEDS = range(6)


def test_cells_that_hold_the_answer_are_told_from_those_that_do_not() -> None:
    prior = read_scenes.giving(read_scenes.answers, SEEDS, "answers")
    views = [judged_views(prior, read_scenes.room(seed), 6) for seed in SEEDS]
    read = SweepReadout(replace(SHORT, steps=60, lr=4e-3))
    answers = read([read_scenes.answers(seed) for seed in SEEDS], views)
    noise = read([read_scenes.noise(seed) for seed in SEEDS], views)
    points, depth, auc, d1 = answers
    assert points == "read-out points (lower is better)"
    assert [auc, d1] == ["read-out auc@30", "read-out d1"]
    assert answers[points] < 0.6 * noise[points]
    assert answers[depth] < 0.7 * noise[depth]
    assert answers[d1] > noise[d1]
    assert read([read_scenes.answers(seed) for seed in SEEDS], views) == answers


def test_a_sweep_with_a_read_out_of_every_cell() -> None:
    prior = vega3d.load_prior("tiny-wan", size=(64, 96))
    result = sweep(
        prior.settings,
        read_scenes.rooms(4),
        timesteps=[100],
        taps=[0, 3],
        views=5,
        check=False,
        readout=SweepReadout(TrainingSettings(steps=1, depth_steps=1)),
    )
    assert len(result.readouts) == 4
    assert result.grid(result.readouts[0])[0][0] > 0
    assert "read-out d1" in result.table()


def test_a_read_out_needs_scenes_and_views() -> None:
    prior = read_scenes.giving(read_scenes.answers, SEEDS, "answers")
    read = SweepReadout(TrainingSettings(steps=1, depth_steps=1))
    few = [judged_views(prior, read_scenes.room(seed), 3) for seed in SEEDS]
    with pytest.raises(AnalysisError, match="judged on 3 views"):
        read([read_scenes.answers(seed)[:3] for seed in SEEDS], few)
    views = [judged_views(prior, read_scenes.room(seed), 6) for seed in range(3)]
    with pytest.raises(AnalysisError, match="at least 4 scenes, found 3"):
        read([read_scenes.answers(seed) for seed in range(3)], views)
