"""``vega3d ablate`` on the real classes: what is scored is what the model computes, and the controls are controls."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from typer.testing import CliRunner, Result

import vega3d
from vega3d_plugin.branch.branch import GenerativeBranch
from vega3d_plugin.cli import output
from vega3d_plugin.cli.app import app
from vega3d_plugin.contracts.errors import BadRowsError, RowError
from vega3d_plugin.evaluation.ablation import VARIANTS, ablate
from vega3d_plugin.priors.wan.tiny import RandomWeightsWarning
from vega3d_plugin.scenes.video import write_video
from vega3d_plugin.storage.record import RUN_FILE
from vega3d_plugin.training.rows.encoding import Encoder
from vega3d_qwen_vl.tiny import tiny_model, tiny_processor

pytestmark = pytest.mark.once
PROJECTOR = {"name": "mlp", "hidden_dim": 64}


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output.out, "width", 200)
    monkeypatch.setattr(output.err, "width", 200)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A host, rows of both kinds with an image, a video and views, and branches: fresh, trained, with an adapter."""
    root = tmp_path_factory.mktemp("ablate")
    model = tiny_model()
    model.save_pretrained(root / "host")
    tiny_processor().save_pretrained(root / "host")
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (64, 96, 3), dtype=np.uint8) for _ in range(6)]
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(root / f"{index}.png")
    write_video(root / "room.mp4", np.stack(pictures))
    llava = [
        {
            "image": "0.png",
            "conversations": [
                {"from": "human", "value": "<image>\nIs it red?"}, {"from": "gpt", "value": "Yes"},
                {"from": "human", "value": "Blue?"}, {"from": "gpt", "value": "No"},
            ],
        },
        {"video": "room.mp4", "conversations": _turns("<video>\nHow many?", "Four")},
        {"images": ["1.png", "2.png"], "conversations": _turns("<image><image>\nWhich?", "The first")},
    ]  # fmt: skip
    (root / "llava.json").write_text(json.dumps(llava))
    parts = [{"type": "image", "image": "3.png"}, {"type": "text", "text": "Where?"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "Left"}]
    (root / "chat.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RandomWeightsWarning)
        vega3d.patch(model, "tiny-wan", projector=PROJECTOR, fusion="token_gated_residual")
    vega3d.save_pretrained(model, root / "fresh")
    branch = vega3d.get_handle(model).branch
    with torch.no_grad():
        branch.fuser.residual_scale.fill_(5.0)
    vega3d.save_pretrained(model, root / "trained")
    model.save_pretrained(root / "full")
    tiny_processor().save_pretrained(root / "full")
    tuned = get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["vega3d"]))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    tuned.save_pretrained(root / "adapter")
    return root


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def run(root: Path, **options: Any):
    given = {"branch": root / "trained", "max_new_tokens": 4, "resamples": 500, "device": "cpu", **options}
    return ablate(root / "host", [root / "llava.json", root / "chat.jsonl"], **given)


def test_the_four_variants(root: Path) -> None:
    found = run(root)
    assert [answer["answer"] for answer in found.answers] == ["Yes", "No", "Four", "The first", "Left"]
    assert [answer["question"] for answer in found.answers[:2]] == ["Is it red?", "Blue?"]
    base, patched, off, zeroed = (found.scores(variant) for variant in VARIANTS)
    # Off is the base, exactly; the other two are neither it nor each other, on any answer.
    assert base == off
    for one, two in ((patched, off), (zeroed, off), (patched, zeroed)):
        assert all(a.nll != b.nll for a, b in zip(one, two, strict=True))
    # A token for every byte, and the end of the turn.
    assert [score.tokens for score in patched] == [4, 3, 5, 10, 5]
    # "The first" has more tokens than the run generates.
    assert [text.split(" are ")[0] for text in found.warnings] == ["1 of 5 expected answers"]


