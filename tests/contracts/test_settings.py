"""Settings: to text and back, every mistake reported at once, nothing converted or run on the quiet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pydantic
import pytest
import torch
import yaml

import vega3d
from vega3d import BranchSettings, FusionSettings, PriorSettings, ProjectorSettings
from vega3d_plugin.contracts.errors import SettingsError

PLAIN = BranchSettings()
FULL = BranchSettings(
    prior=PriorSettings(
        name="tiny-wan",
        pretrained="some/where",
        revision="v2",
        timestep=250,
        shift=3,
        tap=-1,
        size=(96, 160),
        resize="stretch",
        context="views",
        seed=7,
        chunk_frames=2,
        dtype="bfloat16",
        device="cpu",
        options={"depth": 3, "names": ["a", "b"], "inner": {"on": True, "nothing": None}},
    ),
    fusion=FusionSettings(name="cross_attention", init="released", num_heads=4, num_layers=2, dropout=0.0),
    projector=ProjectorSettings(name="mlp2x_gelu", hidden_dim=64),
    space="adaptive_avg",
    images="scene",
)

MISTAKES = """
prior:
  name: tiny-wam
  timstep: 300
  timestep: "300"
  shift: -1
  tap: true
  seed: 1.5
  size: [96]
  context: vews
fusoin:
  name: add
fusion:
  name: token_gatd
  residual_scale: "0.2"
projector:
  name: mlp2x_gelo
  hidden_dim: 0
