"""Qwen-VL as a host: Qwen2-VL, Qwen2.5-VL, Qwen3-VL (and MoE), Qwen3.5 (and MoE)."""

from . import plugin

__all__ = ["plugin"]
