"""The prior ``callable``: the user's own function or module, and no code that the user did not vouch for."""

from __future__ import annotations

import functools
import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hosts
import pytest
import torch
import torch.nn.functional as F
import yaml
from support.small_wan import close, frames
from torch import Tensor, nn

import vega3d
from vega3d_plugin.contracts.errors import FramesError, PriorError, SavedBranchError, SettingsError
from vega3d_plugin.contracts.settings import PriorSettings
from vega3d_plugin.features import FeatureStore
from vega3d_plugin.priors.catalogue import function as module
from vega3d_plugin.priors.catalogue.function import import_string, trust
from vega3d_plugin.priors.frozen.resizing import resize_crop, resize_stretch
from vega3d_plugin.priors.yours.function import CallablePrior

HERE = f"{__name__}:pooled"


def pooled(clip: Tensor) -> Tensor:
    """Six channels of a small map."""
    maps = F.adaptive_avg_pool2d(clip, (2, 3))
    return torch.cat([maps, 1 - maps], dim=1)


class Encoder(nn.Module):
    """Four channels, by a convolution and a batch norm."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 4, 8, stride=8, dtype=dtype)
        self.norm = nn.BatchNorm2d(4, dtype=dtype)

    def forward(self, clip: Tensor) -> Tensor:
        return self.norm(self.embed(clip))

    def method(self, clip: Tensor) -> Tensor:
        return self(clip)


ENCODER = Encoder()


@pytest.fixture(autouse=True)
def nothing_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_trusted", set())


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module whose import leaves a trace, as code from a stranger would."""
    (tmp_path / "their_features.py").write_text(
        "from pathlib import Path\n"
        "Path(__file__).with_name('trace').touch()\n"
        "def extract(clip):\n"
        "    return clip[:, :, :2, :2].repeat(1, 2, 1, 1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "trace"
    sys.modules.pop("their_features", None)


# Functions


def test_a_function_of_a_module() -> None:
    prior = vega3d.load_prior("callable", function=pooled, feature_dim=6)
    clip = frames(3)
    assert torch.equal(prior(clip), pooled(clip))
    assert prior.feature_dim == 6
    assert prior.settings is not None
    assert prior.settings.options == {"target": HERE, "feature_dim": 6, "version": ""}
    json.dumps(prior.settings.to_dict())
    assert prior.dtype_on(torch.device("cpu")) is None


def test_the_number_of_channels_is_found() -> None:
    assert vega3d.load_prior("callable", function=pooled).feature_dim == 6
    seen: list[Tensor] = []
    prior = CallablePrior(lambda clip: seen.append(clip) or pooled(clip), fingerprint="a", size=(16, 24))
    assert prior.feature_dim == 6
    assert [list(clip.shape) for clip in seen] == [[2, 3, 16, 24]]


def test_a_trial_that_fails_says_what_to_do() -> None:
    def fails(clip: Tensor) -> Tensor:
        raise RuntimeError("only long clips")

    with pytest.raises(
        PriorError, match=r"could not be tried with two grey frames \[2, 3, 224, 224\].*only long clips"
    ):
        CallablePrior(fails, fingerprint="a")
    assert CallablePrior(fails, 6, fingerprint="a").feature_dim == 6


@pytest.mark.parametrize(("resize", "expected"), [("crop", resize_crop), ("stretch", resize_stretch)])
def test_frames_are_resized_only_when_asked(resize: str, expected: Any) -> None:
    def same(clip: Tensor) -> Tensor:
        return clip * 1

    clip = frames(2)
    assert CallablePrior(same, 3, fingerprint="a")(clip).shape == clip.shape
    prior = CallablePrior(same, 3, fingerprint="a", size=(16, 24), resize=resize)
    assert torch.equal(prior(clip), expected(clip, (16, 24)))


def test_what_it_is_called_with() -> None:
    seen: list[Tensor] = []
    states: list[tuple[bool, bool, bool]] = []

    def look(clip: Tensor) -> Tensor:
        seen.append(clip)
        states.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")))
        return pooled(clip)

    prior = CallablePrior(look, 6, fingerprint="a")
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        features = [prior(frames(2)), prior(frames(2).double())]
    assert states == [(False, False, False)] * 2
    assert [clip.dtype for clip in seen] == [torch.float32] * 2
    assert not any(tensor.is_inference() for tensor in (*seen, *features))
    CallablePrior(look, 6, fingerprint="a", dtype="bfloat16")(frames(2))
    assert seen[2].dtype == torch.bfloat16
    with pytest.raises(FramesError, match=r"in \[0, 1\]"):
        prior(frames(2) * 2)


def test_features_carry_no_gradient_and_are_no_inference_tensors() -> None:
    weight = torch.ones(1, requires_grad=True)

    def learning(clip: Tensor) -> Tensor:
        with torch.enable_grad():
            return pooled(clip) * weight

    def inferring(clip: Tensor) -> Tensor:
        with torch.inference_mode():
            return pooled(clip)

    assert not CallablePrior(learning, 6, fingerprint="a")(frames(2)).requires_grad
    assert not CallablePrior(inferring, 6, fingerprint="a")(frames(2)).is_inference()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda clip: pooled(clip)[:, :5], r"returned \[2, 5, 2, 3\], which has 5 channels; its feature_dim is 6"),
        (
            lambda clip: pooled(clip)[0],
            r"returned torch\.float32 of shape \[6, 2, 3\], expected floating point",
        ),
        (lambda clip: pooled(clip).int(), r"returned torch\.int32 of shape \[2, 6, 2, 3\]"),
        (lambda clip: pooled(clip)[:0], r"of shape \[0, 6, 2, 3\]"),
        (lambda clip: pooled(clip).numpy(), r"returned a ndarray, expected \[T', C, h, w\]"),
    ],
)
def test_what_is_no_feature_map(function: Any, message: str) -> None:
    with pytest.raises(PriorError, match=message):
        CallablePrior(function, 6, fingerprint="a")(frames(2))


