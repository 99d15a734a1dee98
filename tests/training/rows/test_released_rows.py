"""Rows of the spatial-reasoning experiment: the released code's conversations, frames, marks and sizes."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import goldens

from vega3d_plugin.contracts.errors import RowError, SettingsError
from vega3d_plugin.recipes.blocks import DataSettings
from vega3d_plugin.training.rows.conversation import Conversation, Medium, read_conversation
from vega3d_plugin.training.rows.encoding import Encoder
from vega3d_plugin.training.rows.marks import SPECIAL, TYPES
from vega3d_plugin.training.rows.media import load_image
from vega3d_plugin.training.rows.places import frame_places
from vega3d_plugin.training.rows.released import FOLDER_FPS, fit_width, released_row
from vega3d_qwen_vl import tiny as qwen

ROWS = goldens.load("space/rows_spatial_reasoning")
FRAMES = goldens.load("space/rows_frame_sampling")
SIZES = goldens.load("space/rows_image_518")
CASES = list(enumerate(ROWS.info["rows"]))


def released(**settings: Any) -> DataSettings:
    config = ROWS.info["config"]
    given = {
        "fps": 1 / config["base_interval"],
        "min_frames": config["video_min_frames"],
        "frames": config["video_max_frames"],
    }
    return DataSettings.parse({"preset": "released", "files": ("x",), **given, **settings})


def written(number: int, case: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The row, after its pictures were written below ``root``."""
    row: dict[str, Any] = copy.deepcopy(case["row"])
    named = row.get("images", row.get("image", []))
    for i, (name, size) in enumerate(zip(named, case["image_sizes"], strict="frame_files" not in case)):
        given = ROWS.inputs.get(f"{number}.{i}")
        pixels = np.zeros((size[1], size[0], 3), np.uint8) if given is None else given.numpy()
        save(root / name, pixels)
    for i, name in enumerate(case.get("frame_files", [])):
        save(root / name, np.full((*case["image_sizes"][0][::-1], 3), i, np.uint8))
    return row


def save(path: Path, pixels: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def with_placeholders(conversation: Conversation) -> list[str]:
    turns = [t for t in conversation.turns if t.role != "system"]
    return ["".join("<image>" if isinstance(part, Medium) else part for part in turn.parts) for turn in turns]


@pytest.mark.parametrize(("number", "case"), CASES)
def test_a_row_becomes_what_the_released_code_makes_of_it(number: int, case: dict[str, Any], tmp_path: Path) -> None:
    row = written(number, case, tmp_path)
    kept = copy.deepcopy(row)
    found = read_conversation(row, released(), tmp_path)
    assert row == kept
    assert with_placeholders(found) == [turn["value"] for turn in case["conversation"]]
    assert [turn.role for turn in found.turns] == ["system", "user", "assistant"]
    assert len(found.media) == case["n_images"]
    pictures = [load_image(medium) for medium in found.media]
    assert [list(picture.size) for picture in pictures] == case["image_sizes"]
    if "frame_files" in case:
        assert [int(np.asarray(picture)[0, 0, 0]) for picture in pictures] == case["frames_taken"]
        assert [str(m.source.relative_to(tmp_path)) for m in found.media] == [
            case["frame_files"][i] for i in case["frames_taken"]
        ]


@pytest.mark.parametrize(("number", "case"), CASES)
def test_the_row_itself_is_the_released_one(number: int, case: dict[str, Any], tmp_path: Path) -> None:
    new = released_row(written(number, case, tmp_path), released(), tmp_path)
    assert sorted(new) == sorted(case["keys_after"])
    assert new["conversations"] == case["conversation"]


def test_marked_pictures_are_the_released_ones_to_the_pixel(tmp_path: Path) -> None:
    left = dict(ROWS.outputs)
    for number, case in CASES:
        found = read_conversation(written(number, case, tmp_path), released(), tmp_path)
        for i, medium in enumerate(found.media):
            expected = left.pop(f"{number}.{i}", None)
            if expected is not None:
                assert torch.equal(torch.from_numpy(np.array(load_image(medium))), expected), (number, i)
    assert ROWS.outputs
    assert not left


def test_marks_are_drawn_without_the_preset_too(tmp_path: Path) -> None:
    number, case = next((n, c) for n, c in CASES if "spar_info" in c["row"])
    found = read_conversation(written(number, case, tmp_path), DataSettings(files=("x",)), tmp_path)
    drawn = [torch.from_numpy(np.array(load_image(medium))) for medium in found.media]
    assert all(torch.equal(pixels, ROWS.outputs[f"{number}.{i}"]) for i, pixels in enumerate(drawn))
    assert any(not torch.equal(pixels, ROWS.inputs[f"{number}.{i}"]) for i, pixels in enumerate(drawn))


def test_every_type_of_the_released_code_is_known() -> None:
    assert sorted([*TYPES, *SPECIAL]) == sorted(ROWS.info["draw_types"])


@pytest.mark.parametrize("case", FRAMES.info["train"])
def test_frames_are_the_released_ones(case: dict[str, Any]) -> None:
    settings = released(fps=1 / FRAMES.info["config"]["base_interval"], min_frames=4, frames=8)
    assert frame_places(case["total"], case["fps"], settings) == case["indices"]


@pytest.mark.parametrize("case", FRAMES.info["vsibench_eval"])
def test_frames_of_the_benchmark_are_the_released_ones(case: dict[str, Any]) -> None:
    settings = DataSettings.parse({"preset": "released", "files": ("x",), "sampling": "uniform", "frames": case["max"]})
    assert frame_places(case["total"], None, settings) == case["indices"]


def test_every_part_of_the_references_is_looked_at() -> None:
    lists = {key for key, value in FRAMES.info.items() if isinstance(value, list)}
    assert lists == {"train", "vsibench_eval"}
    assert {key for case in ROWS.info["rows"] for key in case} <= {
        *("row", "conversation", "n_images", "image_sizes", "keys_after", "frame_files", "frames_taken")
    }
    assert {*SIZES.outputs} == {"tensor"}


@pytest.mark.parametrize("case", SIZES.info["sizes"])
def test_sizes_are_the_released_ones(case: dict[str, Any]) -> None:
    assert [*fit_width(Image.new("RGB", case["wh"])).size][::-1] == case["tensor_hw"]


def test_a_resized_picture_is_the_released_one() -> None:
    found = fit_width(Image.fromarray(SIZES.inputs["image"].numpy()))
    tensor = torch.from_numpy(np.array(found)).permute(2, 0, 1).float() / 255
    assert torch.equal(tensor, SIZES.outputs["tensor"])


def test_by_default_folders_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for i in range(12):
        save(tmp_path / "scene" / f"{i}.png", np.full((8, 8, 3), i, np.uint8))
    row = {
        "video": "scene",
        "conversations": [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "A."}],
    }
    taken = {"video_as": "images", "sampling": "fps", "fps": 0.5, "min_frames": 4, "folder_fps": FOLDER_FPS}
    plain = read_conversation(row, DataSettings.parse({"files": ("x",), **taken}), tmp_path).media[0]
    assert [path.stem for path in plain.source] == [str(i) for i in range(12)]
    as_text = [m.source.stem for m in read_conversation(row, released(), tmp_path).media]
    assert as_text == ["0", "10", "2", "4", "6", "9"]


