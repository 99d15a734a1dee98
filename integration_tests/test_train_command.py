"""``vega3d train`` on tiny models: what it writes plus the base gives the model back; nothing is lost on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from processes import run_whole
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner, Result

import vega3d
from vega3d_llava_video import tiny_transformers as llava
from vega3d_plugin.cli.app import app
from vega3d_plugin.contracts.errors import TrainError, Vega3dError
from vega3d_plugin.training.job import Job, make_job
from vega3d_plugin.training.manifest import WRITING, checkpoints, read_manifest
from vega3d_plugin.training.model.building import load
from vega3d_qwen_vl import tiny as qwen

QWEN, LLAVA = "qwen_vl/smoke", "llava_video/smoke"
#: Dropout, so that a run goes on as if it had not stopped only when its random numbers do.
LORA = ("lora.lora_dropout=0.1",)
FULL = ("lora=null", "tune={vision: full, projector: {mode: full, learning_rate: 1e-4}}")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    # Set by every run; put back after it.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def job(output: str, *overrides: str, recipe: str = QWEN, **options: Any) -> Job:
    return make_job(recipe, [f"train.output_dir={output}", *overrides], **options)


def losses(checkpoint: Path) -> list[float]:
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def weights(checkpoint: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in checkpoint.glob("*.safetensors"):
        found |= load_file(file)
    return found


def same(first: Path, second: Path) -> None:
    """Two checkpoints hold the same weights and the same state of the optimiser, bit for bit."""
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    assert a
    assert all(torch.equal(a[name], b[name]) for name in a)
    states = [torch.load(folder / "optimizer.pt", weights_only=True)["state"] for folder in (first, second)]
    assert states[0].keys() == states[1].keys()
    for key, state in states[0].items():
        assert all(torch.equal(value, states[1][key][name]) for name, value in state.items())
    assert losses(first) == losses(second)


def one_batch(ready: Job) -> dict[str, Tensor]:
    return ready.data.collator([ready.data[i] for i in range(3)])


@torch.no_grad()
def logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    out: Tensor = model.eval()(**batch).logits
    return out


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(app, ["train", *arguments])
    if isinstance(result.exception, Vega3dError):
        # As `main` shows it.
        return result
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


# What it writes plus the base gives the model back


def rebuilt(recipe: str, checkpoint: Path, lora: bool) -> Any:
    tiny = qwen if recipe == QWEN else llava
    if lora:
        model = vega3d.load_pretrained(tiny.tiny_model(), checkpoint)
        return PeftModel.from_pretrained(model, checkpoint)
    model = type(tiny.tiny_model()).from_pretrained(checkpoint)
    return vega3d.load_pretrained(model, checkpoint)


@pytest.mark.parametrize("recipe", [QWEN, LLAVA])
@pytest.mark.parametrize("mode", [LORA, FULL], ids=["lora", "full"])
def test_a_checkpoint_and_the_base_rebuild_the_logits(recipe: str, mode: tuple[str, ...]) -> None:
    ready = job("out", *mode, recipe=recipe)
    batch = one_batch(ready)
    before = logits(ready.prepared.model, batch)
    last = ready.run()
    assert last.name == "checkpoint-4"
    expected = logits(ready.prepared.model, batch)
    assert not torch.equal(expected, before)
    again = rebuilt(recipe, last, lora=mode is LORA)
    assert torch.equal(logits(again, batch), expected)
    # The branch has a part in it.
    with vega3d.disabled(again):
        assert not torch.equal(logits(again, batch), expected)


def test_the_processor_of_a_checkpoint_is_the_one_it_was_trained_with() -> None:
    ready = job("out", "train.max_steps=1")
    last = ready.run()
    from vega3d_plugin.hosts.loading import load_processor
    from vega3d_plugin.training.rows.encoding import Encoder

    again = Encoder(load_processor(last), ready.data.settings)(ready.data.rows[2], ready.data.rows.file_of(2).parent)
    assert all(torch.equal(value, again[key]) for key, value in ready.data[2].items())


def test_without_a_prior_the_host_trains_alone() -> None:
    ready = job("out", "prior=null")
    batch = one_batch(ready)
    last = ready.run()
    assert not vega3d.is_patched(ready.prepared.model)
    assert not [name for name in weights(last) if "vega3d" in name]
    again = PeftModel.from_pretrained(qwen.tiny_model(), last)
    assert torch.equal(logits(again, batch), logits(ready.prepared.model, batch))


# Going on


@pytest.mark.parametrize("mode", [LORA, FULL], ids=["lora", "full"])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(mode: tuple[str, ...]) -> None:
    whole = job("whole", *mode).run()
    shutil.copytree("whole", "stopped")
    shutil.rmtree(Path("stopped") / "checkpoint-4")
    ready = job("stopped", *mode, resume=True)
    assert ready.checkpoint == Path("stopped/checkpoint-2")
    resumed = ready.run()
    assert resumed == Path("stopped/checkpoint-4")
    same(whole, resumed)


@pytest.mark.once
def test_resuming_a_finished_run_and_one_that_never_began() -> None:
    first = job("out", resume=True)
    assert first.checkpoint is None
    last = first.run()
    again = job("out", resume=True)
    assert again.checkpoint == last
    assert again.run() == last
    assert [path.name for path in checkpoints(Path("out"))] == ["checkpoint-2", "checkpoint-4"]
    # More steps than there were, and it goes on.
    assert job("out", "train.max_steps=5", resume=True).run() == Path("out/checkpoint-5")


def test_a_checkpoint_of_another_recipe_is_refused_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job("out", "train.max_steps=2").run()
    monkeypatch.setattr("vega3d_plugin.training.job.prepare", lambda *_: pytest.fail("too late"))
    with pytest.raises(Vega3dError, match=r"is of another recipe[\s\S]*lora\.r: 4 there, 2 here"):
        job("out", "lora.r=2", resume=True)
    with pytest.raises(Vega3dError, match="is of another recipe"):
        job("elsewhere", "prior.seed=3", resume_from=Path("out/checkpoint-2"))
    with pytest.raises(Vega3dError, match="holds another run"):
        job("out")
    # Nor does it go on in a folder that is not the run's own.
    Path("elsewhere").mkdir()
    (Path("elsewhere") / "holiday.jpg").touch()
    for options in ({"resume": True}, {"resume_from": Path("out/checkpoint-2")}):
        with pytest.raises(Vega3dError, match="elsewhere is not empty"):
            job("elsewhere", **options)


# Saving


@pytest.mark.once
def test_ctrl_c_during_a_save_leaves_the_last_checkpoint_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = transformers.Trainer._save_rng_state
    saves = []

    def interrupted(self: Any, output_dir: str) -> None:
        saves.append(output_dir)
        if len(saves) == 2:
            # Weights and optimiser are written; the rest is not.
            assert list(Path(output_dir).glob("*.safetensors"))
            signal.raise_signal(signal.SIGINT)
        plain(self, output_dir)

    # Where tests run in the background, the shell has Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with monkeypatch.context() as patched:
        patched.setattr(transformers.Trainer, "_save_rng_state", interrupted)
        result = invoke(QWEN, "train.output_dir=out", *LORA)
    signal.signal(signal.SIGINT, before)
    assert result.exit_code == 130
    assert re.search(r"Interrupted\. out/checkpoint-2 is complete. Resume with --resume", result.output)
    assert [path.name for path in checkpoints(Path("out"))] == ["checkpoint-2"]
    assert not list(Path("out").glob("checkpoint-4"))
    assert not (Path("out") / WRITING).exists()
    assert WRITING in saves[1]
    # It goes on, to where it would have come.
    assert invoke(QWEN, "train.output_dir=out", "--resume", *LORA).exit_code == 0
    whole = job("whole", *LORA).run()
    same(whole, Path("out/checkpoint-4"))


@pytest.mark.once
def test_what_a_killed_save_left_behind_is_cleared_away() -> None:
    job("out", "train.max_steps=2").run()
    half = Path("out") / WRITING / "checkpoint-4"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    assert job("out", resume=True).run() == Path("out/checkpoint-4")
    assert not (Path("out") / WRITING).exists()


@pytest.mark.once
def test_older_checkpoints_go_once_a_newer_one_is_whole() -> None:
    last = job("out", "train.save_steps=1", "train.save_total_limit=2").run()
    assert [path.name for path in checkpoints(Path("out"))] == ["checkpoint-3", "checkpoint-4"]
    assert read_manifest(last)["step"] == 4
    assert read_manifest(last)["recipe"] == QWEN


# What is logged


def test_gates_and_rates_are_in_the_log_and_reach_the_trackers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, float]] = []

    class Tracker(transformers.TrainerCallback):
        """As TensorBoard's and wandb's are."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            seen.append(dict(logs))

    from transformers import integrations, trainer

    for module in (trainer, integrations):
        monkeypatch.setattr(module, "get_reporting_integration_callbacks", lambda names: [Tracker] * len(names))
    job("out", "train.report_to=tensorboard", "tune={branch: {mode: full, learning_rate: 0.01}}").run()
    steps = [logs for logs in seen if "loss" in logs]
    assert len(steps) == 4
    for logs in steps:
        kinds = {key.split("/")[1] for key in logs if key.startswith("share/")}
        assert kinds
        assert kinds <= {"image", "video", "scene"}
        for kind in kinds:
            assert 0 < logs[f"gate/{kind}/mean"] < 1
            assert 0 <= logs[f"share/{kind}/generative"] < 1
            assert logs[f"share/{kind}/host"] == pytest.approx(1 - logs[f"share/{kind}/generative"])
        assert logs["learning_rate/branch"] == pytest.approx(10 * logs["learning_rate/language"])
        assert logs["learning_rate/language"] == pytest.approx(logs["learning_rate"])


