"""``vega3d run`` around the script: what is wrapped and put back, what is told, and which mistakes are errors."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers
from doubles.llava import double_model
from hosts import logits
from hosts import named as named_host
from rows.llava_package import images_batch, installed, mixed_batch, torch_model
from scripts import Script, run_script, scripts_own, write_recipe
from torch import nn
from torch.optim import optimizer as optimizers
from typer.testing import CliRunner, Result

import vega3d
from vega3d_plugin.branch import first_step
from vega3d_plugin.cli import output
from vega3d_plugin.cli.app import app
from vega3d_plugin.contracts.errors import HostError, SavedBranchError
from vega3d_plugin.priors.wan.tiny import RandomWeightsWarning
from vega3d_plugin.recipes.library import RecipeError, branch_settings
from vega3d_plugin.training.scripts import RunError, make_session, parse_command, run
from vega3d_plugin.training.scripts.wrapped_places import explain, wrapped
from vega3d_qwen_vl.tiny import tiny_model, tiny_processor, tiny_tokenizer

BUILD = """
import sys, torch, transformers
model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(sys.argv[1])
"""
OWNERS = (
    transformers.PreTrainedModel, transformers.Trainer, peft.PeftModel, torch.nn.parallel.DistributedDataParallel,
    torch.optim.Optimizer, torch, safetensors.torch,
    *([importlib.import_module("ray")] if importlib.util.find_spec("ray") else []),
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("host") / "base"
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "recipe.yaml")


@pytest.fixture
def script(recipe: Path, tmp_path: Path) -> Iterator[Callable[..., list[str]]]:
    """Run a script given as its text."""

    def call(text: str, *arguments: object, recipe: Path = recipe, **options: Any) -> list[str]:
        path = tmp_path / "its_script.py"
        path.write_text(text)
        return run_script(recipe, path, *arguments, **options)

    with scripts_own():
        yield call


def everything() -> dict[tuple[str, str], Any]:
    """All that could be wrapped, as it lies in its owner's dictionary, and the hooks of all optimisers."""
    found = {(owner.__name__, name): value for owner in OWNERS for name, value in vars(owner).items()}
    # The branch's own stays: it is no part of `vega3d run`.
    hooks = [k for k, h in optimizers._global_optimizer_pre_hooks.items() if h.__module__ != first_step.__name__]
    return {**found, ("hooks", "all"): hooks, ("sys", "argv"): list(sys.argv), ("sys", "path"): list(sys.path)}


def changed(before: dict[tuple[str, str], Any]) -> set[tuple[str, str]]:
    now = everything()
    lists = {key for key, value in before.items() if isinstance(value, list)}
    return {key for key in before if (now[key] != before[key] if key in lists else now[key] is not before[key])}


class TestWrapped:
    def test_everything_is_listed_and_put_back(self, recipe: Path) -> None:
        before = everything()
        session = make_session(recipe, lambda line: None)
        assert session is not None
        with wrapped(session):
            names = [name for name, _ in explain(session)]
            inside = changed(before)
        assert len(names) == len(set(names)) == len(inside)
        for owner, name in inside - {("hooks", "all")}:
            assert any(listed.endswith(f"{owner}.{name}") for listed in names), (owner, name)
        assert changed(before) == set()

    def test_the_page_lists_it(self, recipe: Path) -> None:
        page = (Path(__file__).parents[1] / "docs" / "host_scripts.md").read_text()
        section = page.partition("## What is wrapped")[2].partition("\n## ")[0]
        session = make_session(recipe, lambda line: None)
        assert session is not None
        with wrapped(session):
            rows = re.findall(r"^\| `(.+?)` \| (.+) \|$", section, re.MULTILINE)
            there = [row for row in rows if importlib.util.find_spec("ray") or not row[0].startswith("ray.")]
            assert len(rows) - len([row for row in rows if row[0].startswith("ray.")]) == len(rows) - 3
            assert there == explain(session)

    @pytest.mark.parametrize("end", ["", "raise ValueError('its own')", "sys.exit(3)", "raise KeyboardInterrupt"])
    def test_put_back_however_the_script_ends(self, base: Path, script: Script, end: str) -> None:
        before = everything()
        text = BUILD + "sys.path.insert(0, 'mine'); sys.argv.append('mine')\n" + end
        try:
            script(text, base)
        except (ValueError, SystemExit, KeyboardInterrupt):
            assert end
        else:
            assert not end
        assert changed(before) == set()

    def test_what_the_script_replaced_stays_and_is_told(self, base: Path, script: Script) -> None:
        save = torch.save
        try:
            lines = script(BUILD + "own = torch.save\ntorch.save = lambda *a: own(*a)", base)
            assert "torch.save was replaced by the script, and stays so" in lines
            # It passes on to what was there, and to nothing of this run.
            assert torch.save is not save
        finally:
            torch.save = save


