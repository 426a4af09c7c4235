"""Keeps the C library's heap small."""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Final

_ARENA_MAX: Final = -8


def share() -> None:
    """Let all threads share one heap; to be called before there are any.

    By default, glibc has a heap per thread, each of which stays as large as its largest result was: mallopt(3). With
    other C libraries, nothing is done.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_ARENA_MAX, 1)


def trim() -> None:
    """Return freed memory to the system, after the start, which needs the most memory. malloc_trim(3)."""
    gc.collect()
    gc.freeze()
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
