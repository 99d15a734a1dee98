"""Rows to batches: found once and read one at a time, bad ones told by number and path, only answers learned."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from vega3d_llava_video import tiny_transformers as llava
from vega3d_plugin.contracts.clips import uniform_indices
from vega3d_plugin.contracts.errors import BadRowsError, BadRowWarning, RowError, SettingsError, TrainError
from vega3d_plugin.recipes.blocks import DataSettings
from vega3d_plugin.recipes.library import read_recipe
from vega3d_plugin.scenes.video import write_video
from vega3d_plugin.training.data import ConversationData, read_data
from vega3d_plugin.training.rows.conversation import Medium, read_conversation
from vega3d_plugin.training.rows.encoding import Encoder
from vega3d_plugin.training.rows.files import Rows
from vega3d_plugin.training.rows.media import load_video
from vega3d_qwen_vl import tiny as qwen

SETTINGS = DataSettings(files=("x",), frames=4)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures, a folder of twelve whose order by name is not that by number, and a video of twenty frames."""
    root = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (56, 84, 3), dtype=np.uint8)).save(root / f"v{i}.png")
    (root / "scene").mkdir()
    for i in range(12):
        Image.fromarray(np.full((56, 56, 3), 10 * i, dtype=np.uint8)).save(root / "scene" / f"{i}.png")
    frames = np.zeros((20, 64, 64, 3), dtype=np.uint8) + 10 * np.arange(20, dtype=np.uint8)[:, None, None, None]
    write_video(root / "a.mp4", frames, fps=10)
    return root


def llava_row(question: str, answer: str = "Yes.", **row: Any) -> dict[str, Any]:
    return {**row, "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def write_rows(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text(text if name.endswith("l") else json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


# Rows


def test_both_kinds_of_file_give_the_same_rows(tmp_path: Path) -> None:
    rows = [{"a": "é\u2028 }{ ][", "n": [1, {"b": '\\"'}]}, {}, {"long": "x" * 5000, "u": "日本"}]
    for name in ("rows.json", "rows.jsonl"):
        assert list(Rows([write_rows(tmp_path, rows, name)])) == rows
    both = Rows([str(tmp_path / "rows.*")])
    assert list(both) == rows * 2
    assert [both.name(i) for i in (2, 3)] == [f"{tmp_path / 'rows.json'}, row 3", f"{tmp_path / 'rows.jsonl'}, row 1"]


def test_rows_are_not_held_in_memory(tmp_path: Path) -> None:
    rows = Rows([write_rows(tmp_path, [{"text": "x" * 10_000}] * 200)])
    assert len(rows) == 200
    # What a worker is sent is places in the file, not text.
    assert len(pickle.dumps(rows)) < 10_000
    assert pickle.loads(pickle.dumps(rows))[199] == {"text": "x" * 10_000}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.csv", "a,b", "must end in"),
        ("rows.json", '{"a": 1}', "no list of rows: it begins with"),
        ("rows.json", '[{"a": 1} {"b": 2}]', "',' or ']' is missing"),
        ("rows.json", '[{"a": 1}, {"b": ]', "is no JSON"),
        ("rows.jsonl", "\n\n", "no rows in"),
    ],
)
def test_files_that_are_no_rows(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(TrainError, match=message) as caught:
        Rows([tmp_path / name])
    assert str(tmp_path / name) in str(caught.value)


def test_a_pattern_without_a_match_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"no file matches .*\*\.jsonl"):
        Rows([tmp_path / "*.jsonl"])
    with pytest.raises(TrainError, match="there is no file"):
        Rows([tmp_path / "rows.jsonl"])


# Conversations


