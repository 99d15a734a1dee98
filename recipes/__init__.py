"""Recipes shipped with vega3d-plugin: one folder per host, YAML files to copy and change."""
