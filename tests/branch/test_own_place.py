"""Each token meets the features of its own place in the frame; the released preset keeps the released shift."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import vega3d
from vega3d_plugin.branch.alignment import over_frame
from vega3d_plugin.contracts.errors import SavedBranchError
from vega3d_plugin.contracts.framing import Framing
from vega3d_plugin.contracts.priors import Prior
from vega3d_plugin.contracts.settings import PriorSettings
from vega3d_plugin.features.store import FeatureStore
from vega3d_plugin.priors.frozen.resizing import resize_crop, resize_stretch
from vega3d_plugin.storage.record import check_record, decode_record, encode_record
from vega3d_qwen_vl.tiny import tiny_model, tiny_processor

#: As the released code shows its LLaVA host's frames to the generator, at an eighth.
SIZE = (90, 160)


class Brightness(Prior):
    """A prior whose feature is how bright the place is."""

    feature_dim = 1

    def __init__(self, **settings: object) -> None:
        self.settings = PriorSettings.model_validate({"name": "tiny-wan", "size": SIZE, **settings})
        self.fingerprint = f"brightness {settings}"

    def __call__(self, frames: Tensor) -> Tensor:
        assert self.settings is not None
        resize = resize_crop if self.settings.resize == "crop" else resize_stretch
        return F.avg_pool2d(resize(frames, SIZE).mean(dim=1, keepdim=True), 2)


def rows_of(prior: Prior, picture: Tensor) -> list[float]:
    """What the branch hands its projector for a square picture on a grid of 14 x 14: a value for each row."""
    model = tiny_model()
    vega3d.patch(
        model, prior, config={"projector": {"name": "mlp2x_gelu"}, "space": "adaptive_avg"}, processor=tiny_processor()
    )
    branch = vega3d.get_handle(model).branch
    seen: list[Tensor] = []
    hook = branch.projector.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    clip = vega3d.Clip(picture[None], vega3d.TokenGrid(1, 14, 14), "image")
    branch.generative_tokens([clip], torch.device("cpu"), torch.float32)
    hook.remove()
    values = seen[0].reshape(14, 14)
    torch.testing.assert_close(values, values[:, :1].expand(14, 14), atol=1e-4, rtol=0)
    return values[:, 0].tolist()


def lit(first: float, last: float, side: int = 384) -> Tensor:
    """A picture that is white between two fractions of its height, and black elsewhere."""
    picture = torch.zeros(3, side, side)
    picture[:, round(first * side) : round(last * side)] = 1
    return picture


def ramp(side: int = 384) -> Tensor:
    """A picture that is as bright as its row is far down."""
    return ((torch.arange(side) + 0.5) / side)[None, :, None].expand(3, side, side).clone()


@pytest.mark.parametrize("settings", [{"resize": "stretch"}, {"resize": "crop"}], ids=lambda s: s["resize"])
def test_a_row_is_met_at_its_own_place(settings: dict[str, object]) -> None:
    values = rows_of(Brightness(**settings), ramp())
    own = [(row + 0.5) / 14 for row in range(14)]
    inside = range(14) if settings["resize"] == "stretch" else range(4, 10)
    assert [values[row] for row in inside] == pytest.approx([own[row] for row in inside], abs=0.02)


def test_the_top_row_alone_is_lit() -> None:
    top = lit(0, 1 / 14)
    whole = rows_of(Brightness(resize="stretch"), top)
    assert whole[0] > 0.7
    assert max(whole[1:]) < 0.1
    # A cut does not show it, and says nothing else about it either.
    assert max(rows_of(Brightness(resize="crop"), top)) == 0
    assert max(rows_of(Brightness(preset="released"), top)) == 0


def test_the_released_preset_shows_the_top_row_what_lies_22_percent_further_down() -> None:
    band = lit(0.22, 0.26)
    released = rows_of(Brightness(preset="released"), band)
    assert released.index(max(released)) == 0
    # Its own row: 0.24 * 14.
    placed = rows_of(Brightness(), band)
    assert placed[3] > 0.4
    # What was not seen has no features of another place.
    assert placed[:2] == [0, 0]
    assert placed[2] < 0.2
    values = rows_of(Brightness(preset="released"), ramp())
    # The figures of the released code: rows 0.218 to 0.782 are seen, and spread over the whole.
    assert values[0] == pytest.approx(0.21875 + 0.5625 / 28, abs=0.01)
    assert values[13] == pytest.approx(0.78125 - 0.5625 / 28, abs=0.01)


def test_by_hand() -> None:
    # Of four rows the middle two were seen.
    framing = Framing((4, 4), (4, 4), (1, 0), (2, 4))
    features = torch.tensor([1.0, 2.0])[None, None, :, None].expand(1, 1, 2, 4)
    assert over_frame(features, framing)[0, 0, :, 0].tolist() == [0, 1, 2, 0]


def test_aligned_maps_in_a_store_are_told_apart(tmp_path: Path) -> None:
    """The prior's features are the same with and without the preset, and so is their key."""
    clip = vega3d.Clip(ramp(96)[None], vega3d.TokenGrid(1, 14, 14), "image")

    class Same(Brightness):
        def __init__(self, **settings: object) -> None:
            super().__init__(**settings)
            self.fingerprint = "brightness"

    maps = []
    for settings in ({}, {"preset": "released"}):
        model = tiny_model()
        vega3d.patch(model, Same(**settings), store=FeatureStore(tmp_path, form="aligned"), processor=tiny_processor())
        maps.append(vega3d.get_handle(model).branch.aligned(clip, torch.device("cpu")))
    assert not torch.equal(*maps)


