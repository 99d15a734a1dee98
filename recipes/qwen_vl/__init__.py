"""Recipes for Qwen-VL hosts."""
