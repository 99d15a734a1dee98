"""``vega3d analyse report``: every result of a folder on one page, and what cannot be shown."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import found
import pages
import pytest
from typer.testing import CliRunner

from vega3d_plugin.analysis.report.analysis_report import MAY, MAY_NOT, analysis_page, write_report
from vega3d_plugin.analysis.report.results import listed, read_results
from vega3d_plugin.analysis.report.scene_sheets import write_scene_sheets
from vega3d_plugin.analysis.report.sections import tone
from vega3d_plugin.analysis.scoring import AnalysisWarning
from vega3d_plugin.cli.app import app
from vega3d_plugin.contracts.errors import AnalysisError, ReportError
from vega3d_plugin.scenes.worlds import rendered_scene

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> {{ 7*7 }}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return found.write_all(tmp_path_factory.mktemp("all") / "out")


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def shown(text: str) -> str:
    return " ".join("".join(pages.check_page(text).text).split())


def test_every_result_has_its_section(text: str) -> None:
    page = pages.check_page(text)
    sections = ["what-you-may-conclude", "scenes", "correspondence", "sweep", "read-outs", "comparison", "settings"]
    assert [name for name in page.ids if name in sections] == sections
    words = shown(text)
    for expected in (
        *found.NAMES,
        "cosine",
        "centred",
        "untrained twin",
        "position only",
        "★",
        "tap \\ timestep",
        "share of pixels that a head has right.",
        "auc@30",
        "what the prior sees",
        "true depth",
        "read-out, held out",
        "read-out, training",
        "Pearson",
        "downstream score",
        found.FINGERPRINT,
        "torch, here",
        "vega3d ablate",
    ):
        assert expected in words, expected


def test_what_one_may_conclude_stands_first(text: str) -> None:
    words = shown(text)
    for sentence in (MAY, MAY_NOT):
        assert sentence.replace("`", "") in words
        assert words.index(sentence.replace("`", "")[:60]) < words.index("Do features of one place agree")
    assert MAY.count(".") <= 1
    assert MAY_NOT.count(". ") <= 1


def test_only_pictures_of_the_priors_that_are_shown(folder: Path, text: str) -> None:
    page = pages.check_page(text)
    assert "Views of room_0000, and the way of the camera from above" in page.alts
    assert "some-prior (frame): scores, matches and features" in page.alts
    assert "room_other_ffffffff" not in text
    # A contact sheet, a picture over frames, four of the example, a scatter plot.
    assert page.tags.count("img") == 1 + 1 + 4 + 1


def test_the_answer_follows_the_figures(tmp_path: Path) -> None:
    def lead(name: str, **levels: float) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "a.json").write_text(found.correspondence(**levels).to_json())
        return analysis_page(read_results(folder)).lead

    assert "clearly better than its untrained twin in correspondence, centred" in lead("above", own=0.6, twin=0.2)
    assert "nothing here shows that it has learned" in lead("below", own=0.2, twin=0.6)


def test_the_cards_say_which_way(folder: Path) -> None:
    page = analysis_page(read_results(folder))
    tones = {card.label: card.tone for block in page.top for card in getattr(block, "items", ())}
    assert tones["some-prior (frame): correspondence, centred"] == "good"
    assert tones["some-prior (frame): read-out, points"] == "good"
    worse = analysis_page(read_results(folder).__class__(folder, (_result(folder, found.readouts(own=0.6, twin=0.2)),)))
    assert {card.tone for block in worse.top for card in getattr(block, "items", ())} == {"bad"}


def _result(folder: Path, result: object):  # type: ignore[no-untyped-def]
    from vega3d_plugin.analysis.report.results import FoundResult

    return FoundResult(folder / "x.json", result)  # type: ignore[arg-type]


def test_a_prior_without_a_twin_is_not_praised(tmp_path: Path) -> None:
    result = found.correspondence()
    scores = result.priors[0]
    bare = tuple(
        scene.model_copy(update={"values": {k: v for k, v in scene.values.items() if k != "untrained twin"}})
        for scene in scores.scenes
    )
    alone = result.model_copy(update={"priors": (scores.model_copy(update={"scenes": bare}),)})
    (tmp_path / "a.json").write_text(alone.to_json())
    words = shown(write_report(tmp_path).read_text())
    assert "has no untrained twin here, so nothing shows what it has learned" in words
    assert "judged without an untrained twin" in words
    assert "clearly better" not in words


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x (frame): centred is above pixels by 0.1 [0.0, 0.2].", "good"),
        ("x (frame): centred is NOT clearly above pixels (-0.1): nothing here", "open"),
        ("x: points 0.5 is better than random, WORSE than pixels.", "bad"),
        ("x: points 0.5 is better than random.", "good"),
        ("x: points 0.5 is better than random, NOT clearly better than pixels.", "open"),
        ("x: 2 scenes are held out, too few to tell it from its controls.", "open"),
        ("There is one scene.", "note"),
    ],
)
def test_the_tone_of_a_sentence(line: str, expected: str) -> None:
    assert tone(line) == expected


def test_hostile_names_are_only_shown(tmp_path: Path) -> None:
    names = [f"{HOSTILE} {i}" for i in range(8)]
    folder = found.write_all(tmp_path / "out", names, HOSTILE)
    text = write_report(folder, title=HOSTILE).read_text(encoding="utf-8")
    page = pages.check_page(text)
    assert "<script" not in text
    assert "".join(page.text).count("<script>alert(1)</script>") > 20
    assert "{{ 7*7 }}" in "".join(page.text)


def test_a_hostile_fingerprint_finds_no_file(tmp_path: Path) -> None:
    folder = found.write_all(tmp_path / "out")
    for fingerprint in ("../../*", "*" * 8, "[a-z]*12", ""):
        assert read_results(folder).pictures_of(fingerprint) == []


# What cannot be shown


def test_a_folder_without_results(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="It is empty"):
        write_report(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ReportError, match=r"It holds notes\.txt"):
        write_report(tmp_path)
    with pytest.raises(ReportError, match="is no folder"):
        write_report(tmp_path / "nowhere")
    assert not (tmp_path / "report.html").exists()


def test_other_json_is_left_out_and_told(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(found.correspondence().to_json())
    for name, data in {"b": [1, 2], "c": {"kind": "recipe"}, "d": {"kind": ["sweep"]}, "e": "text"}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    with pytest.warns(AnalysisWarning) as told:
        write_report(tmp_path)
    assert len(told) == 4
    assert "b.json is no result of an analysis" in str(told[0].message)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe\x00",
        b"{",
        b"[" * 100_000,
        b'{"kind": "sweep"}',
        b'{"kind": "readout", "format": 2}',
        b'{"kind": "correspondence", "priors": []}',
    ],
)
def test_a_damaged_result_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.json").write_bytes(data)
    with pytest.raises(AnalysisError, match=r"bad\.json"):
        write_report(tmp_path)


def test_results_with_flipped_bytes_end_in_an_error_or_a_page(tmp_path: Path) -> None:
    whole = found.readouts().to_json().encode()
    unnamed = []
    for k in range(60):
        data = bytearray(whole)
        place = (k * 7919) % len(data)
        data[place] = (data[place] + 1 + k) % 256
        (tmp_path / "a.json").write_bytes(bytes(data))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AnalysisWarning)
            try:
                pages.check_page(write_report(tmp_path).read_text(encoding="utf-8"))
            except (AnalysisError, ReportError) as error:
                unnamed += [] if str(tmp_path) in str(error) else [str(error)]
    assert unnamed == []


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    folder = found.write_all(tmp_path / "out")
    (folder / "scenes" / "room_0001_0.jpg").write_bytes(b"no picture")
    with pytest.raises(ReportError, match=r"room_0001_0\.jpg.*Delete it"):
        write_report(folder)


# The command


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["analyse", "report", *map(str, arguments)])
    return result.exit_code, " ".join((result.output + str(result.exception or "")).split())


def test_the_command_writes_one_file(folder: Path, tmp_path: Path) -> None:
    code, output = run(folder, "--to", tmp_path / "mine.html", "--title", "Wan on my scans")
    assert code == 0
    assert "mine.html" in output
    assert "MB" in output
    assert re.search(r"<h1>Wan on my scans</h1>", (tmp_path / "mine.html").read_text())


def test_the_command_refuses_what_it_cannot_write(folder: Path, tmp_path: Path) -> None:
    assert "must end in .html" in run(folder, "--to", tmp_path / "mine.pdf")[1]
    code, output = run(tmp_path / "nowhere")
    assert code != 0
    assert "is no folder" in output


# Contact sheets


def test_scene_sheets_are_made_once(tmp_path: Path) -> None:
    scenes = [rendered_scene(seed, 4, (24, 32)) for seed in range(3)]
    paths = write_scene_sheets(tmp_path, scenes, most=2)
    assert len(paths) == 2
    assert all(path.parent == tmp_path / "scenes" for path in paths)
    before = [path.stat().st_mtime_ns for path in paths]
    assert write_scene_sheets(tmp_path, scenes, most=2) == paths
    assert [path.stat().st_mtime_ns for path in paths] == before
    (tmp_path / "a.json").write_text(found.correspondence().to_json())
    assert len(read_results(tmp_path).scene_sheets()) == 2


def test_names_as_one_reads_them() -> None:
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed([]) == ""