@pytest.mark.once
def test_a_frozen_part_does_not_move_and_a_faster_one_moves_more() -> None:
    ready = job("out", *FULL, "tune.language=frozen", "train.warmup_ratio=0", "train.max_steps=1")
    before = {name: p.detach().clone() for name, p in ready.prepared.model.named_parameters()}
    ready.run()
    from vega3d_plugin.training.model.parts import by_part

    moved = {
        part: max((float((p - before[name]).abs().max().detach()) for name, p in parameters), default=0.0)
        for part, parameters in by_part(ready.prepared.model).items()
    }
    assert moved["language"] == 0
    # Adam's first step is its learning rate, ten times smaller for the projector.
    assert moved["vision"] == pytest.approx(1e-3, rel=0.1)
    assert moved["projector"] == pytest.approx(1e-4, rel=0.1)
    assert moved["branch"] == pytest.approx(1e-3, rel=0.1)


@pytest.mark.once
def test_the_rate_drops_by_steps() -> None:
    ready = job("out", "train.schedule=step", "train.decay_steps=2", "train.warmup_ratio=0", "train.max_steps=4")
    last = ready.run()
    scheduler = torch.load(last / "scheduler.pt", weights_only=True)
    assert scheduler["_last_lr"] == [pytest.approx(1e-4)] * len(scheduler["_last_lr"])


