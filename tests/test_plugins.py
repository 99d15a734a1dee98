"""Plugins: a third party's package is found and works, a broken one is named, and none can break another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import vega3d
from vega3d_plugin.contracts.errors import HostError, PluginError, UnknownNameError, Vega3dError
from vega3d_plugin.contracts.registry import Registry
from vega3d_plugin.plugins import PluginManager, registered
from vega3d_plugin.recipes.library import HostSettings, find_recipe

THIRD_PARTY = Path(__file__).parent / "support" / "third_party"

# Entry point and module of plugins with something wrong, and what the report must say.
BROKEN = {
    "broken": "raise RuntimeError('no such driver')",
    "quits": "import sys; sys.exit('not on this machine')",
    "missing": "import a_module_that_nobody_has",
    "lacks_the_attribute": "other = 1",
    "misspelt_argument": """
        import vega3d

        class Plugin:
            @vega3d.hookimpl
            def vega3d_register_fusers(self, registre): ...

        plugin = Plugin()""",
    "misspelt_hook": """
        import vega3d

        class Plugin:
            @vega3d.hookimpl
            def vega3d_register_fuser(self, register): ...

        plugin = Plugin()""",
    "zz_duplicate": """
        import vega3d

        class Other(vega3d.Fuser):
            name = "third-party-fuser"

        class Plugin:
            @vega3d.hookimpl
            def vega3d_register_priors(self, register):
                register(vega3d.PriorSpec("left-behind", print, "a prior that must not stay"))

            @vega3d.hookimpl
            def vega3d_register_fusers(self, register):
                register(Other, name="also-left-behind")
                register(Other)

        plugin = Plugin()""",
    "quits_late": """
        import vega3d

        class Plugin:
            @vega3d.hookimpl
            def vega3d_register_priors(self, register):
                register(vega3d.PriorSpec("left-behind-too", print, "a prior that must not stay"))
                raise SystemExit("not on this machine")

        plugin = Plugin()""",
}

SCRIPT = """
import json
import vega3d

manager = vega3d.plugin_manager()
found = {
    "hosts": vega3d.list_hosts(),
    "priors": vega3d.list_priors(),
    "fusers": vega3d.list_fusers(),
    "broken": manager.broken,
    "loaded": manager.loaded,
}
if "toy" in manager.loaded:
    import torch
    import toy_vega3d

    torch.manual_seed(0)
    host = toy_vega3d.ToyHost()
    pixels = toy_vega3d.STATISTICS.normalise(torch.rand(3, 3, 16, 24))
    before = host(pixels)
    patched = vega3d.patch(
        host, prior={"name": "third-party", "options": {"strength": 2.0}},
        fusion={"name": "third-party-fuser", "options": {"volume": 3.0}},
    )
    fresh = host(pixels)
    handle = vega3d.get_handle(host)
    with torch.no_grad():
        handle.branch.fuser.volume.fill_(1.0)
    louder = host(pixels)
    vega3d.unpatch(host)
    found |= {
        "handle": repr(handle),
        "same_object": patched is host,
        "fresh_is_identity": torch.equal(fresh, before),
        "parameters_matter": not torch.allclose(louder, before, atol=1e-3),
        "strength": handle.prior.strength,
        "unpatched": torch.equal(host(pixels), before),
    }
print(json.dumps(found))
"""


def install(folder: Path, name: str, entry_points: str) -> None:
    """What an installer leaves beside a package's modules."""
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(entry_points)


def published_entry_points() -> str:
    config = ConfigParser()
    config.read_string((THIRD_PARTY / "pyproject.toml").read_text())
    values = config["project.entry-points.vega3d"]
    return "[vega3d]\n" + "".join(f"{key} = {value.strip(chr(34))}\n" for key, value in values.items())


