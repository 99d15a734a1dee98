"""Tests in LIBERO's simulator, which has an environment of its own: ``make test-libero``."""
