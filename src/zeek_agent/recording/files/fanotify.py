"""fanotify(7): its system calls, which Python lacks, and the records that its descriptor delivers.

Objects are named by handles (name_to_handle_at(2)), because events outlive the files that they are about. A key is the
file system's id followed by a handle, in the kernel's layout, as both events and `directory_key` provide it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from functools import cache
from typing import Final, NamedTuple

ACCESS: Final = 0x0000_0001
"""In no mark here."""
ATTRIB: Final = 0x0000_0004
CLOSE_WRITE: Final = 0x0000_0008
MOVED_FROM: Final = 0x0000_0040
MOVED_TO: Final = 0x0000_0080
CREATE: Final = 0x0000_0100
DELETE: Final = 0x0000_0200
OPEN_EXEC: Final = 0x0000_1000
Q_OVERFLOW: Final = 0x0000_4000
EVENT_ON_CHILD: Final = 0x0800_0000
RENAME: Final = 0x1000_0000
ONDIR: Final = 0x4000_0000

_CLOEXEC: Final = 0x1
_NONBLOCK: Final = 0x2
_REPORT_DIR_FID: Final = 0x400
_REPORT_NAME: Final = 0x800
_REPORT_FID: Final = 0x200
_REPORT_TARGET_FID: Final = 0x1000
_DFID_NAME: Final = _REPORT_DIR_FID | _REPORT_NAME

MARK_ADD: Final = 0x1
MARK_REMOVE: Final = 0x2
MARK_ONLYDIR: Final = 0x8
MARK_FILESYSTEM: Final = 0x100

_INFO_FID: Final = 1
_INFO_DFID_NAME: Final = 2
_INFO_OLD_DFID_NAME: Final = 10
_INFO_NEW_DFID_NAME: Final = 12

_METADATA: Final = struct.Struct("=IBBHQii")
_INFO: Final = struct.Struct("=BxH")
_HANDLE_SIZE: Final = struct.Struct("=I")
_FSID_BYTES: Final = 8
_HANDLE_BYTES: Final = 8
"""Of a handle before its contents: their length, and the type."""
_HANDLE_MAX: Final = 128
_VERSION: Final = 3
READ_BYTES: Final = 65_536

_AT_EMPTY_PATH: Final = 0x1000
_OPENAT2: Final = 437
_OPEN_HOW: Final = struct.Struct("=QQQ")
_NO_XDEV: Final = 0x01
_NO_SYMLINKS: Final = 0x04
_O_PATH: Final = getattr(os, "O_PATH", 0)


class Event(NamedTuple):
    """One record. Keys and names are None where the kernel did not report them."""

    mask: int
    pid: int
    directory: bytes | None
    """The key of the directory that has the name; for a rename, of the old one."""
    name: bytes | None
    new_directory: bytes | None
    """For a rename only."""
    new_name: bytes | None
    target: bytes | None
    """The key of the file or directory itself."""


def open_group() -> tuple[int, bool]:
    """The descriptor of a new group, and whether it reports renames as one event (Linux 5.17). Raises OSError."""
    flags = _CLOEXEC | _NONBLOCK | _DFID_NAME
    for special, joins in ((_REPORT_FID | _REPORT_TARGET_FID, True), (_REPORT_FID, False)):
        group = _libc().fanotify_init(flags | special, os.O_RDONLY | getattr(os, "O_LARGEFILE", 0))
        if group >= 0:
            return group, joins
        if ctypes.get_errno() != errno.EINVAL:
            break
    raise _error("fanotify_init")


def mark(group: int, flags: int, mask: int, directory: int) -> None:
    """Change the mark of an open directory, or of its file system. Raises OSError."""
    if _libc().fanotify_mark(group, flags, mask, directory, None) != 0:
        raise _error("fanotify_mark")


def directory_key(directory: int) -> bytes:
    """The key of an open directory. Raises OSError."""
    return file_system(directory) + _handle(directory)[0]


def mount_id(opened: int) -> int:
    """The id that the mount of an open file has in mountinfo; the file system is not asked. Raises OSError."""
    return _handle(opened)[1]


def _handle(opened: int) -> tuple[bytes, int]:
    handle = ctypes.create_string_buffer(_HANDLE_SIZE.pack(_HANDLE_MAX), _HANDLE_BYTES + _HANDLE_MAX)
    mount = ctypes.c_int()
    if _libc().name_to_handle_at(opened, b"", handle, ctypes.byref(mount), _AT_EMPTY_PATH) != 0:
        raise _error("name_to_handle_at")
    (size,) = _HANDLE_SIZE.unpack_from(handle.raw)
    return handle.raw[: _HANDLE_BYTES + size], mount.value


def file_system(descriptor: int) -> bytes:
    """The id of the file system of an open file, with which keys begin. Raises OSError."""
    return os.fstatvfs(descriptor).f_fsid.to_bytes(_FSID_BYTES, "little")


def key_file_system(key: bytes) -> bytes:
    """The id of the file system in a key."""
    return key[:_FSID_BYTES]


def open_key(mount: int, key: bytes, flags: int) -> int:
    """Open the object of a key; `mount` is any open file of its file system. Raises OSError: ESTALE if it is gone."""
    opened = _libc().open_by_handle_at(mount, key[_FSID_BYTES:], flags | os.O_CLOEXEC)
    if opened < 0:
        raise _error("open_by_handle_at")
    return int(opened)


def open_below(directory: int, name: bytes, flags: int) -> int:
    """Open an entry of a directory on the same mount, without following a link. Raises OSError: EXDEV elsewhere."""
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0, _NO_XDEV | _NO_SYMLINKS)
    opened = _libc().syscall(ctypes.c_long(_OPENAT2), directory, name, how, ctypes.c_size_t(len(how)))
    if opened < 0:
        raise _error("openat2")
    return int(opened)


def status_below(directory: int, name: bytes) -> os.stat_result:
    """The attributes of an entry of a directory, or of a link itself. Raises OSError: EXDEV if it is a mount point.

    Unlike stat(2) it never asks a file system that is mounted over the entry, which may hang.
    """
    opened = open_below(directory, name, _O_PATH)
    try:
        return os.fstat(opened)
    finally:
        os.close(opened)


def events(records: bytes) -> Iterator[Event]:
    """The events in what was read from a group. Raises ValueError for a layout that this module does not know."""
    at, end = 0, len(records)
    while at < end:
        length, version, _, start, mask, _, pid = _METADATA.unpack_from(records, at)
        if version != _VERSION or length < start or at + length > end:
            raise ValueError(f"fanotify record of version {version} and {length} bytes")
        directory = name = new_directory = new_name = target = None
        info, following = at + start, at + length
        while info < following:
            kind, size = _INFO.unpack_from(records, info)
            if size < _INFO.size:
                raise ValueError(f"fanotify information of {size} bytes")
            if kind in (_INFO_DFID_NAME, _INFO_OLD_DFID_NAME):
                directory, name = _named(records, info, size)
            elif kind == _INFO_NEW_DFID_NAME:
                new_directory, new_name = _named(records, info, size)
            elif kind == _INFO_FID:
                target, _ = _named(records, info, size)
            info += size
        yield Event(mask, pid, directory, name, new_directory, new_name, target)
        at = following


def _named(records: bytes, at: int, size: int) -> tuple[bytes, bytes]:
    """The key in one piece of information, and the name behind it."""
    key = at + _INFO.size
    (length,) = _HANDLE_SIZE.unpack_from(records, key + _FSID_BYTES)
    name = key + _FSID_BYTES + _HANDLE_BYTES + length
    return records[key:name], records[name : at + size].partition(b"\0")[0]


def _error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")


@cache
def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.fanotify_mark.argtypes = (
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_uint64,
        ctypes.c_int,
        ctypes.c_char_p,
    )
    library.syscall.restype = ctypes.c_long
    return library
