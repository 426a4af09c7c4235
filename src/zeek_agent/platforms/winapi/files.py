"""Attributes of files that Python does not report.

References: GetFileInformationByHandleEx and FILE_BASIC_INFO in Microsoft's documentation of Win32.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Final

from zeek_agent.platforms import winapi

_FILE_BASIC_INFO: Final = 0
_UNIX_EPOCH: Final = 116_444_736_000_000_000
"""1970 in units of 100 ns since 1601."""


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


def _handle(descriptor: int) -> int:
    if sys.platform == "win32":
        import msvcrt

        return msvcrt.get_osfhandle(descriptor)
    raise winapi.NotWindowsError("msvcrt")
