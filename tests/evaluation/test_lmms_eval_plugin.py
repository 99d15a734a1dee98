"""The model plugin of lmms-eval: its arguments, what it answers, and the real command where it is installed."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support import lmms_eval_task
from support.harnesses import interpreter

import vega3d
from vega3d_plugin.contracts.errors import RowError, SavedBranchError, SettingsError
from vega3d_plugin.evaluation.harness_host import EvaluatedHost, EvaluationError, HostArguments
from vega3d_plugin.recipes.blocks import DataSettings
from vega3d_plugin.recipes.library import list_recipes, read_recipe
from vega3d_plugin.training.answers import encode_question
from vega3d_plugin.training.rows.conversation import Medium, Turn
from vega3d_qwen_vl.tiny import tiny_processor

pytestmark = pytest.mark.once
OPTIONS = {"max_new_tokens": 6, "temperature": 0, "do_sample": False}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lmms_eval_task.build(tmp_path_factory.mktemp("lmms_eval"))


def load(root: Path, **arguments: Any) -> EvaluatedHost:
    given = {"pretrained": str(root / "host"), "branch": str(root / "branch"), "max_num_frames": 4, **arguments}
    return EvaluatedHost(HostArguments.parse({"device": "cpu", **given}))


def question(root: Path, doc: dict[str, str]) -> list[dict[str, Any]]:
    """As lmms-eval writes it: pictures under ``url``, an image opened already."""
    picture = (
        {"type": "image", "url": Image.open(root / doc["image"])}
        if doc["image"]
        else {"type": "video", "url": str(root / doc["video"])}
    )
    return [{"role": "user", "content": [picture, {"type": "text", "text": doc["question"]}]}]


def answers(root: Path, **arguments: Any) -> list[str]:
    host = load(root, **arguments)
    return [host.ask(question(root, doc), OPTIONS)[0] for doc in lmms_eval_task.DOCS]


def test_an_answer_is_what_generate_gives(root: Path) -> None:
    """Recomputed by hand with the host's own processor."""
    host = load(root)
    processor = tiny_processor()
    content = [{"type": "image"}, {"type": "text", "text": "Is it red?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    batch = processor(text=[prompt], images=[Image.open(root / "a.png")], return_tensors="pt")
    with torch.no_grad():
        out = host.model.generate(**batch, max_new_tokens=6, do_sample=False)
    expected = processor.tokenizer.decode(out[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    text, count = host.ask(question(root, lmms_eval_task.DOCS[0]), OPTIONS)
    assert text == expected.strip()
    assert count == out.shape[1] - batch["input_ids"].shape[1]


def test_branch_adapter_and_controls_all_answer_differently(root: Path) -> None:
    told = {
        "patched": answers(root),
        "off": answers(root, control="off"),
        "zeroed": answers(root, control="zeroed"),
        "adapter": answers(root, branch=str(root / "adapter")),
    }
    assert answers(root, branch="none") == told["off"]
    different = {str(texts) for texts in told.values()}
    assert len(different) == len(told)
    without = answers(root, branch=str(root / "adapter"), adapter="none")
    assert without == told["patched"]


def test_how_a_video_is_shown(root: Path) -> None:
    turns = [Turn("user", (Medium("video", root / "room.mp4"), "How many?"))]
    two, images = (
        encode_question(load(root, **arguments).encoder, turns)
        for arguments in ({"max_num_frames": 2}, {"video_as": "images"})
    )
    assert two["video_grid_thw"].tolist() == [[1, 4, 6]]
    assert "video_grid_thw" not in images
    assert images["image_grid_thw"].tolist() == [[1, 4, 6]] * 4


@pytest.mark.parametrize(
    ("trained", "asked", "shown"),
    [
        ({}, None, {"video_as": "video"}),
        (
            {"video_as": "images", "preset": "released", "resize": "width_518", "frames": 8},
            None,
            {"video_as": "images", "preset": "released", "resize": "width_518"},
        ),
        ({"video_as": "images", "resize": "width_518"}, "video", {"video_as": "video"}),
    ],
)
def test_pictures_are_resized_as_in_training(trained: dict[str, Any], asked: str | None, shown: dict[str, Any]) -> None:
    given: Any = types.SimpleNamespace(
        trained=types.SimpleNamespace(data=trained), arguments=types.SimpleNamespace(video_as=asked)
    )
    assert EvaluatedHost._shown_as(given) == shown
    DataSettings.parse({"files": ("-",), "frames": 2, "sampling": "uniform", "fps": None, **shown})


def test_a_checkpoint_of_the_whole_host_is_evaluated_whole(root: Path) -> None:
    """Its branch on the host that it was trained from would be neither the one nor the other."""
    alone = answers(root, pretrained=str(root / "full"), branch=None)
    assert answers(root, branch=str(root / "full")) == alone
    assert alone not in (answers(root), answers(root, control="off"))
    # Questions are asked as the checkpoint was trained: with its processor, and a video as it says.
    host = load(root, branch=str(root / "full"))
    assert host.processor.image_processor.size["longest_edge"] == 56 * 56
    assert host.encoder.settings.video_as == "images"
    assert load(root, branch=str(root / "full"), video_as="video").encoder.settings.video_as == "video"


def test_an_adapter_on_the_hub_is_not_left_out(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    stored = tmp_path / "models--me--tuned"
    shutil.copytree(root / "adapter", stored / "snapshots" / "0123")
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("0123")
    assert answers(root, branch="me/tuned") == answers(root, branch=str(root / "adapter"))


def test_an_adapter_without_a_branch(root: Path) -> None:
    """What the recipes without prior train."""
    told = answers(root, branch="none", adapter=str(root / "plain"))
    assert told not in (answers(root, branch="none"), answers(root, branch=str(root / "adapter")))


def test_a_released_checkpoint(root: Path, tmp_path: Path) -> None:
    from support.released import qwen_tensors, write

    tower = {"generative_encoder_tower_type": "wan_t2v_online"}
    source = write(tmp_path / "released", qwen_tensors(size=64), tower)
    # Wan's weights are not here, and that is as far as it gets: the checkpoint was read and its prior asked for.
    with pytest.raises(vega3d.Vega3dError, match=r"nowhere"):
        load(root, branch=None, released=str(source), prior_pretrained=str(tmp_path / "nowhere" / "x"))


def test_where_an_answer_stops(root: Path) -> None:
    host = load(root)
    asked = question(root, lmms_eval_task.DOCS[0])
    whole, _ = host.ask(asked, {**OPTIONS, "max_new_tokens": 12})
    stop = whole[2]
    cut, _ = host.ask(asked, {**OPTIONS, "max_new_tokens": 12, "until": [stop, ""]})
    assert cut == whole.partition(stop)[0].strip()


@pytest.mark.parametrize(
    ("options", "sampled"),
    [
        ({"temperature": 0}, False),
        ({"temperature": 0, "do_sample": True}, False),
        ({"do_sample": True}, True),
        ({"temperature": 0.7}, True),
        ({}, False),
    ],
)
def test_greedy_unless_a_task_samples(root: Path, options: dict[str, Any], sampled: bool) -> None:
    host = EvaluatedHost.__new__(EvaluatedHost)
    host.arguments = HostArguments(pretrained="x", branch="y", max_new_tokens=9)
    chosen = host._generation({**options, "until": ["\n"], "image_aspect_ratio": "pad"})
    assert chosen["do_sample"] is sampled
    assert chosen["max_new_tokens"] == 9
    assert not {"until", "image_aspect_ratio"} & set(chosen)


def test_the_area_of_images_is_the_processors(root: Path) -> None:
    small, large = load(root, max_pixels=56 * 56), load(root)
    sizes = [
        host.processor(text=["<|image_pad|>"], images=[Image.new("RGB", (280, 280))], return_tensors="pt")
        for host in (small, large)
    ]
    assert sizes[0]["image_grid_thw"].tolist() == [[1, 4, 4]]
    assert sizes[1]["image_grid_thw"].tolist() == [[1, 20, 20]]


def test_arguments_that_are_wrong_are_told_together() -> None:
    wrong = {"pretrained": "x", "branch": "y", "contol": "off", "max_num_frames": 0, "video_as": "film"}
    with pytest.raises(SettingsError) as error:
        HostArguments.parse(wrong, where="--model_args")
    for part in ("3 settings are wrong in --model_args", "Did you mean 'control'?", "max_num_frames", "video_as"):
        assert part in str(error.value)


def header_commands() -> list[tuple[str, str]]:
    """Recipes whose header evaluates with this plugin, and the command there in one line."""
    found = []
    for recipe in list_recipes():
        header = "".join(line for line in recipe.path.read_text().splitlines(keepends=True) if line.startswith("#"))
        lines = re.sub(r"\\\n#\s*", "", header).splitlines()
        found += [(recipe.name, line.partition("eval:")[2].strip()) for line in lines if "--model vega3d" in line]
    return found


@pytest.mark.parametrize(("name", "command"), header_commands())
def test_commands_in_the_recipes(name: str, command: str) -> None:
    words = command.split()
    assert words[:3] == ["lmms-eval", "--model", "vega3d"]
    given = dict(part.split("=", 1) for part in words[words.index("--model_args") + 1].split(","))
    given = {key: int(value) if value.isdigit() else value for key, value in given.items()}
    arguments = HostArguments.parse(given)
    recipe = read_recipe(name, blocks=("host", "lora"))
    # Without a branch, an adapter must be named, and a host that was trained whole is the host.
    assert (arguments.branch == "none") is (recipe.prior is None)
    assert (arguments.pretrained == recipe.host.model) is not (recipe.prior is None and recipe.lora is None)
    assert (arguments.adapter is not None) is (recipe.prior is None and recipe.lora is not None)


def test_a_branch_that_was_forgotten_is_not_evaluated(root: Path) -> None:
    with pytest.raises(SavedBranchError, match=r"host holds no branch\. Name a saved branch.*branch=DIR.*branch=none"):
        load(root, branch=None)
    with pytest.raises(SettingsError, match="branch and released exclude each other"):
        HostArguments.parse({"pretrained": "x", "branch": "a", "released": "b"})
    with pytest.raises(SettingsError, match="control=off needs a branch"):
        HostArguments.parse({"pretrained": "x", "branch": "none", "control": "off"})


def test_what_cannot_be_asked(root: Path) -> None:
    host = load(root)
    with pytest.raises(EvaluationError, match="type 'audio'"):
        host.ask([{"role": "user", "content": [{"type": "audio", "url": "a.wav"}]}])
    cut = {"type": "video", "url": str(root / "room.mp4"), "start_time": 1.0, "end_time": None}
    with pytest.raises(EvaluationError, match="cuts of a video"):
        host.ask([{"role": "user", "content": [cut]}])
    with pytest.raises(RowError, match=r"none\.png"):
        host.ask([{"role": "user", "content": [{"type": "image", "url": str(root / "none.png")}]}])
    with pytest.raises(SavedBranchError, match="does not exist"):
        load(root, branch=str(root / "no" / "such" / "branch"))


# The class that lmms-eval asks, on the parts of lmms-eval that it touches.


@dataclass
class _TokenCounts:
    output_tokens: int


@dataclass
class _GenerationResult:
    text: str
    token_counts: Any


@dataclass
class _Manifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None


class _Base:
    def __init__(self) -> None:
        self._rank, self._world_size, self.task_dict = 0, 1, {}
        self.cached: list[Any] = []
        self.cache_hook = types.SimpleNamespace(add_partial=lambda *args: self.cached.append(args))

    @property
    def rank(self) -> int:
        return self._rank


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, imported over a stand-in of lmms-eval's classes (0.7.3)."""
    contents = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.instance": {"GenerationResult": _GenerationResult, "TokenCounts": _TokenCounts},
        "lmms_eval.api.model": {"lmms": _Base},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": _Manifest},
    }
    for name, values in contents.items():
        module = types.ModuleType(name)
        module.__dict__.update(values)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "vega3d_plugin.evaluation.lmms_eval", raising=False)
    yield importlib.import_module("vega3d_plugin.evaluation.lmms_eval")
    sys.modules.pop("vega3d_plugin.evaluation.lmms_eval", None)


@pytest.mark.parametrize("size", [1, 3])
def test_requests_are_answered_in_order(double: Any, root: Path, size: int) -> None:
    arguments = {"pretrained": str(root / "host"), "branch": str(root / "branch"), "max_num_frames": 4}
    # What lmms-eval passes by itself.
    model = double.Vega3dModel(**arguments, batch_size=size, device="cuda" if not torch.cuda.is_available() else "cpu")
    assert model.is_simple is False
    assert (model.device.type, model.batch_size) == ("cpu", size)
    model.task_dict = {"rooms": {"test": lmms_eval_task.DOCS}}
    requests = [
        types.SimpleNamespace(args=("", lambda doc: question(root, doc), OPTIONS, number, "rooms", "test"))
        for number in (2, 0, 1)
    ]
    results = model.generate_until(requests)
    expected = answers(root)
    assert [result.text for result in results] == [expected[2], expected[0], expected[1]]
    assert all(0 < result.token_counts.output_tokens <= 6 for result in results)
    assert sorted(entry[2] for entry in model.cached) == sorted(result.text for result in results)
    with pytest.raises(EvaluationError, match="likelihoods"):
        model.loglikelihood([])
    with pytest.raises(EvaluationError, match="several rounds"):
        model.generate_until_multi_round([])


def test_a_batch_has_requests_with_the_same_options(double: Any) -> None:
    requests = [types.SimpleNamespace(args=("", None, {"max_new_tokens": n}, 0, "", "")) for n in (1, 2, 1, 1, 2)]
    assert list(double._batches(requests, 2)) == [[0, 2], [3], [1, 4]]


def test_a_folder_that_looks_like_a_number_stays_a_name(double: Any) -> None:
    texts = double._texts({"pretrained": 500, "branch": 1.5, "max_num_frames": 8, "store": None})
    assert texts == {"pretrained": "500", "branch": "1.5", "max_num_frames": 8, "store": None}


def test_the_manifest_names_the_class(double: Any) -> None:
    from vega3d_plugin.lmms_eval_plugin import manifest

    made = manifest()
    module, _, name = made.chat_class_path.rpartition(".")
    assert made.model_id == "vega3d"
    assert getattr(importlib.import_module(module), name) is double.Vega3dModel


def test_the_entry_point_is_declared() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert '[project.entry-points."lmms_eval.models"]\nvega3d = "vega3d_plugin.lmms_eval_plugin:manifest"' in text


def lmms_eval(
    root: Path, cwd: Path, task: str, *launch: str, home: Path | None = None, batch: int = 1, **arguments: Any
) -> str:
    """Run the real command in a folder; returns what it prints."""
    given = {"pretrained": root / "host", "branch": root / "branch", "max_num_frames": 4, **arguments}
    command = [
        str(interpreter("lmms-eval")), *launch, "-m", "lmms_eval", "--model", "vega3d", "--model_args",
        ",".join(f"{key}={value}" for key, value in given.items()), "--tasks", task, "--include_path",
        str(root / "tasks"), "--output_path", "out", "--log_samples", "--device", "cpu", "--batch_size", str(batch),
    ]  # fmt: skip
    environment = {**os.environ, "HF_HOME": str(home or cwd / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    # From another folder: metadata of an older installation may lie in this one.
    run = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    # It ends with 0 after an error too.
    assert run.returncode == 0, run.stderr[-3000:]
    assert (cwd / "out").is_dir(), run.stderr[-3000:]
    return run.stdout


def answered(cwd: Path, task: str) -> list[str]:
    """The answers that it wrote, in the order of the questions."""
    (samples,) = (cwd / "out").rglob(f"*_samples_{task}.jsonl")
    rows = sorted((json.loads(line) for line in samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    said = [row["filtered_resps"] for row in rows]
    return [text if isinstance(text, str) else text[0] for text in said]


if interpreter("lmms-eval") is not None:

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("launch", "arguments"),
        [
            ((), {}),
            (("-m", "accelerate.commands.launch", "--cpu", "--num_processes=2"), {}),
            ((), {"control": "off"}),
            ((), {"control": "zeroed"}),
            ((), {"branch": "adapter"}),
        ],
        ids=["one", "two", "off", "zeroed", "adapter"],
    )
    def test_the_real_command(root: Path, tmp_path: Path, launch: tuple[str, ...], arguments: dict[str, Any]) -> None:
        """``lmms-eval`` itself finds the plugin, runs the task and writes the answers that the host gives here."""
        given = {key: root / value if key == "branch" else value for key, value in arguments.items()}
        told = answers(root, **{key: str(value) for key, value in given.items()})
        printed = lmms_eval(root, tmp_path, "rooms", *launch, **given)
        assert answered(tmp_path, "rooms") == told
        score = sum(text.lower() == doc["answer"] for text, doc in zip(told, lmms_eval_task.DOCS, strict=True)) / 3
        assert f"|rooms|none  |     0|exact |↑  |{score:5.4g}|".replace(" ", "") in printed.replace(" ", "")

    @pytest.mark.slow
    def test_the_real_vsibench(root: Path, tmp_path: Path) -> None:
        """Its own code, on questions and a video of ours: the data set cannot be fetched in a test."""
        lmms_eval_task.build_vsibench(root, tmp_path)
        printed = lmms_eval(root, tmp_path, "vsibench", video_as="images", max_pixels=12544)
        assert "vsibench_overall" in printed
        assert len(answered(tmp_path, "vsibench")) == len(lmms_eval_task.VSIBENCH)
