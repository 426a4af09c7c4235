"""Perf events of kernel tracepoints, even if tracefs is not mounted."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from functools import cache
from pathlib import Path
from typing import Final

from zeek_agent.host.linux import capabilities
from zeek_agent.host.linux.capabilities import Capability

_MOUNTED: Final = ("/sys/kernel/tracing/events", "/sys/kernel/debug/tracing/events")
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # the same on every machine
_FSCONFIG_CMD_CREATE: Final = 6
_CLOEXEC: Final = 1
_PERF_EVENT_OPEN: Final = {"x86_64": 298, "aarch64": 241, "riscv64": 241, "ppc64le": 319, "s390x": 331}
_PERF_TYPE_TRACEPOINT: Final = 2
_PERF_ATTR_SIZE: Final = 64
_PERF_FLAG_FD_CLOEXEC: Final = 8


@cache
def has_tracepoint(name: str, btf: str = "/sys/kernel/btf/vmlinux") -> bool:
    """Whether the running kernel has this tracepoint, by its type information."""
    return b"\0btf_trace_%b\0" % name.encode() in Path(btf).read_bytes()


def open_tracepoint(category: str, name: str) -> int:
    """A perf event of the tracepoint, to which a BPF program can be attached. Raises OSError."""
    attributes = struct.pack("=IIQ", _PERF_TYPE_TRACEPOINT, _PERF_ATTR_SIZE, _tracepoint_id(category, name))
    buffer = ctypes.create_string_buffer(attributes, _PERF_ATTR_SIZE)
    number = _PERF_EVENT_OPEN.get(platform.machine())
    if number is None:
        raise OSError(f"system call numbers of {platform.machine()} are unknown")
    return _syscall("perf_event_open", number, buffer, -1, 0, -1, ctypes.c_ulong(_PERF_FLAG_FD_CLOEXEC))


_kept: list[int] = []
"""The descriptor of a tracefs without a mount point, if one is kept."""


def keep_tracefs() -> None:
    """Open tracefs for later, where it is not mounted, before this process drops CAP_SYS_ADMIN. Raises OSError."""
    if tracefs() is None and not _kept and Capability.SYS_ADMIN in capabilities.effective():
        _kept.append(_detached_tracefs())


def can_be_opened() -> bool:
    """Whether the numbers of tracepoints can be looked up."""
    return tracefs() is not None or bool(_kept) or Capability.SYS_ADMIN in capabilities.effective()


def tracefs() -> str | None:
    """The directory of tracepoints; None if tracefs is not mounted or not accessible."""
    return next((directory for directory in _MOUNTED if os.access(directory, os.X_OK, effective_ids=True)), None)


def _tracepoint_id(category: str, name: str) -> int:
    mounted = tracefs()
    if mounted is not None:
        return int(Path(mounted, category, name, "id").read_text())
    detached = os.dup(_kept[0]) if _kept else _detached_tracefs()
    try:
        file = os.open(f"events/{category}/{name}/id", os.O_RDONLY | os.O_CLOEXEC, dir_fd=detached)
        try:
            return int(os.read(file, 32))
        finally:
            os.close(file)
    finally:
        os.close(detached)


def _detached_tracefs() -> int:
    """tracefs as an open directory without a mount point, so that nobody else sees it (fsopen(2))."""
    context = _syscall("fsopen", _FSOPEN, b"tracefs", _CLOEXEC)
    try:
        _syscall("fsconfig", _FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return _syscall("fsmount", _FSMOUNT, context, _CLOEXEC, 0)
    finally:
        os.close(context)


def _syscall(name: str, number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result: int = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result