def test_what_is_no_function() -> None:
    with pytest.raises(PriorError, match="needs a function or a module, got a int"):
        CallablePrior(3, 6, fingerprint="a")  # type: ignore[arg-type]


# Modules


def test_a_module_is_frozen_and_cast() -> None:
    encoder = Encoder()
    prior = CallablePrior(encoder)
    assert prior.feature_dim == 4
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    clip = frames(2)
    close(prior(clip), encoder(clip))
    before = encoder.norm.running_mean.clone()
    prior(clip)
    assert torch.equal(encoder.norm.running_mean, before)
    half = CallablePrior(Encoder(), dtype="bfloat16")
    assert half.dtype_on(torch.device("cpu")) == half(clip).dtype == torch.bfloat16
    # Its own dtype, where none is asked for.
    own = CallablePrior(Encoder(torch.float64))
    assert own.dtype_on(torch.device("cpu")) == own(clip).dtype == torch.float64


def test_a_copy_shares_the_module_and_a_pickle_takes_it_along() -> None:
    import copy

    prior = CallablePrior(Encoder())
    assert copy.deepcopy(prior) is prior
    again = pickle.loads(pickle.dumps(prior))
    assert torch.equal(again(frames(1)), prior(frames(1)))
    assert again.fingerprint == prior.fingerprint


# Names and identity


def test_import_strings() -> None:
    encoder = Encoder()
    assert import_string(pooled) == HERE
    assert import_string(Encoder) == f"{__name__}:Encoder"
    disguised = functools.wraps(pooled)(lambda clip: clip)
    for other in (lambda clip: clip, encoder, encoder.method, len(HERE), disguised):
        assert import_string(other) is None


@pytest.mark.parametrize("function", [lambda clip: clip, ENCODER, ENCODER.method])
def test_what_has_no_name_must_be_wrapped(function: Any) -> None:
    with pytest.raises(SettingsError, match=r"cannot be imported by a name.*CallablePrior\(function, feature_dim\)"):
        vega3d.load_prior("callable", function=function, feature_dim=6)


