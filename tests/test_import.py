"""``import vega3d`` is light, and says what it brings."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import pytest

import vega3d
import vega3d_plugin

HEAVY = ("transformers", "diffusers", "peft", "accelerate", "huggingface_hub", "av", "torchvision", "vega3d_qwen_vl")

SCRIPT = """
import json, sys
import torch
import {name}
heavy = [name for name in {heavy!r} if name in sys.modules]
import vega3d
names = [vega3d.list_hosts(), vega3d.list_priors(), vega3d.list_fusers(), vega3d.BranchSettings().prior.name]
later = [name for name in {heavy!r} if name in sys.modules]
print(json.dumps({{"heavy": heavy, "names": names, "later": later}}))
"""


def fresh_import(name: str = "vega3d") -> dict:
    """Import a module in a new process, after torch."""
    code = SCRIPT.format(name=name, heavy=HEAVY)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def first() -> dict:
    return fresh_import()


def test_no_heavy_library_is_imported(first: dict) -> None:
    assert first["heavy"] == []


def test_nor_by_looking_at_what_is_there(first: dict) -> None:
    assert "wan2.1-t2v-1.3b" in first["names"][1]
    # The adapter is loaded then, but not its host's library.
    assert set(first["later"]) <= {"vega3d_qwen_vl"}


def test_a_heavy_library_would_be_noticed() -> None:
    assert fresh_import("vega3d, huggingface_hub")["heavy"] == ["huggingface_hub"]


def test_both_names_give_the_same_things() -> None:
    assert vega3d.__all__ == vega3d_plugin.__all__
    assert vega3d.__version__ == vega3d_plugin.__version__
    assert len(set(vega3d.__all__)) == len(vega3d.__all__)
    for name in vega3d.__all__:
        assert getattr(vega3d, name) is getattr(vega3d_plugin, name), name


@pytest.mark.parametrize("name", vega3d_plugin.__all__)
def test_every_public_name_is_explained(name: str) -> None:
    thing = getattr(vega3d, name)
    if name == "__version__":
        assert thing[0].isdigit()
    elif inspect.isclass(thing):
        # Not the one inherited, nor the one a dataclass makes of its fields.
        assert thing.__dict__.get("__doc__"), name
        assert not thing.__doc__.startswith(f"{name}("), name
    elif name != "hookimpl":
        assert inspect.getdoc(thing), name


def test_public_methods_are_explained() -> None:
    classes = [getattr(vega3d, name) for name in vega3d.__all__ if inspect.isclass(getattr(vega3d, name))]
    for cls in classes:
        for name, member in vars(cls).items():
            if inspect.isfunction(member) and not name.startswith("_"):
                assert inspect.getdoc(getattr(cls, name)), f"{cls.__name__}.{name}"


def test_nothing_else_is_public() -> None:
    """A name that users can import without an underscore is either listed or a module."""
    surplus = {
        name
        for name, thing in vars(vega3d_plugin).items()
        if not name.startswith("_") and not inspect.ismodule(thing) and name not in vega3d.__all__
    }
    assert surplus == set()


def test_errors_have_one_base_and_a_meaning() -> None:
    found = [e for e in vars(vega3d.errors).values() if inspect.isclass(e) and e.__module__ == vega3d.errors.__name__]
    errors = [e for e in found if not issubclass(e, vega3d.Vega3dWarning)]
    assert len(errors) > 10
    for error in errors:
        assert issubclass(error, vega3d.Vega3dError)
    for error in found:
        assert error.__dict__.get("__doc__"), error
