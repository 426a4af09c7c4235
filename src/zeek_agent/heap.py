"""The C library's heap, kept small."""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Final

_ARENA_MAX: Final = -8


def share() -> None:
    """Let all threads share one heap, before there are any.

    By default glibc gives each a heap of its own, which keeps what its largest result once took: mallopt(3). Elsewhere
    nothing is done.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_ARENA_MAX, 1)


def trim() -> None:
    """Give what was freed back to the system: after the start, which needs more than what follows. malloc_trim(3)."""
    gc.collect()
    gc.freeze()
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
