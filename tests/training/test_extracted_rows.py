"""Extraction: what training would store, found without the host's weights, whatever happens on the way."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import vega3d
from vega3d_plugin.cli.app import app
from vega3d_plugin.contracts.errors import BadRowsError, StoreError, TrainError
from vega3d_plugin.features import upkeep
from vega3d_plugin.features.extraction.shard import extract_shard
from vega3d_plugin.training.extraction import RecipeUnits, make_plan, make_request, verify_sample
from vega3d_plugin.training.job import make_job
from vega3d_plugin.training.rows.conversation import read_conversation

pytestmark = pytest.mark.once

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke_data"
SMALL = ["projector.hidden_dim=16", "prior.size=[32, 48]"]
RECIPES = {"qwen_vl": "qwen_vl/smoke", "llava": "llava_video/smoke"}


def units_of(store: Path | str, recipe: str = RECIPES["qwen_vl"], *overrides: str, **options: Any) -> RecipeUnits:
    return RecipeUnits(make_request(recipe, [*SMALL, *overrides], store=str(store), **options))


def contents(store: Path | str) -> dict[str, torch.Tensor]:
    opened = upkeep.open_store(str(store))
    return {name: opened.get(name) for name in opened.names()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("recipe", "form"), [(RECIPES["qwen_vl"], "native"), (RECIPES["llava"], "aligned-bf16")], ids=RECIPES
)
def test_keys_and_features_are_those_that_training_stores(tmp_path: Path, recipe: str, form: str) -> None:
    """To the last bit, and training finds all of them: its prior is never asked."""
    trained, extracted = tmp_path / "trained", tmp_path / "extracted"
    dtype = "host.dtype=bfloat16" if form == "native" else "host.dtype=float32"
    settings = [*SMALL, dtype, "train.max_steps=3", "train.save_steps=3"]
    run = [*settings, f"train.output_dir={tmp_path / 'out'}", f"store={{url: {trained}, form: {form}}}"]
    make_job(recipe, run).run()
    tally = extract_shard(units_of(extracted, recipe, dtype, form=form))
    expected = contents(trained)
    assert len(expected) == tally.clips == tally.made > 5
    assert equal(contents(extracted), expected)
    again = [*settings, f"train.output_dir={tmp_path / 'again'}", f"store={{url: {extracted}, form: {form}}}"]
    job = make_job(recipe, again)
    prior = vega3d.get_handle(job.prepared.model).prior
    prior.extract = lambda frames: pytest.fail("the store has these features")  # type: ignore[method-assign]
    job.run()


def test_clips_that_several_rows_share_are_found_once(tmp_path: Path) -> None:
    rows = json.loads((SMOKE / "rows.json").read_text())
    for picture in SMOKE.glob("*.jpg"):
        shutil.copy(picture, tmp_path)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([*rows, *rows, _text()]))
    units = units_of(tmp_path / "store", files=[str(path)])
    assert len(units) == len(units_of(tmp_path / "store"))
    assert units.text == 1
    tally = extract_shard(units)
    assert tally.clips == tally.made == len(contents(tmp_path / "store"))


def _text() -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]}


def test_a_changed_picture_is_another_clip(tmp_path: Path) -> None:
    for path in SMOKE.iterdir():
        shutil.copy(path, tmp_path)
    files, store = [str(tmp_path / "rows.json")], tmp_path / "store"
    first = extract_shard(units_of(store, files=files))
    picture = next(iter(tmp_path.glob("room_0.jpg")))
    Image.open(picture).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(picture)
    assert 0 < extract_shard(units_of(store, files=files)).made <= first.made


def test_bad_rows_are_reported_and_the_others_extracted(tmp_path: Path) -> None:
    rows = json.loads((SMOKE / "rows.json").read_text())
    for picture in SMOKE.glob("*.jpg"):
        shutil.copy(picture, tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    broken = {
        "image": "broken.jpg",
        "conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "!"}],
    }
    missing = {**broken, "image": "missing.jpg"}
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([broken, missing, *rows]))
    units = units_of(tmp_path / "store", files=[str(path)])
    assert [row.name for row in units.bad] == [f"{path}, row 2"]
    told: list[str] = []
    tally = extract_shard(units, told=lambda done: told.append(done.error))
    assert list(tally.bad) == [f"{path}, row 1"]
    assert "broken.jpg" in tally.bad[f"{path}, row 1"]
    assert sum(map(bool, told)) == 1
    assert tally.clips == extract_shard(units_of(tmp_path / "other")).clips
    path.write_text(json.dumps([missing]))
    with pytest.raises(BadRowsError, match="None of the 1 rows"):
        units_of(tmp_path / "store", files=[str(path)])


def test_verifying_finds_what_is_not_the_priors(tmp_path: Path) -> None:
    units = units_of(tmp_path / "store", form="aligned-int8")
    extract_shard(units, shard_bytes=0)
    assert verify_sample(units, 100) == {}
    store = vega3d.FeatureStore(tmp_path / "store", form="aligned-int8")
    name = sorted(store.names())[0]
    store.put(name, store.get(name) * 1.5)
    (problem,) = verify_sample(units, 100).items()
    assert problem[0] == name
    assert "differs by up to" in problem[1]


def test_a_plan_says_what_will_be_there(tmp_path: Path) -> None:
    for form in ("native", "aligned-int8"):
        units = units_of(tmp_path / form, form=form)
        plan = make_plan(units, "h100", sample=100)
        assert not (tmp_path / form).exists()
        tally = extract_shard(units)
        assert (plan["exact"], plan["clips"], plan["bytes"]) == (True, tally.clips, tally.bytes)
        assert plan["flops"] > 1e8
        assert plan["hours"] == pytest.approx(plan["flops"] / (989e12 * 0.4) / 3600)
        assert make_plan(units, "h100", sample=100)["there"] == tally.clips
    with pytest.raises(StoreError, match="Did you mean 'h100'"):
        make_plan(units, "h1000")


# The command


def run(*arguments: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["extract", *arguments, "--json"])
    assert done.exit_code == code, (done.output, done.exception)
    return json.loads(done.stdout)


def test_the_command_extracts_and_verifies(tmp_path: Path) -> None:
    store, keys = str(tmp_path / "store"), tmp_path / "keys.txt"
    first = run("qwen_vl/smoke", *SMALL, "--store", store, "--verify", "2", "--keys", str(keys))
    assert first["computed"] == first["clips"] == len(keys.read_text().split())
    assert first["different"] == first["bad"] == {}
    assert run("qwen_vl/smoke", *SMALL, "--store", store)["computed"] == 0
    # A prior of another setting does not mix its features in.
    done = CliRunner().invoke(app, ["extract", "qwen_vl/smoke", *SMALL, "prior.tap=1", "--store", store])
    assert isinstance(done.exception, StoreError)


def test_videos_pictures_and_scenes_have_no_rows(tmp_path: Path) -> None:
    picture, folder = SMOKE / "room_0.jpg", tmp_path / "frames"
    folder.mkdir()
    for path in SMOKE.glob("*.jpg"):
        shutil.copy(path, folder)
    sources = [str(picture), str(folder), "room:0..1?size=64x64&views=3"]
    found = run(*sources, "--recipe", "llava_video/smoke", "--store", str(tmp_path / "store"))
    # A picture of LLaVA-OneVision is several clips, its tiles.
    assert (found["units"], found["bad"]) == (4, {})
    assert found["clips"] >= 4
    rows = run(str(SMOKE / "rows.json"), "--recipe", "llava_video/smoke", "--store", str(tmp_path / "rows"))
    assert rows["clips"] == run("llava_video/smoke", "--store", str(tmp_path / "recipe"))["clips"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rows.jsonl"], "Pass --recipe RECIPE"),
        (["qwen_vl/smoke", "b"], "give one recipe"),
        (["qwen_vl/smoke", "--", "train.py", "--lr", "1"], "train.py is a script"),
        (["rows.jsonl", "a.mp4", "--recipe", "qwen_vl/smoke"], "not both at once"),
    ],
)
def test_unclear_sources_are_refused(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["extract", *arguments, "--store", "s"])
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())


def test_what_lacks_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="Pass --store URL"):
        make_request("qwen_vl/smoke")
    with pytest.raises(TrainError, match="prior: null"):
        RecipeUnits(make_request("qwen_vl/smoke", ["prior=null", "lora=null", "tune=null"], store=str(tmp_path)))


@pytest.mark.parametrize("place", ["folder", "memory://ahead/x"])
def test_a_worker_reads_ahead_what_its_rows_will_need(tmp_path: Path, place: str) -> None:
    """Keys are told without decoding, by the names that extraction noted."""
    url = str(tmp_path / "store") if place == "folder" else place
    tally = extract_shard(units_of(url))
    settings = ["train.max_steps=1", f"train.output_dir={tmp_path / 'out'}", f"store={url}", "data.workers=1"]
    job = make_job(RECIPES["qwen_vl"], [*SMALL, *settings], keep_output=True)
    ahead = pickle.loads(pickle.dumps(job.data.ahead))
    if ahead.store.cache is not None:
        shutil.rmtree(ahead.store.cache.folder, ignore_errors=True)
    fetched = [ahead(read_conversation(row, job.recipe.data, SMOKE).media) for row in job.data.rows]
    assert all(fetched)
    assert sum(fetched) >= tally.clips
    if ahead.store.cache is not None:
        assert len(list(ahead.store.cache.folder.rglob("*.safetensors"))) == tally.clips
    noted: list[Any] = []
    job.data.ahead = noted.append
    job.data[0]
    assert len(noted) == 1
    assert make_job(RECIPES["qwen_vl"], [*SMALL, *settings[:-1], "data.workers=0"], keep_output=True).data.ahead is None
