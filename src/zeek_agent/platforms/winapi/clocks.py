"""Clocks."""

from __future__ import annotations

import ctypes

from zeek_agent.platforms import winapi


def since_boot_ns() -> int:
    """Time since boot, including suspension: GetTickCount64, in steps of 10 to 16 ms."""
    kernel = winapi.library("kernel32")
    kernel.GetTickCount64.restype = ctypes.c_uint64
    return int(kernel.GetTickCount64()) * 1_000_000
