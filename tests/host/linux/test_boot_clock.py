"""The offset between the kernel's stamps and the time of day."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from zeek_agent.host.linux.boot_clock import BootClock, boot_time


class Clocks:
    """A wall clock and a clock since the boot; `late` is how long reading the former takes, once each."""

    def __init__(self) -> None:
        self.since_boot = 100.0
        self.set_to = 1_000.0
        self.late: list[float] = []

    def boot(self) -> float:
        return self.since_boot

    def wall(self) -> float:
        now = self.set_to + self.since_boot
        self.since_boot += self.late.pop(0) if self.late else 0.000_001
        return now


def test_it_stays_the_same_through_interruptions() -> None:
    clocks = Clocks()
    clock = BootClock(clocks.boot, clocks.wall)
    first = clock.boot_time()
    assert first == pytest.approx(1_000.0, abs=0.001)
    clocks.late = [0.3, 0.2, 0.1]
    clocks.since_boot += 1e6
    assert clock.boot_time() == first


def test_it_follows_a_clock_that_is_set() -> None:
    clocks = Clocks()
    clock = BootClock(clocks.boot, clocks.wall)
    clock.boot_time()
    clocks.set_to = 5_000.0
    assert clock.boot_time() == pytest.approx(5_000.0, abs=0.001)


@pytest.mark.skipif(sys.platform != "linux", reason="needs CLOCK_BOOTTIME")
def test_it_is_the_kernels() -> None:
    lines = Path("/proc/stat").read_text().splitlines()
    kernel = next(int(line.split()[1]) for line in lines if line.startswith("btime "))
    assert kernel - 0.1 <= boot_time() <= kernel + 1.1
    assert boot_time() + time.clock_gettime(time.CLOCK_BOOTTIME) == pytest.approx(time.time(), abs=0.1)
    assert len({boot_time() for _ in range(100)}) == 1