def test_what_has_neither_name_nor_weights_needs_a_fingerprint() -> None:
    with pytest.raises(PriorError, match=r"<lambda> cannot be imported by a name.*Pass fingerprint="):
        CallablePrior(lambda clip: pooled(clip), 6)
    assert CallablePrior(lambda clip: pooled(clip), 6, fingerprint="mine 1").fingerprint == "mine 1"


def test_fingerprints() -> None:
    first = CallablePrior(pooled, 6).fingerprint
    assert vega3d.load_prior("callable", function=pooled).fingerprint == first
    assert CallablePrior(pooled, 6, version="2").fingerprint != first
    assert CallablePrior(pooled, 6, size=(16, 24)).fingerprint != first
    assert CallablePrior(pooled, 6, resize="stretch").fingerprint == first  # nothing is resized
    weights = CallablePrior(Encoder()).fingerprint
    assert CallablePrior(Encoder()).fingerprint == weights
    for change in ("embed.weight", "norm.running_mean"):
        encoder = Encoder()
        with torch.no_grad():
            dict([*encoder.named_parameters(), *encoder.named_buffers()])[change].add_(1)
        assert CallablePrior(encoder).fingerprint != weights


@pytest.mark.parametrize("target", ["pooled", "a:b:c", "os.path:", ":f", "a b:c", "../x:f"])
def test_what_is_no_import_string(target: str) -> None:
    with pytest.raises(SettingsError, match=r"target: expected 'package\.module:name', found"):
        vega3d.load_prior("callable", target=target, trust=True)


def test_function_or_target() -> None:
    with pytest.raises(SettingsError, match="either function or target"):
        vega3d.load_prior("callable", function=pooled, target=HERE)
    with pytest.raises(PriorError, match=r"has no target\. Pass function= .*prior=CallablePrior"):
        vega3d.load_prior("callable")
    with pytest.raises(PriorError, match=r"has no context 'frame'\. It has: views"):
        vega3d.load_prior("callable", function=pooled, context="frame")


def test_the_settings_of_a_wrapped_function_say_what_can_be_made_again() -> None:
    assert CallablePrior(pooled, 6).settings.options["target"] == HERE
    assert CallablePrior(pooled, 6, fingerprint="a").settings.options["target"] is None
    assert CallablePrior(Encoder()).settings.options["target"] is None


# The user's word


def test_a_target_is_imported_on_the_users_word(theirs: Path) -> None:
    with pytest.raises(PriorError, match=r"names 'their_features:extract', and importing it runs.*trust: true"):
        vega3d.load_prior("callable", target="their_features:extract", feature_dim=6)
    assert not theirs.exists()
    prior = vega3d.load_prior("callable", target="their_features:extract", trust=True)
    assert theirs.exists()
    assert prior.feature_dim == 6
    assert "trust" not in json.dumps(prior.settings.to_dict())


def test_the_users_word_in_other_ways(theirs: Path) -> None:
    trust("their_features:extract")
    assert vega3d.load_prior("callable", target="their_features:extract").feature_dim == 6
    with pytest.raises(PriorError, match="names 'their_features:other'"):
        vega3d.load_prior("callable", target="their_features:other")
    with pytest.raises(SettingsError, match="trust"):
        vega3d.load_prior("callable", target="their_features:extract", trust="yes")


def test_a_target_that_is_a_module_or_a_class() -> None:
    for name in ("ENCODER", "Encoder"):
        prior = vega3d.load_prior("callable", target=f"{__name__}:{name}", trust=True)
        close(prior(frames(2)), Encoder().eval()(frames(2)))


def test_targets_that_are_not_there() -> None:
    with pytest.raises(PriorError, match=r"'no_such' could not be imported \(ModuleNotFoundError"):
        vega3d.load_prior("callable", target="no_such:f", trust=True)
    with pytest.raises(PriorError, match=r"has no 'poolled'\. Did you mean 'pooled'\?"):
        vega3d.load_prior("callable", target=f"{__name__}:poolled", trust=True)


# With a host

HOST = next(host for host in hosts.HOSTS if host.name == "qwen2_5_vl")


