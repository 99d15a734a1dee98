"""The log of a run, the best checkpoint, and the report that is made of what a run has left."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from vega3d_plugin.cli.app import app
from vega3d_plugin.contracts.errors import ReportError, TrainError, Vega3dWarning
from vega3d_plugin.recipes.library import read_recipe
from vega3d_plugin.training.job import Job, make_job
from vega3d_plugin.training.manifest import STATE, checkpoints
from vega3d_plugin.training.report import read_run, write_comparison, write_run_report
from vega3d_plugin.training.report.curves import MOST, thinned
from vega3d_plugin.training.rows.files import Rows
from vega3d_plugin.training.run_log import FILES, RunLog, read_log
from vega3d_plugin.training.trainer import make_arguments
from vega3d_plugin.training.validation import best_checkpoint, overlap

pytestmark = pytest.mark.once

SMOKE = "qwen_vl/smoke"
DATA = Path(__file__).parents[2] / "recipes/smoke_data"


def write_rows(tmp_path: Path) -> list[str]:
    """Rows to train on and rows that are held out."""
    rows = json.loads((DATA / "rows.json").read_text())
    (tmp_path / "train.json").write_text(json.dumps(rows[:4]))
    (tmp_path / "held_out.json").write_text(json.dumps(rows[4:6]))
    return [f"data.files={tmp_path}/train.json", f"data.media_root={DATA}", "train.report_rows=2"]


def job(tmp_path: Path, output: str, *overrides: str, held_out: bool = True, **options: Any) -> Job:
    files = write_rows(tmp_path)
    more = [f"data.eval_files={tmp_path}/held_out.json"] if held_out else []
    return make_job(SMOKE, [*files, *more, f"train.output_dir={tmp_path / output}", *overrides], **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with validation; two checkpoints."""
    folder = tmp_path_factory.mktemp("runs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        job(folder, "run", "train.eval_steps=1").run()
    return folder / "run"


# The log


def test_what_a_resumed_run_logs_replaces_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.begin(0)
    for step in (1, 2, 3):
        log.add(step, {"loss": 10.0 * step, "text": "left out"})
    log.end("failed", "ValueError: nan")
    assert read_log(tmp_path).reason == "ValueError: nan"
    log.begin(2)
    log.add(3, {"loss": 5.0})
    found = read_log(tmp_path)
    assert found.points("loss") == [(1, 10), (2, 20), (3, 5)]
    assert (found.how, found.step, found.names) == ("", 3, ["loss"])


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.begin(0)
    log.add(1, {"loss": 1.0})
    with log.path.open("a") as file:
        file.write('{"step": 2, "time": 1, "lo')
    assert read_log(tmp_path).points("loss") == [(1, 1)]
    log.path.write_bytes(b"\xff\x00[]\n7\n{}\n" + log.path.read_bytes())
    assert read_log(tmp_path).points("loss") == [(1, 1)]


def test_long_lines_are_thinned_and_keep_their_ends() -> None:
    points = [(float(i), float(i)) for i in range(5000)]
    few = thinned(points)
    assert (len(few), few[0], few[-1]) == (MOST, points[0], points[-1])


# Validation


def test_the_best_checkpoint_is_that_of_the_lowest_loss(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.begin(0)
    for step, loss in ((0, 0.1), (2, 3.0), (4, 1.0), (5, 0.5), (6, 2.0), (8, float("nan"))):
        log.add(step, {"eval_loss": loss})
    assert best_checkpoint(tmp_path) is None
    for step in (2, 4, 6, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / STATE).write_text(json.dumps({"global_step": step}))
    best = best_checkpoint(tmp_path)
    assert best is not None
    assert (best.checkpoint.name, best.step, best.loss) == ("checkpoint-4", 4, 1.0)


def test_the_loss_is_validated_before_the_first_step_and_with_each_checkpoint(trained: Path) -> None:
    logged = read_log(trained)
    assert [step for step, _ in logged.points("eval_loss")] == [0, 1, 2, 3, 4]
    assert [step for step, _ in logged.points("loss")] == [1, 2, 3, 4]
    assert logged.how == "finished"
    best = best_checkpoint(trained)
    assert best is not None
    assert best.loss == min(loss for step, loss in logged.points("eval_loss") if step in (2, 4))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_best_checkpoint_outlives_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A validation loss that rises after step 2: that checkpoint stays."""
    real = RunLog.add

    def rising(self: RunLog, step: int, values: Any) -> None:
        real(self, step, {**values, "eval_loss": abs(step - 2.0)} if "eval_loss" in values else values)

    monkeypatch.setattr(RunLog, "add", rising)
    job(tmp_path, "run", "train.save_steps=1", "train.save_total_limit=1", "train.report_rows=0").run()
    best = best_checkpoint(tmp_path / "run")
    assert best is not None
    assert best.step == 2
    assert [path.name for path in checkpoints(tmp_path / "run")] == [best.checkpoint.name, "checkpoint-4"]


def test_eval_steps_without_rows_to_validate_on(tmp_path: Path) -> None:
    settings = read_recipe(SMOKE, ["train.eval_steps=2"])
    assert settings.train is not None
    with pytest.raises(TrainError, match=r"train\.eval_steps needs rows that are held out: set data\.eval_files"):
        make_arguments(settings, settings.train, tmp_path)


def test_held_out_rows_that_are_trained_on_are_counted(tmp_path: Path) -> None:
    write_rows(tmp_path)
    train, held_out = Rows((f"{tmp_path}/train.json",)), Rows((f"{tmp_path}/held_out.json",))
    assert overlap(train, held_out) == 0
    assert overlap(train, train) == len(train)


# The report


def test_looking_at_rows_changes_nothing_that_is_trained(trained: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    job(tmp_path, "run", "train.report_rows=0", held_out=False).run()
    ours, plain = (
        load_file(folder / "checkpoint-4/adapter_model.safetensors") for folder in (trained, tmp_path / "run")
    )
    assert ours.keys() == plain.keys()
    assert all(ours[name].equal(plain[name]) for name in ours)


def test_the_run_leaves_its_report(trained: Path) -> None:
    text = (trained / "report.html").read_text()
    for part in (
        "The run finished at step 4 of 4",
        "Validation loss",
        "Share of the prior",
        "Learned scale a",
        "before training: the host alone",
        "trained, branch switched off",
        "rows that are held out",
        "held_out.json, row 2",
        "Parts of the model",
        "transformers",
        "vega3d info",
        "checkpoint-",
    ):
        assert part in text, part
    assert "<script" not in text
    run = read_run(trained / "checkpoint-2")
    assert run.folder == trained
    assert [step for step, _ in run.looks] == [2, 4]
    assert all({"patched", "off", "shares"} <= set(row) for _, rows in run.looks for row in rows)
    # The fresh branch is the host alone; after training it is not.
    assert [row["shares"]["generative"] for row in run.rows] == [0, 0]
    assert all(row["shares"]["generative"] > 0 for row in run.looks[-1][1])


def test_a_run_that_was_killed_has_a_report_of_what_there_is(trained: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    (killed / FILES).mkdir(parents=True)
    lines = (trained / FILES / "log.jsonl").read_text().splitlines()
    (killed / FILES / "log.jsonl").write_text("\n".join(lines[:4]))
    text = write_run_report(killed).read_text()
    assert "the run is still running, or was killed" in text
    assert "checkpoint-STEP" in text


def test_a_loss_that_is_no_number_is_no_success(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained / FILES, run / FILES)
    log = run / FILES / "log.jsonl"
    log.write_text(re.sub(r'"loss": [0-9.]+', '"loss": NaN', log.read_text()))
    text = write_run_report(run).read_text()
    assert "The training loss is nan at step 4 of 4" in text
    assert "The run finished" not in text


def test_rows_are_called_by_their_plain_path(tmp_path: Path) -> None:
    write_rows(tmp_path)
    assert Rows([f"{tmp_path}/../{tmp_path.name}/train.json"]).name(0) == f"{tmp_path}/train.json, row 1"


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_run_that_fails_or_is_interrupted_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vega3d_plugin.training import trainer as trainers

    def stop(logs: Any, step: int, output: Any) -> None:
        if step == 2:
            raise error

    monkeypatch.setattr(trainers, "check_logged", stop)
    for error, words in ((KeyboardInterrupt(), "was interrupted at"), (TrainError("Step 2: bad luck."), "bad luck")):
        output = type(error).__name__
        with pytest.raises(type(error)):
            job(tmp_path, output, "train.report_rows=0", held_out=False).run()
        assert words in (tmp_path / output / "report.html").read_text()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_rows_that_cannot_be_asked_end_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vega3d_plugin.training import samples

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no way to generate")

    monkeypatch.setattr(samples, "generate", fail)
    with pytest.warns(Vega3dWarning, match=r"could not be asked before the first step \(RuntimeError: no way"):
        job(tmp_path, "run", "train.max_steps=2", held_out=False).run()
    assert "The run finished at step 2 of 2" in (tmp_path / "run/report.html").read_text()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_runs_are_compared(trained: Path, tmp_path: Path) -> None:
    job(tmp_path, "baseline", "prior=null", "train.max_steps=2").run()
    result = CliRunner().invoke(
        app, ["report", str(trained), str(tmp_path / "baseline"), "--out", f"{tmp_path}/ab.html"]
    )
    assert result.exit_code == 0, result.output
    text = (tmp_path / "ab.html").read_text()
    for part in ("2 training runs", "Training loss", "Validation loss", "prior.name", "tiny-wan", "baseline"):
        assert part in text, part
    assert "train.output_dir" not in text.split("Settings that differ")[-1]
    alone = (tmp_path / "baseline/report.html").read_text()
    assert "this is a baseline without a branch" in alone
    assert "trained, without a branch" in alone


def test_scores_in_the_folders_stand_side_by_side(trained: Path, tmp_path: Path) -> None:
    for name, exact in (("a", 0.25), ("b", 0.75)):
        (tmp_path / name / FILES).mkdir(parents=True)
        means = {"base": {"exact": None, "nll": 2.0}, "patched": {"exact": exact, "nll": 1.5, "token_nll": 0.5}}
        (tmp_path / name / "ablation.json").write_text(json.dumps({"means": means, "differences": []}))
        (tmp_path / name / "other.json").write_text("[1, 2]")
    text = write_comparison([tmp_path / "a", tmp_path / "b"]).read_text()
    for part in ("a: ablation.json", "b: ablation.json", "25.0%", "75.0%", "1.5000"):
        assert part in text, part
    assert "other.json" not in text
    assert "Scores" not in write_run_report(trained, tmp_path / "alone.html").read_text()
    assert "75.0%" in write_run_report(tmp_path / "b").read_text()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.json", b"{", "rows.json"),
        ("rows.json", b'{"rows": 7}', "rows.json is damaged"),
        ("plan.json", b'{"parts": [{}]}', "is not as `vega3d train` writes it"),
        ("step-000004.json", b'{"rows": [{"shares": {"maps": [[["a"]]]}}]}', "is not as `vega3d train` writes it"),
        ("row0_0.jpg", b"no picture", "row0_0.jpg cannot be read: it is not an image, or damaged"),
    ],
)
def test_damaged_files_are_named(trained: Path, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    folder = tmp_path / "run" / FILES
    folder.mkdir(parents=True)
    for path in (trained / FILES).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / name).write_bytes(content)
    with pytest.raises(ReportError, match=message):
        write_run_report(tmp_path / "run")


def test_a_picture_outside_of_the_run_is_not_opened(trained: Path, tmp_path: Path) -> None:
    (tmp_path / FILES).mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.jpg")
    rows = json.loads((trained / FILES / "rows.json").read_text())
    rows["rows"][0]["frames"] = ["../secret.jpg"]
    (tmp_path / FILES / "rows.json").write_text(json.dumps(rows))
    with pytest.raises(ReportError, match="must lie in that folder"):
        write_run_report(tmp_path)


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="holds no run of `vega3d train`"):
        write_run_report(tmp_path)
    with pytest.raises(ReportError, match="is no folder"):
        write_comparison([tmp_path / "nowhere"])
