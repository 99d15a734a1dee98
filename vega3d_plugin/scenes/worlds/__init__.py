"""Rendered rooms: many of them, each from a seed, with exact depth, poses, instances and objects."""

from __future__ import annotations

from .rendering import rendered_scene

__all__ = ["rendered_scene"]