class TestTheScriptsOwn:
    def test_random_numbers_are_what_they_were(
        self, base: Path, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # torch.manual_seed sets the generators of GPUs too, from a seed that waits until they are first used.
        seeded: list[int] = []
        monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
        text = BUILD.replace("model =", "torch.manual_seed(7)\nmodel =") + "torch.save(torch.rand(3), sys.argv[2])"
        script(text, base, tmp_path / "with.pt")
        # The recipe's own seed is 0; the small random prior seeds for itself.
        assert seeded[0] == 7
        assert 0 not in seeded
        torch.manual_seed(7)
        assert torch.equal(torch.load(tmp_path / "with.pt"), torch.rand(3))

    def test_a_new_branch_is_equal_in_every_run(self, base: Path, script: Script, tmp_path: Path) -> None:
        for name, seed in (("one", 1), ("two", 2)):
            text = BUILD.replace("model =", f"torch.manual_seed({seed})\nmodel =")
            script(text + "model.save_pretrained(sys.argv[2])", base, tmp_path / name)
        one, two = (safetensors.torch.load_file(tmp_path / name / "vega3d.safetensors") for name in ("one", "two"))
        assert all(torch.equal(one[name], two[name]) for name in one)

    def test_settings_are_set(self, base: Path, script: Script) -> None:
        lines = script(BUILD, base, overrides=["fusion.name=add"])
        assert "fusion='add'" in lines[0]
        with pytest.raises(RecipeError, match=r"fusion\.nam"):
            script(BUILD, base, overrides=["fusion.nam=add"])

    def test_features_are_stored(self, base: Path, tmp_path: Path, recipe: Path) -> None:
        for name in ("first", "second"):
            run_script(recipe, "evaluate.py", base, tmp_path / f"{name}.pt", store=tmp_path / "store")
        assert list((tmp_path / "store").rglob("*.safetensors"))
        assert torch.equal(torch.load(tmp_path / "first.pt"), torch.load(tmp_path / "second.pt"))

    def test_a_recipe_without_a_branch(self, base: Path, script: Script, tmp_path: Path) -> None:
        before = everything()
        text = BUILD + "torch.save([type(torch.save).__name__, hasattr(torch.save, '__wrapped__')], sys.argv[2])"
        script(text, base, tmp_path / "x.pt", recipe=write_recipe(tmp_path / "none.yaml", prior=None))
        assert torch.load(tmp_path / "x.pt") == ["function", False]
        assert changed(before) == set()

    def test_a_frozen_branch_stays_as_it_is(self, base: Path, script: Script, tmp_path: Path) -> None:
        text = BUILD + (
            "o = torch.optim.SGD(model.parameters(), lr=0.1)\n"
            "sum(p.sum() for p in model.parameters() if p.requires_grad).backward()\n"
            "o.step()\nmodel.save_pretrained(sys.argv[2])"
        )
        frozen = write_recipe(tmp_path / "frozen.yaml", tune={"branch": "frozen"})
        script(text, base, tmp_path / "out", recipe=frozen)
        assert not safetensors.torch.load_file(tmp_path / "out" / "vega3d.safetensors")["fuser.residual_scale"].any()
        script(text, base, tmp_path / "moved")
        assert safetensors.torch.load_file(tmp_path / "moved" / "vega3d.safetensors")["fuser.residual_scale"].any()

    def test_a_rate_of_the_branchs_own(self, base: Path, script: Script, tmp_path: Path) -> None:
        own = write_recipe(tmp_path / "rate.yaml", tune={"branch": {"mode": "full", "learning_rate": 3e-4}})
        lines = script(BUILD + "torch.optim.AdamW(model.parameters(), lr=1e-5)", base, recipe=own)
        assert any("is in a group of its own, lr 0.0003" in line for line in lines)


SHARDED = BUILD + "import vega3d\nfor p in vega3d.get_handle(model).parameters(): p.ds_numel = p.numel()\n"


AROUND = """
import peft, vega3d
config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=sys.argv[3].split(","))
model = peft.get_peft_model(model, config)
saved = model.peft_config["default"].modules_to_save
assert saved == sys.argv[4].split(","), saved
optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
batch = torch.load(sys.argv[5])
for _ in range(2):
    model(**batch, labels=batch["input_ids"]).loss.backward()
    optimiser.step()
torch.save(model(**batch).logits.detach(), sys.argv[6])
model.save_pretrained(sys.argv[2])
"""


@pytest.mark.parametrize(
    ("named", "kept"), [("visual", "visual"), ("visual,vega3d", "visual"), ("merger", "merger,vega3d")]
)
def test_a_script_that_saves_what_is_around_the_branch(
    base: Path, script: Script, tmp_path: Path, named: str, kept: str
) -> None:
    out, batch = tmp_path / "out", tmp_path / "batch.pt"
    torch.save(named_host("qwen2_5_vl").batch(), batch)
    script(BUILD + AROUND, base, out, named, kept, batch, tmp_path / "logits.pt")
    # The adapter's file and the branch's own beside it hold the same branch, and it has moved.
    host = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(base)
    model = peft.PeftModel.from_pretrained(vega3d.load_pretrained(host, out), out).eval()
    found = logits(model, torch.load(batch))
    torch.testing.assert_close(found, torch.load(tmp_path / "logits.pt"), rtol=0, atol=1e-6)
    with vega3d.disabled(model):
        assert (logits(model, torch.load(batch)) - found).abs().max() > 1e-4


class TestSharded:
    """A branch of which each process has a part, as ZeRO-3 leaves it: here it only looks so."""

    @pytest.mark.parametrize(
        "save",
        [
            "model.save_pretrained(sys.argv[2])",
            "model.save_pretrained(sys.argv[2], state_dict={n: p[:0] for n, p in model.state_dict().items()})",
            "torch.save({n: p for n, p in model.state_dict().items() if 'merger' in n and 'vega3d' not in n}, "
            "sys.argv[2])",
            "import peft\n"
            "model = peft.get_peft_model(model, peft.LoraConfig(target_modules=['q_proj']))\n"
            "for p in vega3d.get_handle(model).parameters(): p.ds_numel = p.numel()\n"
            "model.save_pretrained(sys.argv[2], state_dict={n: p for n, p in model.state_dict().items() "
            "if 'lora_' in n})",
        ],
        ids=["nothing given", "not gathered", "a part", "lora alone"],
    )
    def test_what_lacks_it_is_not_written(self, base: Path, script: Script, tmp_path: Path, save: str) -> None:
        with pytest.raises(SavedBranchError, match=r"is sharded over processes, and not whole in .*out"):
            script(SHARDED + save, base, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_what_a_trainer_gathered_holds_it(self, base: Path, script: Script, tmp_path: Path) -> None:
        out = tmp_path / "out"
        lines = script(SHARDED + "model.save_pretrained(sys.argv[2], state_dict=model.state_dict())", base, out)
        assert f"the branch is in {out}, among the weights" in lines
        assert not (out / "vega3d.safetensors").exists()
        tiny_processor().save_pretrained(out)
        assert run_script(write_recipe(tmp_path / "r.yaml"), "evaluate.py", out, tmp_path / "x.pt") == [
            f"Qwen2_5_VLForConditionalGeneration from {out} has the branch of {out}"
        ]


def patched(model: nn.Module, recipe: Path) -> nn.Module:
    """A LLaVA with the branch of a recipe, in Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RandomWeightsWarning)
        return vega3d.patch(model, config=branch_settings(recipe), host="llava_video")


class TestLateTower:
    """A host whose vision tower is loaded after ``from_pretrained`` gets its branch before it first runs."""

    @pytest.fixture
    def late(self, tmp_path: Path) -> Path:
        double_model(delay_load=True).save_pretrained(tmp_path / "late")
        return tmp_path / "late"

    @pytest.fixture
    def llava(self, tmp_path: Path) -> Path:
        fusion = {"name": "token_gated_residual", "init": "released"}
        host = {"adapter": "llava_video", "model": "tiny", "dtype": "float32"}
        return write_recipe(tmp_path / "llava.yaml", host=host, fusion=fusion)

    @pytest.mark.parametrize("how", ["forward", "generate"])
    def test_it_is_there_at_the_first_call(self, late: Path, llava: Path, tmp_path: Path, how: str) -> None:
        lines = run_script(llava, "late_tower.py", late, tmp_path / "x.pt", how)
        assert "is not complete yet and waits for its branch" in lines[0]
        assert "LlavaQwenForCausalLM" in lines[1]
        assert "has a new branch" in lines[1]
        # The same model without vega3d.
        model = double_model(delay_load=True)
        torch.manual_seed(0)
        model.get_vision_tower().load_model()
        plain = logits(model, mixed_batch())
        assert not torch.equal(torch.load(tmp_path / "x.pt"), plain)
        torch.manual_seed(0)
        patched(model, llava)
        assert torch.equal(torch.load(tmp_path / "x.pt"), logits(model, mixed_batch()))

    def test_a_trained_one_is_restored(self, late: Path, llava: Path, tmp_path: Path) -> None:
        model = double_model()
        patched(model, llava)
        with torch.no_grad():
            vega3d.get_handle(model).branch.fuser.residual_scale.fill_(0.7)
        vega3d.save_pretrained(model, late)
        lines = run_script(llava, "late_tower.py", late, tmp_path / "x.pt")
        assert lines[-1] == f"LlavaQwenForCausalLM from {late} has the branch of {late}"

    def test_one_that_never_gets_its_tower(self, late: Path, llava: Path, tmp_path: Path) -> None:
        with pytest.raises(HostError, match=r"LlavaQwenForCausalLM from .*late is run without its branch: .*load"):
            run_script(llava, "late_tower.py", late, tmp_path / "x.pt", "never")


@pytest.mark.skipif(installed() != "llava-torch", reason="the published llava-torch is not what this run imports")
def test_the_builder_of_llava_torch(tmp_path: Path) -> None:
    """A trained branch is there, though the builder loads the vision tower last."""
    from llava.model.builder import load_pretrained_model

    recipe = write_recipe(tmp_path / "r.yaml", host={"adapter": "llava_video", "model": "tiny", "dtype": "float16"})
    path, tokenizer = tmp_path / "llava-tiny", tiny_tokenizer()
    # Else the builder adds it, and draws its row of the embeddings anew each time.
    tokenizer.add_tokens(["<im_patch>"], special_tokens=True)
    model: Any = torch_model().half()
    model.resize_token_embeddings(len(tokenizer))
    for part in (model, tokenizer):
        part.save_pretrained(path)
    patched(model, recipe)
    with torch.no_grad():
        vega3d.get_handle(model).branch.fuser.residual_scale.fill_(0.7)
    vega3d.save_pretrained(model, path)
    lines = run_script(recipe, "llava_torch_eval.py", path, tmp_path / "x.pt")
    assert lines[-1] == f"LlavaLlamaForCausalLM from {path} has the branch of {path}"
    plain, batch = load_pretrained_model(str(path), None, "llava", device="cpu")[1], images_batch()
    batch["images"] = [image.half() for image in batch["images"]]
    assert not torch.equal(torch.load(tmp_path / "x.pt"), logits(plain, batch))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RandomWeightsWarning)
        vega3d.load_pretrained(plain, path)
    assert torch.equal(torch.load(tmp_path / "x.pt"), logits(plain, batch))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("COLUMNS", "200")
    for console in (output.out, output.err):
        monkeypatch.setattr(console, "width", 200)
    return lambda *words: CliRunner().invoke(app, ["run", *map(str, words)])


class TestCommand:
    def test_explain_lists_without_running(self, command: Callable[..., Result], recipe: Path) -> None:
        before = everything()
        result = command("--recipe", recipe, "--explain")
        assert result.exit_code == 0
        assert "transformers.PreTrainedModel.from_pretrained" in result.stderr
        assert "torch.optim.Optimizer.step (a hook)" in result.stderr
        assert result.stdout == ""
        assert changed(before) == set()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ([], r"There is nothing to run. Give the script after `--`"),
            (["--", "torchrun", "x.py"], r"torchrun does not exist here .* Put launchers such as torchrun in front"),
            (["--", "python3", "x.py"], r"python3 does not exist here .* leave out `python`"),
            (["--", "none.py"], r"The script none.py does not exist here \(.*\)\.$"),
            (["--", "{tmp}"], r"is a folder without a `__main__.py`"),
            (["--", "--lr", "1"], r"'--lr' is no script"),
            (["--", "-m"], r"`-m` needs the name of a module"),
            (["--", "-m", "nobodys.module"], r"There is no module 'nobodys.module' to run"),
        ],
    )
    def test_nothing_that_runs(
        self, command: Callable[..., Result], recipe: Path, tmp_path: Path, words: list[str], message: str
    ) -> None:
        result = command("--recipe", recipe, *(word.format(tmp=tmp_path) for word in words))
        assert isinstance(result.exception, RunError)
        with pytest.raises(RunError, match=message):
            raise result.exception

    def test_the_scripts_own_error_is_shown_as_python_shows_it(
        self, command: Callable[..., Result], recipe: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "breaks.py"
        path.write_text("def f():\n    raise OSError('its own')\nf()\n")
        result = command("--recipe", recipe, "--", path)
        plain = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False)
        assert result.exit_code == plain.returncode == 1
        assert plain.stderr == result.stderr
        path.write_text("raise SystemExit(5)")
        assert command("--recipe", recipe, "--", path).exit_code == 5

    def test_a_script_with_options_like_ours(
        self, command: Callable[..., Result], base: Path, recipe: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "words.py"
        path.write_text(BUILD + "print(sys.argv[1:], sys.path[0], __name__)")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RandomWeightsWarning)
            result = command("--recipe", recipe, "--", path, base, "--recipe", "mine", "--explain", "--", "x")
        assert result.exit_code == 0, result.output
        words = [str(base), "--recipe", "mine", "--explain", "--", "x"]
        assert result.stdout == f"{words} {tmp_path} __main__\n"
        assert "nothing was trained or restored" in result.stderr

    @pytest.mark.once
    def test_processes_that_the_script_starts(
        self, command: Callable[..., Result], base: Path, recipe: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "spawns.py"
        work = BUILD.replace("\n", "\n    ") + "torch.save(list(model.state_dict()), sys.argv[2])\n"
        path.write_text(
            f"import torch\ndef work(rank):{work}"
            "if __name__ == '__main__':\n    torch.multiprocessing.spawn(work, nprocs=1)\n"
        )
        result = command("--recipe", recipe, "--", path, base, tmp_path / "names.pt")
        assert not any("vega3d" in name for name in torch.load(tmp_path / "names.pt"))
        with pytest.raises(RunError, match=r"spawns.py ended, but no host .*\(nothing was\)"):
            raise result.exception or AssertionError

    def test_a_module(self, recipe: Path, tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "some_package").mkdir()
        (tmp_path / "some_package" / "train.py").write_text(BUILD + "print(sys.path[0])")
        monkeypatch.chdir(tmp_path)
        lines: list[str] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RandomWeightsWarning)
            run(make_session(recipe, lines.append), parse_command(["-m", "some_package.train", str(base)]))
        assert "has a new branch" in lines[0]