def test_the_likelihood_is_the_models_own_loss(root: Path) -> None:
    """Recomputed by hand: the host's processor, its labels and its loss."""
    found = run(root)
    processor, model = tiny_processor(), tiny_model()
    vega3d.load_pretrained(model, root / "trained", processor=processor)
    content = [{"type": "image"}, {"type": "text", "text": "Where?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    batch = processor(text=[prompt + "Left<|im_end|>"], images=[Image.open(root / "3.png")], return_tensors="pt")
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, -5:] = batch["input_ids"][:, -5:]
    with torch.no_grad():
        loss = float(model(**batch, labels=labels).loss) * 5
    assert found.answers[-1]["scores"]["patched"].nll == pytest.approx(loss, rel=1e-5)
    # And the answer is what generate gives.
    asked = processor(text=[prompt], images=[Image.open(root / "3.png")], return_tensors="pt")
    out = model.generate(**asked, max_new_tokens=4, do_sample=False)[0, asked["input_ids"].shape[1] :]
    said = processor.tokenizer.decode(out, skip_special_tokens=True).strip()
    assert found.answers[-1]["scores"]["patched"].said == said


def test_the_prior_runs_once_for_each_clip_of_an_answer(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    extract = GenerativeBranch._extract
    monkeypatch.setattr(GenerativeBranch, "_extract", lambda self, clip: calls.append(1) or extract(self, clip))
    run(root)
    # One image twice (two answers), a video, two images, one image.
    assert len(calls) == 6


def test_a_fresh_branch_is_said_to_change_nothing(root: Path) -> None:
    found = run(root, branch=root / "fresh", generated=False)
    assert all(difference.verdict == "the same on every answer" for difference in found.differences)
    assert "The branch changes nothing" in found.warnings[0]
    assert found.mean("patched", "exact") is None
    assert {difference.measure for difference in found.differences} == {"nll"}


def test_with_an_adapter_the_base_is_without_it(root: Path) -> None:
    found, plain = run(root, branch=root / "adapter", generated=False), run(root, generated=False)
    assert found.scores("base") == plain.scores("base")
    assert found.scores("off") != found.scores("base")
    assert found.settings["adapter"] == str(root / "adapter")
    assert found.warnings == []


def test_a_full_checkpoint_is_host_and_branch(root: Path) -> None:
    found = ablate(root / "full", [root / "chat.jsonl"], max_new_tokens=4, device="cpu")
    assert found.scores("patched") == run(root).scores("patched")[-1:]
    assert "no verdict: fewer than 6 pictures or rows have no interval" in {each.verdict for each in found.differences}


def test_of_a_trained_host_the_base_is_the_one_it_was_trained_from(root: Path) -> None:
    model = tiny_model()
    vega3d.load_pretrained(model, root / "trained")
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lm_head" in name).mul_(1.5)
    model.save_pretrained(root / "whole")
    shown = {"settings": {"data": {"video_as": "images", "frames": 2, "workers": 3}}}
    (root / "whole" / "vega3d_run.json").write_text(json.dumps(shown))
    found, plain = run(root, branch=root / "whole", generated=False), run(root, generated=False)
    # All rows but the one with a video, which was trained as images.
    same = [index for index, answer in enumerate(found.answers) if answer["answer"] != "Four"]
    assert [found.scores("base")[i] for i in same] == [plain.scores("base")[i] for i in same]
    assert found.scores("base") != plain.scores("base")
    for variant in ("patched", "off", "zeroed"):
        assert all(found.scores(variant)[i] != plain.scores(variant)[i] for i in same)
    assert (found.settings["data"]["video_as"], found.settings["data"]["frames"]) == ("images", 2)
    assert found.settings["data"]["workers"] == 0
    assert found.settings["trained_host"] == str(root / "whole")
    assert found.warnings == []


def test_a_host_that_loading_changed_is_noticed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vega3d_plugin.evaluation import ablation

    def careless(model, *args, **options):
        with torch.no_grad():
            next(p for name, p in model.named_parameters() if "lm_head" in name).mul_(1.5)
        return vega3d.load_pretrained(model, *args, **options)

    monkeypatch.setattr(ablation, "load_pretrained", careless)
    (warning,) = run(root, generated=False).warnings
    assert "should agree exactly, but differ on 5 of 5 answers" in warning


def test_rows_that_cannot_be_used(root: Path) -> None:
    (root / "broken.png").write_bytes(b"no picture")
    rows = [
        {"image": "nowhere.png", "conversations": _turns("<image>?", "Yes")},
        {"image": "broken.png", "conversations": _turns("<image>?", "Yes")},
        {"image": "0.png", "conversations": _turns("<image>?", "Yes")},
    ]
    (root / "bad.json").write_text(json.dumps(rows))
    options = {"branch": root / "trained", "generated": False, "device": "cpu"}
    with pytest.raises(BadRowsError, match=r"bad\.json, row 1.*nowhere\.png does not exist"):
        ablate(root / "host", [root / "bad.json"], **options)
    found = ablate(root / "host", [root / "bad.json"], data={"skip_bad_rows": True}, **options)
    assert len(found.answers) == 1
    assert ["row 1" in found.skipped[0], "row 2" in found.skipped[1]] == [True, True]


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["ablate", *map(str, arguments)])


def test_the_command(root: Path, tmp_path: Path) -> None:
    options = ["--branch", root / "trained", "--data", root / "llava.json", "--data", root / "chat.jsonl"]
    options += ["--max-new-tokens", 4, "--resamples", 500, "--device", "cpu"]
    report = tmp_path / "report.json"
    result = command(root / "host", *options, "--out", report)
    assert result.exit_code == 0, result.output
    for part in ("5 answers in 4 rows", "base", "patched", "off", "zeroed", "95% interval", "NLL of the answer"):
        assert part in result.output
    told = json.loads(report.read_text())
    assert told["means"]["base"] == told["means"]["off"]
    assert {d["control"] for d in told["differences"]} == {"base", "off", "zeroed"}
    assert all(d["verdict"] in result.output for d in told["differences"])
    assert told["settings"]["prior"]["name"] == "tiny-wan"
    again = command(root / "host", *options, "--json")
    assert json.loads(again.stdout) == told


def test_a_missing_file_of_rows(root: Path) -> None:
    result = command(root / "host", "--branch", root / "trained", "--data", root / "none.json")
    assert result.exit_code == 1
    assert "there is no file" in str(result.exception)


def test_a_row_that_fails_later_does_not_shift_the_others(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = Encoder.__call__, []

    def failing(self: Encoder, row: Any, at: Path | None = None) -> Any:
        calls.append(row)
        if len(calls) == 6:
            raise RowError("the disk is gone")
        return plain(self, row, at)

    monkeypatch.setattr(Encoder, "__call__", failing)
    with pytest.raises(BadRowsError, match=r"the disk is gone\. It could be read before"):
        run(root, generated=False, data={"skip_bad_rows": True})


def test_rows_of_the_training_are_told(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "trained", tmp_path / "branch")
    settings = {"data": {}, "host": {}}
    run_of = {"format": 1, "settings": settings, "data": {"files": [{"path": str(root / "chat.jsonl")}]}}
    (tmp_path / "branch" / RUN_FILE).write_text(json.dumps(run_of))
    warned = run(root, branch=tmp_path / "branch", generated=False).warnings
    assert warned[-1].startswith("The model was trained on 1 of these 4 rows")
