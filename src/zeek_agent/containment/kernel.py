"""System calls of the lockdown that Python does not offer."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from functools import cache
from typing import Final

PR_SET_PDEATHSIG: Final = 1
PR_GET_DUMPABLE: Final = 3
PR_SET_DUMPABLE: Final = 4
PR_SET_KEEPCAPS: Final = 8
PR_SET_NAME: Final = 15
PR_GET_NAME: Final = 16
PR_GET_SECCOMP: Final = 21
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_SECUREBITS: Final = 28
PR_SET_NO_NEW_PRIVS: Final = 38
PR_GET_NO_NEW_PRIVS: Final = 39
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
PR_SET_VMA: Final = 0x53564D41

_NAMES: Final = (
    "CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID CAP_SETUID CAP_SETPCAP "
    "CAP_LINUX_IMMUTABLE CAP_NET_BIND_SERVICE CAP_NET_BROADCAST CAP_NET_ADMIN CAP_NET_RAW CAP_IPC_LOCK CAP_IPC_OWNER "
    "CAP_SYS_MODULE CAP_SYS_RAWIO CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_SYS_PACCT CAP_SYS_ADMIN CAP_SYS_BOOT CAP_SYS_NICE "
    "CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_MKNOD CAP_LEASE CAP_AUDIT_WRITE CAP_AUDIT_CONTROL "
    "CAP_SETFCAP CAP_MAC_OVERRIDE CAP_MAC_ADMIN CAP_SYSLOG CAP_WAKE_ALARM CAP_BLOCK_SUSPEND CAP_AUDIT_READ "
    "CAP_PERFMON CAP_BPF CAP_CHECKPOINT_RESTORE"
)
CAPABILITIES: Final = tuple(_NAMES.split(" "))
"""By their numbers in `linux/capability.h`."""

_CAPABILITY_VERSION: Final = 0x2008_0522
_CAPABILITY_HEADER: Final = struct.Struct("=Ii")
_CAPABILITY_SETS: Final = struct.Struct("=6I")


def syscall(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """The result of a system call. Raises OSError."""
    converted = [ctypes.c_ulong(each & (1 << 64) - 1) if isinstance(each, int) else each for each in arguments]
    result = int(_libc().syscall(ctypes.c_long(number), *converted))
    if result == -1:
        raise _error(f"system call {number}")
    return result


def prctl(option: int, *arguments: int) -> int:
    """prctl(2) with numbers. Raises OSError."""
    padded = (*arguments, 0, 0, 0, 0)[:4]
    result = int(_libc().prctl(option, *map(ctypes.c_ulong, padded)))
    if result == -1:
        raise _error(f"prctl({option}, {', '.join(map(str, arguments))})")
    return result


def set_name(name: str) -> None:
    """The short name of the process in lists, at most 15 bytes. Raises OSError."""
    if _libc().prctl(PR_SET_NAME, ctypes.c_char_p(name.encode()), 0, 0, 0) == -1:
        raise _error("prctl(PR_SET_NAME)")


def capability_sets() -> tuple[int, int, int]:
    """The masks of the effective, permitted and inheritable capabilities of this thread. Raises OSError."""
    sets = ctypes.create_string_buffer(_CAPABILITY_SETS.size)
    if _libc().capget(_CAPABILITY_HEADER.pack(_CAPABILITY_VERSION, 0), sets) == -1:
        raise _error("capget")
    low = _CAPABILITY_SETS.unpack(sets.raw)
    effective, permitted, inheritable = (low[at] | low[at + 3] << 32 for at in range(3))
    return effective, permitted, inheritable


def set_capabilities(mask: int) -> None:
    """Make these the permitted and effective capabilities of this thread, without inheritable ones. Raises OSError."""
    low, high = mask & 0xFFFF_FFFF, mask >> 32
    sets = _CAPABILITY_SETS.pack(low, low, 0, high, high, 0)
    if _libc().capset(_CAPABILITY_HEADER.pack(_CAPABILITY_VERSION, 0), sets) == -1:
        raise _error("capset")


def bounding_set() -> int:
    """The mask of the capabilities that this thread can gain."""
    mask = 0
    for number in range(64):
        try:
            if prctl(PR_CAPBSET_READ, number):
                mask |= 1 << number
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            break  # the kernel has no more
    return mask


def capability_mask(names: tuple[str, ...]) -> int:
    return sum(1 << CAPABILITIES.index(name) for name in names)


def capability_names(mask: int) -> tuple[str, ...]:
    return tuple(
        CAPABILITIES[number] if number < len(CAPABILITIES) else f"CAP_{number}"
        for number in range(64)
        if mask >> number & 1
    )


def _error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")


@cache
def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    return library
