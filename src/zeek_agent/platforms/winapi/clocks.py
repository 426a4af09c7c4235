"""Clocks."""

from __future__ import annotations

import ctypes

from zeek_agent.platforms import winapi


def interrupt_time_ns() -> int:
    """Time since boot, including suspension: QueryInterruptTimePrecise, in steps of 100 ns."""
    ticks = ctypes.c_uint64()
    winapi.library("kernelbase").QueryInterruptTimePrecise(ctypes.byref(ticks))
    return ticks.value * 100