def test_a_branch_that_was_saved_before_keeps_the_placement_it_was_trained_with() -> None:
    model = tiny_model()
    vega3d.patch(model, Brightness(), processor=tiny_processor())
    state = model.state_dict()
    (key,) = (name for name in state if name.endswith(".vega3d.record"))
    record = decode_record(state[key], "here")
    assert record["settings"]["placement"] == "own"
    del record["settings"]["placement"]
    assert check_record(json.dumps(record), "here")["settings"]["placement"] == "stretched"
    # Into a branch that would move its features, it is refused with both values.
    state[key] = encode_record(record)
    with pytest.raises(SavedBranchError, match=r"settings\.placement: saved 'stretched', this model 'own'"):
        model.load_state_dict(state)
    # Where nothing is cut there is nothing to move.
    record["settings"]["prior"]["resize"] = "stretch"
    assert check_record(json.dumps(record), "here")["settings"]["placement"] == "own"


def test_the_placement_is_saved_and_loaded(tmp_path: Path) -> None:
    config = {"prior": {"name": "tiny-wan"}, "placement": "stretched"}
    model = tiny_model()
    vega3d.patch(model, config=config, processor=tiny_processor())
    vega3d.save_pretrained(model, tmp_path)
    again = vega3d.load_pretrained(tiny_model(), tmp_path, processor=tiny_processor())
    assert vega3d.get_handle(again).settings.placement == "stretched"
    clip = vega3d.Clip(ramp(96)[None], vega3d.TokenGrid(1, 14, 14), "image")
    maps = [vega3d.get_handle(each).branch.aligned(clip, torch.device("cpu")) for each in (model, again)]
    torch.testing.assert_close(*maps, atol=0, rtol=0)


def test_a_branch_of_before_its_fuser_got_the_instruction_is_told() -> None:
    model = tiny_model()
    vega3d.patch(model, Brightness(), fusion="context_gated", init="released", processor=tiny_processor())
    state = model.state_dict()
    (key,) = (name for name in state if name.endswith(".vega3d.record"))
    record = decode_record(state[key], "here")
    model.load_state_dict(state)
    del record["settings"]["positions"]
    state[key] = encode_record(record)
    with pytest.warns(vega3d.Vega3dWarning, match="gave its fuser 'context_gated' no instruction"):
        model.load_state_dict(state)