ROWS: dict[str, Callable[[], dict[str, Any]]] = {
    "an image": lambda: llava_row("<image>\nLeft?", image="v0.png"),
    "two images": lambda: llava_row("<image> and <image>?", image=["v0.png", "v1.png"]),
    "a video": lambda: llava_row("<video>\nLeft?", video="a.mp4"),
    "a video behind the placeholder of an image": lambda: llava_row("<image>\nLeft?", video="a.mp4"),
    "a folder of frames": lambda: llava_row("<video>", video="scene"),
    "a list of views": lambda: llava_row("<video>", video=["v0.png", "v1.png"]),
    "two lists of views": lambda: llava_row("<video><video>", videos=[["v0.png"], ["v1.png", "v2.png"]]),
    "chat with media in the parts": lambda: {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": "v0.png"},
                    {"type": "video", "video": "a.mp4"},
                    {"type": "text", "text": "Left?"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
        ]
    },
    "chat with media beside": lambda: {
        "images": ["v0.png"],
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Left?"}]},
            {"role": "assistant", "content": "Yes."},
        ],
    },
    "prompt and completion": lambda: {
        "images": ["v0.png"],
        "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Left?"}]}],
        "completion": [{"role": "assistant", "content": "Yes."}],
    },
    "text alone": lambda: llava_row("How are you?"),
}
EXPECTED = {
    "an image": [("image", "v0.png")],
    "two images": [("image", "v0.png"), ("image", "v1.png")],
    "a video": [("video", "a.mp4")],
    "a video behind the placeholder of an image": [("video", "a.mp4")],
    "a folder of frames": [("video", [f"scene/{i}.png" for i in range(12)])],
    "a list of views": [("video", ["v0.png", "v1.png"])],
    "two lists of views": [("video", ["v0.png"]), ("video", ["v1.png", "v2.png"])],
    "chat with media in the parts": [("image", "v0.png"), ("video", "a.mp4")],
    "chat with media beside": [("image", "v0.png")],
    "prompt and completion": [("image", "v0.png")],
    "text alone": [],
}


@pytest.mark.parametrize("name", ROWS)
def test_every_way_to_write_a_row(media: Path, name: str) -> None:
    def full(source: Any) -> Any:
        return [media / s for s in source] if isinstance(source, list) else media / source

    found = read_conversation(ROWS[name](), SETTINGS, media)
    assert [(m.kind, m.source) for m in found.media] == [(kind, full(source)) for kind, source in EXPECTED[name]]
    assert found.turns[-1].text == "Yes."
    assert "<image>" not in found.turns[0].text


BAD: dict[str, tuple[Any, str]] = {
    "missing image": (llava_row("<image>", image="v7.png"), "v7.png does not exist. Did you mean 'v3.png'"),
    "missing frame": (llava_row("<video>", video=["v0.png", "w/1.png"]), "w/1.png does not exist, nor does the folder"),
    "missing video": (llava_row("<video>", video="b.mp4"), "b.mp4 does not exist"),
    "empty folder": (llava_row("<video>", video="empty"), "empty has no images"),
    "empty answer": (llava_row("Why?", " \n"), "turn 2: the answer is empty"),
    "no answer": ({"conversations": [{"from": "human", "value": "Why?"}]}, "last turn must be an answer"),
    "no question": ({"conversations": [{"from": "gpt", "value": "So."}]}, "there is no question"),
    "more images than placeholders": (
        llava_row("<image>", image=["v0.png", "v1.png"]), "2 images but 1 placeholders for them; the first without one "
        "is 'v1.png'",
    ),
    "video without placeholder": (llava_row("Left?", video="a.mp4"), "1 videos but 0 placeholders"),
    "more placeholders than images": (llava_row("<image><image>", image="v0.png"), "placeholder 2 for an image has"),
    "url": (llava_row("<image>", image="https://example.org/a.png"), "is no path; download it first"),
    "unknown keys": ({"text": "hello"}, "neither `conversations` nor `messages`; its keys are text"),
    "unknown speaker": ({"messages": [{"role": "tool", "content": "x"}]}, "unknown speaker 'tool'"),
    "no turns": ({"conversations": []}, "must be a list of turns"),
    "unknown part": ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "found 'audio'"),
    "picture in an answer": (
        {"images": ["v0.png"], "messages": [{"role": "user", "content": "a"}, {"role": "assistant",
         "content": [{"type": "image"}, {"type": "text", "text": "b"}]}]}, "an answer cannot hold",
    ),
    "no object": ([1, 2], "a JSON object is expected, found list"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_told_by_number_and_path(media: Path, tmp_path: Path, name: str) -> None:
    (media / "empty").mkdir(exist_ok=True)
    row, message = BAD[name]
    path = write_rows(tmp_path, [llava_row("Fine?"), row])
    data = ConversationData(Rows([path]), Encoder(None, SETTINGS.model_copy(update={"media_root": str(media)})))
    with pytest.raises(BadRowsError) as caught:
        data.check()
    text = str(caught.value)
    assert "1 of 2 rows cannot be used" in text
    assert f"{path}, row 2: " in text
    assert message in text
    assert "--skip-bad-rows" in text


def test_a_large_folder_is_not_searched_for_each_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "frame_1.jpg").touch()
    row = llava_row("<image>", image="frame_1.png")
    with pytest.raises(RowError, match=r"Did you mean 'frame_1\.jpg'"):
        read_conversation(row, SETTINGS, tmp_path)
    monkeypatch.setattr("vega3d_plugin.training.rows.paths.LISTED", 0)
    with pytest.raises(RowError, match=r"frame_1\.png does not exist$"):
        read_conversation(row, SETTINGS, tmp_path)