def test_half_precision_and_checkpointing_train() -> None:
    plain = job("plain", "train.gradient_checkpointing=false", "train.max_steps=2").run()
    less = job("less", "train.gradient_checkpointing=true", "train.max_steps=2").run()
    assert losses(plain) == losses(less)
    half = job("half", "host.dtype=bfloat16", "train.max_steps=2")
    assert half.arguments.bf16
    last = half.run()
    # Nor does a run take over another's, or the launcher's.
    assert job("again", "train.gradient_checkpointing=false", "train.max_steps=2").run()
    assert losses(Path("again/checkpoint-2")) == losses(plain) != losses(last)
    assert {value.dtype for value in weights(last).values()} <= {torch.float32, torch.uint8}
    assert losses(last) == pytest.approx(losses(plain), rel=0.05)


# The command


def test_the_plan_tells_and_writes_nothing() -> None:
    result = invoke(QWEN, "--dry-run")
    assert result.exit_code == 0, result.output
    for text in ("language", "lora", "3,584", "memory on one device", "prior", "pixel_values", "first answer", "Yes."):
        assert text in result.output
    assert not list(Path().iterdir())


def test_the_plan_in_numbers() -> None:
    # Six rows: an epoch's last step is of two, which versions of transformers count differently.
    run = ("train.max_steps=null", "train.epochs=3", "train.batch_size=4")
    result = invoke(QWEN, "--dry-run", "--json", *run)
    plan = json.loads(result.stdout)
    parts = {part["name"]: part for part in plan["parts"]}
    ready = job("out", *run)
    assert len(ready.data) == 6
    trained = sum(p.numel() for p in ready.prepared.model.parameters() if p.requires_grad)
    assert sum(part["trains"] for part in plan["parts"]) == trained
    assert parts["vision"]["trains"] == parts["projector"]["trains"] == 0
    host = sum(p.numel() for p in qwen.tiny_model().parameters())
    lora = parts["language"]["trains"]
    assert sum(part["total"] for part in plan["parts"]) == host + lora + parts["branch"]["total"]
    assert plan["memory"]["gradients"] == 4 * trained
    assert plan["memory"]["optimiser"] == 8 * trained
    batch = ready.data.collator([ready.data[0]])
    assert {key: tuple(shape) for key, (shape, _) in plan["batch"].items()} == {k: v.shape for k, v in batch.items()}
    # As many steps as the trainer then makes, and none more.
    last = ready.run()
    assert plan["steps"] == int(last.name.removeprefix("checkpoint-"))
    result = invoke(QWEN, "train.output_dir=out", "--resume", *run)
    assert f"Nothing is left to do: {last} is the end of this run of {plan['steps']} steps." in result.output


