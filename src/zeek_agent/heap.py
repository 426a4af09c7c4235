"""Keeps the C library's heap small."""

from __future__ import annotations

import gc

from zeek_agent import platforms


def share() -> None:
    """Let all threads share one heap; to be called before there are any.

    Otherwise each thread's stays as large as its largest result was. Nothing is done where that cannot be chosen.
    """
    platforms.HERE.share_heap()


def trim() -> None:
    """Return freed memory to the system, after the start, which needs the most memory. malloc_trim(3)."""
    gc.collect()
    gc.freeze()
    platforms.HERE.trim_heap()
