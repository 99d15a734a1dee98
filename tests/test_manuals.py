"""The manuals for authors of plugins are run as they stand: every block of Python, in order, as one module."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import vega3d
from vega3d_plugin import hookspecs
from vega3d_plugin.plugins import registered

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def as_module(page: str, code: str) -> ModuleType:
    module = ModuleType(page.removesuffix(".md"))
    sys.modules[module.__name__] = module
    exec(compile(code, page, "exec"), module.__dict__)
    return module


@pytest.fixture
def module(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    made = as_module(request.param, "\n".join(blocks(request.param)))
    yield made
    del sys.modules[made.__name__]


@pytest.fixture
def plugin_removed() -> Iterator[None]:
    yield
    if "my_host" in vega3d.plugin_manager().loaded:
        vega3d.plugin_manager().unregister("my_host")


@pytest.mark.usefixtures("plugin_removed")
@pytest.mark.parametrize("module", ["your_own_host.md"], indirect=True)
def test_a_host(module: ModuleType) -> None:
    host, pixels = module.MyHost().eval(), torch.rand(2, 3, 16, 24)
    plain = host(pixels)
    vega3d.patch(host, "tiny-wan", size=(48, 80), projector="mlp2x_gelu")
    assert vega3d.get_handle(host).host == "my_host"
    assert torch.equal(host(pixels), plain)
    with torch.no_grad():
        for parameter in vega3d.get_handle(host).parameters():
            parameter += 0.1
    assert not torch.equal(host(pixels), plain)
    vega3d.unpatch(host)
    assert torch.equal(host(pixels), plain)
    assert vega3d.is_patched(module.model)


def test_the_example_of_a_host_is_short() -> None:
    first = blocks("your_own_host.md")[0]
    after_the_host = first.partition("STATISTICS =")[2]
    assert len([line for line in after_the_host.splitlines() if line.strip()]) <= 60


def test_as_many_words_as_it_says() -> None:
    table = (DOCS / "your_own_host.md").read_text().partition("| word |")[2].partition("\n\n")[0]
    assert len(table.strip().splitlines()) - 2 == 8


@pytest.mark.parametrize("module", ["your_own_prior.md"], indirect=True)
def test_a_prior(module: ModuleType) -> None:
    assert module.prior(torch.rand(2, 3, 16, 24)).shape == (2, 3, 8, 8)
    with registered(module, "mine"):
        quiet, loud = (vega3d.load_prior("my-colours", options={"strength": s}) for s in (1.0, 2.0))
        frames = torch.rand(2, 3, 16, 24)
        assert torch.equal(loud(frames), 2 * quiet(frames))
        assert quiet.fingerprint != loud.fingerprint


@pytest.mark.parametrize("module", ["your_own_fuser.md"], indirect=True)
def test_a_fuser(module: ModuleType) -> None:
    semantic, generative = torch.rand(2, 5, 8), torch.rand(2, 5, 8)
    with registered(module, "mine"):
        assert torch.equal(vega3d.build_fuser("louder", 8, init="identity")(semantic, generative), semantic)
        half = vega3d.build_fuser("louder", 8, volume=0.5)
        torch.testing.assert_close(half(semantic, generative), semantic + 0.5 * generative)
    (shares,) = module.found
    assert shares.measure == "contributions"
    assert 0 < float(shares.generative.mean()) < 1


def test_the_example_in_the_hook_specifications() -> None:
    """It names the module itself as the entry point, and the functions in it are found there."""
    text = hookspecs.__doc__ or ""
    (entry,) = re.findall(r'^    my_plugin = "([\w:]+)"$', text, re.MULTILINE)
    code = text.partition(f"# {entry}.py\n")[2].partition("\n\nPlugins serve")[0]
    assert entry == "my_package"
    assert code
    lines = "\n".join(line.removeprefix("    ") for line in code.splitlines())
    module = as_module(entry, lines)
    try:
        with registered(module, "mine"):
            assert "quieter" in vega3d.list_fusers()
    finally:
        del sys.modules[entry]
