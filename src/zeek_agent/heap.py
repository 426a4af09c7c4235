"""The C library's heap, kept small."""

from __future__ import annotations

import ctypes
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
