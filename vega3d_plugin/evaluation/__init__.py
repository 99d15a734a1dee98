"""Does it work, does it help."""
