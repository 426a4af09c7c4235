"""The id of this boot of macOS, which is part of the unique ids of processes."""

from __future__ import annotations

import ctypes
import os
import uuid
from functools import cache
from typing import Any, Final

_NAME: Final = b"kern.bootsessionuuid"
_BUFFER_BYTES: Final = 64


@cache
def boot_session() -> str:
    """The kernel's id of this boot. Raises OSError, on other systems too."""
    return read_boot_session(ctypes.CDLL(None, use_errno=True))


def read_boot_session(libc: Any) -> str:
    """The same by `sysctlbyname` (sysctl(3)) of a C library, in the form of Linux's boot id."""
    value, size = ctypes.create_string_buffer(_BUFFER_BYTES), ctypes.c_size_t(_BUFFER_BYTES)
    try:
        status = libc.sysctlbyname(_NAME, value, ctypes.byref(size), None, ctypes.c_size_t(0))
    except AttributeError:
        raise OSError("this system's C library has no sysctlbyname: it is not macOS") from None
    if status:
        raise OSError(ctypes.get_errno(), f"cannot read {_NAME.decode()}: {os.strerror(ctypes.get_errno())}")
    try:
        return str(uuid.UUID(value.value.decode("ascii")))
    except ValueError:
        raise OSError(f"{_NAME.decode()} is {value.value!r}, which is not a UUID") from None
