"""The V-JEPA 2 prior computes what transformers' unmodified model computes, in each of its contexts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.small_wan import apart, frames
from support.toys import vjepa2 as toy
from torch import Tensor

import vega3d
from vega3d_plugin.contracts.errors import CheckpointError, PriorError, SettingsError
from vega3d_plugin.priors.encoders import encoder
from vega3d_plugin.priors.encoders.vjepa2 import Vjepa2Prior
from vega3d_plugin.priors.load import resolve

here = pytest.mark.skipif(not toy.TOYS, reason="this transformers has no V-JEPA 2")
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vjepa2")
    toy.write(path)
    return path


def vjepa(folder: Path, **settings: Any) -> Vjepa2Prior:
    prior = vega3d.load_prior("vjepa2-vitg", pretrained=folder, **{**toy.SETTINGS, **settings})
    assert isinstance(prior, Vjepa2Prior)
    return prior


def whole(folder: Path, side: int) -> Any:
    """transformers' own model, all of it, for square videos of this size."""
    from transformers import VJEPA2Model

    return VJEPA2Model.from_pretrained(folder, crop_size=side).eval()


def normalised(clip: Tensor) -> Tensor:
    return (clip - MEAN[:, None, None]) / STD[:, None, None]


@torch.no_grad()
def layer(model: Any, videos: Tensor, tap: int, grid: tuple[int, int]) -> Tensor:
    """What ``layer`` gives, behind the last norm, of videos ``[B, T, 3, H, W]``: ``[B, steps, C, h, w]``."""
    kept: list[Tensor] = []
    hook = model.encoder.layer[tap].register_forward_hook(lambda module, args, out: kept.append(out[0]))
    model(videos, skip_predictor=True)
    hook.remove()
    return model.encoder.layernorm(kept[0]).unflatten(1, (-1, *grid)).movedim(-1, 2)


@here
@pytest.mark.parametrize("tap", [0, 1, 2])
def test_a_video_as_the_whole_model_sees_it(folder: Path, tap: int) -> None:
    clip = frames(6, 64, 64)
    features = vjepa(folder, size=(64, 64), context="video", tap=tap)(clip)
    expected = layer(whole(folder, 64), normalised(clip)[None], tap, (4, 4))[0]
    assert features.shape == (3, 48, 4, 4)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


@here
def test_the_last_layer_is_the_models_output(folder: Path) -> None:
    clip = frames(4, 64, 64)
    with torch.no_grad():
        expected = whole(folder, 64).get_vision_features(normalised(clip)[None])
    features = vjepa(folder, size=(64, 64), context="video")(clip)
    torch.testing.assert_close(features.movedim(1, -1).reshape(1, -1, 48), expected, rtol=1e-4, atol=1e-4)


@here
def test_a_frame_alone_is_a_tubelet_of_itself(folder: Path) -> None:
    clip = frames(3, 64, 64)
    features = vjepa(folder, size=(64, 64))(clip)
    expected = layer(whole(folder, 64), normalised(clip)[:, None].repeat(1, 2, 1, 1, 1), 2, (4, 4))[:, 0]
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


@here
def test_a_single_frame_is_seen_alike_in_every_context(folder: Path) -> None:
    """Where ``video`` is the default an image is no mistake: it fills its step, as the last frame of a video does."""
    clip = frames(1, 64, 64)
    alone = vjepa(folder, size=(64, 64))(clip)
    for context in ("views", "video"):
        assert torch.equal(vjepa(folder, size=(64, 64), context=context)(clip), alone), context


@here
def test_views_are_tubelets_that_see_each_other(folder: Path) -> None:
    clip = frames(3, 64, 64)
    features = vjepa(folder, size=(64, 64), context="views")(clip)
    expected = layer(whole(folder, 64), normalised(clip).repeat_interleave(2, dim=0)[None], 2, (4, 4))[0]
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


@here
@pytest.mark.parametrize(("height", "width"), [(2, 3), (3, 2)])
def test_positions_of_a_map_that_is_no_square(folder: Path, height: int, width: int) -> None:
    """Row and column of each patch, not those of a square map with as many."""
    size = (16 * height, 16 * width)
    clip, model = frames(4, *size), whole(folder, 48)
    features = vjepa(folder, context="video", size=size)(clip)
    places = torch.tensor([(s * 3 + y) * 3 + x for s in range(2) for y in range(height) for x in range(width)])
    with torch.no_grad():
        hidden = model.encoder.embeddings(normalised(clip)[None])
        for block in model.encoder.layer:
            hidden = block(hidden, places[None])[0]
        expected = model.encoder.layernorm(hidden).unflatten(1, (2, height, width)).movedim(-1, 2)[0]
        wrong = layer(model, normalised(clip)[None], 2, (height, width))[0]
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert apart(wrong, features) > 1e-2


