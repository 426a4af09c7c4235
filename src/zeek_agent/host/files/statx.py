"""statx(2), which Python's `os` lacks before 3.15: attributes and the mount id in one call.

`AT_STATX_DONT_SYNC` lets a network or FUSE file system answer from its cache instead of contacting its server.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import threading
from functools import cache
from typing import Any, Final, NamedTuple

from zeek_agent import platforms

_AT_SYMLINK_NOFOLLOW: Final = 0x100
_AT_NO_AUTOMOUNT: Final = 0x800
_AT_EMPTY_PATH: Final = 0x1000
_AT_STATX_DONT_SYNC: Final = 0x4000
_FLAGS: Final = _AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT | _AT_STATX_DONT_SYNC
FOLLOW_WITHOUT_SYNC: Final = _AT_NO_AUTOMOUNT | _AT_STATX_DONT_SYNC
"""For `status_at`: attributes of what a link, even a magic one of proc(5), leads to."""
_FLAGS_OF_DESCRIPTOR: Final = _FLAGS | _AT_EMPTY_PATH

_BASIC_STATS: Final = 0x7FF
_MNT_ID: Final = 0x1000
_WANTED: Final = _BASIC_STATS | _MNT_ID

_LAYOUT: Final = struct.Struct("<II8xIIIHxxQQ16xq24xq8xqI4xIIIIQ")
"""`struct statx` of <linux/stat.h> up to `stx_mnt_id`: mask, blksize, nlink, uid, gid, mode, ino, size, atime, ctime,
mtime, rdev, dev, mnt_id."""
_BUFFER_BYTES: Final = 256
"""Size of `struct statx`."""


class FileStatus(NamedTuple):
    """Attributes of a file. `mount` is the mount's id in /proc/self/mountinfo; times are seconds and nanoseconds.

    `special_major` and `special_minor` are the numbers of the device that a device file stands for.
    """

    mask: int
    block_size: int
    links: int
    uid: int | None
    gid: int | None
    mode: int
    inode: int
    size: int
    atime_seconds: int
    ctime_seconds: int
    mtime_seconds: int
    mtime_nanoseconds: int
    special_major: int
    special_minor: int
    device_major: int
    device_minor: int
    mount: int

    @property
    def mtime(self) -> float:
        """Last modification, in seconds since the epoch."""
        return self.mtime_seconds + self.mtime_nanoseconds * 1e-9

    @property
    def device(self) -> int:
        """As in `os.stat_result.st_dev`."""
        return os.makedev(self.device_major, self.device_minor)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)


def status_of(descriptor: int) -> FileStatus:
    """Attributes of an open file, whose descriptor may be an `O_PATH` one. Raises OSError."""
    return status_at(descriptor, "", _FLAGS_OF_DESCRIPTOR)


def status_at(directory: int, name: str, flags: int = _FLAGS) -> FileStatus:
    """Attributes of a directory's entry; of a link, its own. Raises OSError."""
    buffer = _buffer.memory
    encoded = name.encode("utf-8", "surrogateescape")
    if _statx(directory, encoded, flags, _WANTED, buffer) != 0 and (
        _statx_with_errno(directory, encoded, flags, _WANTED, buffer) != 0
    ):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    found = _tuple(FileStatus, _unpacked(buffer))
    if not found[0] & _MNT_ID:
        raise OSError(errno.ENOSYS, "the kernel does not report the mount of a file (needs Linux 5.8)", name)
    return found


def open_on_mount(directory: int, name: str) -> int:
    """An `O_PATH` descriptor of a directory's entry, or of a link itself, on the directory's own mount.

    Raises OSError, with EXDEV for a mount point: the kernel refuses to cross it before it touches what is mounted.
    Where the kernel or a filter of system calls lacks openat2(2), a mount point is opened like anything else.
    """
    if not _has_openat2():
        return os.open(name, _ENTRY_FLAGS, dir_fd=directory)
    encoded = name.encode("utf-8", "surrogateescape")
    descriptor: int = _syscall(_OPENAT2, directory, encoded, _HOW, _HOW_BYTES)
    if descriptor < 0:
        descriptor = _syscall_with_errno(_OPENAT2, directory, encoded, _HOW, _HOW_BYTES)
        if descriptor < 0:
            number = ctypes.get_errno()
            if number == errno.ENOSYS:  # a filter of system calls was installed since the first call
                _has_openat2.cache_clear()
                return os.open(name, _ENTRY_FLAGS, dir_fd=directory)
            raise OSError(number, os.strerror(number), name)
    return descriptor


