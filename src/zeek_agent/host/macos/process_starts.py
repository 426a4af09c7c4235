"""When processes of macOS started, as the kernel noted it.

psutil adjusts these times when the system's clock is set, which would change the unique ids of living processes.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, Final

_CTL_KERN: Final = 1
_KERN_PROC: Final = 14
_KERN_PROC_PID: Final = 1
_BUFFER_BYTES: Final = 4096
"""More than struct kinfo_proc, which has 648 bytes."""


class _Timeval(ctypes.Structure):
    """struct timeval; struct kinfo_proc begins with that of the start, `kp_proc.p_un.__p_starttime`."""

    _fields_ = (("seconds", ctypes.c_int64), ("microseconds", ctypes.c_int32))


def start_of(pid: int) -> int | None:
    """The start of a process in microseconds since the epoch; None if the process does not exist."""
    return read_start(_libc(), pid)


def read_start(libc: Any, pid: int) -> int | None:
    """The same by `sysctl` (sysctl(3)) of a C library; None also if it has none, on other systems."""
    if not hasattr(libc, "sysctl"):
        return None
    name = (ctypes.c_int * 4)(_CTL_KERN, _KERN_PROC, _KERN_PROC_PID, pid)
    record, size = ctypes.create_string_buffer(_BUFFER_BYTES), ctypes.c_size_t(_BUFFER_BYTES)
    status = libc.sysctl(name, 4, record, ctypes.byref(size), None, ctypes.c_size_t(0))
    if status or size.value < ctypes.sizeof(_Timeval):
        return None
    start = _Timeval.from_buffer_copy(record)
    return int(start.seconds) * 1_000_000 + int(start.microseconds)


@cache
def _libc() -> Any:
    return ctypes.CDLL(None)