def bad_rows(folder: Path) -> Path:
    smoke = Path(load.__code__.co_filename).parents[3] / "recipes" / "smoke_data"
    rows = json.loads((smoke / "rows.json").read_text())
    for row in rows:
        for key in ("image", "images", "video", "videos"):
            if isinstance(row.get(key), str):
                row[key] = str(smoke / row[key])
            elif key in row:
                row[key] = [str(smoke / name) for name in row[key]]
    missing = {**rows[0], "video": [*rows[0]["video"][:-1], "gone.jpg"]}
    empty = {**rows[1], "conversations": [rows[1]["conversations"][0], {"from": "gpt", "value": ""}]}
    more = {"images": [str(smoke / "room_0.jpg")], "conversations": rows[0]["conversations"][1:]}
    more["conversations"] = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
    path = folder / "mine.json"
    path.write_text(json.dumps([rows[0], missing, empty, more, *rows[1:]]))
    return path


@pytest.mark.once
def test_bad_rows_stop_the_run_or_are_left_out_and_listed(tmp_path: Path) -> None:
    path = bad_rows(tmp_path)
    arguments = (QWEN, "train.output_dir=out", f"data.files={path}")
    result = invoke(*arguments)
    message = str(result.exception)
    assert "3 of 9 rows cannot be used" in message
    assert f"{path}, row 2: {tmp_path / 'gone.jpg'} does not exist" in message
    assert f"{path}, row 3: turn 2: the answer is empty" in message
    assert f"{path}, row 4: 1 images but 0 placeholders" in message
    assert not Path("out").exists()
    result = invoke(*arguments, "--skip-bad-rows")
    assert result.exit_code == 0, result.output
    assert "3 bad rows left out:" in result.output
    listed = (Path("out") / "bad_rows.txt").read_text().splitlines()
    assert [line.partition(": ")[0] for line in listed] == [f"{path}, row {i}" for i in (2, 3, 4)]
    assert read_manifest(Path("out"))["data"]["left_out"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("qwen_vl/smok",), "Did you mean 'qwen_vl/smoke'"),
        ((QWEN, "data=null"), "has no block data"),
        ((QWEN, "data.files=none.json"), "there is no file none.json"),
        ((QWEN, "train.batch_size=3", "train.per_device_batch_size=2"), "is not a multiple of"),
        ((QWEN, "train.optimiser=adamm"), "refuses the block `train`"),
        ((QWEN, "host.model=nowhere/at/all"), "nowhere/at/all"),
        ((QWEN, "--resume-from", "nowhere"), "is no checkpoint of a trainer"),
        ((QWEN, 'lora.target_modules=["qq_proj"]'), "matches no module"),
        ((QWEN, "train.report_to=tensorbord"), "train.report_to: tensorbord cannot be used"),
        (("openvla/smoke",), "Train it by its own script: vega3d run"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(arguments: tuple[str, ...], message: str) -> None:
    result = invoke(*arguments)
    assert isinstance(result.exception, Vega3dError), result.output
    assert message in str(result.exception)
    assert not list(Path().iterdir())


def test_a_tracker_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.integrations.integration_utils.is_tensorboard_available", lambda: False)
    monkeypatch.setattr("vega3d_plugin.training.job.prepare", lambda *_: pytest.fail("too late"))
    result = invoke(QWEN, "train.report_to=tensorboard")
    assert isinstance(result.exception, Vega3dError), result.output
    assert "train.report_to: tensorboard cannot be used" in str(result.exception)
    assert not list(Path().iterdir())


def test_one_process_with_several_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.TrainingArguments, "n_gpu", 2)
    result = invoke(QWEN)
    assert isinstance(result.exception, Vega3dError), result.output
    assert "torchrun --nproc-per-node 2 -m vega3d_plugin.train" in str(result.exception)
    assert not list(Path().iterdir())


