"""Memory that a training step frees is kept for the next one, on CPUs.

glibc hands large blocks back to the system as soon as they are freed, and the next step gets them
page by page again, each page a fault and a wipe: a fifth of a step's time in small models. GPUs do
not have this; PyTorch's own allocator keeps their memory.
"""

from __future__ import annotations

import ctypes
import os

SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
"""Environment variables by which somebody has decided already."""
_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
_LARGE = 2**30
_MOST_OF_OLD = 2**25
"""Largest block that glibc before 2.35 can be told to keep (mallopt(3), under M_MMAP_THRESHOLD)."""


def keep_freed_memory() -> bool:
    """Tell the allocator to keep freed blocks, for the rest of the process.

    Returns:
        whether it listens: glibc does, unless the environment sets its thresholds.
    """
    if any(name in os.environ for name in SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # musl, macOS, Windows
        return False
    # Blocks first: either setting ends glibc's own raising of that threshold, from 128 kB on.
    if not (mallopt(_MMAP, _LARGE) or mallopt(_MMAP, _MOST_OF_OLD)):
        return False
    return bool(mallopt(_TRIM, _LARGE))
