"""What holds for every built-in prior, on tiny random weights of the real classes."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from support.checkpoints import copy_of
from support.small_wan import apart, frames
from support.together import together
from support.toys import Toy, all_toys
from torch import Tensor

import vega3d
from vega3d_plugin.contracts.errors import CheckpointError, PriorError, Vega3dError
from vega3d_plugin.plugins import plugin_manager
from vega3d_plugin.priors.diffusion.prior import DiffusionPrior
from vega3d_plugin.priors.frozen.prior import FrozenPrior

TOYS = all_toys()
# Those with a choice of taps.
TAPPED = [toy for toy in TOYS if toy.blocks is not None]
EXACT = 1e-4
Load = Callable[..., FrozenPrior]


def name_of(toy: Toy) -> str:
    return toy.id or toy.prior


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Toy], Path]:
    @cache
    def written(write: Callable[[Path], None]) -> Path:
        folder = tmp_path_factory.mktemp("toy")
        write(folder)
        return folder

    return lambda toy: written(toy.write)


@pytest.fixture(params=TOYS, ids=name_of)
def toy(request: pytest.FixtureRequest) -> Toy:
    return request.param


@pytest.fixture
def load(toy: Toy, folders: Callable[[Toy], Path]) -> Load:
    return lambda **settings: toy.load(folders(toy), **settings)


def contexts(toy: Toy) -> tuple[str, ...]:
    return toy.contexts or plugin_manager().priors.get(toy.prior).contexts


def error(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


def test_features_of_every_context(toy: Toy, load: Load) -> None:
    for context in contexts(toy):
        prior = load(context=context)
        features = prior(frames(3))
        assert features.shape[1:] == (prior.feature_dim, *toy.map_size), context
        assert features.dtype == torch.float32
        assert bool(features.isfinite().all())
        assert not features.requires_grad
        assert not features.is_inference()
        if context != "video":
            assert features.shape[0] == 3
        elif isinstance(prior, DiffusionPrior):
            assert features.shape[0] == 1 + -(-2 // prior.time_stride)
        spans = prior.spans(3, features.shape[0])
        assert spans is None or len(spans) == features.shape[0]


def test_one_clip_has_one_feature_map(toy: Toy, load: Load) -> None:
    for context in contexts(toy):
        prior = load(context=context)
        first = prior(frames(3))
        torch.randn(10)
        assert torch.equal(prior(frames(3)), first)
        assert torch.equal(load(context=context)(frames(3)), first)


def test_two_threads_get_what_each_gets_alone(toy: Toy, load: Load) -> None:
    """Also while the models are put in place, which the first call does."""
    context = contexts(toy)[-1]
    given = [frames(3), 1 - frames(3)]
    expected = [load(context=context)(clip) for clip in given]
    prior = load(context=context)
    found = together(*(lambda clip=clip: [prior(clip) for _ in range(3)] for clip in given))
    for each, alone in zip(found, expected, strict=True):
        assert all(torch.equal(features, alone) for features in each)


def test_the_clip_matters(toy: Toy, load: Load) -> None:
    for context in contexts(toy):
        prior, clip = load(context=context), frames(3)
        assert apart(prior(1 - clip), prior(clip)) > 1e-3, context


def test_chunks_change_memory_not_features(load: Load) -> None:
    expected = load()(frames(5))
    for budget in ({"chunk_frames": 1}, {"chunk_frames": 2}, {"chunk_frames": 5}, {"max_tokens": 1}):
        assert error(load(**budget)(frames(5)), expected) < EXACT, budget


@pytest.mark.parametrize("toy", [toy for toy in TOYS if toy.whole_frames], ids=name_of)
def test_a_frame_alone_is_the_frame_in_a_clip(toy: Toy, load: Load) -> None:
    prior = load()
    assert error(prior(frames(3)[:1]), prior(frames(3))[:1]) < EXACT


def test_the_fast_path_gives_what_the_plain_path_gives(toy: Toy, load: Load) -> None:
    for context in contexts(toy):
        for clip in (frames(2), frames(5, 37, 61)):
            plain = load(context=context, fast=False)(clip)
            assert error(load(context=context)(clip), plain) < EXACT, context


def test_half_precision(load: Load) -> None:
    expected = load()(frames(2))
    prior = load(dtype="bfloat16")
    features = prior(frames(2))
    assert features.dtype == torch.bfloat16
    assert apart(features.float(), expected) < 0.1
    assert prior.fingerprint == load().fingerprint


@pytest.mark.parametrize("toy", TAPPED, ids=name_of)
def test_taps(toy: Toy, load: Load) -> None:
    assert toy.blocks is not None
    assert load(tap=-1).settings.tap == toy.blocks - 1
    assert load(tap=-toy.blocks).settings.tap == 0
    assert load(tap=0)(frames(1)).shape[0] == 1
    assert apart(load(tap=0)(frames(1)), load(tap=-1)(frames(1))) > 1e-3 or toy.blocks == 1
    for tap in (toy.blocks, -toy.blocks - 1):
        with pytest.raises(PriorError, match=rf"\[-{toy.blocks}, {toy.blocks - 1}\], got {tap}"):
            load(tap=tap)


@pytest.mark.parametrize("toy", TAPPED, ids=name_of)
def test_what_is_behind_the_tap_is_not_held(toy: Toy, load: Load) -> None:
    assert toy.blocks is not None

    def held(prior: FrozenPrior) -> int:
        return sum(p.numel() for model in prior.models.values() for p in model.parameters())

    assert held(load(tap=0)) < held(load(tap=-1))
    assert not any("decoder" in name for model in load().models.values() for name, _ in model.named_parameters())


def test_a_pickle_carries_no_weights(load: Load) -> None:
    prior = load()
    data = pickle.dumps(prior)
    assert len(data) < 4000
    assert torch.equal(pickle.loads(data)(frames(1)), prior(frames(1)))


def test_nothing_trains(load: Load) -> None:
    prior = load()
    for model in prior.models.values():
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_use_does_not_change_the_fingerprint(load: Load) -> None:
    prior = load()
    prior(frames(1))
    assert prior.fingerprint == load().fingerprint
    assert load(fast=False).fingerprint == prior.fingerprint


def test_a_size_that_does_not_fit(load: Load) -> None:
    stride = load().stride
    with pytest.raises(PriorError, match=rf"divisible by {stride}.*The nearest is"):
        load(size=(4 * stride + 1, 4 * stride))


def test_offload_changes_nothing(load: Load) -> None:
    prior = load(offload=True)
    expected = load()(frames(2))
    for _ in range(2):
        assert error(prior(frames(2)), expected) < EXACT


def test_unknown_settings_are_refused(load: Load) -> None:
    with pytest.raises(Vega3dError, match="taps"):
        load(taps=3)


def test_progress_is_told(load: Load) -> None:
    prior, seen = load(), []
    prior.progress = lambda stage, done, total: seen.append((stage, done, total))
    prior(frames(3))
    assert seen, "no progress"
    last = {stage: (done, total) for stage, done, total in seen}
    assert all(done == total for done, total in last.values()), last


def test_half_a_checkpoint_names_what_is_missing(
    toy: Toy, folders: Callable[[Toy], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEGA3D_CACHE", str(tmp_path / "cache"))
    folder = folders(toy)
    files = [f.relative_to(folder) for f in folder.rglob("*.safetensors") if f.name != "empty_prompt.safetensors"]
    for index, file in enumerate(sorted(files)):
        copied = copy_of(folder, tmp_path / str(index))
        (copied / file).unlink()
        with pytest.raises(CheckpointError, match=r"incomplete|has no|missing|expected"):
            toy.load(copied)


def test_weights_of_another_family_are_refused(toy: Toy, folders: Callable[[Toy], Path], tmp_path: Path) -> None:
    folder = folders(toy)
    configs = [f.relative_to(folder) for f in folder.rglob("config.json")]
    named = [f for f in configs if "_class_name" in json.loads((folder / f).read_text())]
    for index, file in enumerate(sorted(named)):
        copied = copy_of(folder, tmp_path / str(index))
        config = json.loads((copied / file).read_text())
        (copied / file).write_text(json.dumps({**config, "_class_name": "SomethingElse"}))
        with pytest.raises(CheckpointError, match=rf"SomethingElse.*expected.*{config['_class_name']}"):
            toy.load(copied)


def test_every_builtin_prior_has_a_toy() -> None:
    import transformers

    priors = plugin_manager().priors
    own = {name for name in vega3d.list_priors() if priors.plugin_of(name) == "builtin_priors"}
    # Of the user's own files, function or package, or without a checkpoint; they have tests of their own.
    rest = own - {toy.prior for toy in TOYS} - {"external", "callable", "tiny-wan", "vggt"}
    newer = {"vjepa2": "VJEPA2Model", "dinov3": "DINOv3ViTModel"}
    absent = tuple(family for family, model in newer.items() if not hasattr(transformers, model))
    # Sizes of one architecture need one toy.
    families = {toy.prior.split("-")[0] for toy in TOYS} | set(absent)
    assert not {name for name in rest if name.split("-")[0] not in families}


@pytest.mark.parametrize("toy", TOYS, ids=name_of)
def test_a_spec_names_the_class_that_it_loads(toy: Toy, folders: Callable[[Toy], Path]) -> None:
    assert type(toy.load(folders(toy))) is plugin_manager().priors.get(toy.prior).prior_class()


def test_specs_are_complete() -> None:
    for name in vega3d.list_priors():
        spec = plugin_manager().priors.get(name)
        if name in ("external", "callable"):
            continue
        assert spec.feature_dim, name
        assert spec.licence, name
        assert spec.source or name in ("tiny-wan", "small-world"), name
        assert spec.contexts, name
        # A default tap is one of those that are told; only a VAE alone has no taps.
        assert bool(spec.taps) == (name != "sd2.1-vae"), name
        tap, last = spec.defaults.get("tap"), max(map(int, re.findall(r"to (\d+):", spec.taps)), default=0)
        assert tap is None or -last - 1 <= tap <= last, name


@pytest.mark.parametrize("toy", TAPPED, ids=name_of)
def test_all_taps_of_one_run_are_those_of_priors_that_end_there(toy: Toy, load: Load) -> None:
    for context in contexts(toy):
        prior, clip = load(context=context, tap=-1), frames(3)
        if not prior.taps():
            assert toy.prior.startswith(("sd", "svd", "dinov3-convnext")), f"{toy.prior} gives one tap in a run"
            continue
        taps = list(prior.taps())[::-1]
        assert len(taps) == toy.blocks
        maps = prior.at_taps(clip, taps)
        assert list(maps) == taps
        for tap in taps:
            assert torch.equal(maps[tap], load(context=context, tap=tap)(clip)), (context, tap)
        if isinstance(prior, DiffusionPrior):
            encoded = prior.at_taps(clip, taps, latents=prior.encode(clip))
            assert all(torch.equal(encoded[tap], maps[tap]) for tap in taps)
        # Nobody asks any more.
        assert torch.equal(prior(clip), maps[max(taps)])


@pytest.mark.parametrize("toy", TAPPED, ids=name_of)
def test_a_tap_that_one_run_cannot_give(load: Load) -> None:
    prior = load(tap=0)
    with pytest.raises(PriorError, match="asked for"):
        prior.at_taps(frames(2), [len(prior.taps())])


def test_another_timestep_is_that_of_a_prior_loaded_with_it(load: Load) -> None:
    prior, clip = load(), frames(3)
    if not isinstance(prior, DiffusionPrior):
        return
    before = prior(clip)
    for timestep in (700, 20):
        prior.set_timestep(timestep)
        other = load(timestep=timestep)
        assert torch.equal(prior(clip), other(clip)), timestep
        assert prior.fingerprint == other.fingerprint
    assert apart(before, prior(clip)) > 1e-3
