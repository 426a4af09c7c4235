"""Starts of processes on macOS, with a C library that this test plays."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import pytest

from zeek_agent.host.macos.process_starts import read_start

NAME = [1, 14, 1]
"""CTL_KERN, KERN_PROC, KERN_PROC_PID."""


class Libc:
    """sysctl(3) that knows one process."""

    def __init__(self, pid: int, record: bytes, status: int = 0) -> None:
        self.pid, self.record, self.status = pid, record, status

    def sysctl(self, name: Any, length: int, value: Any, size: Any, new: Any, new_size: Any) -> int:
        assert (new, new_size.value, length) == (None, 0, 4)
        assert list(name) == [*NAME, self.pid]
        content = self.record
        ctypes.memmove(value, content, len(content))
        ctypes.cast(size, ctypes.POINTER(ctypes.c_size_t))[0] = len(content)
        return self.status


def kinfo_proc(seconds: int, microseconds: int) -> bytes:
    """The record of the kernel, which begins with the start."""
    return struct.pack("<qi", seconds, microseconds).ljust(648, b"\xff")


def test_the_start_is_in_microseconds() -> None:
    assert read_start(Libc(501, kinfo_proc(1_790_000_000, 7)), 501) == 1_790_000_000_000_007


def test_a_process_that_is_gone_has_no_start() -> None:
    """The kernel then succeeds and writes nothing."""
    assert read_start(Libc(501, b""), 501) is None


def test_a_refusal_is_no_start() -> None:
    assert read_start(Libc(501, kinfo_proc(1, 2), status=-1), 501) is None


@pytest.mark.parametrize("libc", [object(), None])
def test_another_systems_library_has_no_starts(libc: object) -> None:
    assert read_start(libc, 501) is None
