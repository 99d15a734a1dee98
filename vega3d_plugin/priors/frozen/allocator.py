"""Memory of a session on a CPU: what an operator frees is kept for the next one, and given back at the end."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

# Of glibc's malloc.h, and what its own adaption ends at: blocks above 32 MB get pages of their own each time.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_USUAL_BLOCK = 32 << 20
_MOST = (1 << 31) - 1
# A person who has set the allocator knows better.
_SET_BY_HAND = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")

#: Giving back takes some 15 ms, and what a shorter session has freed is little.
_WORTH_SECONDS = 1.0

_lock = threading.Lock()
_open, _begun = 0, 0.0


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep what is freed inside, so that the system need not clear the same pages for every operator anew.

    A frame of 240x416 takes the Wan VAE 38 MB for each operator, and clearing such blocks was a quarter of its time.
    It concerns the whole process; the last one that ends gives everything back. Without glibc, or where the environment
    sets its allocator, nothing happens.
    """
    global _open, _begun
    libc = _glibc()
    if libc is None:
        yield
        return
    with _lock:
        _open += 1
        if _open == 1:
            _begun = time.monotonic()
            libc.mallopt(_MMAP_THRESHOLD, _MOST)
            libc.mallopt(_TRIM_THRESHOLD, _MOST)
    try:
        yield
    finally:
        with _lock:
            _open -= 1
            if not _open:
                libc.mallopt(_MMAP_THRESHOLD, _USUAL_BLOCK)
                libc.mallopt(_TRIM_THRESHOLD, 2 * _USUAL_BLOCK)
                if time.monotonic() - _begun > _WORTH_SECONDS:
                    libc.malloc_trim(0)


@lru_cache(maxsize=1)
def _glibc() -> Any:
    if any(name in os.environ for name in _SET_BY_HAND):
        return None
    try:
        libc = ctypes.CDLL(None)
        return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt") else None
    except (OSError, TypeError):  # no such library, or a system that loads none without a name
        return None
