"""All processes and the time of the boot, as the kernel lists them for every user.

References: NtQuerySystemInformation (SYSTEM_PROCESS_INFORMATION, SYSTEM_TIMEOFDAY_INFORMATION) and FILETIME in
Microsoft's documentation of Win32.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final, NamedTuple

from zeek_agent.platforms import winapi

EPOCH: Final = 116_444_736_000_000_000
"""1970 as FILETIME: 100 ns since 1601."""

_TIME_OF_DAY: Final = 3
_PROCESSES: Final = 5
_LENGTH_MISMATCH: Final = 0xC000_0004
_ROOM_BYTES: Final = 256 * 1024
_ATTEMPTS: Final = 8


class ListedProcess(NamedTuple):
    """A process. Times are in 100 ns, `started` as FILETIME; sizes are in bytes, `private_bytes` those of its own."""

    pid: int
    ppid: int
    name: str
    started: int
    user_time: int
    kernel_time: int
    threads: int
    base_priority: int
    private_bytes: int
    resident_bytes: int


class _Name(ctypes.Structure):
    """`UNICODE_STRING`."""

    _fields_ = (("bytes", ctypes.c_uint16), ("room", ctypes.c_uint16), ("text", ctypes.c_void_p))


class _Process(ctypes.Structure):
    """`SYSTEM_PROCESS_INFORMATION`."""

    _fields_ = (
        ("next", ctypes.c_uint32),
        ("threads", ctypes.c_uint32),
        ("working_set_private", ctypes.c_int64),
        ("hard_faults", ctypes.c_uint32),
        ("threads_max", ctypes.c_uint32),
        ("cycles", ctypes.c_uint64),
        ("started", ctypes.c_int64),
        ("user_time", ctypes.c_int64),
        ("kernel_time", ctypes.c_int64),
        ("name", _Name),
        ("base_priority", ctypes.c_int32),
        ("pid", ctypes.c_size_t),
        ("ppid", ctypes.c_size_t),
        ("handles", ctypes.c_uint32),
        ("session", ctypes.c_uint32),
        ("key", ctypes.c_size_t),
        ("virtual_max", ctypes.c_size_t),
        ("virtual", ctypes.c_size_t),
        ("faults", ctypes.c_uint32),
        ("resident_max", ctypes.c_size_t),
        ("resident", ctypes.c_size_t),
        ("paged_pool_max", ctypes.c_size_t),
        ("paged_pool", ctypes.c_size_t),
        ("nonpaged_pool_max", ctypes.c_size_t),
        ("nonpaged_pool", ctypes.c_size_t),
        ("page_file", ctypes.c_size_t),
        ("page_file_max", ctypes.c_size_t),
        ("private_pages", ctypes.c_size_t),
    )


class _TimeOfDay(ctypes.Structure):
    """`SYSTEM_TIMEOFDAY_INFORMATION`."""

    _fields_ = (
        ("boot", ctypes.c_int64),
        ("now", ctypes.c_int64),
        ("zone_bias", ctypes.c_int64),
        ("zone", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("boot_bias", ctypes.c_int64),
        ("sleep_bias", ctypes.c_int64),
    )


def list_processes() -> list[ListedProcess]:
    """All processes. Raises OSError."""
    room = _ROOM_BYTES
    for _ in range(_ATTEMPTS):
        buffer, needed = ctypes.create_string_buffer(room), ctypes.c_uint32()
        status = _query(_PROCESSES, buffer, room, needed)
        if status == 0:
            return parse(buffer)
        if status != _LENGTH_MISMATCH:
            break
        room = max(2 * room, needed.value + _ROOM_BYTES)
    raise OSError(f"cannot list processes: NtQuerySystemInformation returned {status:#010x}")


def parse(buffer: ctypes.Array[ctypes.c_char]) -> list[ListedProcess]:
    """The records in a buffer that the kernel has filled."""
    found, offset = [], 0
    while True:
        record = _Process.from_buffer(buffer, offset)
        name = ctypes.string_at(record.name.text, record.name.bytes) if record.name.text else b""
        found.append(
            ListedProcess(
                record.pid,
                record.ppid,
                name.decode("utf-16-le", "surrogatepass"),
                record.started,
                record.user_time,
                record.kernel_time,
                record.threads,
                record.base_priority,
                record.private_pages,
                record.resident,
            )
        )
        if not record.next:
            return found
        offset += record.next


def booted() -> int:
    """When the system was booted, as FILETIME by the clock as it was then. Raises OSError.

    When the clock is set, the kernel moves the time of the boot, and keeps by how much.
    """
    times = _TimeOfDay()
    status = _query(_TIME_OF_DAY, times, ctypes.sizeof(times), ctypes.c_uint32())
    if status:
        raise OSError(f"cannot read the time of the boot: NtQuerySystemInformation returned {status:#010x}")
    return int(times.boot - times.boot_bias)


def _query(kind: int, buffer: Any, size: int, needed: ctypes.c_uint32) -> int:
    """The status of NtQuerySystemInformation, 0 for success."""
    status = winapi.library("ntdll").NtQuerySystemInformation(
        ctypes.c_int(kind), ctypes.byref(buffer), ctypes.c_uint32(size), ctypes.byref(needed)
    )
    return int(status) & 0xFFFF_FFFF
