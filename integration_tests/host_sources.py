"""Checkouts of the hosts' own repositories, which may not be committed: a folder named by ``VEGA3D_HOST_SOURCES``."""

from __future__ import annotations

import os
from pathlib import Path

#: Folders below ``VEGA3D_HOST_SOURCES``, and the repositories they are checkouts of.
REPOSITORIES = {
    "LLaVA-NeXT": "github.com/LLaVA-VL/LLaVA-NeXT",
    "openvla": "github.com/openvla/openvla",
    "openvla-oft": "github.com/moojink/openvla-oft",
    "VG-LLM": "github.com/LaVi-Lab/VG-LLM",
    "Video-3D-LLM": "github.com/LaVi-Lab/Video-3D-LLM",
    "VEGA-3D": "github.com/H-EmbodVis/VEGA-3D, branch spatial-reasoning",
    "VEGA-3D-main": "github.com/H-EmbodVis/VEGA-3D, branch main",
}


def host_source(name: str) -> Path | None:
    """The checkout of that name, or None when there is none."""
    assert name in REPOSITORIES
    root = os.environ.get("VEGA3D_HOST_SOURCES", "")
    folder = Path(root) / name
    return folder if root and folder.is_dir() else None


def missing_sources() -> list[str]:
    """Names of the checkouts that are not there."""
    return [name for name in REPOSITORIES if host_source(name) is None]
