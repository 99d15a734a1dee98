"""Shared set-up: no network, quiet libraries, few threads."""

from __future__ import annotations

import importlib.util
import os
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from vega3d_plugin.priors.wan.tiny import RandomWeightsWarning

# More threads than cores, times several test processes, is twenty times slower than one.
torch.set_num_threads(int(os.environ.get("VEGA3D_TEST_THREADS", "1")))


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEGA3D_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _tiny_wan_is_meant():
    """Every other warning of the library fails a test that does not expect it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RandomWeightsWarning)
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly which of the hosts' own repositories and of the harnesses were not there to be run against."""
    from host_sources import REPOSITORIES, missing_sources
    from support.harnesses import HARNESSES, interpreter
    from support.java_tools import not_run

    for name in missing_sources():
        terminalreporter.write_line(
            f"NOT RUN: tests against the real {name} ({REPOSITORIES[name]}). Set VEGA3D_HOST_SOURCES to a folder that "
            "holds a checkout of that name; their doubles were run.",
            yellow=True,
        )
    for name, (_, variable) in HARNESSES.items():
        if interpreter(name) is None:
            terminalreporter.write_line(
                f"NOT RUN: tests against the real {name}. Install it in an environment of its own (docs/evaluation.md, "
                "docs/serving.md) "
                f"and set {variable} to its interpreter; a double of what it calls was run.",
                yellow=True,
            )
    optional = {"trl": "TRL's trainer", "deepspeed": "ZeRO-3 on the CPU", "skimage": "a real stereo pair"}
    if importlib.util.find_spec("libero") is None:
        terminalreporter.write_line(
            "NOT RUN: tests in LIBERO's simulator, which has an environment of its own: make test-libero.", yellow=True
        )
    optional |= {"ray": "extraction with the real Ray (make test-ray)"}
    optional |= {"lerobot": "data sets of episodes with lerobot's own reader"}
    for name, what in optional.items():
        if importlib.util.find_spec(name) is None:
            terminalreporter.write_line(
                f"NOT RUN: tests of {what}. Install {name} in this environment, or in one that sees its packages.",
                yellow=True,
            )
    for line in not_run():
        terminalreporter.write_line(line, yellow=True)
