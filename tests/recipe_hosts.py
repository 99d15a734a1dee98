"""Hosts that recipes name and that this installation lacks, as far as a recipe's check needs them."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

import vega3d
from vega3d_plugin.plugins import registered

NAMES = ("llava_video", "openvla", "qwen_vl")


class _StandIns:
    def __init__(self, names: list[str]) -> None:
        self.names = names

    @vega3d.hookimpl
    def vega3d_register_hosts(self, register) -> None:  # type: ignore[no-untyped-def]
        for name in self.names:
            register(SimpleNamespace(name=name, summary="stand-in", classes=(), matches=lambda model: False))


@pytest.fixture(autouse=True)
def every_host() -> Iterator[None]:
    missing = [name for name in NAMES if name not in vega3d.list_hosts()]
    with registered(_StandIns(missing), "stand_in_hosts"):
        yield
