"""Commands that touch no model import no torch, and what they list without importing it is true."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vega3d
from vega3d_plugin.builtin import FUSERS
from vega3d_plugin.cli.ls import _first_sentence
from vega3d_plugin.cli.prior import class_facts
from vega3d_plugin.contracts.later import Later, LazyFuser, LazyHost
from vega3d_plugin.contracts.tables import HOSTS, PRIORS
from vega3d_plugin.recipes import known_lora
from vega3d_plugin.recipes.library import examine_recipe, list_recipes

COMMANDS = """
--help
--version
ls
ls fusers --json
recipes ls
recipes show qwen_vl/smoke
recipes show --diff qwen_vl/lora_spatial_reasoning qwen_vl/full_spatial_reasoning_vace
recipes validate
store info STORE
store --help
info --help
convert --help
doctor --help
prior --help
prior info wan2.1-t2v-1.3b
prior info vggt --json
train --help
"""

SCRIPT = """
import sys
from typer.testing import CliRunner
from vega3d_plugin.cli.app import app

for line in sys.stdin:
    found = CliRunner().invoke(app, line.split())
    heavy = {"torch", "diffusers", "transformers", "peft"} & set(sys.modules)
    print(found.exit_code, *sorted(heavy), "|", line.strip(), "|", found.output.count("\\n"))
    if found.exit_code or heavy:
        print(found.output, found.exception, file=sys.stderr)
        break
"""


def test_commands_that_touch_no_model_import_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEGA3D_CACHE", str(tmp_path / "cache"))
    # PEFT, which needs torch, is asked about each block `lora` once.
    for recipe in list_recipes():
        assert not examine_recipe(recipe.name).problems
    # So is the class of a prior.
    for name in ("wan2.1-t2v-1.3b", "vggt"):
        class_facts.class_facts(PRIORS.get(name))
    store = vega3d.FeatureStore(tmp_path / "store", memory_bytes=0)
    store.bind(vega3d.CallablePrior(lambda frames: frames, 3, fingerprint="mine"))
    store.put("0" * 32, torch.zeros(1, 3, 2, 2))
    commands = COMMANDS.strip().replace("STORE", str(tmp_path / "store"))
    command = [sys.executable, "-c", SCRIPT]
    ended = subprocess.run(command, input=commands, capture_output=True, text=True, env={**os.environ}, timeout=120)
    told = [line.rpartition("|") for line in ended.stdout.splitlines()]
    assert [first for first, _, _ in told] == [f"0 | {line} " for line in commands.splitlines()], ended.stderr
    assert all(int(lines) for _, _, lines in told)


def test_a_prior_class_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEGA3D_CACHE", str(tmp_path))
    spec = PRIORS.get("wan2.1-t2v-1.3b")
    said = class_facts.class_facts(spec)
    assert [r["name"] for r in said["reductions"]] == [r.name for r in spec.prior_class().reductions]
    assert said["identity"] == list(spec.prior_class().identity)
    monkeypatch.setattr(class_facts, "_said", lambda cls: pytest.fail("asked again"))
    assert class_facts.class_facts(spec) == said
    # Another version may say another thing, and a note that cannot be read says nothing.
    (note,) = (tmp_path / class_facts.FOLDER).iterdir()
    other = {"reductions": [], "identity": None}
    monkeypatch.setattr(class_facts, "_said", lambda cls: other)
    note.write_text("{")
    assert class_facts.class_facts(spec) == other
    monkeypatch.setattr(class_facts, "library_version", lambda: "another")
    monkeypatch.setattr(class_facts, "_said", lambda cls: said)
    assert class_facts.class_facts(spec) == said
    assert len(list((tmp_path / class_facts.FOLDER).iterdir())) == 1


def test_peft_is_asked_once_about_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEGA3D_CACHE", str(tmp_path))
    block = {"r": 4, "target_modules": ["q_proj"]}
    assert not known_lora.known(block)
    known_lora.remember(block)
    assert known_lora.known(dict(reversed(block.items())))
    assert not known_lora.known({**block, "r": 5})
    monkeypatch.setattr(known_lora, "package_version", lambda name: "another")
    assert not known_lora.known(block)


def test_a_block_that_peft_refuses_is_refused_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEGA3D_CACHE", str(tmp_path))
    for _ in range(2):
        (problem,) = examine_recipe("qwen_vl/smoke", ["lora.no_such_key=1"]).problems
        assert "unknown key" in problem.message
    assert not (tmp_path / known_lora.FOLDER).exists()


@pytest.mark.parametrize("card", FUSERS, ids=lambda card: card.name)
def test_what_is_listed_of_a_fuser_is_what_its_class_says(card: LazyFuser) -> None:
    cls = card.get()
    parameters = list(inspect.signature(cls).parameters.values())
    assert card.options == {p.name: p.default for p in parameters if p.name != "hidden_size"}
    assert card.identity == (cls.identity is not None)
    assert card.summary == _first_sentence(inspect.getdoc(cls) or "")
    assert card.name in (cls.name, "instruction_token_gated")


def test_what_is_listed_of_a_host_is_what_its_adapter_says() -> None:
    for name in HOSTS.names():
        card, adapter = HOSTS.registered(name), HOSTS.get(name)
        assert isinstance(card, LazyHost)
        assert isinstance(adapter, vega3d.HostAdapter)
        assert (card.name, card.summary, card.seen_with) == (adapter.name, adapter.summary, adapter.seen_with)
        assert card.classes == tuple(adapter.classes)
        assert HOSTS.get(name) is adapter


def test_every_place_in_the_catalogue_exists() -> None:
    places = [place for spec in PRIORS for place in (spec.load, spec.prompt, spec.kind) if isinstance(place, Later)]
    assert len(places) > 60
    assert all(callable(place.get()) for place in places)
    assert all(issubclass(kind, vega3d.Prior) for spec in PRIORS if (kind := spec.prior_class()))
