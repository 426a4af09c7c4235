"""Locks on files, and attributes that Python does not report.

References: LockFileEx, GetFileInformationByHandleEx and FILE_BASIC_INFO in Microsoft's documentation of Win32.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Final

from zeek_agent.platforms import winapi
from zeek_agent.platforms.winapi import security

_FILE_BASIC_INFO: Final = 0
_GENERIC_WRITE: Final = 0x4000_0000
_CREATE_NEW: Final = 1
_NORMALIZED_WITH_DRIVE: Final = 0
"""FILE_NAME_NORMALIZED and VOLUME_NAME_DOS."""
_PATH_CHARACTERS_MAX: Final = 32_768
_LOCK_FAIL_IMMEDIATELY: Final = 0x1
_LOCK_EXCLUSIVE: Final = 0x2
_LOCK_VIOLATION: Final = 33
_IO_PENDING: Final = 997
_UNIX_EPOCH: Final = 116_444_736_000_000_000
"""1970 in units of 100 ns since 1601."""


class _Overlapped(ctypes.Structure):
    _fields_ = (
        ("Internal", ctypes.c_void_p),
        ("InternalHigh", ctypes.c_void_p),
        ("Offset", ctypes.c_uint32),
        ("OffsetHigh", ctypes.c_uint32),
        ("hEvent", ctypes.c_void_p),
    )


class _BasicInfo(ctypes.Structure):
    _fields_ = (
        ("CreationTime", ctypes.c_int64),
        ("LastAccessTime", ctypes.c_int64),
        ("LastWriteTime", ctypes.c_int64),
        ("ChangeTime", ctypes.c_int64),
        ("FileAttributes", ctypes.c_uint32),
    )


def change_time_ns(descriptor: int) -> int:
    """When contents or attributes of an open file last changed, since 1970. Raises OSError."""
    info = _BasicInfo()
    kernel = winapi.library("kernel32")
    handle = ctypes.c_void_p(_handle(descriptor))
    if not kernel.GetFileInformationByHandleEx(handle, _FILE_BASIC_INFO, ctypes.byref(info), ctypes.sizeof(info)):
        raise winapi.last_error("attributes of an open file")
    return int((info.ChangeTime - _UNIX_EPOCH) * 100)


def create(path: Path, sddl: str) -> None:
    """Create an empty file with that descriptor. Raises OSError, FileExistsError if it exists."""
    function = winapi.library("kernel32").CreateFileW
    function.restype = ctypes.c_void_p
    with security.security_attributes(sddl) as attributes:
        handle = function(str(path), _GENERIC_WRITE, 0, ctypes.byref(attributes), _CREATE_NEW, 0, None)
    if handle == winapi.INVALID_HANDLE:
        raise winapi.last_error(str(path))
    winapi.library("kernel32").CloseHandle(ctypes.c_void_p(handle))


def final_path(descriptor: int) -> str:
    r"""The path of an open file with all links resolved: `\\?\C:\x`, or `\\?\UNC\server\share`. Raises OSError."""
    function = winapi.library("kernel32").GetFinalPathNameByHandleW
    function.restype = ctypes.c_uint32
    handle, size = ctypes.c_void_p(_handle(descriptor)), _PATH_CHARACTERS_MAX
    buffer = ctypes.create_unicode_buffer(size)
    if not 0 < function(handle, buffer, size, _NORMALIZED_WITH_DRIVE) < size:
        raise winapi.last_error("path of an open file")
    return buffer.value


def lock(descriptor: int, offset: int) -> bool:
    """Lock a byte of an open file, which is released when the file is closed; False if another process has it.

    Raises OSError.
    """
    overlapped = _Overlapped(Offset=offset)
    kernel = winapi.library("kernel32")
    handle = ctypes.c_void_p(_handle(descriptor))
    if kernel.LockFileEx(handle, _LOCK_EXCLUSIVE | _LOCK_FAIL_IMMEDIATELY, 0, 1, 0, ctypes.byref(overlapped)):
        return True
    error = winapi.last_error("lock")
    if getattr(error, "winerror", None) in {_LOCK_VIOLATION, _IO_PENDING}:
        return False
    raise error


def _handle(descriptor: int) -> int:
    if sys.platform == "win32":
        import msvcrt

        return msvcrt.get_osfhandle(descriptor)
    raise winapi.NotWindowsError("msvcrt")
