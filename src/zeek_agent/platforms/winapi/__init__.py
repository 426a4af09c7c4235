"""Windows' API by ctypes; no other package calls it.

The modules can be imported everywhere. Calling a function on another system raises NotWindowsError.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any, Final

_FROM_SYSTEM_DIRECTORY: Final = 0x800
"""LOAD_LIBRARY_SEARCH_SYSTEM32: not one of the same name next to the interpreter."""
INVALID_HANDLE: Final = ctypes.c_void_p(-1).value
"""`INVALID_HANDLE_VALUE`."""


class NotWindowsError(OSError):
    """Windows' API was called on another system."""

    def __init__(self, library: str) -> None:
        super().__init__(f"{library} exists on Windows only")


@cache
def library(name: str) -> Any:
    """A DLL of the system, such as `kernel32`, with calls that keep the error for `last_error`."""
    if sys.platform == "win32":
        return ctypes.WinDLL(name, use_last_error=True, winmode=_FROM_SYSTEM_DIRECTORY)
    raise NotWindowsError(name)


def function(dll: Any, name: str) -> Any:
    """A function of a DLL. Raises OSError if this version of Windows, or Wine, does not have it."""
    try:
        return getattr(dll, name)
    except AttributeError as error:
        raise OSError(f"this system has no function {name}") from error


def last_error(what: str = "") -> OSError:
    """The error of the last call in this thread, as the subclass of OSError that its number stands for."""
    if sys.platform == "win32":
        number = ctypes.get_last_error()
        return error_of(number, what)
    raise NotWindowsError("GetLastError")


def error_of(number: int, what: str = "") -> OSError:
    """An error by its number in Windows: `ERROR_ACCESS_DENIED` is a PermissionError."""
    if sys.platform == "win32":
        return OSError(None, ctypes.FormatError(number).strip(), what or None, number)
    raise NotWindowsError("FormatMessageW")
