"""The training of small-world: the quick forward pass, curriculum, and a run that is interrupted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_world.curriculum import Batches, Stage, curriculum, draw_batch, stage_at
from small_world.model import build_transformer, predict, to_frames, to_latents
from small_world.quick import predict_quickly
from small_world.training import STATE, Run, TrainingSettings, read_run
from small_world.worlds import WorldSettings

TINY = TrainingSettings(steps=6, clips=4, width=32, blocks=2, seed=3)
SMALL = WorldSettings(size=6, frames=3)


def test_the_quick_forward_pass_is_that_of_diffusers() -> None:
    transformer = build_transformer(width=64, blocks=3, seed=1)
    with torch.no_grad():
        for parameter in transformer.parameters():  # norms and tables that do nothing at first would hide mistakes
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
        batch = draw_batch(Stage(1, SMALL, copying=0.5), 3, seed=1)
        plain = predict(transformer, batch.noisy, batch.sigmas)
        quick = predict_quickly(transformer, batch.noisy, batch.sigmas)
    assert float(plain.std()) > 0.1
    torch.testing.assert_close(quick, plain, rtol=1e-4, atol=1e-5)


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole, first = Run(tmp_path / "whole", TINY), Run(tmp_path / "parts", TINY)
    whole.train(workers=0)
    first.train(until=2, workers=0)
    again = read_run(tmp_path / "parts")
    assert again.step == 2
    again.train(workers=1)
    expected = whole.transformer.state_dict()
    assert again.step == whole.step == 6
    for name, tensor in again.transformer.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    start = Run(tmp_path / "start", TINY).transformer.state_dict()
    moved = [name for name in expected if not torch.equal(expected[name], start[name])]
    assert {"proj_out.weight", "blocks.1.attn1.to_q.weight", "patch_embedding.weight"} <= set(moved)


def test_a_run_is_not_gone_on_with_under_other_settings(tmp_path: Path) -> None:
    Run(tmp_path, TINY).train(until=1, workers=0)
    with pytest.raises(SystemExit, match=r"'rate': 0\.002.*'rate': 0\.5"):
        Run(tmp_path, replace(TINY, rate=0.5))


def test_a_damaged_state_and_none(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=STATE):
        read_run(tmp_path)
    (tmp_path / STATE).write_bytes(b"not a state")
    with pytest.raises(SystemExit, match=rf"{STATE}.*damaged"):
        read_run(tmp_path)


def test_training_learns(tmp_path: Path) -> None:
    settings = replace(TINY, steps=60, clips=8)
    losses: list[float] = []
    Run(tmp_path, settings).train(every=10, workers=0, report=lambda run, figures: losses.append(figures["loss"]))
    assert len(losses) == 6
    assert losses[-1] < 0.7 * losses[0]


def test_noise_levels() -> None:
    copied = draw_batch(Stage(1, SMALL, copying=1.0), 64, seed=1).sigmas
    assert ((copied <= 0.1).sum(1) == 1).all()
    assert ((copied >= 0.4).sum(1) == 2).all()
    assert set((copied <= 0.1).float().argmax(1).tolist()) == {0, 1, 2}
    together = draw_batch(Stage(1, SMALL, copying=0.0, most=1.0), 64, seed=1).sigmas
    assert (together == together[:, :1]).all()
    assert 0.05 <= float(together.min()) < 0.2 < 0.8 < float(together.max()) <= 1.0


def test_the_curriculum_covers_all_steps_and_batches_hold_as_many_frames() -> None:
    stages = curriculum(100)
    assert [stage.until for stage in stages] == sorted(stage.until for stage in stages)
    assert stages[-1].until == 100
    assert stage_at(stages, 0) is stages[0]
    assert stage_at(stages, 99) is stages[-1]
    sizes = [batch.latents.shape for batch in (*Batches(stages, 4, 0, 0, 1), *Batches(stages, 4, 0, 99, 100))]
    assert [size[0] * size[2] for size in sizes] == [8, 8]


def test_latents_are_scaled_pixels() -> None:
    frames = torch.rand(1, 2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(to_frames(to_latents(frames)), frames)
    assert to_latents(frames).shape == (1, 3, 2, 6, 6)