def patched(prior: Any = "callable", **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return vega3d.patch(HOST.build(), prior, init="released", projector=hosts.PROJECTOR, **settings)


def test_patch_takes_each_of_them(tmp_path: Path) -> None:
    named = hosts.logits(patched(options={"function": pooled}), HOST.batch())
    assert torch.equal(hosts.logits(patched(CallablePrior(pooled, 6)), HOST.batch()), named)
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"prior": {"name": "callable", "options": {"target": HERE, "trust": True}}})
    )
    from_file = vega3d.patch(HOST.build(), config=tmp_path / "config.yaml", init="released", projector=hosts.PROJECTOR)
    assert vega3d.get_handle(from_file).prior.feature_dim == 6
    encoder = CallablePrior(Encoder())
    model = patched(encoder, store=FeatureStore(tmp_path / "store"))
    assert torch.equal(hosts.logits(model, HOST.batch()), hosts.logits(model, HOST.batch()))
    # As every prior, it is none of the host's own.
    assert not any("embed.weight" in name and "norm" in name for name, _ in model.named_parameters())
    assert not {id(p) for p in ENCODER.parameters()} & {id(p) for p in model.parameters()}


def test_patching_again_with_the_same_settings_changes_nothing() -> None:
    model = patched(options={"function": pooled})
    vega3d.patch(model, "callable", init="released", projector=hosts.PROJECTOR, function=pooled)


def test_a_saved_branch_cannot_have_code_imported(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = {"target": "their_features:extract", "trust": True}
    model, folder = patched(options=target), tmp_path / "branch"
    expected = hosts.logits(model, HOST.batch())
    vega3d.save_pretrained(model, folder)
    text = (folder / "vega3d_config.json").read_text()
    assert "their_features:extract" in text
    assert "trust" not in text
    # Another process, which has heard no word; and one who puts the word into the file.
    inside, beside = json.loads(text), json.loads(text)
    inside["settings"]["prior"]["options"]["trust"] = True
    beside["settings"]["prior"]["trust"] = True
    for content in (text, json.dumps(inside), json.dumps(beside)):
        (folder / "vega3d_config.json").write_text(content)
        monkeypatch.setattr(module, "_trusted", set())
        sys.modules.pop("their_features", None)
        theirs.unlink(missing_ok=True)
        fresh = HOST.build()
        for way in ({}, {"prior": "callable"}, {"prior": {"name": "callable"}}, {"allow_prior": "callable"}):
            # What was put into the file by hand is found out before anything of it is used.
            refusal = r"importing it runs its code.*That a saved branch names it is not|was changed after it was saved"
            with pytest.raises((PriorError, SavedBranchError), match=refusal):
                vega3d.load_pretrained(fresh, folder, **way)
        assert not theirs.exists()
        assert not vega3d.is_patched(fresh)
        if content != text:
            continue
        own = {"name": "callable", "options": {**target, "feature_dim": 6}}
        for prior in (own, vega3d.load_prior("callable", **target)):
            again = vega3d.load_pretrained(HOST.build(), folder, prior=prior)
            assert torch.equal(hosts.logits(again, HOST.batch()), expected)


def test_a_saved_branch_of_a_wrapped_module(tmp_path: Path) -> None:
    model = patched(CallablePrior(Encoder()))
    vega3d.save_pretrained(model, tmp_path)
    with pytest.raises(PriorError, match=r"has no target.*loaded with prior=CallablePrior\(\.\.\.\)"):
        vega3d.load_pretrained(HOST.build(), tmp_path)
    again = vega3d.load_pretrained(HOST.build(), tmp_path, prior=CallablePrior(Encoder()))
    assert torch.equal(hosts.logits(again, HOST.batch()), hosts.logits(model, HOST.batch()))
    other = Encoder()
    with torch.no_grad():
        other.embed.bias.add_(1)
    with pytest.raises(SavedBranchError, match="fingerprint"):
        vega3d.load_pretrained(HOST.build(), tmp_path, prior=CallablePrior(other))


def test_settings_hold_no_function() -> None:
    settings = PriorSettings(name="callable", options={"function": pooled})
    assert vega3d.load_prior(settings).settings.options["target"] == HERE
