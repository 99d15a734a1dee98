"""Whether METEOR and the Penn Treebank tokeniser can be run here; what is said where they cannot."""

from __future__ import annotations

import pytest

from vega3d_plugin.evaluation.metrics.captions.java import JavaTools

TOOLS = JavaTools.find()

needs_java = pytest.mark.skipif(TOOLS is None, reason="NOT RUN: needs Java and pycocoevalcap")


def not_run() -> list[str]:
    """Lines for the end of a test run; none where everything was there."""
    if TOOLS is not None:
        return []
    return [
        "NOT RUN: tests of METEOR and of the Penn Treebank tokeniser, and ScanQA's own scorer as a whole. Install Java "
        "and, without what it asks for, pycocoevalcap (pip install --no-deps pycocoevalcap)."
    ]