def start(folder: Path, **environment: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    values = {**os.environ, "PYTHONPATH": path, **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=pipe, stderr=pipe, text=True, env=values, cwd=folder)


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return {**json.loads(out.splitlines()[-1]), "stderr": err}


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What two fresh processes find where the plugins are installed: as usual, and told to leave them out."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "toy_vega3d.py").write_text((THIRD_PARTY / "toy_vega3d.py").read_text())
    install(folder, "toy_vega3d", published_entry_points())
    for name, source in BROKEN.items():
        (folder / f"{name}_plugin.py").write_text(dedent(source))
        install(folder, f"{name}_plugin", f"[vega3d]\n{name} = {name}_plugin:plugin\n")
    running = {"usual": start(folder), "left out": start(folder, VEGA3D_NO_ENTRY_POINTS="1")}
    return {key: result(process) for key, process in running.items()}


@pytest.fixture
def found(processes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return processes["usual"]


def test_an_installed_plugin_is_found(found: dict[str, Any]) -> None:
    assert found["loaded"]["toy"] == "entry point toy_vega3d:plugin"
    # Not even by a manager that was made on the way, because the plugin uses the library while it is imported.
    assert "vega3d plugin 'toy' was not loaded" not in found["stderr"]
    assert "toy" in found["hosts"]
    assert "third-party" in found["priors"]
    assert {"third-party-fuser", "third-party-fuser-2"} <= set(found["fusers"])


def test_an_installed_plugin_works_from_end_to_end(found: dict[str, Any]) -> None:
    assert found["same_object"]
    assert found["fresh_is_identity"]
    assert found["parameters_matter"]
    assert found["unpatched"]
    assert found["strength"] == 2.0
    assert "host='toy', seam='eye', prior='third-party', fusion='third-party-fuser'" in found["handle"]


def test_the_builtin_things_are_there_beside_it(found: dict[str, Any]) -> None:
    assert {"tiny-wan", "wan2.1-t2v-1.3b"} <= set(found["priors"])
    assert "token_gated_residual" in found["fusers"]
    assert "qwen_vl" in found["hosts"]


def test_entry_points_can_be_left_out(processes: dict[str, dict[str, Any]]) -> None:
    left = processes["left out"]
    assert left["hosts"] == []
    assert "third-party" not in left["priors"]
    assert "tiny-wan" in left["priors"]
    assert "token_gated" in left["fusers"]
    assert left["broken"] == {}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("broken", ["RuntimeError: no such driver"]),
        ("quits", ["SystemExit: not on this machine"]),
        ("missing", ["a_module_that_nobody_has"]),
        ("lacks_the_attribute", ["AttributeError", "'plugin'"]),
        ("misspelt_argument", ["'misspelt_argument'", "vega3d_register_fusers", "registre"]),
        ("misspelt_hook", ["'misspelt_hook'", "vega3d_register_fuser"]),
        ("zz_duplicate", ["'zz_duplicate'", "'third-party-fuser'", "'toy'"]),
        ("quits_late", ["SystemExit: not on this machine"]),
    ],
)
def test_a_broken_plugin_is_named_with_its_error(found: dict[str, Any], name: str, parts: list[str]) -> None:
    report = found["broken"][name]
    assert report.startswith(f"entry point {name}_plugin:plugin: ")
    assert all(part in report for part in parts), report
    assert name not in found["loaded"]
    # Whoever does not ask is told as well.
    assert f"vega3d plugin '{name}' was not loaded" in found["stderr"]


def test_only_the_broken_plugins_are_reported(found: dict[str, Any]) -> None:
    assert set(found["broken"]) == set(BROKEN)


def test_nothing_of_a_refused_plugin_stays(found: dict[str, Any]) -> None:
    assert not [name for name in found["priors"] + found["fusers"] if "left-behind" in name]


# In this process


@pytest.fixture(scope="module")
def toy() -> Iterator[ModuleType]:
    sys.path.insert(0, str(THIRD_PARTY))
    try:
        import toy_vega3d

        yield toy_vega3d
    finally:
        sys.path.remove(str(THIRD_PARTY))


@pytest.fixture
def host(toy: ModuleType) -> Iterator[nn.Module]:
    torch.manual_seed(0)
    with registered(toy.plugin, "toy"):
        yield toy.ToyHost()


def patch(host: nn.Module) -> nn.Module:
    return vega3d.patch(host, prior="third-party", fusion="third-party-fuser")


def plugin(**hooks: Callable[..., Any]) -> ModuleType:
    module = ModuleType("plugin")
    module.__dict__.update({name: vega3d.hookimpl(hook) for name, hook in hooks.items()})
    return module


def names() -> tuple[list[str], ...]:
    return vega3d.list_hosts(), vega3d.list_priors(), vega3d.list_fusers(), sorted(vega3d.plugin_manager().loaded)


def test_registered_is_over_at_the_end_of_the_block(toy: ModuleType) -> None:
    before = names()
    with registered(toy.plugin, "toy") as manager:
        assert manager is vega3d.plugin_manager()
        assert "third-party" in vega3d.list_priors()
        assert manager.fusers.plugin_of("third-party-fuser") == "toy"
    assert names() == before
    with pytest.raises(ZeroDivisionError), registered(toy.plugin, "toy"):
        _ = 1 / 0
    assert names() == before
    with registered(toy.plugin, "toy"):
        assert "toy" in vega3d.list_hosts()


