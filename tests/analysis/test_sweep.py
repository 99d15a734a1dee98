"""The sweep: its cells are what single runs find, at one forward for each timestep."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from judged import picked, room
from PIL import Image
from toys import all_toys

import vega3d
from vega3d_plugin.analysis import SweepResult, correspondence, sweep
from vega3d_plugin.analysis.results import ITSELF
from vega3d_plugin.analysis.scoring import AnalysisWarning
from vega3d_plugin.errors import AnalysisError, PriorError
from vega3d_plugin.priors.wan import WanPrior

TOYS = {toy.id or toy.prior: toy for toy in all_toys()}
SCENES = 2


def scenes() -> list:
    return [picked(room(seed)) for seed in range(SCENES)]


@cache
def grid() -> SweepResult:
    settings = vega3d.load_prior("tiny-wan", size=(48, 80)).settings
    return sweep(settings, scenes(), timesteps=[100, 700], taps=[0, -1], views=4)


@pytest.fixture
def found() -> SweepResult:
    return grid()


def test_every_cell_is_what_a_single_run_finds(found: SweepResult) -> None:
    assert (found.timesteps, found.taps) == ((100, 700), (0, 3))
    for cell in found.cells:
        prior = vega3d.load_prior("tiny-wan", size=(48, 80), timestep=cell.timestep, tap=cell.tap)
        single = correspondence(prior, scenes(), contexts=["frame"], views=4, controls=False).priors[0]
        for figure in found.figures:
            assert found.units(cell, figure) == single.units(ITSELF, figure)
            assert found.figure(cell, figure) == single.figure(figure)


def test_controls_stand_beside_the_best_cell(found: SweepResult) -> None:
    best = found.best()
    prior = vega3d.load_prior("tiny-wan", size=(48, 80), timestep=best.timestep, tap=best.tap)
    single = correspondence(prior, scenes(), contexts=["frame"], views=4).priors[0]
    assert set(found.controls) == {name for name in single.controls if name != "offset and noise"}
    for control in found.controls:
        expected = single.figure("centred", control).value
        # The twin of a prior that goes on behind the tap has the same blocks up to it.
        assert found.control(control, "centred").value == pytest.approx(expected, abs=1e-6), control


def test_all_taps_of_a_timestep_cost_one_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    plain = WanPrior.run
    monkeypatch.setattr(WanPrior, "run", lambda self, noisy, **more: (runs.append(1), plain(self, noisy, **more)))
    result = sweep("tiny-wan", scenes(), timesteps=[100, 700], context="views", views=4)
    assert result.taps == (0, 1, 2, 3)
    assert result.forwards == 1
    # Of each timestep one on each scene; then the best cell and its twin once more on each.
    assert len(runs) == 2 * SCENES + 2 * SCENES


def test_little_memory_costs_more_forwards_and_changes_nothing(found: SweepResult) -> None:
    settings = vega3d.load_prior("tiny-wan", size=(48, 80)).settings
    one = sweep(settings, scenes(), timesteps=[100, 700], taps=[0, 3], views=4, most_bytes=1)
    assert one.forwards == 2
    assert one.cells == found.cells
    assert "cost 2 forwards" in one.table()


def test_a_sweep_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sweep("tiny-wan", scenes(), timesteps=[100], taps=[0, 3], views=4, records=tmp_path)
    runs = []
    plain = WanPrior.run
    monkeypatch.setattr(WanPrior, "run", lambda self, noisy, **more: (runs.append(1), plain(self, noisy, **more)))
    again = sweep("tiny-wan", scenes(), timesteps=[100], taps=[0, 3], views=4, records=tmp_path)
    assert again == first
    # Nothing of the grid; the best cell and its twin on each scene.
    assert len(runs) == 2 * SCENES
    both = sweep("tiny-wan", scenes(), timesteps=[100, 300], taps=[0, 3], views=4, records=tmp_path)
    assert both.cells[:2] == first.cells
    # And the new timestep.
    assert len(runs) == 2 * 2 * SCENES + SCENES
    damaged = sorted(tmp_path.glob("*.json"))[0]
    damaged.write_text("{}")
    with pytest.warns(AnalysisWarning, match="computed again"):
        assert sweep("tiny-wan", scenes(), timesteps=[100, 300], taps=[0, 3], views=4, records=tmp_path) == both


def test_the_best_and_what_is_within_noise_of_it(found: SweepResult) -> None:
    best = found.best("cosine")
    assert found.figure(best, "cosine").value == max(found.figure(cell, "cosine").value for cell in found.cells)
    assert best not in found.within_noise("cosine")
    assert found.behind(best, "cosine").value == 0
    for cell in found.cells:
        is_close = cell in found.within_noise("cosine")
        assert is_close == (cell is not best and not found.behind(cell, "cosine").low > 0)
    text = " ".join(found.findings())
    assert f"{len(found.within_noise())} of the 3 other cells are within noise" in text
    assert "54.3 and 56.2" in text
    assert "51.7" in text
    assert "54.6" in text
    with pytest.raises(AnalysisError, match="no timestep 5"):
        found.cell(5, 0)


def test_table_picture_and_file(found: SweepResult, tmp_path: Path) -> None:
    table = found.table()
    for text in ("tap 0", "100", "700", "untrained twin", "**"):
        assert text in table
    found.plot(tmp_path / "sweep.png")
    with Image.open(tmp_path / "sweep.png") as picture:
        assert len(picture.getcolors(1 << 24)) > 20
    assert SweepResult.from_json(found.to_json()) == found
    cut = found.model_dump()
    cut["cells"] = cut["cells"][1:]
    with pytest.raises(ValueError, match="cells are not those of the grid"):
        SweepResult(**cut)


def test_a_read_out_is_given_the_features_of_each_cell() -> None:
    settings = vega3d.load_prior("tiny-wan", size=(48, 80)).settings

    class Deviation:
        figures: ClassVar = {"deviation": "of all features"}

        def __call__(self, maps: list[torch.Tensor], views: list, prior: vega3d.Prior) -> dict[str, float]:
            assert prior.settings.name == "tiny-wan"
            assert [tuple(each.shape) for each in maps] == [(4, 96, 3, 5)] * SCENES
            assert [each.scene.name for each in views] == ["room_0000", "room_0001"]
            return {"deviation": float(torch.stack(maps).std())}

    result = sweep(settings, scenes(), timesteps=[100, 700], taps=[0, 3], views=4, readout=Deviation())
    assert result.readouts == {"deviation": "of all features"}
    for cell in result.cells:
        prior = vega3d.load_prior("tiny-wan", size=(48, 80), timestep=cell.timestep, tap=cell.tap)
        frames = [scene.select([0, 1, 3, 5]).frames() for scene in scenes()]
        expected = float(torch.stack([prior(each) for each in frames]).std())
        assert cell.readout["deviation"] == pytest.approx(expected, rel=1e-5)
    assert result.grid("deviation")[1][0] == result.cell(100, 3).readout["deviation"]
    assert "deviation" in result.table()
    assert result.plot().width > grid().plot().width


@pytest.mark.parametrize("name", ["sd2.1", "vjepa2-vitl", "dinov3-vitl", "wan2.1-vace-first", "hunyuan-video"])
def test_other_families(name: str, tmp_path: Path) -> None:
    if name not in TOYS:
        pytest.skip(f"this version of transformers has no {name}")
    toy = TOYS[name]
    toy.write(tmp_path)
    prior = toy.load(tmp_path)
    has_noise = hasattr(prior, "noise_level")
    result = sweep(prior, scenes(), taps=[0, 1], timesteps=[300] if has_noise else None, views=4, protocol="released")
    assert result.timesteps == ((300,) if has_noise else (None,))
    # Stages of a UNet have sizes of their own, and cost a run each.
    assert result.forwards == (2 if name == "sd2.1" else 1)
    for cell in result.cells:
        single = toy.load(tmp_path, tap=cell.tap, **({"timestep": 300} if has_noise else {}))
        context = [single.settings.context]
        alone = correspondence(single, scenes(), contexts=context, views=4, controls=False, protocol="released")
        assert result.figure(cell, "centred") == alone.priors[0].figure("centred")


def test_what_cannot_be_swept(tmp_path: Path) -> None:
    toy = TOYS["sd2.1-vae"]
    toy.write(tmp_path)
    with pytest.raises(AnalysisError, match=r"'sd2\.1-vae' has no taps to sweep"):
        sweep(toy.load(tmp_path), scenes())
    with pytest.raises(AnalysisError, match="has no taps to sweep"):
        sweep(vega3d.CallablePrior(lambda frames: frames, 3, fingerprint="same"), scenes())
    with pytest.raises(PriorError, match=r"4 blocks.*got 9"):
        sweep("tiny-wan", scenes(), taps=[9])
    with pytest.raises(AnalysisError, match="taps 0 to 3"):
        sweep("tiny-wan", scenes(), taps=[-9])
    with pytest.raises(vega3d.errors.SettingsError, match="timestep"):
        sweep("tiny-wan", scenes(), timesteps=[2000])


@pytest.mark.skipif("dinov3-vitl" not in TOYS, reason="this version of transformers has no DINOv3")
def test_an_encoder_has_no_timesteps(tmp_path: Path) -> None:
    TOYS["dinov3-vitl"].write(tmp_path)
    with pytest.raises(AnalysisError, match="adds no noise"):
        sweep(TOYS["dinov3-vitl"].load(tmp_path), scenes(), timesteps=[100])