def test_trl_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    result = invoke(QWEN, "train.trainer=trl")
    assert isinstance(result.exception, Vega3dError)
    assert "vega3d-plugin[train]" in str(result.exception)


# Launchers


LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    # Without --multi_gpu it starts one process where there is no GPU.
    "accelerate": (
        "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
    ),
}  # fmt: skip


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("accelerate", marks=pytest.mark.long)])
def test_two_processes_train_as_one_does(launcher: str) -> None:
    """The launchers, unchanged: the batch of one step is divided, the result is the same."""
    # Adam would make a whole step of what is rounded differently where a gradient is almost zero.
    plain = ("train.optimiser=sgd", "train.learning_rate=0.3")
    train = ("-m", "vega3d_plugin.train", QWEN, "train.output_dir=two", *plain)
    command = [sys.executable, "-m", *LAUNCHERS[launcher], *train]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = run_whole(command, 240, environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Trained: two/checkpoint-4") == 1
    one = job("one", *plain).run()
    two = Path("two/checkpoint-4")
    assert read_manifest(two)["processes"] == 2
    assert sorted(path.name for path in two.glob("rng_state*")) == ["rng_state_0.pth", "rng_state_1.pth"]
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    a, b = weights(one), weights(two)
    for name, value in a.items():
        if value.is_floating_point():
            torch.testing.assert_close(b[name], value, rtol=1e-3, atol=1e-5)


# Numbers that are none


def test_a_run_stops_at_the_first_gradient_that_is_no_number() -> None:
    # With steps this large the weights overflow, and the next gradient is NaN.
    options = ("train.learning_rate=1e30", "train.warmup_ratio=0", "train.save_steps=1")
    with pytest.raises(TrainError, match=r"Step \d: the gradient of \d+ parameter.* is NaN or infinite") as told:
        job("out", *options).run()
    assert "host.dtype=bfloat16" in str(told.value)
    kept = checkpoints(Path("out"))
    assert kept
    assert str(kept[-1]) in str(told.value)
    # The step with the bad gradient was not made.
    assert read_step(kept[-1]) == int(re.findall(r"Step (\d+)", str(told.value))[0]) - 1


def read_step(checkpoint: Path) -> int:
    return int(json.loads((checkpoint / "trainer_state.json").read_text())["global_step"])


def test_the_command_ends_with_an_error_code() -> None:
    result = invoke(QWEN, "train.output_dir=out", "train.learning_rate=1e30", "train.warmup_ratio=0")
    assert result.exit_code != 0
    assert "NaN or infinite" in str(result.exception)
