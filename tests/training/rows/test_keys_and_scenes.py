"""Keys of rows that have no effect are told once; a scene in a row is a video of its views."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vega3d_plugin.contracts.errors import BadRowsError, RowError, Vega3dWarning
from vega3d_plugin.recipes.blocks import DataSettings
from vega3d_plugin.training.data import ConversationData
from vega3d_plugin.training.rows.conversation import read_conversation
from vega3d_plugin.training.rows.encoding import Encoder
from vega3d_plugin.training.rows.files import Rows
from vega3d_plugin.training.rows.keys import NOTES, READ, UnknownKeys
from vega3d_plugin.training.rows.media import load_video

TURNS = [{"from": "human", "value": "<video>\nWhere is the chair?"}, {"from": "gpt", "value": "Left."}]
SETTINGS = DataSettings(files=("x",), frames=4)


def data(folder: Path, rows: list[dict[str, Any]]) -> ConversationData:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return ConversationData(Rows([path]), Encoder(None, SETTINGS))


def text_row(**keys: Any) -> dict[str, Any]:
    return {"conversations": [{**TURNS[0], "value": "Where?"}, TURNS[1]], **keys}


def test_keys_without_effect_are_told_once_with_their_counts(tmp_path: Path) -> None:
    rows = [text_row(id=1, box=[1]), text_row(box=[2], imags=None), text_row(metadata={})]
    with pytest.warns(Vega3dWarning) as told:
        data(tmp_path, rows).check()
    assert len(told) == 1
    text = str(told[0].message)
    assert "'box' in 2 of 3 rows" in text
    assert "'imags' in 1 of 3 rows (did you mean 'images'" in text
    assert "Known: conversations, messages" in text


def test_known_keys_are_not_told(tmp_path: Path) -> None:
    # A warning would be an error here.
    assert data(tmp_path, [text_row(id=1, data_source="a", metadata={})]).check() == []


def test_only_the_first_process_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert data(tmp_path, [text_row(box=1)]).check() == []


def test_a_file_of_ever_new_keys_takes_no_more_room() -> None:
    keys = UnknownKeys()
    for i in range(10_000):
        keys.add({f"k{i}": 0})
    assert len(keys.counts) <= 100
    text = keys.message(10_000)
    assert text is not None
    assert "and 9,990 more" in text
    assert len(text) < 2000


def test_no_key_is_both() -> None:
    assert not {*READ} & {*NOTES}


def test_a_scene_is_a_video_of_its_views() -> None:
    medium = read_conversation({"conversations": TURNS, "scene": "room:0"}, SETTINGS).media[0]
    assert medium.kind == "video"
    assert len(medium.source) == SETTINGS.frames
    video = load_video(medium, SETTINGS)
    assert len(video.frames) == SETTINGS.frames
    assert video.frames[0].std() > 0
    chosen = {"path": "room:0", "views": 2}
    assert len(read_conversation({"conversations": TURNS, "scene": chosen}, SETTINGS).media[0].source) == 2


def test_a_scene_of_files_starts_at_the_media_root(tmp_path: Path) -> None:
    (tmp_path / "kitchen").mkdir()
    for i in range(3):
        Image.new("RGB", (32, 24), (i, 0, 0)).save(tmp_path / "kitchen" / f"{i}.png")
    medium = read_conversation({"conversations": TURNS, "scene": "kitchen"}, SETTINGS, tmp_path).media[0]
    assert [frame[0, 0, 0] for frame in load_video(medium, SETTINGS).frames] == [0, 1, 2]


@pytest.mark.parametrize(
    ("scene", "words"),
    [
        ("kitchn", "scene: .*kitchn"),
        (7, "scene: scene must be a mapping of settings"),
        ({"path": "room:0", "vews": 2}, "vews: unknown key"),
        ({"path": "room:0", "views": 6}, "scene: 6 views, more than data.frames, which is 4"),
    ],
)
def test_scenes_that_cannot_be_shown_are_told(tmp_path: Path, scene: Any, words: str) -> None:
    with pytest.raises(RowError, match=words):
        read_conversation({"conversations": TURNS, "scene": scene}, SETTINGS, tmp_path)


def test_bad_marks_and_scenes_are_bad_rows(tmp_path: Path) -> None:
    Image.new("RGB", (32, 24)).save(tmp_path / "a.png")
    turns = [{**TURNS[0], "value": "<image>?"}, TURNS[1]]
    rows = [
        {"conversations": TURNS, "scene": "nowhere"},
        {"conversations": turns, "image": "a.png", "spar_info": '{"type": "new"}'},
    ]
    with pytest.raises(BadRowsError) as caught:
        data(tmp_path, rows).check()
    assert "2 of 2 rows cannot be used" in str(caught.value)
    assert "row 2: spar_info: the type 'new' is unknown" in str(caught.value)
