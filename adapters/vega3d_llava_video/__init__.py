"""LLaVA-Video and its relatives as hosts: the package ``llava``, and the LLaVA classes of transformers."""

from . import plugin

__all__ = ["plugin"]