def test_skipped_rows_are_counted_and_listed(media: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path, [row for row, _ in BAD.values()] + [llava_row("Fine?")])
    settings = SETTINGS.model_copy(update={"media_root": str(media), "skip_bad_rows": True})
    data = ConversationData(Rows([path]), Encoder(None, settings))
    bad = data.check()
    assert [row.name for row in bad] == [f"{path}, row {i + 1}" for i in range(len(BAD))]
    assert len(data) == 1
    assert data.usable is not None
    assert list(data.usable) == [len(BAD)]


def test_none_left_is_an_error_even_so(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"skip_bad_rows": True})
    data = ConversationData(Rows([write_rows(tmp_path, [{"a": 1}])]), Encoder(None, settings))
    with pytest.raises(BadRowsError, match="1 of 1 rows cannot be used"):
        data.check()


REFUSED = {"too flat": (6200, 30), "one pixel": (1, 1), "under a token": (20, 20), "one column": (1, 300)}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_the_processor_refuses_is_a_bad_row(processor: Any, media: Path, tmp_path: Path, kind: str) -> None:
    """Which pictures a processor takes is its own affair; a row with one that it refuses is named, or skipped."""
    Image.new("RGB", REFUSED[kind], (9, 90, 200)).save(tmp_path / "odd.png")
    (tmp_path / "v0.png").write_bytes((media / "v0.png").read_bytes())
    rows = [llava_row("<image>\nOdd?", image="odd.png"), llava_row("<image>\nFine?", image="v0.png")]
    path = write_rows(tmp_path, rows)
    data = read_data(processor, path)
    told = ""
    try:
        data[0]
    except BadRowsError as error:
        told = str(error)
    if not told:
        # Qwen-VL of every version refuses what is 200 times as wide as high.
        assert not (kind in ("too flat", "one column") and "Qwen" in type(processor).__name__)
        return
    assert f"{path}, row 1: the processor refuses its pictures (image {REFUSED[kind][0]}x" in told
    assert "pass --skip-bad-rows" in told
    skipping = read_data(processor, path, skip_bad_rows=True)
    with pytest.warns(BadRowWarning, match=r"row 1: the processor refuses"):
        taken = skipping[0]
    assert torch.equal(taken["input_ids"], data[1]["input_ids"])


# Frames


def test_frames_are_spread_over_the_video_and_views_come_in_order(media: Path) -> None:
    video = load_video(Medium("video", media / "a.mp4"), SETTINGS)
    assert video.indices == uniform_indices(20, 4) == [0, 6, 13, 19]
    assert [round(float(frame.mean()) / 10) for frame in video.frames] == video.indices
    assert (video.total, video.fps) == (20, 10.0)
    scene = read_conversation(ROWS["a folder of frames"](), SETTINGS, media).media[0]
    views = load_video(scene, SETTINGS)
    assert [int(frame.mean()) for frame in views.frames] == [10 * i for i in uniform_indices(12, 4)]


def test_a_short_video_is_taken_whole(media: Path) -> None:
    video = load_video(Medium("video", media / "a.mp4"), SETTINGS.model_copy(update={"frames": 32}))
    assert video.indices == list(range(20))


def test_frames_by_the_second(media: Path) -> None:
    by_second = DataSettings(files=("x",), frames=16, sampling="fps", fps=2.0)
    assert load_video(Medium("video", media / "a.mp4"), by_second).indices == uniform_indices(20, 4)
    assert len(load_video(Medium("video", [media / "v0.png"] * 8, 4.0), by_second).frames) == 4


@pytest.mark.parametrize(("total", "taken"), [(3, 3), (6, 4), (12, 6), (13, 6), (40, 8)])
def test_frames_as_the_spatial_reasoning_experiment_takes_them(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, total: int, taken: int
) -> None:
    """One every two seconds of a folder of one frame a second, at least 4 and at most 8; of a list, as many as fit."""
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    settings = read_recipe("qwen_vl/lora_spatial_reasoning").data
    assert settings is not None
    for i in range(total):
        shutil.copy(media / "v0.png", tmp_path / f"{i:02}.png")
    views = [str(tmp_path / f"{i:02}.png") for i in range(total)]
    for given, count in ((str(tmp_path), taken), (views, min(total, 8))):
        medium = read_conversation(llava_row("<image>Where?", video=given), settings).media[0]
        assert load_video(medium, settings).indices == uniform_indices(total, count)