def status_on_mount(directory: int, name: str) -> FileStatus:
    """As `status_at`, of an entry on the directory's own mount. Raises OSError as `open_on_mount` does."""
    if not _has_openat2():
        return status_at(directory, name)
    descriptor = open_on_mount(directory, name)
    try:
        return status_of(descriptor)
    finally:
        os.close(descriptor)


@cache
def memory_mount() -> tuple[int, int]:
    """Number and device of the kernel's internal mount on which memfd_create(2) makes its files."""
    descriptor = os.memfd_create("zeek-agent", os.MFD_CLOEXEC)
    try:
        status = status_of(descriptor)
        return status.mount, status.device
    finally:
        os.close(descriptor)


@cache
def _has_openat2() -> bool:
    if _syscall is None:
        return False
    descriptor: int = _syscall(_OPENAT2, _AT_FDCWD, b".", _HOW, _HOW_BYTES)
    if descriptor < 0:
        return False
    os.close(descriptor)
    return True


class _Buffer(threading.local):
    """The output buffer of statx(2), one per thread."""

    def __init__(self) -> None:
        self.memory = ctypes.create_string_buffer(_BUFFER_BYTES)


_buffer: Final = _Buffer()
_tuple: Final = tuple.__new__
_unpacked: Final = _LAYOUT.unpack_from

# Without argument types and errno a call takes a third less time; a failed call is repeated with errno.
_statx: Final[Any] = getattr(ctypes.CDLL(None), "statx", None) if platforms.HERE.key == "linux" else None
_statx_with_errno: Final[Any] = getattr(ctypes.CDLL(None, use_errno=True), "statx", None) if _statx else None

_OPENAT2: Final = 437
"""The number of the system call on all architectures but Alpha."""
_AT_FDCWD: Final = -100
_RESOLVE_NO_XDEV: Final = 1
_ENTRY_FLAGS: Final = getattr(os, "O_PATH", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_HOW: Final = struct.pack("=QQQ", _ENTRY_FLAGS, 0, _RESOLVE_NO_XDEV)
"""`struct open_how` of <linux/openat2.h>: flags, mode, resolve."""
_HOW_BYTES: Final = ctypes.c_size_t(len(_HOW))
_syscall: Final[Any] = ctypes.CDLL(None).syscall if _statx else None
_syscall_with_errno: Final[Any] = ctypes.CDLL(None, use_errno=True).syscall if _statx else None

_ENTRY: Final = struct.Struct("<QqHB")
"""`struct linux_dirent64` of getdents64(2) up to the name: inode, position, length, type."""
_ENTRIES_BYTES: Final = 4_096
"""Buffer for some entries of a directory, which show whether the file system reports types."""
_getdents: Final[Any] = getattr(ctypes.CDLL(None, use_errno=True), "getdents64", None) if _statx else None


def entry_types(directory: int) -> list[int]:
    """The types (`DT_DIR`, …) of the first entries of a directory, 0 if the file system does not report them.

    `.` and `..` are omitted. Empty also if the C library lacks the call.
    """
    if _getdents is None:
        return []
    buffer = ctypes.create_string_buffer(_ENTRIES_BYTES)
    length = _getdents(directory, buffer, ctypes.c_size_t(_ENTRIES_BYTES))
    if length < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    types, at = [], 0
    while at < length:
        _, _, size, kind = _ENTRY.unpack_from(buffer, at)
        if buffer.raw[at + _ENTRY.size : at + size].split(b"\0", 1)[0] not in (b".", b".."):
            types.append(kind)
        at += size
    return types
