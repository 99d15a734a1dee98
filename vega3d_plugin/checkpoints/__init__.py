"""A trained branch on disk: ours, a trainer's, the released ones."""
