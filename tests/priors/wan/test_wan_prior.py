"""The Wan prior: what it looks at, what it refuses, and that nothing around it changes its features."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from support.small_wan import MAP, SIZE, apart, close, frames, fresh, tiny
from torch import nn

import vega3d
from vega3d_plugin.contracts.errors import FramesError, PriorError, SettingsError
from vega3d_plugin.priors.diffusion.flow_matching import draw_noise
from vega3d_plugin.priors.wan.prior import WanPrior
from vega3d_plugin.priors.wan.tiny import RandomWeightsWarning

# What it looks at


def test_features_of_single_frames() -> None:
    features = tiny()(frames())
    assert features.shape == (3, 96, *MAP)
    assert features.dtype == torch.float32
    assert bool(features.isfinite().all())
    assert not features.requires_grad


@pytest.mark.parametrize("context", ["frame", "views", "video"])
def test_one_clip_has_one_feature_map(context: str) -> None:
    prior = tiny(context=context)
    first = prior(frames())
    torch.randn(10)
    assert torch.equal(prior(frames()), first)
    assert torch.equal(fresh(context=context)(frames()), first)


@pytest.mark.parametrize("context", ["frame", "views"])
def test_chunks_change_memory_not_features(context: str) -> None:
    expected = tiny(context=context, chunk_frames=5)(frames(5))
    for chunk in (1, 2):
        close(fresh(context=context, chunk_frames=chunk)(frames(5)), expected)


def test_single_frames_do_not_see_each_other() -> None:
    prior, clip = tiny(), frames()
    features = prior(clip)
    other = clip.clone()
    other[1] = 1 - other[1]
    changed = prior(other)
    close(changed[[0, 2]], features[[0, 2]])
    assert apart(changed[1], features[1]) > 0.05
    close(prior(clip[:1]), features[:1])


def test_views_see_each_other() -> None:
    prior, clip = tiny(context="views"), frames()
    features = prior(clip)
    assert features.shape == (3, 96, *MAP)
    other = clip.clone()
    other[1] = 1 - other[1]
    assert apart(prior(other)[0], features[0]) > 1e-3
    # And one alone sees what a single frame does.
    close(prior(clip[:1]), tiny()(clip[:1]))


def test_views_keep_their_own_latent_frame() -> None:
    prior, clip = tiny(context="views"), frames()
    prior(clip)
    latents = prior.encode(clip)
    close(latents[1:2], prior.encode(clip[1:2]))


@pytest.mark.parametrize(("count", "steps"), [(2, 2), (5, 2), (6, 3), (8, 3), (9, 3)])
def test_a_video_has_a_step_for_four_frames(count: int, steps: int) -> None:
    prior, clip = tiny(context="video"), frames(count)
    features = prior(clip)
    assert features.shape == (steps, 96, *MAP)
    # No frame is dropped: the last one is in the last step, also where the clip is not of 4k + 1 frames.
    other = clip.clone()
    other[-1] = 1 - other[-1]
    assert apart(prior(other)[-1], features[-1]) > 1e-3


def test_one_frame_is_no_video() -> None:
    with pytest.raises(FramesError, match=r"one frame, and context 'video' needs a video\. Use context='frame'"):
        tiny(context="video")(frames(1))


def test_a_video_is_seen_in_causal_steps() -> None:
    prior, clip = tiny(context="video"), frames(9)
    prior(clip)
    latents = prior.encode(clip)
    other = clip.clone()
    other[5:] = 1 - other[5:]
    changed = prior.encode(other)
    torch.testing.assert_close(changed[:2], latents[:2])
    assert apart(changed[2], latents[2]) > 1e-2


def test_a_video_of_an_odd_length_is_padded_with_its_last_frame() -> None:
    prior, clip = tiny(context="video"), frames(7)
    padded = torch.cat([clip, clip[-1:], clip[-1:]])
    assert torch.equal(prior(clip), prior(padded))


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [(0, 1)]),
        (9, [(0, 1 / 9), (1 / 9, 5 / 9), (5 / 9, 1)]),
        (7, [(0, 1 / 7), (1 / 7, 5 / 7), (5 / 7, 1)]),
        (2, [(0, 1 / 2), (1 / 2, 1)]),
    ],
)
def test_spans_of_a_video(count: int, expected: list[tuple[float, float]]) -> None:
    prior = tiny(context="video")
    spans = prior.spans(count, prior.encode(frames(count)).shape[0])
    assert spans is not None
    for span, wanted in zip(spans, expected, strict=True):
        assert span == pytest.approx(wanted)
    assert tiny().spans(count, count) is None
    assert tiny(context="views").spans(count, count) is None


def test_noise_has_its_own_draw_for_each_frame_and_seed() -> None:
    noise = draw_noise((16, 4, 6), 0, range(4))
    assert noise.shape == (4, 16, 4, 6)
    flat = noise.flatten(1)
    assert float(torch.corrcoef(flat).fill_diagonal_(0).abs().max()) < 0.2
    assert abs(float(noise.std()) - 1) < 0.1
    # A frame's draw depends on its index alone, and not on torch's own generator.
    torch.manual_seed(123)
    assert torch.equal(draw_noise((16, 4, 6), 0, range(2, 4)), noise[2:])
    others = torch.cat([draw_noise((16, 4, 6), seed, range(4)) for seed in (1, 2, -1, 1_000_003)]).flatten(1)
    assert float(torch.corrcoef(torch.cat([flat, others])).fill_diagonal_(0).abs().max()) < 0.3


def test_equal_frames_have_unequal_noise() -> None:
    clip = frames(1).expand(3, -1, -1, -1)
    features = tiny()(clip)
    assert apart(features[0], features[1]) > 1e-3
    assert apart(tiny(seed=1)(clip), features) > 1e-3


def test_given_noise_takes_the_place_of_the_drawn_one() -> None:
    prior, clip = tiny(), frames(2)
    drawn = draw_noise((16, SIZE[0] // 8, SIZE[1] // 8), 0, range(2))
    assert torch.equal(prior(clip, noise=drawn), prior(clip))
    assert apart(prior(clip, noise=-drawn), prior(clip)) > 1e-3
    with pytest.raises(PriorError, match=r"\[2, 16, 4, 6\], got \[1, 16, 4, 6\]"):
        prior(clip, noise=drawn[:1])


@pytest.mark.parametrize("change", [{"timestep": 700}, {"shift": 1.0}, {"tap": 0}, {"seed": 3}, {"resize": "stretch"}])
def test_every_setting_changes_the_features(change: dict[str, Any]) -> None:
    clip = frames(1)
    assert apart(tiny(**change)(clip), tiny()(clip)) > 1e-3


@pytest.mark.parametrize("shape", [(32, 48), (64, 96), (17, 100), (300, 20), (1, 1)])
@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_frames_of_any_size_are_taken(shape: tuple[int, int], resize: str) -> None:
    assert tiny(resize=resize)(frames(1, *shape)).shape == (1, 96, *MAP)


def test_stretching_keeps_what_cropping_cuts() -> None:
    clip = frames(1, 32, 200)
    other = clip.clone()
    other[..., :20] = 1 - other[..., :20]
    assert torch.equal(tiny()(clip), tiny()(other))
    assert apart(tiny(resize="stretch")(clip), tiny(resize="stretch")(other)) > 1e-3


# Blocks


@pytest.mark.parametrize(("tap", "index"), [(0, 0), (3, 3), (-1, 3), (-4, 0), (None, 2)])
def test_the_tap_is_an_index_or_counts_from_the_end(tap: int | None, index: int) -> None:
    prior = tiny(tap=tap)
    assert prior.settings.tap == index
    assert f"tap={index}" in repr(prior)
    assert torch.equal(prior(frames(1)), tiny(tap=index)(frames(1)))


@pytest.mark.parametrize("tap", [4, -5, 30])
def test_a_tap_outside_is_refused(tap: int) -> None:
    with pytest.raises(PriorError, match=rf"has 4 blocks, so the tap is in \[-4, 3\], got {tap}\..*try tap=2\."):
        tiny(tap=tap)


# Settings and frames


@pytest.mark.parametrize(
    ("size", "nearest"), [((480, 830), "480x832"), ((33, 48), "32x48"), ((40, 48), "48x48"), ((5, 48), "16x48")]
)
def test_a_size_that_does_not_fit_names_the_nearest(size: tuple[int, int], nearest: str) -> None:
    with pytest.raises(PriorError, match=rf"divisible by 16.*got {size[0]}x{size[1]}\. The nearest is {nearest}\."):
        tiny(size=size)


def test_wrong_settings_are_refused_before_anything_is_built() -> None:
    with pytest.raises(SettingsError, match=r"timestep.*1001"):
        tiny(timestep=1001)
    with pytest.raises(vega3d.errors.UnknownNameError, match="Did you mean 'tiny-wan'"):
        vega3d.load_prior("tinywan")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (frames().permute(0, 2, 3, 1), r"\[3, 40, 50, 3\]\. It looks channels-last: use frames\.permute"),
        (frames()[0], r"got \[3, 40, 50\]"),
        (frames()[:0], r"T >= 1, got \[0, 3, 40, 50\]"),
        (frames()[:, :1], r"got \[3, 1, 40, 50\]"),
        (frames()[None], r"got \[1, 3, 3, 40, 50\]"),
        ((frames() * 255).to(torch.uint8), r"torch\.uint8\. Divide uint8 frames by 255"),
        (frames().long(), r"torch\.int64\. Convert them to float32"),
        (frames() * 2 - 1, r"in \[0, 1\], found \[-1\.000, 1\.000\]\. Un-normalise"),
        (frames() * 255, r"found \[0\.0\d\d, 25\d\.\d\d\d\]"),
        (frames().where(frames() > 0.01, torch.nan), "NaN or infinity"),
        (frames().where(frames() > 0.01, torch.inf), "NaN or infinity"),
        ([frames()], "got list"),
    ],
)
def test_frames_that_are_none_are_refused(wrong: Any, message: str) -> None:
    with pytest.raises(FramesError, match=rf"'tiny-wan'.*{message}"):
        tiny()(wrong)


def test_rounding_of_half_precision_is_no_wrong_range() -> None:
    clip = frames(1)
    clip[0, 0, 0, 0], clip[0, 0, 0, 1] = 1.0, 0.0
    over = clip * 1.01 - 0.005
    assert torch.equal(tiny()(over), tiny()(over.clamp(0, 1)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_frames_of_another_dtype_are_taken(dtype: torch.dtype) -> None:
    assert apart(tiny()(frames(1).to(dtype)), tiny()(frames(1))) < 0.02


# Precision, copies, modes


@pytest.mark.parametrize("context", ["frame", "views", "video"])
def test_bfloat16_agrees_with_float32(context: str) -> None:
    expected = tiny(context=context)(frames())
    prior = tiny(context=context, dtype="bfloat16")
    features = prior(frames())
    assert prior.transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert features.dtype == torch.bfloat16
    assert 0 < apart(features.float(), expected) < 0.05


def test_copies_share_the_prior() -> None:
    prior = tiny()
    assert copy.deepcopy([prior])[0] is prior


def test_a_pickle_carries_no_weights() -> None:
    prior = tiny(seed=4, tap=-1, context="views")
    expected = prior(frames())
    data = pickle.dumps(prior)
    assert len(data) < 3000
    twin = pickle.loads(data)
    assert twin.settings == prior.settings
    assert twin.fingerprint == prior.fingerprint
    assert torch.equal(twin(frames()), expected)


def test_a_prior_of_given_modules_pickles_with_them() -> None:
    prior = tiny()
    given = WanPrior(prior.transformer, prior.vae, prior.context, prior.settings)
    data = pickle.dumps(given)
    assert len(data) > 100_000
    assert torch.equal(pickle.loads(data)(frames(1)), prior(frames(1)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_fingerprint_does_not_depend_on_precision_or_use(dtype: str) -> None:
    expected = fresh().fingerprint
    assert len(expected) == 32
    for use_first in (False, True):
        prior = fresh(dtype=dtype, chunk_frames=1)
        if use_first:
            prior(frames(1))
        assert prior.fingerprint == expected, use_first


@pytest.mark.parametrize(
    "change",
    [
        {"timestep": 299},
        {"shift": 3.0},
        {"tap": 1},
        {"seed": 1},
        {"context": "views"},
        {"context": "video"},
        {"size": (48, 32)},
        {"resize": "stretch"},
    ],
)
def test_the_fingerprint_tells_settings_apart(change: dict[str, Any]) -> None:
    assert tiny(**change).fingerprint != tiny().fingerprint


def test_a_tap_from_the_end_is_the_same_tap() -> None:
    assert tiny(tap=-2).fingerprint == tiny(tap=2).fingerprint == tiny().fingerprint


def test_nothing_of_the_prior_trains() -> None:
    prior = fresh()
    modules = [prior.transformer, prior.vae]
    assert not any(parameter.requires_grad for module in modules for parameter in module.parameters())
    assert not any(module.training for parent in modules for module in parent.modules())
    clip = frames(1).requires_grad_()
    assert not prior(clip).requires_grad
    assert clip.grad is None
    # It is no module, so a host that holds it does not see its parameters.
    assert not isinstance(prior, nn.Module)


def test_features_made_in_inference_mode_can_be_trained_with() -> None:
    prior = tiny()
    with torch.inference_mode():
        features = prior(frames(1))
    assert not features.is_inference()
    layer = nn.Linear(96, 1)
    layer(features.flatten(2).transpose(1, 2)).sum().backward()
    assert layer.weight.grad is not None
    assert torch.equal(features, prior(frames(1)))


@pytest.mark.parametrize("how", ["load", "unpickle"])
def test_a_prior_made_in_inference_mode_is_like_any_other(how: str) -> None:
    # A cast to another dtype is what inference tensors do not survive.
    expected = fresh(dtype="bfloat16")
    data = pickle.dumps(expected)
    with torch.inference_mode():
        prior = fresh(dtype="bfloat16") if how == "load" else pickle.loads(data)
        assert not prior(frames(1)).is_inference()
    assert torch.equal(prior(frames(1)), expected(frames(1)))
    assert prior.fingerprint == expected.fingerprint


def test_a_prior_made_under_autocast_is_like_any_other() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        prior = fresh()
    assert torch.equal(prior(frames(1)), tiny()(frames(1)))


@pytest.mark.parametrize("context", ["frame", "video"])
def test_autocast_does_not_change_features(context: str) -> None:
    prior = tiny(context=context)
    expected = prior(frames(2))
    with torch.autocast("cpu", torch.bfloat16):
        features = prior(frames(2))
    assert features.dtype == torch.float32
    assert torch.equal(features, expected)


def test_torchs_default_dtype_and_device_do_not_change_features() -> None:
    prior, clip = tiny(), frames(2)
    expected = prior(clip)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            features = prior(clip)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(features, expected)


def test_the_chosen_device_is_used() -> None:
    prior = tiny(device="cpu")
    assert prior(frames(1)).device.type == "cpu"
    assert prior.settings.to_dict()["device"] == "cpu"


def test_random_weights_come_with_a_warning() -> None:
    with pytest.warns(RandomWeightsWarning, match="'tiny-wan' has random weights"):
        fresh()


def test_building_it_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    fresh()(frames(1))
    assert torch.equal(torch.randn(3), expected)