def test_the_preset_is_a_set_of_defaults() -> None:
    settings = released(frames=6, system=None)
    assert (settings.video_as, settings.resize, settings.sampling) == ("images", "width_518", "fps")
    assert (settings.frames, settings.folder_fps, settings.system) == (6, 1.0, None)
    assert DataSettings.parse(settings.model_dump()) == settings
    # Fewer frames than the released minimum are no contradiction.
    assert DataSettings.parse({"preset": "released", "files": ("x",), "frames": 2}).min_frames == 2
    for wrong in ({"preset": "released", "video_as": "video"}, {"resize": "width_518"}):
        with pytest.raises(SettingsError, match="needs `video_as: images`"):
            DataSettings.parse({"files": ("x",), **wrong})


def test_the_host_gets_the_resized_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    save(tmp_path / "a.png", rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))
    row = {
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A."}],
    }
    processor = qwen.tiny_processor("qwen2_5_vl")
    token = processor.image_processor.patch_size * processor.image_processor.merge_size
    found = Encoder(processor, released())(row, tmp_path)["pixel_values"]
    expected = processor.image_processor(fit_width(Image.open(tmp_path / "a.png"), token), return_tensors="pt")
    assert torch.equal(found, expected["pixel_values"])
    plain = Encoder(processor, released(resize=None))(row, tmp_path)["pixel_values"]
    assert plain.shape != found.shape or not torch.equal(plain, found)


@pytest.mark.parametrize("size", [(4000, 10), (2, 4000)])
def test_pictures_that_the_rule_cannot_serve_are_told(size: tuple[int, int]) -> None:
    with pytest.raises(RowError, match="cannot be brought to a width of 518"):
        fit_width(Image.new("RGB", size))


def test_rows_that_the_released_reader_would_misread_are_told(tmp_path: Path) -> None:
    save(tmp_path / "scene" / "0.png", np.zeros((8, 8, 3), np.uint8))
    turns = json.loads('[{"from": "human", "value": "<video>What?"}, {"from": "gpt", "value": "A."}]')
    for row, words in (
        ({"video": ["scene"]}, "takes a path as `video`, found list"),
        ({"video": "scene", "images": ["scene/0.png"]}, "images and a video"),
        ({"video": "seen"}, "does not exist"),
    ):
        with pytest.raises(RowError, match=words):
            read_conversation({**row, "conversations": turns}, released(), tmp_path)