@pytest.mark.parametrize("kind", ["host", "prior", "fuser"])
def test_a_name_that_is_taken_is_refused(toy: ModuleType, kind: str) -> None:
    class Louder(vega3d.Fuser):
        name = "third-party-fuser"

    second = {
        "host": plugin(vega3d_register_hosts=lambda register: register(toy.ToyAdapter())),
        "prior": plugin(vega3d_register_priors=lambda register: register(vega3d.PriorSpec("third-party", print, ""))),
        "fuser": plugin(vega3d_register_fusers=lambda register: register(Louder)),
    }[kind]
    with registered(toy.plugin, "toy"):
        before = names()
        with pytest.raises(PluginError) as caught, registered(second, "second"):
            pass
        message = str(caught.value)
        assert "'second'" in message
        assert f"the {kind} '{'toy' if kind == 'host' else 'third-party'}" in message
        assert "plugin 'toy' already registered" in message
        assert names() == before
        assert vega3d.plugin_manager().fusers.get("third-party-fuser") is toy.Louder


def test_the_same_thing_from_another_plugin_is_a_duplicate(toy: ModuleType) -> None:
    second = plugin(vega3d_register_fusers=lambda register: register(toy.Louder))
    with registered(toy.plugin, "toy"):
        with pytest.raises(PluginError, match=r"'second'.*'third-party-fuser'.*'toy'"), registered(second, "second"):
            pass
        assert vega3d.plugin_manager().fusers.plugin_of("third-party-fuser") == "toy"


def test_two_plugins_cannot_have_one_name(host: nn.Module, toy: ModuleType) -> None:
    called: list[str] = []
    first = plugin(vega3d_after_patch=lambda model, handle: called.append("first"))
    second = plugin(vega3d_after_patch=lambda model, handle: called.append("second"))
    with registered(first, "same"):
        with pytest.raises(PluginError, match=r"'same'.*already"), registered(second, "same"):
            pass
        # The refusal of the second must not switch off the first.
        patch(host)
    assert called == ["first"]


def test_a_plugin_registers_once(toy: ModuleType) -> None:
    with registered(toy.plugin, "toy"):
        before = names()
        with pytest.raises(PluginError, match="'again'"), registered(toy.plugin, "again"):
            pass
        assert names() == before


def test_a_refused_plugin_can_be_corrected_and_registered(toy: ModuleType) -> None:
    wrong = plugin(
        vega3d_register_fusers=lambda register: register(toy.Louder),
        vega3d_register_priors=lambda registre: None,
    )
    before = names()
    with pytest.raises(PluginError, match=r"(?s)'mine'.*vega3d_register_priors.*registre"), registered(wrong, "mine"):
        pass
    assert names() == before
    with registered(toy.plugin, "mine"):
        assert vega3d.plugin_manager().loaded["mine"] == "registered in Python"


def test_a_thing_without_a_name_is_refused() -> None:
    class Nameless(vega3d.Fuser):
        pass

    nameless = plugin(vega3d_register_fusers=lambda register: register(Nameless))
    with pytest.raises(PluginError, match="'mine' registered a fuser without a name"), registered(nameless, "mine"):
        pass


def test_a_third_partys_answer_comes_before_the_builtin_one(host: nn.Module, toy: ModuleType) -> None:
    class Other(toy.ToyAdapter):
        name = "other"

        def matches(self, model: nn.Module) -> bool:
            return False

    asked: list[nn.Module] = []

    def answer(model: nn.Module) -> str:
        asked.append(model)
        return "other"

    other = plugin(vega3d_register_hosts=lambda register: register(Other()), vega3d_match_host=answer)
    with registered(other, "other"):
        assert vega3d.get_handle(patch(host)).host == "other"
    assert asked == [host]
    vega3d.unpatch(host)
    assert vega3d.get_handle(patch(host)).host == "toy"


def test_without_an_answer_the_builtin_one_is_asked(host: nn.Module) -> None:
    with registered(plugin(vega3d_match_host=lambda model: None), "silent"):
        assert vega3d.get_handle(patch(host)).host == "toy"


def test_an_answer_that_is_no_host_is_an_error(host: nn.Module) -> None:
    with (
        registered(plugin(vega3d_match_host=lambda model: "toi"), "wrong"),
        pytest.raises(UnknownNameError, match=r"Unknown host 'toi'\. Did you mean 'toy'"),
    ):
        patch(host)


def test_a_model_that_no_adapter_matches_says_what_is_supported(toy: ModuleType) -> None:
    with registered(toy.plugin, "toy") as manager:
        manager.broken["absent"] = "entry point absent: ImportError: no such thing"
        try:
            with pytest.raises(HostError) as caught:
                patch(nn.Linear(2, 2))
        finally:
            del manager.broken["absent"]
    message = str(caught.value)
    assert all(part in message for part in ("Linear", "toy: ToyHost", "'absent'", "no such thing")), message


def snapshot(model: nn.Module) -> list[Any]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return [
        (name, sorted(module.__dict__), [dict(module.__dict__[hook]) for hook in hooks], list(module._modules))
        for name, module in model.named_modules()
    ]