"""


@pytest.mark.parametrize("settings", [PLAIN, FULL, FULL.prior, FULL.fusion, FULL.projector])
@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
def test_a_written_file_gives_the_same_settings(settings, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"settings{suffix}"
    path.write_text(settings.to_json() if suffix == ".json" else settings.to_yaml(), encoding="utf-8")
    assert type(settings).read(path) == settings
    assert type(settings).read(str(path)).to_dict() == settings.to_dict()


def test_settings_differ_where_a_value_does() -> None:
    assert FULL.model_copy(update={"space": "bilinear"}) != FULL
    assert BranchSettings(prior={"name": "tiny-wan", "seed": 1}) != BranchSettings(prior={"name": "tiny-wan"})


def test_plain_values_are_plain() -> None:
    values = FULL.to_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["prior"]["size"] == [96, 160]
    assert BranchSettings.parse(values) == FULL


def test_parsing_settings_returns_them() -> None:
    assert BranchSettings.parse(FULL) is FULL


def test_a_part_may_be_a_mapping_or_settings() -> None:
    prior = {"name": "tiny-wan", "seed": 3}
    assert BranchSettings.parse({"prior": prior}) == BranchSettings.parse({"prior": PriorSettings(**prior)})


def test_paths_dtypes_and_devices_become_text() -> None:
    settings = PriorSettings(pretrained=Path("a") / "b", dtype=torch.bfloat16, device=torch.device("cuda", 1))
    assert settings.to_dict()["pretrained"] == str(Path("a") / "b")
    assert settings.dtype == "bfloat16"
    assert settings.device == "cuda:1"


@pytest.fixture(params=[".yaml", ".json"])
def wrong_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """One file with many mistakes, in both formats."""
    path = tmp_path / f"wrong{request.param}"
    path.write_text(MISTAKES if request.param == ".yaml" else json.dumps(yaml.safe_load(MISTAKES)))
    return path


def test_every_mistake_is_reported_with_its_path(wrong_file: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        BranchSettings.read(wrong_file)
    head, *lines = str(caught.value).splitlines()
    assert "13 settings are wrong" in head
    assert str(wrong_file) in head
    found = dict(line.strip().split(": ", 1) for line in lines)
    expected = {
        "prior.name": "Unknown prior 'tiny-wam'. Did you mean 'tiny-wan'?",
        "prior.timstep": "unknown key. Did you mean 'timestep'",
        "prior.timestep": "'300'",
        "prior.shift": "-1",
        "prior.tap": "True",
        "prior.seed": "1.5",
        "prior.size.1": "required",
        "prior.context": "'vews'",
        "fusoin": "unknown key. Did you mean 'fusion'",
        "fusion.name": "Unknown fuser 'token_gatd'. Did you mean 'token_gated'",
        "projector.name": "Unknown projector 'mlp2x_gelo'. Did you mean 'mlp2x_gelu'",
        "projector.hidden_dim": "0",
        "fusion.residual_scale": "'0.2'",
    }
    assert len(lines) == 13
    assert set(found) == set(expected)
    for path, text in expected.items():
        assert text in found[path], (path, found[path])


def test_unknown_keys_and_names_come_with_what_is_known() -> None:
    with pytest.raises(SettingsError) as caught:
        BranchSettings.parse({"prior": {"name": "zzz"}, "fusion": {"qqq": 1}})
    message = str(caught.value)
    assert "Did you mean" not in message
    assert "Known: callable, cogvideox-2b" in message
    assert "Known: name, init, num_heads" in message


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        (PriorSettings, {"timestep": 1001}),
        (PriorSettings, {"timestep": -1}),
        (PriorSettings, {"timestep": 300.0}),
        (PriorSettings, {"shift": 0}),
        (PriorSettings, {"shift": float("nan")}),
        (PriorSettings, {"shift": float("inf")}),
        (PriorSettings, {"size": [0, 160]}),
        (PriorSettings, {"chunk_frames": 0}),
        (PriorSettings, {"dtype": "float8"}),
        (PriorSettings, {"resize": "pad"}),
        (PriorSettings, {"name": 3}),
        (FusionSettings, {"dropout": 1.0}),
        (FusionSettings, {"num_heads": 0}),
        (FusionSettings, {"init": "zero"}),
        (ProjectorSettings, {"hidden_dim": "64"}),
        (BranchSettings, {"space": "nearest"}),
        (BranchSettings, {"prior": None}),
        (BranchSettings, {"prior": "tiny-wan"}),
    ],
)
def test_values_out_of_range_or_of_another_type_are_refused(settings: type[PriorSettings], values: dict) -> None:
    with pytest.raises(SettingsError, match=rf"(?s)1 setting is wrong.*{next(iter(values))}"):
        settings.parse(values)


@pytest.mark.parametrize("bound", [{"timestep": 0}, {"timestep": 1000}, {"shift": 0.1}, {"seed": -1}, {"tap": -1}])
def test_the_ends_of_a_range_are_allowed(bound: dict) -> None:
    assert PriorSettings.parse(bound).to_dict().items() >= bound.items()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing\.yaml does not exist"):
        BranchSettings.read(tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("broken.yaml", b"prior: [unclosed"),
        ("broken.json", b'{"prior": {'),
        ("binary.yaml", b"prior: \xff\xfe"),
        ("binary.json", b"\xff\xfe"),
    ],
)
def test_a_file_that_is_no_yaml_or_json_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingsError, match=rf"{name} cannot be read"):
        BranchSettings.read(tmp_path / name)


@pytest.mark.parametrize(("content", "kind"), [("", "NoneType"), ("- a", "list"), ("add", "str")])
def test_a_file_that_holds_no_mapping_is_named(content: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(content)
    with pytest.raises(SettingsError, match=rf"settings\.yaml must be a mapping of settings, got {kind}"):
        BranchSettings.read(path)


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    path, trace = tmp_path / "settings.yaml", tmp_path / "trace"
    document = f'prior:\n  name: !!python/object/apply:os.mkdir ["{trace}"]\n'
    path.write_text(document)
    with pytest.raises(SettingsError, match="cannot be read"):
        BranchSettings.read(path)
    assert not trace.exists()
    # The same document does run where YAML is read carelessly, so the check above can fail.
    yaml.unsafe_load(document)
    assert trace.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda s: setattr(s, "space", "bilinear"),
        lambda s: setattr(s.prior, "timestep", 1),
        lambda s: setattr(s, "new", 1),
        lambda s: delattr(s.fusion, "name"),
    ],
)
def test_settings_cannot_be_changed(change: Callable[[BranchSettings], None]) -> None:
    settings = FULL.model_copy(deep=True)
    with pytest.raises((pydantic.ValidationError, AttributeError)):
        change(settings)
    assert settings == FULL


def test_settings_do_not_share_the_callers_options() -> None:
    options = {"depth": 3}
    settings = PriorSettings(options=options)
    options["depth"] = 4
    assert settings.options == {"depth": 3}


def test_the_documented_classes_are_public() -> None:
    for name in ("BranchSettings", "PriorSettings", "FusionSettings", "ProjectorSettings"):
        assert getattr(vega3d, name).__doc__


def test_a_family_s_own_settings_by_name() -> None:
    by_name = PriorSettings.parse({"name": "wan2.1-vace-1.3b", "reference": "none"})
    assert by_name.options == {"reference": "none"}
    assert by_name == PriorSettings.parse({"name": "wan2.1-vace-1.3b", "options": {"reference": "none"}})
    with pytest.raises(SettingsError, match=r"reference: unknown key"):
        PriorSettings.parse({"name": "wan2.1-t2v-1.3b", "reference": "none"})
    with pytest.raises(SettingsError, match=r"taps: unknown key\. Did you mean 'tap'"):
        PriorSettings.parse({"name": "wan2.1-vace-1.3b", "taps": 3})
