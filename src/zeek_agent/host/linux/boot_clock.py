"""Conversion of the kernel's timestamps, which count from boot, to wall-clock time.

The offset between the two clocks is constant until the clock is set: both follow the same corrections. It is measured
at each use, but kept unless it really changed, so that a process has the same start time in every row.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_MOVED_SECONDS: Final = 0.005
"""A smaller change of the offset is inaccuracy of its measurement."""
_MEASUREMENTS: Final = 9
"""Repetitions, of which at least one is unlikely to be interrupted."""


class BootClock:
    """The offset between the two clocks, which are passed in. Thread-safe."""

    def __init__(self, boot: Callable[[], float], wall: Callable[[], float] = time.time) -> None:
        self._boot = boot
        self._wall = wall
        self._offset: float | None = None

    def boot_time(self) -> float:
        """The time of the boot in seconds since the epoch: add a timestamp since boot to get its wall-clock time."""
        offset = self._offset
        if offset is None or abs(self._measure()[1] - offset) > _MOVED_SECONDS:
            # An interrupted measurement looks like a changed clock, so the quickest of several decides.
            _, measured = min(self._measure() for _ in range(_MEASUREMENTS))
            if offset is None or abs(measured - offset) > _MOVED_SECONDS:
                self._offset = offset = measured
        return offset

    def _measure(self) -> tuple[float, float]:
        """The duration of the measurement, and the offset."""
        before = self._boot()
        now = self._wall()
        after = self._boot()
        return after - before, now - (before + after) / 2


_clock = BootClock(lambda: time.clock_gettime(time.CLOCK_BOOTTIME))


def boot_time() -> float:
    """The time of the boot according to this system's clocks."""
    return _clock.boot_time()


def time_since_boot() -> int:
    """The time since boot in ns, as in the kernel's timestamps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
