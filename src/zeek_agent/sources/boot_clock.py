"""The time of day of the kernel's stamps, which count from the boot.

The offset between the two clocks is a constant until somebody sets the clock: both follow the same corrections. It is
measured again at each use, and kept unless it really moved, so that a process has the same start time in every row.
"""

from __future__ import annotations

import threading
import time

_MOVED = 0.005

_lock = threading.Lock()
_offset: float | None = None


def boot_time() -> float:
    """The time of the boot in seconds since the epoch: add a stamp of CLOCK_BOOTTIME to get its time of day."""
    global _offset  # noqa: PLW0603
    measured = _measure()
    with _lock:
        if _offset is None or abs(measured - _offset) > _MOVED:
            _offset = min((_measure() for _ in range(5)), key=lambda offset: abs(offset - measured))
        return _offset


def _measure() -> float:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    now = time.time()
    after = time.clock_gettime(time.CLOCK_BOOTTIME)
    return now - (before + after) / 2
