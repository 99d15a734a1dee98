"""Recipes for LLaVA-Video hosts."""
