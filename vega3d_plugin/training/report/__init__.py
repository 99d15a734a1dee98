"""The report of a training run, and of several beside each other: one HTML file that holds everything it shows."""

from __future__ import annotations

from .page import FILE, write_comparison, write_quietly, write_run_report
from .reading import PLAN, Run, read_run

__all__ = ["FILE", "PLAN", "Run", "read_run", "write_comparison", "write_quietly", "write_run_report"]