def test_views_of_different_sizes_are_told(media: Path) -> None:
    with pytest.raises(RowError, match=r"one size, found 84x56 .*v0\.png.* and 56x56 .*0\.png"):
        load_video(Medium("video", [media / "v0.png", media / "scene" / "0.png"]), SETTINGS)


# Encoding


def processors() -> dict[str, Callable[[], Any]]:
    found = {family: lambda family=family: qwen.tiny_processor(family) for family in qwen.available_families()}
    for family in ("llava_next_video", "llava_onevision"):
        found[family] = lambda family=family: llava.tiny_processor(family)
    return found


@pytest.fixture(params=processors().values(), ids=processors())
def processor(request: pytest.FixtureRequest) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return request.param()


def learned(processor: Any, sample: dict[str, Tensor]) -> str:
    text: str = processor.tokenizer.decode(sample["labels"][0][sample["labels"][0] >= 0])
    return text


def test_only_answers_are_learned(processor: Any, media: Path) -> None:
    row = {
        "video": "a.mp4",
        "image": "v0.png",
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "<video>\nLeft?"},
            {"from": "gpt", "value": "Yes, é."},
            {"from": "human", "value": "And <image>?"},
            {"from": "gpt", "value": "No."},
        ],
    }
    sample = Encoder(processor, SETTINGS)(row, media)
    end = "<|im_end|>" if "<|im_end|>" in processor.tokenizer.get_vocab() else "</s>"
    assert learned(processor, sample) == f"Yes, é.{end}No.{end}"
    ids, labels = sample["input_ids"], sample["labels"]
    assert torch.equal(labels[labels >= 0], ids[labels >= 0])
    # What is not learned is not lost.
    text = processor.tokenizer.decode(ids[0])
    for part in ("Be brief.", "Left?", "And ", "Yes, é."):
        assert part in text


