"""Named pipes with an access control list.

References: CreateNamedPipeW, CreateFileW, WaitNamedPipeW and Named Pipe Security and Access Rights in Microsoft's
documentation of Win32.
"""

from __future__ import annotations

import ctypes
import sys
import time
from typing import Final

from zeek_agent.platforms import winapi
from zeek_agent.platforms.winapi import security

OWNERS: Final = "O:{user}D:P(A;;GA;;;SY)(A;;GA;;;BA)(A;;GA;;;{user})"
GROUP: Final = "(A;;0x12019b;;;{sid})"
"""Read and write, but not FILE_CREATE_PIPE_INSTANCE: members can connect, and not take the server's place."""
BUFFER_BYTES: Final = 64 * 1024
INSTANCES_MAX: Final = 255

_ACCESS_DUPLEX: Final = 0x3
_FLAG_FIRST_INSTANCE: Final = 0x8_0000
_FLAG_OVERLAPPED: Final = 0x4000_0000
_REJECT_REMOTE_CLIENTS: Final = 0x8
_GENERIC_READ_WRITE: Final = 0xC000_0000
_OPEN_EXISTING: Final = 3
_IDENTIFICATION_ONLY: Final = 0x10_0000 | 0x1_0000
"""SECURITY_SQOS_PRESENT and SECURITY_IDENTIFICATION: the server cannot act as this user."""
_PIPE_BUSY: Final = 231
_BUSY_PAUSE_SECONDS: Final = 0.02
_KERNEL_OBJECT: Final = 6
_OWNER: Final = 0x1


def create(address: str, sddl: str, *, is_first: bool) -> int:
    """A handle of a new instance of a pipe, for overlapped input and output.

    Remote clients are rejected. The first instance fails with PermissionError if somebody has a pipe of that name.
    Raises OSError.
    """
    mode = _ACCESS_DUPLEX | _FLAG_OVERLAPPED | (_FLAG_FIRST_INSTANCE if is_first else 0)
    with security.security_attributes(sddl) as attributes:
        kernel = winapi.library("kernel32")
        kernel.CreateNamedPipeW.restype = ctypes.c_void_p
        handle = kernel.CreateNamedPipeW(
            ctypes.c_wchar_p(address),
            mode,
            _REJECT_REMOTE_CLIENTS,
            INSTANCES_MAX,
            BUFFER_BYTES,
            BUFFER_BYTES,
            0,
            ctypes.byref(attributes),
        )
    if handle == winapi.INVALID_HANDLE:
        raise winapi.last_error(address)
    return int(handle)


def connect(address: str, timeout_seconds: float) -> int:
    """A descriptor of a client's end, for blocking input and output.

    Raises FileNotFoundError if nobody has a pipe of that name, PermissionError if it is another user's, and OSError.
    """
    kernel = winapi.library("kernel32")
    kernel.CreateFileW.restype = ctypes.c_void_p
    until = time.monotonic() + timeout_seconds
    while True:
        handle = kernel.CreateFileW(
            ctypes.c_wchar_p(address), _GENERIC_READ_WRITE, 0, None, _OPEN_EXISTING, _IDENTIFICATION_ONLY, None
        )
        if handle != winapi.INVALID_HANDLE:
            break
        error = winapi.last_error(address)
        if getattr(error, "winerror", None) != _PIPE_BUSY or time.monotonic() > until:
            raise error
        time.sleep(_BUSY_PAUSE_SECONDS)
    try:
        _require_trusted_owner(int(handle), address)
    except OSError:
        kernel.CloseHandle(ctypes.c_void_p(handle))
        raise
    return _descriptor(int(handle))


def client_process(handle: int) -> int | None:
    """The process id at the other end of a server's handle; None if the system does not say."""
    pid = ctypes.c_uint32()
    found = winapi.library("kernel32").GetNamedPipeClientProcessId(ctypes.c_void_p(handle), ctypes.byref(pid))
    return pid.value if found else None


def _require_trusted_owner(handle: int, address: str) -> None:
    """Raises PermissionError for a pipe of neither this user, the system nor administrators."""
    owner, descriptor, text = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_wchar_p()
    advapi, kernel = winapi.library("advapi32"), winapi.library("kernel32")
    number = advapi.GetSecurityInfo(
        ctypes.c_void_p(handle), _KERNEL_OBJECT, _OWNER, ctypes.byref(owner), None, None, None, ctypes.byref(descriptor)
    )
    if number:
        raise winapi.error_of(number, address)
    try:
        if not advapi.ConvertSidToStringSidW(owner, ctypes.byref(text)):
            raise winapi.last_error(address)
        sid = text.value
        kernel.LocalFree(text)
    finally:
        kernel.LocalFree(descriptor)
    if sid not in {security.SYSTEM, security.ADMINISTRATORS, security.user_sid()}:
        raise PermissionError(f"the pipe {address} belongs to another user ({sid})")


def _descriptor(handle: int) -> int:
    if sys.platform == "win32":
        import msvcrt
        import os

        return msvcrt.open_osfhandle(handle, os.O_RDWR | os.O_BINARY)
    raise winapi.NotWindowsError("msvcrt")