@pytest.mark.parametrize("hook", ["vega3d_before_patch", "vega3d_after_patch"])
def test_a_plugin_that_refuses_leaves_the_model_as_it_was(host: nn.Module, hook: str) -> None:
    def refuse(model: nn.Module) -> None:
        raise PermissionError("not this one")

    before, keys = snapshot(host), list(host.state_dict())
    with registered(plugin(**{hook: refuse}), "strict"), pytest.raises(PermissionError, match="not this one"):
        patch(host)
    assert not vega3d.is_patched(host)
    assert snapshot(host) == before
    assert list(host.state_dict()) == keys
    assert vega3d.is_patched(patch(host))
    assert snapshot(host) != before


def test_before_patch_sees_an_untouched_model_and_its_settings(host: nn.Module) -> None:
    seen: list[Any] = []

    def before(model: nn.Module, settings: vega3d.BranchSettings) -> None:
        seen.append((model, vega3d.is_patched(model), settings.prior.name, settings.fusion.name))

    with registered(plugin(vega3d_before_patch=before), "watcher"):
        patch(host)
    assert seen == [(host, False, "third-party", "third-party-fuser")]


def test_after_patch_gets_the_handle_and_after_unpatch_the_clean_model(host: nn.Module) -> None:
    seen: list[Any] = []

    def after(model: nn.Module, handle: vega3d.Handle) -> None:
        seen.append(("patched", model, vega3d.is_patched(model), handle.branch))

    def after_unpatch(model: nn.Module) -> None:
        seen.append(("unpatched", model, vega3d.is_patched(model)))

    with registered(plugin(vega3d_after_patch=after, vega3d_after_unpatch=after_unpatch), "watcher"):
        branch = vega3d.get_handle(patch(host)).branch
        assert seen == [("patched", host, True, branch)]
        patch(host)
        assert len(seen) == 1
        vega3d.unpatch(host)
    assert seen[1:] == [("unpatched", host, False)]


def test_no_hook_is_called_in_a_forward(host: nn.Module, toy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    patch(host)
    monkeypatch.setattr("vega3d_plugin.plugins.plugin_manager", lambda: pytest.fail("a plugin was asked"))
    monkeypatch.setattr("vega3d_plugin.patching.plugin_manager", lambda: pytest.fail("a plugin was asked"))
    host(toy.STATISTICS.normalise(torch.rand(2, 3, 16, 16)))


def test_a_manager_without_entry_points_has_the_builtin_things_only() -> None:
    manager = PluginManager(load_entry_points=False)
    assert sorted(manager.loaded) == ["builtin_fusers", "builtin_hosts", "builtin_priors"]
    assert manager.hosts.names() == []
    assert "tiny-wan" in manager.priors
    manager.unregister("builtin_priors")
    assert manager.priors.names() == []


def test_a_registry_is_sorted_and_helps_with_names() -> None:
    registry: Registry[int] = Registry("number")
    for name, thing in (("two", 2), ("one", 1)):
        registry.add(name, thing, "p")
    assert registry.names() == ["one", "two"]
    assert list(registry) == [1, 2]
    assert "two" in registry
    with pytest.raises(UnknownNameError, match=r"Unknown number 'tow'\. Did you mean 'two'\? Known: one, two\."):
        registry.get("tow")
    with pytest.raises(UnknownNameError, match=r"Unknown number \['one'\]"):
        registry.get(["one"])  # type: ignore[arg-type]
    with pytest.raises(PluginError, match="'p' registers the number 'one', which plugin 'p' already"):
        registry.add("one", 3, "p")
    registry.remove("one")
    assert "one" not in registry


@pytest.mark.parametrize("kind", ["prior", "fuser", "host", "recipe"])
def test_an_unknown_name_says_which_plugins_failed(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    ask: dict[str, Callable[[], object]] = {
        "prior": lambda: vega3d.load_prior("my-depth"),
        "fuser": lambda: vega3d.build_fuser("my-depth", 8),
        "host": lambda: HostSettings.parse({"adapter": "my-depth", "model": "tiny"}),
        "recipe": lambda: find_recipe("my/depth"),
    }
    with pytest.raises(Vega3dError) as before:
        ask[kind]()
    assert "plugin" not in str(before.value)
    monkeypatch.setitem(vega3d.plugin_manager().broken, "my_plugin", "entry point mine:plugin: ImportError: no\nlibgl")
    with pytest.raises(Vega3dError, match=f"Unknown {kind} 'my.depth'") as after:
        ask[kind]()
    told = "'my_plugin' (entry point mine:plugin: ImportError: no\\nlibgl)"
    assert f"a plugin that failed to load: {told}" in str(after.value)
    assert "`vega3d doctor`" in str(after.value)
