"""Checkpoints of the released code: their settings, their branch, their host."""
