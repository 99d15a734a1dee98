"""Memory that an operator frees during a session on a CPU is there for the next one, and given back at the end."""

import ctypes
import resource
import subprocess
import sys

import pytest
import torch

from vega3d_plugin.priors.frozen import allocator
from vega3d_plugin.priors.frozen.allocator import freed_memory_kept

pytestmark = pytest.mark.once
needs_glibc = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="this system's allocator is not glibc's"
)
SIZE = 16_000_000  # numbers: 64 MB, above any block that glibc keeps by itself
PAGE = resource.getpagesize()


def _cleared_pages() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(SIZE)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def _resident() -> int:
    return int(open("/proc/self/statm").read().split()[1])


@needs_glibc
def test_pages_are_used_again_inside_and_given_back_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_WORTH_SECONDS", 0.0)
    usual = _cleared_pages()
    before = _resident()
    with freed_memory_kept():
        with freed_memory_kept():
            _cleared_pages()
            _cleared_pages()
        assert _cleared_pages() < usual / 10
        assert _resident() - before > SIZE * 4 / PAGE / 2
    assert _resident() - before < SIZE * 4 / PAGE / 2


def test_an_allocator_set_by_hand_is_left_alone() -> None:
    code = "from vega3d_plugin.priors.frozen.allocator import _glibc; print(_glibc())"
    said = subprocess.run(
        [sys.executable, "-c", code], env={"MALLOC_TRIM_THRESHOLD_": "1"}, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "None"
