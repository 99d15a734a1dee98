"""``vega3d prior``: what it tells is what the registry has, and what it writes is what the prior computes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import Field
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file
from support.third_party.toy_vega3d import Colours
from support.toys.wan import write as write_toy
from typer.testing import CliRunner, Result

import vega3d
from vega3d_plugin.cli import main, output
from vega3d_plugin.cli.app import app
from vega3d_plugin.cli.prior import features as prior_features
from vega3d_plugin.cli.prior.features import parse_changes
from vega3d_plugin.cli.prior.frames import as_clip
from vega3d_plugin.cli.prior.info import attributes, describe, type_text
from vega3d_plugin.contracts.clips import clip_key
from vega3d_plugin.contracts.errors import FramesError, VideoError
from vega3d_plugin.contracts.settings import PriorSettings, Settings
from vega3d_plugin.priors.frozen.prior import FrozenPrior
from vega3d_plugin.priors.wan.prior import WanPrior
from vega3d_plugin.priors.wan.tiny import RandomWeightsWarning
from vega3d_plugin.scenes.images import read_frames
from vega3d_plugin.scenes.rendered import render_room
from vega3d_plugin.scenes.video import read_video, write_video

WAN = "wan2.1-t2v-1.3b"


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(output.out, "width", 80)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("VEGA3D_TRACEBACK", raising=False)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a video of 12 frames in it."""
    monkeypatch.chdir(tmp_path)
    write_video("room.mp4", render_room(12, (96, 160), 0).frames)
    return tmp_path


class LoudOptions(Settings):
    """Of a loud prior.

    Attributes:
        strength: how strong the colours
            are; ``2`` doubles them.
        low, high: the limits.

    No part of it: this line.
    """

    strength: float = Field(default=1.0, gt=0)
    low: int | None = None
    high: int | None = 3
    mode: Literal["soft", "hard"] = Field(default="soft", description="In which way.")


@pytest.fixture
def loud() -> Iterator[str]:
    """A third party's prior: it reports no progress, and says little about itself."""
    spec = vega3d.PriorSpec(
        "loud", Colours, "mean colours", presets={"twice": {"size": (8, 8), "options": {"strength": 2.0}}},
        options=LoudOptions, defaults={"options": {"strength": 1.5}},
    )  # fmt: skip
    priors = vega3d.plugin_manager().priors
    priors.add(spec.name, spec, "somebody")
    yield spec.name
    priors.remove(spec.name)


def run(*args: str) -> Result:
    return CliRunner().invoke(app, ["prior", *args])


def shown(*args: str) -> list[str]:
    result = run(*args)
    assert result.exit_code == 0, result.output
    return [" ".join(line.split()) for line in result.stdout.splitlines()]


