"""Runs against each other and against their controls: which is better, by how much, and how sure that is."""
