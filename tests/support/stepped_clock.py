"""A time of day that a test can set for one program and its children, without setting this machine's clock."""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

_SOURCE: Final = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile long long *offset;

static long long ahead(void)
{
	if (!offset) {
		int file = open(getenv("STEPPED_CLOCK"), O_RDONLY | O_CLOEXEC);
		offset = mmap(0, sizeof(*offset), PROT_READ, MAP_SHARED, file, 0);
	}
	return *offset;
}

__attribute__((constructor)) static void begin(void)
{
	ahead();
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
	static int (*system)(clockid_t, struct timespec *);
	if (!system)
		system = dlsym(RTLD_NEXT, "clock_gettime");
	int result = system(clock, time);
	if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		time->tv_sec += ahead();
	return result;
}

time_t time(time_t *seconds)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	if (seconds)
		*seconds = now.tv_sec;
	return now.tv_sec;
}

int gettimeofday(struct timeval *time, void *zone)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	time->tv_sec = now.tv_sec;
	time->tv_usec = now.tv_nsec / 1000;
	return 0;
}
"""


class SteppedClock:
    """The time of day of programs that are started with `environment`; the time since boot is the machine's."""

    def __init__(self, directory: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("clang")
        if compiler is None:
            pytest.skip("needs a C compiler")
        library, source, place = directory / "clock.so", directory / "clock.c", directory / "clock.offset"
        source.write_text(_SOURCE)
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        place.write_bytes(bytes(mmap.PAGESIZE))
        with place.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        self.environment: Mapping[str, str] = {"LD_PRELOAD": str(library), "STEPPED_CLOCK": str(place)}

    def set_ahead(self, seconds: float) -> None:
        """Set the clock, as seen by those programs, from now on."""
        self._memory[:8] = struct.pack("=q", int(seconds))