def test_the_prompt_is_what_the_processor_alone_makes_of_it(processor: Any, media: Path) -> None:
    """What is trained on is what inference will see: one prompt, from the processor, with the answer behind it."""
    sample = Encoder(processor, SETTINGS)(ROWS["an image"](), media)
    content = [{"type": "image"}, {"type": "text", "text": "\nLeft?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    expected = processor(text=[prompt], images=[Image.open(media / "v0.png")], return_tensors="pt")
    length = expected["input_ids"].shape[1]
    assert torch.equal(sample["input_ids"][:, :length], expected["input_ids"])
    assert torch.equal(sample["pixel_values"], expected["pixel_values"])
    assert bool((sample["labels"][:, :length] == -100).all())
    assert bool((sample["labels"][:, length:] != -100).all())


@pytest.mark.parametrize("family", qwen.available_families())
@pytest.mark.parametrize("video_as", ["video", "images"])
def test_a_batch_costs_what_its_rows_cost(family: str, video_as: str, media: Path, tmp_path: Path) -> None:
    """Padding and putting the pictures of several rows together changes no row's loss."""
    rows = [ROWS[name]() for name in ROWS]
    processor = qwen.tiny_processor(family)
    data = read_data(
        processor, write_rows(tmp_path, rows), media_root=str(media), frames=4, video_as=video_as, video_max_pixels=3136
    )
    model = qwen.tiny_model(family)
    samples = list(data)
    with torch.no_grad():
        alone = [model(**data.collator([sample])).loss for sample in samples]
        counts = [int((sample["labels"] >= 0).sum()) for sample in samples]
        together = model(**data.collator(samples)).loss
    expected = sum(loss * count for loss, count in zip(alone, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-4)
    kinds = {"image_grid_thw"} if video_as == "images" else {"image_grid_thw", "video_grid_thw"}
    assert kinds == {key for key in data.collator(samples) if key.endswith("grid_thw")}


def test_workers_read_the_same(media: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path, [ROWS[name]() for name in ("an image", "a video", "a list of views")])
    data = read_data(qwen.tiny_processor(), path, media_root=str(media), frames=2)
    plain = list(DataLoader(data, batch_size=2, collate_fn=data.collator))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forked = list(DataLoader(data, batch_size=2, collate_fn=data.collator, num_workers=2))
    assert len(plain) == len(forked) == 2
    for a, b in zip(plain, forked, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_frames_are_brought_below_the_limit(media: Path) -> None:
    encoder = Encoder(qwen.tiny_processor(), SETTINGS.model_copy(update={"video_max_pixels": 2 * 28 * 28}))
    sample = encoder(llava_row("<video>", video="a.mp4"), media)
    # 64 x 64 has four tokens a frame; whole tokens below the limit make one of them.
    assert sample["video_grid_thw"].tolist() == [[2, 2, 2]]


def test_too_long_and_the_hosts_own_placeholder(media: Path) -> None:
    with pytest.raises(RowError, match=r"\d+ tokens, more than max_length 10"):
        Encoder(qwen.tiny_processor(), SETTINGS, max_length=10)(ROWS["an image"](), media)
    with pytest.raises(RowError, match=r"turn 1: its text holds the host's own placeholder '<\|image_pad\|>'"):
        Encoder(qwen.tiny_processor(), SETTINGS)(llava_row("What is <|image_pad|>?"), media)


def test_a_damaged_picture_stops_the_run_or_is_replaced_and_noted(media: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes((media / "v0.png").read_bytes()[:100])
    path = write_rows(tmp_path, [llava_row("<image>", image="broken.png"), llava_row("Fine?", "Good.")])
    processor = qwen.tiny_processor()
    with pytest.raises(BadRowsError, match=r"rows\.jsonl, row 1: .*broken\.png cannot be read.*--skip-bad-rows"):
        read_data(processor, path)[0]
    data = read_data(processor, path, skip_bad_rows=True)
    data.report = tmp_path / "bad.txt"
    with pytest.warns(BadRowWarning, match="row 1"):
        assert learned(processor, data[0]) == "Good.<|im_end|>"
    assert data.report.read_text().startswith(f"{path}, row 1: ")
    # Once, however many epochs come by it.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data[0]
    assert len(data.report.read_text().splitlines()) == 1


@pytest.mark.parametrize(("given", "row"), [("llava", "chat"), ("chat", "llava")])
def test_rows_of_another_format_than_the_recipe_says(media: Path, given: str, row: str) -> None:
    rows = {"llava": llava_row("Fine?"), "chat": {"messages": [{"role": "user", "content": "Fine?"}]}}
    settings = SETTINGS.model_copy(update={"format": given})
    with pytest.raises(RowError, match=f"of the format {row}, but data.format is {given}; `auto` takes both"):
        read_conversation(rows[row], settings, media)


def test_rows_may_also_be_collated_as_they_are(media: Path) -> None:
    """As a script of one's own has them: pictures of PIL in a list of dicts."""
    from vega3d_plugin.training.data import Collator

    picture = Image.open(media / "v0.png")
    row = {
        "images": [picture],
        "messages": [{"role": "user", "content": "<image>Left?"}, {"role": "assistant", "content": "Yes."}],
    }
    batch = Collator(Encoder(qwen.tiny_processor(), SETTINGS))([row, row])
    assert batch["input_ids"].shape[0] == 2
    assert batch["image_grid_thw"].shape == (2, 3)


# Settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"files": []}, "at least one file"),
        ({"files": "a.json", "sampling": "fps"}, "`sampling: fps` needs `fps`"),
        ({"files": "a.json", "fps": 2.0}, "`fps: null` removes it"),
        ({"files": "a.json", "frames": 2, "min_frames": 4}, "min_frames 4 is larger than frames 2"),
        ({"files": "a.json", "frmes": 3}, "Did you mean 'frames'"),
        ({"files": "a.json", "frames": "3"}, "frames"),
    ],
)
def test_wrong_data_settings(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        DataSettings.parse(values)


@pytest.mark.parametrize("family", ["llava", "vipllava", "llava_next"])
@pytest.mark.parametrize("image", [None, "v0.png"], ids=["a video", "an image and a video"])
def test_a_processor_that_leaves_videos_out_is_told(family: str, image: str | None, media: Path) -> None:
    row = llava_row("<image>" * (image is not None) + "<video>\nLeft?", video="a.mp4", image=image)
    encoder = Encoder(llava.tiny_processor(family), SETTINGS)
    with pytest.raises(RowError, match=r"takes no videos: it gave no pixels of a video of 4 frames 64x64\. Set"):
        encoder(row, media)
    shown = Encoder(llava.tiny_processor(family), DataSettings(files=("x",), frames=4, video_as="images"))
    assert len(shown(row, media)["pixel_values"]) == 4 + (image is not None)
