"""Several priors in one table, and their downstream scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from test_intervals import CORRESPONDENCE, DOWNSTREAM

from vega3d_plugin.analysis import Comparison, CorrespondenceResult, compare
from vega3d_plugin.analysis.records import PriorScores, SceneScores
from vega3d_plugin.contracts.errors import AnalysisError

NAMES = ["vace", "t2v", "vae", "vggt", "seva", "vjepa2", "vmem", "dinov3", "sd2.1", "svd"]
FIGURES = {"cosine": "as it is", "centred": "without the mean"}


def scene(name: str, value: float, control: float = 0.1) -> SceneScores:
    values = {"itself": (value, value), "untrained twin": (control, control)}
    return SceneScores(
        scene=name,
        source=f"made:{name}",
        fingerprint=name,
        views=("a", "b", "c"),
        grid=(3, 5),
        seen=(48, 80),
        pairs=((0, 1), (1, 2)),
        angles=(10.0, 40.0),
        shared=(20, 20),
        values={who: dict.fromkeys(FIGURES, each) for who, each in values.items()},
    )


def scores(prior: str, value: float, context: str = "frame", scenes: str = "AB", **settings: object) -> PriorScores:
    return PriorScores(
        prior=prior,
        context=context,
        fingerprint=f"{prior}{value}",
        settings=settings,
        feature_dim=8,
        scenes=tuple(scene(name, value + 0.01 * index) for index, name in enumerate(scenes)),
    )


def result(*priors: PriorScores, **changes: object) -> CorrespondenceResult:
    values = {
        "protocol": "visible",
        "options": {"tolerance": 0.05, "views": 8},
        "figures": FIGURES,
        "headline": "centred",
        "library": "0",
        "priors": priors,
        **changes,
    }
    return CorrespondenceResult(**values)


PUBLISHED = result(*(scores(name, value / 100) for name, value in zip(NAMES, CORRESPONDENCE, strict=True)))
WORTH = dict(zip(NAMES, DOWNSTREAM, strict=True))


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_the_published_figure(tmp_path: Path) -> None:
    found = compare([PUBLISHED], WORTH)
    assert found.pearson["centred"].interval.value == pytest.approx(0.77, abs=0.005)
    assert found.spearman["centred"].interval.value == pytest.approx(0.88, abs=0.005)
    assert found.pearson["centred"].interval.low < 0.77 < found.pearson["centred"].interval.high
    table = found.table()
    assert [line.split(" ")[0] for line in table.splitlines()[3:5]] == ["vace", "t2v"]
    assert "over 10 priors" in table
    assert "says nothing of causes" in table
    found.plot(tmp_path / "scatter.png")
    with Image.open(tmp_path / "scatter.png") as picture:
        assert picture.height > 900
    assert Comparison.from_json(found.to_json()) == found


def test_from_files(tmp_path: Path) -> None:
    first = write(tmp_path / "one.json", result(*PUBLISHED.priors[:4]).to_json())
    second = write(tmp_path / "two.json", result(*PUBLISHED.priors[2:]).to_json())
    lines = ["prior,score", *(f"{name},{value}" for name, value in WORTH.items())]
    found = compare([first, str(second)], write(tmp_path / "scores.csv", "\ufeff" + "\r\n".join(lines)))
    assert found.result.priors == compare([PUBLISHED]).result.priors
    assert found.downstream == tuple(DOWNSTREAM)
    assert found.downstream_name == "score"


def test_contexts_and_settings_tell_priors_apart() -> None:
    several = result(
        scores("wan", 0.5, tap=10), scores("wan", 0.6, tap=20), scores("wan", 0.7, "views", tap=20), scores("vae", 0.2)
    )
    found = compare([several], {"wan": 3.0, "vae": 1.0, "wam": 2.0})
    assert found.labels == ("wan (frame), tap 10", "wan (frame), tap 20", "wan (views)", "vae (frame)")
    # One of them stands for the name, or they would count several times.
    assert found.downstream == (3.0, None, None, 1.0)
    assert any("first context stands for the prior" in note for note in found.notes)
    assert any("No result for wam" in note and "Did you mean 'wan'" in note for note in found.notes)
    assert any("needs 3" in note for note in found.notes)
    assert not found.pearson
    assert compare([several], {"wan": 3.0}, context="views").downstream == (None, None, 3.0, None)


def test_contexts_of_the_csv(tmp_path: Path) -> None:
    several = result(scores("wan", 0.5), scores("wan", 0.7, "views"), scores("vae", 0.2))
    path = write(tmp_path / "s.csv", "prior,context,a,b\nwan,frame,1,9\nwan,views,2,8\nvae,,3,7\n")
    assert compare([several], path, column="b").downstream == (9.0, 8.0, 7.0)
    with pytest.raises(AnalysisError, match=r"2 columns beside 'prior': a, b.*--column"):
        compare([several], path)
    with pytest.raises(AnalysisError, match="no column 'c'"):
        compare([several], path, column="c")


def test_scenes_that_all_share() -> None:
    found = compare([result(scores("wan", 0.5, scenes="ABC")), result(scores("vae", 0.2, scenes="CB"))])
    assert [[s.scene for s in each.scenes] for each in found.result.priors] == [["B", "C"], ["B", "C"]]
    assert "on the 2 scenes" in found.notes[0]
    # Differences are paired by scene: the first was 0.5 + 0.01 on B, the other 0.2 + 0.01.
    assert found.result.priors[1].figure("centred").value == pytest.approx(0.205)
    with pytest.raises(AnalysisError, match=r"share no scene.*wan \(frame\) on A"):
        compare([result(scores("wan", 0.5, scenes="A")), result(scores("vae", 0.2, scenes="B"))])


def test_rules_must_be_the_same() -> None:
    other = result(scores("vae", 0.2), options={"tolerance": 0.1, "views": 8})
    with pytest.raises(AnalysisError, match=r"tolerance is 0\.05 for wan \(frame\), 0\.1 for vae \(frame\)"):
        compare([result(scores("wan", 0.5)), other])
    with pytest.raises(AnalysisError, match="protocol"):
        compare([result(scores("wan", 0.5)), result(scores("vae", 0.2), protocol="released")])
    with pytest.raises(AnalysisError, match="no result to compare"):
        compare([])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "columns 'prior' and 'score'"),
        ("name,score\nwan,1\n", "found: name, score"),
        ("prior,score\nwan,much\n", "line 2: score is 'much'"),
        ("prior,score\nwan,nan\n", "line 2: score is 'nan'"),
        ("prior,score\nwan\n", "line 2: score is None"),
        ("prior,score\nwan,1\nwan,2\n", "line 3: 'wan' is there twice"),
        ("prior,score\nother,1\n", "Judged: wan. Scored: other"),
        (b"\xff\xfe\x00", "cannot be read as CSV"),
        ('prior,score\n"wan,1\n', "cannot be read as CSV"),
        ("prior,score\n" + "x" * 5_000_000, "bytes"),
    ],
)
def test_csv_that_cannot_be_used(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        compare([result(scores("wan", 0.5))], write(tmp_path / "scores.csv", text))


@pytest.mark.parametrize(
    "change", [lambda path: path.unlink(), lambda path: path.write_bytes(b"\x80abc"), lambda path: path.write_text("3")]
)
def test_results_that_cannot_be_read(tmp_path: Path, change: Callable[[Path], object]) -> None:
    path = write(tmp_path / "broken.json", "{}")
    change(path)
    with pytest.raises(AnalysisError, match=r"broken\.json"):
        compare([path])
