"""Folders, hub ids and weight files: read safely (one door), written whole."""
