"""Recipes for OpenVLA hosts."""
