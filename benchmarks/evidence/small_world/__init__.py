"""A small video generator of Wan's classes: rendered worlds, training, and what it knows about moved points."""
