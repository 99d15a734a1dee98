"""Pictures must show the values they were given, in the right places."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vega3d_plugin.analysis import pictures
from vega3d_plugin.analysis.pictures import feature_picture, feature_rgb, share_overlay
from vega3d_plugin.contracts.errors import FramesError

T, H, W = 4, 120, 160


@pytest.fixture
def frames():
    # Grey, so that every colour on the sheet comes from a map.
    ramp = np.linspace(60, 200, W).astype("uint8")
    return np.broadcast_to(ramp[None, None, :, None], (T, H, W, 3)).copy()


def load(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def rows_of(sheet: np.ndarray, head: int = 54) -> tuple[np.ndarray, np.ndarray]:
    """The upper and the lower picture in the first column of a sheet with a title of one line."""
    return sheet[head : head + H, 8 : 8 + W], sheet[head + H + 4 : head + 2 * H + 4, 8 : 8 + W]


def saturation(pixels: np.ndarray) -> np.ndarray:
    return np.ptp(pixels, axis=-1)


def test_overlay_shows_plain_frames_above_and_shares_below(frames, tmp_path):
    shares = np.full((2, 3, 4), 0.2, "float32")
    shares[0, :, 2:] = 0.8
    path = tmp_path / "new" / "shares.png"
    share_overlay(frames, shares, path)
    sheet = load(path)
    assert sheet.shape == (8 + 26 + 20 + 2 * H + 16 + 64, 480, 3)
    above, below = rows_of(sheet)
    np.testing.assert_array_equal(above, frames[0])
    left, right = below[:, : W // 2], below[:, W // 2 :]
    shade = frames[0].astype(float)
    heat = pictures.heat_colours(np.array([0.0, 1.0])).astype(float)
    np.testing.assert_allclose(left, 0.4 * shade[:, : W // 2] + 0.6 * heat[0], atol=2)
    np.testing.assert_allclose(right, 0.4 * shade[:, W // 2 :] + 0.6 * heat[1], atol=2)


def test_colour_scale_spans_the_shares_own_range(frames, tmp_path):
    shares = np.linspace(0.5, 0.5001, 24).reshape(2, 3, 4)
    share_overlay(frames, shares, tmp_path / "narrow.png")
    share_overlay(frames, (shares - 0.5) * 10000, tmp_path / "wide.png")
    narrow, wide = load(tmp_path / "narrow.png"), load(tmp_path / "wide.png")
    np.testing.assert_allclose(rows_of(narrow)[1], rows_of(wide)[1], atol=1)
    assert (narrow[-60:] != wide[-60:]).any(), "the printed limits differ"


def printed(monkeypatch) -> list[str]:
    texts: list[str] = []
    real = pictures.ImageDraw.ImageDraw.text

    def text(self, xy, text, *args, **kwargs):
        texts.append(text)
        return real(self, xy, text, *args, **kwargs)

    monkeypatch.setattr(pictures.ImageDraw.ImageDraw, "text", text)
    return texts


def test_limits_are_printed_with_enough_digits(frames, tmp_path, monkeypatch):
    texts = printed(monkeypatch)
    shares = np.full((2, 2, 2), 0.49998)
    shares[0, 0, 0] = 0.50002
    share_overlay(frames, shares, tmp_path / "shares.png", title="A title")
    assert {"A title", "frame 0", "frame 2", "min 0.4999800", "mean 0.4999850", "max 0.5000200"} <= set(texts)


def test_constant_shares_are_called_constant(frames, tmp_path, monkeypatch):
    texts = printed(monkeypatch)
    share_overlay(frames, np.full((4, 2, 2), 0.5, "float32"), tmp_path / "shares.png")
    assert "constant: every share is 0.5" in texts
    assert not any(text.startswith("min") for text in texts)


def test_frames_to_show_can_be_chosen(frames, tmp_path, monkeypatch):
    texts = printed(monkeypatch)
    share_overlay(frames, np.full((3, 2, 2), 0.5), tmp_path / "shares.png", first_frames=[0, 1, 3])
    assert [text for text in texts if text.startswith("frame")] == ["frame 0", "frame 1", "frame 3"]


def test_many_frames_go_on_below(tmp_path):
    many = np.zeros((16, H, W, 3), "uint8")
    share_overlay(many, np.zeros((16, 2, 2)), tmp_path / "shares.png")
    height, width = load(tmp_path / "shares.png").shape[:2]
    assert width <= 1340
    assert height > 3 * 2 * H


def test_a_long_title_wraps(frames, tmp_path):
    feature_picture(frames, np.random.default_rng(0).normal(size=(2, 5, 3, 4)), tmp_path / "a.png", title="word " * 40)
    feature_picture(frames, np.random.default_rng(0).normal(size=(2, 5, 3, 4)), tmp_path / "b.png", title="word")
    assert load(tmp_path / "a.png").shape[0] > load(tmp_path / "b.png").shape[0] + 40


def planted(channels: int, shape=(3, 9, 11)) -> tuple[np.ndarray, np.ndarray]:
    """Three independent signals [3, N] of falling strength, and features [t, C, h, w] that hold them."""
    rng = np.random.default_rng(3)
    signals = rng.uniform(-1, 1, (3, int(np.prod(shape))))
    signals = np.linalg.qr((signals - signals.mean(1, keepdims=True)).T)[0].T
    directions = np.linalg.qr(rng.normal(size=(channels, 3)))[0]
    features = directions @ (np.array([[9.0], [6.0], [3.0]]) * signals) + rng.normal(size=(channels, 1))
    t, h, w = shape
    return signals, features.reshape(channels, t, h, w).transpose(1, 0, 2, 3).astype("float32")


@pytest.mark.parametrize("channels", [12, 700], ids=["more tokens than channels", "more channels than tokens"])
def test_planted_components_come_back(channels):
    signals, features = planted(channels)
    colours = feature_rgb(features)
    assert colours.shape == (3, 9, 11, 3)
    assert colours.dtype == np.uint8
    for k in range(3):
        seen, signal = colours[..., k].ravel(), signals[k]
        signal = signal * np.sign(signal[np.abs(signal).argmax()])
        low, high = np.percentile(signal, [1, 99])
        np.testing.assert_allclose(seen, 255 * np.clip((signal - low) / (high - low), 0, 1), atol=1.01)


def test_colours_do_not_depend_on_offset_scale_or_rotation():
    _, features = planted(20)
    expected = feature_rgb(features).astype(int)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(20, 20)))[0]
    other = 7 * np.einsum("dc,tchw->tdhw", turn, features) + 5
    np.testing.assert_allclose(feature_rgb(other), expected, atol=1)


def test_missing_directions_are_grey_not_noise():
    signals, _ = planted(4)
    features = np.einsum("n,c->nc", signals[0], [1.0, 2.0, -1.0, 0.5]).reshape(3, 9, 11, 4).transpose(0, 3, 1, 2)
    colours = feature_rgb(features.astype("float64"))
    assert np.ptp(colours[..., 0]) == 255
    assert (colours[..., 1:] == 128).all()
    assert (feature_rgb(np.ones((2, 5, 3, 3))) == 128).all()
    assert feature_rgb(features[:, :1]).shape == (3, 9, 11, 3)


def test_a_sample_of_the_tokens_tells_the_directions_of_many(monkeypatch):
    _, features = planted(300, (4, 20, 25))
    expected = feature_rgb(features).reshape(-1, 3).T
    # With fewer and with more tokens than channels.
    for enough in (250, 299):
        monkeypatch.setattr(pictures, "_ENOUGH", enough)
        for seen, wanted in zip(feature_rgb(features).reshape(-1, 3).T, expected, strict=True):
            # The largest value, which fixes the sign, may be another one.
            assert abs(np.corrcoef(seen, wanted)[0, 1]) > 0.98


def test_labels_can_be_given(frames, tmp_path, monkeypatch):
    texts = printed(monkeypatch)
    labels = ["a.png", "b.png", "c.png", "d.png"]
    feature_picture(frames, np.ones((2, 5, 3, 4)), tmp_path / "features.png", labels=labels)
    assert {"a.png", "c.png"} <= set(texts)
    assert not {"b.png", "frame 0"} & set(texts)


def test_feature_picture_shows_the_colours_below(frames, tmp_path):
    features = np.random.default_rng(0).normal(size=(2, 6, 3, 4))
    feature_picture(frames, features, tmp_path / "new" / "features.png")
    above, below = rows_of(load(tmp_path / "new" / "features.png"))
    np.testing.assert_array_equal(above, frames[0])
    cells = below.reshape(3, H // 3, 4, W // 4, 3)
    np.testing.assert_array_equal(cells, np.broadcast_to(feature_rgb(features)[0][:, None, :, None], cells.shape))
    assert saturation(below).max() > 50


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        (np.zeros((4, 2)), r"shares \[t, h, w\], found \[4, 2\]"),
        (np.zeros((4, 0, 2)), r"found \[4, 0, 2\]"),
        (np.zeros((3, 2, 2)), "4 frames do not divide evenly over 3 rows"),
        (np.zeros((8, 2, 2)), "4 frames do not divide evenly over 8 rows"),
        (np.full((4, 2, 2), 1.5), r"0\.\.1, found 1\.5 to 1\.5"),
        (np.full((4, 2, 2), np.nan), "16 of 16 shares are NaN"),
        (np.zeros((4, 2, 2), "int64"), "shares of floating point, found int64"),
    ],
)
def test_wrong_shares(frames, tmp_path, shares, message):
    with pytest.raises(FramesError, match=message):
        share_overlay(frames, shares, tmp_path / "shares.png")


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 3, 8, 8), "uint8"), np.zeros((4, 8, 8, 3)), np.zeros((8, 8, 3), "uint8")]
)
def test_wrong_frames(tmp_path, wrong):
    with pytest.raises(FramesError, match=r"uint8 frames \[T, H, W, 3\], found"):
        share_overlay(wrong, np.full((4, 2, 2), 0.5), tmp_path / "shares.png")
    with pytest.raises(FramesError, match=r"uint8 frames \[T, H, W, 3\], found"):
        feature_picture(wrong, np.ones((4, 5, 2, 2)), tmp_path / "features.png")


def test_wrong_features_and_choice_of_frames(frames, tmp_path):
    with pytest.raises(FramesError, match=r"features \[t, C, h, w\], found \[4, 2, 2\]"):
        feature_rgb(np.zeros((4, 2, 2)))
    with pytest.raises(FramesError, match="NaN or infinite"):
        feature_rgb(np.full((1, 4, 2, 2), np.inf))
    with pytest.raises(FramesError, match=r"first_frames must be 2 indices in 0\.\.3, found \[0, 4\]"):
        feature_picture(frames, np.ones((2, 5, 2, 2)), tmp_path / "features.png", first_frames=[0, 4])