@here
def test_a_video_has_a_step_for_two_frames_and_the_last_one_fills_up(folder: Path) -> None:
    prior, clip = vjepa(folder, context="video"), frames(5)
    features = prior(clip)
    assert features.shape == (3, 48, 2, 3)
    assert torch.equal(features, prior(torch.cat([clip, clip[-1:]])))
    # One image, too, as the default context must not refuse it.
    assert torch.equal(prior(clip[:1]), prior(clip[:1].repeat(2, 1, 1, 1)))


@here
@pytest.mark.parametrize(
    ("count", "expected"), [(4, [(0, 0.5), (0.5, 1)]), (5, [(0, 0.4), (0.4, 0.8), (0.8, 1)]), (1, [(0, 1)])]
)
def test_spans(folder: Path, count: int, expected: list[tuple[float, float]]) -> None:
    prior = vjepa(folder, context="video")
    spans = prior.spans(count, prior(frames(count)).shape[0])
    assert spans is not None
    assert spans == [pytest.approx(span) for span in expected]
    assert vjepa(folder).spans(4, 4) is None


@here
def test_long_videos_are_seen_in_windows(folder: Path) -> None:
    clip = frames(8)
    prior = vjepa(folder, context="video", window=2, overlap=0)
    features = prior(clip)
    alone = vjepa(folder, context="video")
    torch.testing.assert_close(features, torch.cat([alone(clip[:4]), alone(clip[4:])]), rtol=1e-4, atol=1e-4)
    assert apart(features, alone(clip)) > 1e-3
    assert prior.fingerprint != alone.fingerprint


@here
@pytest.mark.parametrize(("height", "width"), [(90, 70), (64, 120), (80, 80)])
def test_the_shorter_side_before_the_crop(folder: Path, height: int, width: int) -> None:
    """Released ``_resize_short_side``, then the centre; 256 before 224 there, 73 before 64 here."""
    clip = frames(1, height, width)
    pixels = vjepa(folder, size=(64, 64), short_side=73).pixels(clip)
    short = min(height, width)
    size = (73, round(width * 73 / short)) if height == short else (round(height * 73 / short), 73)
    resized = F.interpolate(clip, size=size, mode="bilinear", align_corners=False)
    top, left = (size[0] - 64) // 2, (size[1] - 64) // 2
    assert torch.equal(pixels, resized[:, :, top : top + 64, left : left + 64])
    # It never leaves a hole.
    assert vjepa(folder, size=(64, 96), short_side=10).pixels(clip).shape == (1, 3, 64, 96)


def test_the_released_preset() -> None:
    settings = resolve(vega3d.PriorSettings(name="vjepa2-vitg", preset="released"))
    assert settings.pretrained == "facebook/vjepa2-vitg-fpc64-384-ssv2"
    assert (settings.size, settings.context, settings.tap) == ((224, 224), "video", -1)
    assert settings.options == {"short_side": 256}


def test_a_short_side_needs_a_crop(tmp_path: Path) -> None:
    if not toy.TOYS:
        pytest.skip("this transformers has no V-JEPA 2")
    with pytest.raises(SettingsError, match=r"short_side is 256, which needs resize 'crop', got 'stretch'"):
        vjepa(tmp_path, short_side=256, resize="stretch")


@here
def test_a_checkpoint_tuned_for_classification_has_the_same_encoder(folder: Path, tmp_path: Path) -> None:
    toy.write_tuned(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert any(key.startswith("classifier.") for key in file.keys())  # noqa: SIM118
        assert any(key.startswith("vjepa2.encoder.") for key in file.keys())  # noqa: SIM118
    assert vjepa(tmp_path).fingerprint == vjepa(folder).fingerprint
    assert torch.equal(vjepa(tmp_path)(frames(2)), vjepa(folder)(frames(2)))


@here
def test_neither_later_layers_nor_the_predictor_are_read(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in tensors.items() if not k.startswith(("predictor.", "encoder.layer.2."))}
    assert len(kept) < len(tensors)
    save_file(kept, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    assert torch.equal(vjepa(tmp_path, tap=1)(frames(1)), vjepa(folder, tap=1)(frames(1)))
    with pytest.raises(CheckpointError, match=r"does not fit VJEPA2Encoder.*missing layer\.2\."):
        vjepa(tmp_path)


@here
def test_compile_is_given_the_layers(folder: Path) -> None:
    assert len(vjepa(folder, tap=1).repeated_parts()) == 2


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json is missing. Found: model\.safetensors"),
    "another model": (
        lambda f: (f / "config.json").write_text(json.dumps({"model_type": "videomae"})),
        r"model_type is 'videomae', expected vjepa2",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"it has no model\*\.safetensors"),
}


@here
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders(folder: Path, tmp_path: Path, damage: str) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    change, message = DAMAGE[damage]
    change(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        vjepa(tmp_path)


def test_an_old_transformers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    if toy.TOYS:
        monkeypatch.setattr(transformers, "__version__", "4.50.0")
        monkeypatch.setattr(encoder, "hasattr", lambda thing, name: False, raising=False)
    with pytest.raises(PriorError, match=r"needs transformers with VJEPA2Config \(4\.53 or later\), found 4\.50\.0"):
        vjepa(tmp_path)
