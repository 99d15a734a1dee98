"""Extraction: a list of what holds clips in, a filled store out; every launcher runs the same shard function."""