def run_json(*args: str) -> Any:
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def failed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command as from a shell, and give the one message that it fails with."""

    def fail(*args: str, code: int = 1) -> str:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["vega3d", "prior", *args])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == code
        stdout, stderr = capsys.readouterr()
        assert stdout == ""
        assert "Traceback" not in stderr
        return " ".join(stderr.replace("│", " ").split())

    return fail


# Help.


@pytest.mark.parametrize("verb", ["info", "features", "export-prompt"])
def test_every_verb_explains_itself_and_has_an_example(verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    assert f"\n   vega3d prior {verb} " in result.stdout
    assert f" {verb} " in run("--help").stdout
    assert f"  vega3d prior {verb} " in run("--help").stdout


def test_nothing_heavy_is_imported_to_tell_about_a_prior() -> None:
    code = (
        "import sys\nfrom vega3d_plugin.cli import main\n"
        f"for verb in (['--help'], ['info', '{WAN}'], ['info', '{WAN}', '--json'], ['features', '--help']):\n"
        "    sys.argv = ['vega3d', 'prior', *verb]\n"
        "    try:\n        main()\n    except SystemExit as end:\n        assert not end.code\n"
        "print([n for n in ('transformers', 'diffusers', 'accelerate', 'huggingface_hub') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# info.


def test_info_tells_what_the_registry_has() -> None:
    lines = shown("info", WAN)
    spec = vega3d.plugin_manager().priors.get(WAN)
    for line in (
        WAN,
        spec.summary,
        f"source {spec.source}",
        f"licence {spec.licence}",
        "features 1536 channels",
        "taps 0 to 29: blocks of the transformer; negative from the end",
        "contexts frame, views, video",
        "timestep 300",
        "tap 20",
        "size [480, 832]",
        "dtype bfloat16 on CUDA, float32 elsewhere",
        "Preset released changes",
        "tap 20 -> -1",
    ):
        assert line in lines
    assert any(line.startswith("prompt empty; `vega3d prior export-prompt") for line in lines)
    for reduction in WanPrior.reductions:
        assert any(line.startswith(f"{reduction.name} {reduction.why[:20]}") for line in lines)
    assert max(len(line) for line in run("info", WAN).stdout.splitlines()) <= 80


def test_info_as_json() -> None:
    found = run_json("info", WAN)
    assert found == describe(vega3d.plugin_manager().priors.get(WAN))
    assert PriorSettings.parse(found["settings"]).tap == 20
    assert found["presets"] == {"released": {"tap": [20, -1]}}
    assert [r["name"] for r in found["reductions"]] == [r.name for r in WanPrior.reductions]
    assert (found["prompt"], found["options"], found["plugin"]) == (True, [], "builtin_priors")
    assert run_json("info", WAN, "--preset", "released")["settings"]["tap"] == -1


@pytest.mark.parametrize("name", vega3d.list_priors())
def test_every_prior_can_be_described(name: str) -> None:
    spec = vega3d.plugin_manager().priors.get(name)
    found = run_json("info", name)
    assert set(found["presets"]) == set(spec.presets)
    assert found["settings"]["name"] == name
    assert [r["name"] for r in found["reductions"]] == [
        r.name for r in getattr(spec.prior_class() or FrozenPrior, "reductions", ())
    ]
    assert spec.options is None or [o["name"] for o in found["options"]] == list(spec.options.model_fields)
    for option in found["options"] or []:
        assert option["description"], f"{option['name']} is not described"
    assert found["gigabytes"] == (spec.parameters and pytest.approx(2 * spec.parameters, abs=0.01))
    assert max(len(line) for line in run("info", name).stdout.splitlines()) <= 80


def test_parameters_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = vega3d.PriorSpec("sized", Colours, "a size", parameters=1.3, kind=Colours)
    monkeypatch.setitem(vega3d.plugin_manager().priors._things, "sized", spec)
    monkeypatch.setitem(vega3d.plugin_manager().priors._plugins, "sized", "somebody")
    lines = shown("info", "sized")
    assert "parameters 1.3 billion up to the tap: 2.6 GB in bfloat16, activations on top" in lines
    # Its class is known, and has no reductions.
    assert (
        lines[lines.index("Fast path exact reductions of the work; the setting fast takes their names") + 1] == "none"
    )


def test_settings_of_noise_and_windows_are_told_where_they_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(WanPrior):
        identity = ("tap", "size")

    spec = vega3d.PriorSpec("plain", Colours, "no noise", kind=Plain)
    monkeypatch.setitem(vega3d.plugin_manager().priors._things, "plain", spec)
    monkeypatch.setitem(vega3d.plugin_manager().priors._plugins, "plain", "somebody")
    names = {line.split()[0] for line in shown("info", "plain") if line}
    assert {"tap", "size", "max_tokens"} <= names
    assert not {"timestep", "shift", "seed", "window", "overlap"} & names
    assert {"timestep", "shift", "seed", "window", "overlap"} <= {
        line.split()[0] for line in shown("info", WAN) if line
    }


def test_own_options_of_a_third_party(loud: str) -> None:
    found = run_json("info", loud)
    assert found["options"] == [
        {
            "name": "strength",
            "type": "float > 0",
            "default": 1.5,
            "required": False,
            "description": "how strong the colours are; 2 doubles them.",
        },
        {"name": "low", "type": "int | none", "default": None, "required": False, "description": "the limits."},
        {"name": "high", "type": "int | none", "default": 3, "required": False, "description": "the limits."},
        {"name": "mode", "type": "soft | hard", "default": "soft", "required": False, "description": "In which way."},
    ]
    assert found["presets"]["twice"] == {"size": [None, [8, 8]], "options.strength": [1.5, 2.0]}
    lines = shown("info", loud)
    assert "strength how strong the colours are; 2 doubles them." in lines
    assert "options.strength 1.5 -> 2.0" in lines
    assert "known once it is loaded" in lines


class NeedyOptions(Settings):
    """Of a prior that cannot do without being told.

    Attributes:
        target: what to call.
        often: how often.
    """

    target: str
    often: int = 2


def test_options_that_a_user_has_to_give(monkeypatch: pytest.MonkeyPatch, failed: Any) -> None:
    presets = {"rarely": {"options": {"often": 1}, "tap": 3}}
    spec = vega3d.PriorSpec("needy", Colours, "needs", options=NeedyOptions, presets=presets)
    monkeypatch.setitem(vega3d.plugin_manager().priors._things, "needy", spec)
    monkeypatch.setitem(vega3d.plugin_manager().priors._plugins, "needy", "somebody")
    found = run_json("info", "needy", "--preset", "rarely")
    assert [(o["name"], o["required"]) for o in found["options"]] == [("target", True), ("often", False)]
    assert (found["settings"]["tap"], found["settings"]["options"]) == (3, {"often": 1})
    assert found["presets"] == {"rarely": {"tap": [None, 3], "options.often": [2, 1]}}
    assert "required" in shown("info", "needy")
    assert "has no preset 'x'" in failed("info", "needy", "--preset", "x")


def test_descriptions_and_types_are_those_of_the_class() -> None:
    described = attributes(PriorSettings)
    assert set(described) == set(PriorSettings.model_fields)
    assert described["seed"] == "seed of the noise. With one seed a clip has one feature map."
    types = {name: type_text(field.annotation) for name, field in PriorSettings.model_fields.items()}
    assert types["size"] == "[int, int] | none"
    assert types["fast"] == "bool | [str, ...]"
    assert types["resize"] == "crop | stretch"


def test_info_of_what_is_not_there(failed: Any) -> None:
    assert "Unknown prior 'wan2.1-t2v-1.3'. Did you mean 'wan2.1-t2v-1.3b'" in failed("info", "wan2.1-t2v-1.3")
    assert "has no preset 'relased'. Did you mean 'released'?" in failed("info", WAN, "--preset", "relased")


# export-prompt.


def test_a_prompt_is_written_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_toy(tmp_path / "weights")
    lines = shown("export-prompt", WAN, "--pretrained", "weights")
    written = load_file("empty_prompt.safetensors")
    assert list(written) == ["context"]
    torch.testing.assert_close(written["context"], load_file("weights/empty_prompt.safetensors")["context"])
    assert lines[:2] == ["empty_prompt.safetensors", "context [1, 16] float32"]
    assert "into weights, as empty_prompt.safetensors" in lines[2]
    # Put where it belongs, it stands for what it was made of.
    (tmp_path / "weights" / "empty_prompt.safetensors").unlink()
    (tmp_path / "empty_prompt.safetensors").rename(tmp_path / "weights" / "empty_prompt.safetensors")
    settings = {"size": (32, 48), "tap": 1}
    assert vega3d.load_prior(WAN, pretrained="weights", **settings).feature_dim == 48


def test_a_prompt_written_beside_the_weights_needs_no_more(tmp_path: Path) -> None:
    write_toy(tmp_path)
    target = tmp_path / "empty_prompt.safetensors"
    before = load_file(target)["context"].clone()
    arguments = ["export-prompt", WAN, "--pretrained", str(tmp_path), "--out", str(target)]
    refused = run(*arguments)
    assert refused.exit_code == 1
    assert "exists" in str(refused.exception)
    assert shown(*arguments, "--force")[-1] == "It lies beside the weights, so their text encoder is no longer needed."
    torch.testing.assert_close(load_file(target)["context"], before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty_prompt.safetensors", "transformer", "vae"]


def test_what_export_prompt_refuses(tmp_path: Path, failed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = failed("export-prompt", "tiny-wan")
    assert "Prior 'tiny-wan' has no prompt to export." in error
    assert WAN in error
    assert "Unknown prior" in failed("export-prompt", "wan")
    Path("mine.safetensors").write_bytes(b"mine")
    arguments = ["export-prompt", WAN, "--pretrained", ".", "--out"]
    assert "mine.safetensors exists. Pass --force" in failed(*arguments, "mine.safetensors")
    assert Path("mine.safetensors").read_bytes() == b"mine"
    # Nothing is replaced before there is something to put there.
    assert "no Wan checkpoint" in failed(*arguments, "mine.safetensors", "--force")
    assert Path("mine.safetensors").read_bytes() == b"mine"
    assert "must end in .safetensors" in failed(*arguments, "prompt.pt", code=2)
    assert "does not exist" in failed("export-prompt", WAN, "--pretrained", "./nowhere")


# features.


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as handle:
        return dict(handle.metadata())


def tiny(**settings: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RandomWeightsWarning)
        return vega3d.load_prior("tiny-wan", device="cpu", **settings)


def test_features_are_those_of_the_prior(here: Path) -> None:
    result = run("features", "room.mp4", "--prior", "tiny-wan", "--frames", "3", "--device", "cpu")
    assert result.exit_code == 0, result.output
    path = here / "room_tiny-wan.safetensors"
    written = load_file(path)
    assert list(written) == ["features"]
    prior = tiny()
    clip = torch.from_numpy(read_video("room.mp4", 3)).permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(written["features"], prior(clip), rtol=0, atol=0)
    assert metadata(path) == {
        "prior": "tiny-wan",
        "fingerprint": prior.fingerprint,
        "settings": json.dumps(prior.settings.to_dict()),
        "file": "room.mp4",
        "frames": "[0, 6, 11]",
        "clip": clip_key(clip),
        "dtype": "torch.float32",
        "library_version": vega3d.__version__,
    }
    # One yellow line, and nothing else beside the result.
    (warning,) = result.stderr.splitlines()
    assert warning.startswith("Warning: The prior 'tiny-wan' has random weights")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[0] == "tiny-wan on room.mp4"
    assert "features [3, 96, 6, 10] (steps, channels, height, width) float32" in lines
    assert "frames 3: 0, 6, 11" in lines
    assert any(line.startswith("seconds ") and " on cpu, and " in line for line in lines)
    assert {"Wrote room_tiny-wan.safetensors", "Wrote room_tiny-wan.png"} <= set(lines)
    assert 'load_file("room_tiny-wan.safetensors")["features"]' in lines[-1]


def test_the_picture_shows_the_frames_as_the_prior_saw_them(here: Path) -> None:
    # Twice as wide as the prior's size: only the middle is seen.
    frame = np.zeros((96, 320, 3), np.uint8)
    frame[:, :80], frame[:, 240:] = (250, 0, 0), (0, 250, 0)
    frame[:, 80:240] = 90
    Image.fromarray(frame).save("wide.png")
    shown("features", "wide.png", "--prior", "tiny-wan", "--out", "w.safetensors", "--picture", "seen.png")
    with Image.open("seen.png") as image:
        sheet = np.asarray(image.convert("RGB")).astype(int)
    # Below the title, which may take more than one line, and the frame's name.
    above, below = sheet[-208:-112, 8:168], sheet[-108:-12, 8:168]
    assert (above == 90).all()
    assert len(np.unique(below.reshape(-1, 3), axis=0)) > 10
    assert not Path("w.png").exists()


def test_pictures_are_deterministic_and_can_be_left_out(here: Path) -> None:
    command = ["features", "room.mp4", "--prior", "tiny-wan", "--frames", "2", "--out", "a.safetensors"]
    shown(*command)
    first = Path("a.png").read_bytes()
    shown(*command)
    assert Path("a.png").read_bytes() == first
    Path("a.png").unlink()
    shown(*command, "--no-picture")
    assert not Path("a.png").exists()


def test_settings_reach_the_prior(here: Path) -> None:
    changes = ["tap=-1", "timestep=100", "size=[64, 96]", "context=video", "fast=[fused_qkv]"]
    lines = shown(
        "features", "room.mp4", "--prior", "tiny-wan", "--frames", "6", "--out", "deep/a.safetensors",
        *[part for change in changes for part in ("--set", change)],
    )  # fmt: skip
    settings = PriorSettings.parse(json.loads(metadata(here / "deep" / "a.safetensors")["settings"]))
    assert (settings.tap, settings.timestep, settings.size) == (3, 100, (64, 96))
    assert (settings.context, settings.fast) == ("video", ("fused_qkv",))
    # Six frames are three steps: the first, four, and the last one with its like.
    assert "features [3, 96, 4, 6] (steps, channels, height, width) float32" in lines


def test_the_picture_of_a_video_shows_the_first_frame_of_each_step(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("vega3d_plugin.analysis.pictures.feature_picture", lambda *args: calls.append(args))
    shown("features", "room.mp4", "--prior", "tiny-wan", "--frames", "7", "--set", "context=video", "--set", "tap=0")
    frames, maps, _, title, firsts, labels = calls[0]
    assert (len(frames), len(maps)) == (7, 3)
    assert firsts == [0, 1, 5]
    assert title == "tiny-wan, tap 0, context video: first three principal components"
    assert labels == [f"frame {i}" for i in json.loads(metadata(Path("room_tiny-wan.safetensors"))["frames"])]


def test_a_folder_of_images_in_the_order_of_their_numbers(here: Path) -> None:
    views = here / "views"
    views.mkdir()
    for number in (1, 2, 3, 10):
        Image.fromarray(np.full((48, 80, 3), 20 * number, np.uint8)).save(views / f"view{number}.png")
    (views / "notes.txt").write_text("no image")
    (views / ".hidden.png").write_bytes(b"")
    lines = shown("features", "views", "--prior", "tiny-wan", "--set", "context=views", "--no-picture")
    assert "frames 4: view1.png, view2.png, view3.png, view10.png" in lines
    found = metadata(here / "views_tiny-wan.safetensors")
    assert (found["file"], json.loads(found["images"])[-1]) == ("views", "view10.png")
    assert load_file(here / "views_tiny-wan.safetensors")["features"].shape == (4, 96, 6, 10)
    assert [int(picture.mean()) for picture in read_frames(views, 3).pictures] == [20, 60, 200]
    assert read_frames(views, 3).indices == [0, 2, 3]
    # Written there, the picture would be a frame next time.
    result = run("features", "views", "--prior", "tiny-wan", "--picture", "views/new.png")
    assert result.exit_code == 2
    assert not (views / "new.png").exists()


def test_images_of_several_sizes_are_seen_as_each_alone(here: Path) -> None:
    views = here / "views"
    views.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (60, 90)), ("b.jpg", (200, 100))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(views / name)
    shown("features", "views", "--prior", "tiny-wan", "--no-picture")
    together = load_file("views_tiny-wan.safetensors")["features"]
    for i, name in enumerate(("a.png", "b.jpg")):
        shown("features", f"views/{name}", "--prior", "tiny-wan", "--no-picture", "--out", "one.safetensors")
        # The noise is drawn for each place in the clip.
        if i == 0:
            torch.testing.assert_close(load_file("one.safetensors")["features"][0], together[0])
    with pytest.raises(FramesError, match=r"a\.png is 90x60 and b\.jpg is 100x200"):
        as_clip(read_frames(views, 8), PriorSettings(name="tiny-wan", size=None))


def test_a_photograph_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_frames(tmp_path / "turned.jpg", 1).pictures[0].shape == (40, 20, 3)


def test_a_short_video_is_not_stretched(here: Path) -> None:
    assert read_frames(here / "room.mp4", 50).indices == list(range(12))


def test_a_third_partys_prior_without_progress_or_size(here: Path, loud: str) -> None:
    lines = shown("features", "room.mp4", "--prior", loud, "--set", "options.strength=0.5", "--frames", "2")
    assert "features [2, 6, 8, 8] (steps, channels, height, width) float32" in lines
    found = metadata(here / "room_loud.safetensors")
    assert found["fingerprint"] == "colours-0.5"
    assert json.loads(found["settings"])["options"]["strength"] == 0.5


def test_progress_is_shown_on_a_terminal(here: Path, loud: str, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(prior_features, "err", console)
    drawn: list[str] = []
    for prior in (tiny(), vega3d.load_prior(loud)):
        listener = getattr(prior, "progress", None)
        with prior_features.progress_bar(prior):
            if listener is not None or hasattr(prior, "progress"):
                told = prior.progress
                prior.progress = lambda *args, told=told: (drawn.append(args[0]), told(*args))
            prior(torch.rand(2, 3, 96, 160))
        assert getattr(prior, "progress", None) is listener
    assert set(drawn) == {"VAE", "denoiser"}
    assert "denoiser" in screen.getvalue()
    assert "2/2" in screen.getvalue()
    assert "loud" in screen.getvalue()


def test_values_are_yaml() -> None:
    assert parse_changes(["tap=-1", "size=[64, 96]", "fast=false", "options.a=x=y", "options.b= 2.5", "window="]) == {
        "tap": -1, "size": [64, 96], "fast": False, "options": {"a": "x=y", "b": 2.5}, "window": None,
    }  # fmt: skip
    assert parse_changes(["options={a: 1}", "options.b=2"]) == {"options": {"a": 1, "b": 2}}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["rom.mp4"], 1, "rom.mp4 does not exist. Did you mean 'room.mp4'?"),
        (["nowhere/room.mp4"], 1, "nor does the folder nowhere"),
        (["notes.txt"], 1, "is a text file, not a video"),
        (["broken.png"], 1, "broken.png cannot be read: it is not an image, or damaged"),
        (["empty"], 1, "empty has no images"),
        (["room.mp4", "--prior", "tiny-wam"], 1, "Unknown prior 'tiny-wam'. Did you mean 'tiny-wan'?"),
        (["room.mp4", "--set", "tapp=2"], 1, "tapp: unknown key. Did you mean 'tap'"),
        (["room.mp4", "--set", "tap=two"], 1, "tap: Input should be a valid integer, found 'two'"),
        (["room.mp4", "--set", "timestep=2000"], 1, "timestep: Input should be less than or equal to 1000"),
        (["room.mp4", "--set", "tap=9"], 1, "the tap is in [-4, 3], got 9"),
        (["room.mp4", "--set", "size=[1,"], 1, "--set size=[1,: the value cannot be read as YAML"),
        (["room.mp4", "--set", "size=[100, 160]"], 1, "The nearest is 96x160."),
        (["room.mp4", "--set", "options.reference=none"], 1, "reference: unknown key."),
        (["room.mp4", "--set", "tap"], 2, "expected KEY=VALUE"),
        (["room.mp4", "--set", "tap=1", "--set", "tap=2"], 2, "tap is given twice"),
        (["room.mp4", "--set", "name=x"], 2, "named by --prior"),
        (["room.mp4", "--set", "device=cpu", "--device", "cpu"], 2, "device is given twice"),
        (["room.mp4", "--device", "warp:9"], 1, "The device 'warp:9' cannot be used"),
        (["room.mp4", "--frames", "0"], 2, "'--frames'"),
        (["room.mp4", "--frames", "1", "--set", "context=video"], 1, "context 'video' needs a video"),
        (["room.mp4", "--out", "a.pt"], 2, "must end in .safetensors"),
        (["room.mp4", "--picture", "a.jpg"], 2, "must end in .png"),
        (["room.mp4", "--out", "folder.safetensors"], 1, "folder.safetensors is a folder"),
        (["room.mp4", "--out", "notes.txt/a.safetensors"], 1, "a.safetensors cannot be written"),
        (["room.mp4", "--picture", "a.png", "--no-picture"], 2, "exclude each other"),
        (["good.png", "--picture", "good.png"], 2, "would replace VIDEO"),
    ],
)
def test_what_features_refuses(here: Path, failed: Any, arguments: list[str], code: int, message: str) -> None:
    Path("notes.txt").write_text("left of the red box\n" * 100)
    Path("broken.png").write_bytes(b"junk")
    Path("empty").mkdir()
    Path("folder.safetensors").mkdir()
    Image.new("RGB", (32, 32)).save("good.png")
    before = {p.name for p in here.iterdir()}
    given = arguments if "--prior" in arguments else [*arguments, "--prior", "tiny-wan"]
    assert message in failed("features", *given, code=code)
    assert {p.name for p in here.iterdir()} == before


def test_features_that_are_no_numbers_are_not_written(
    here: Path, loud: str, failed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Colours, "__call__", lambda self, frames: torch.full((1, 6, 2, 2), float("nan")))
    assert "gave 24 values of 24 that are NaN or infinite" in failed("features", "room.mp4", "--prior", loud)
    assert [p.name for p in here.iterdir()] == ["room.mp4"]


def test_a_damaged_image_among_others_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    with pytest.raises(VideoError, match=r"b\.png cannot be read"):
        read_frames(tmp_path, 8)
