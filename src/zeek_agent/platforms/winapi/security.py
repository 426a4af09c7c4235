"""Users and access control lists.

References: SetFileSecurityW, ConvertStringSecurityDescriptorToSecurityDescriptorW, OpenProcessToken and the
Security Descriptor String Format in Microsoft's documentation of Win32.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from zeek_agent.platforms import winapi

PRIVATE_DIRECTORY: Final = "D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;FA;;;{user})"
"""Full access for the system, administrators and one user; files and directories below inherit it."""
PRIVATE_FILE: Final = "D:P(A;;FA;;;SY)(A;;FA;;;BA)(A;;FA;;;{user})"
OF_USER: Final = re.compile(r"\([^()]*;\{user\}\)")
ADMINISTRATORS: Final = "S-1-5-32-544"
SYSTEM: Final = "S-1-5-18"

_SDDL_REVISION: Final = 1
_SE_FILE_OBJECT: Final = 1
_OWNER: Final = 0x1
_DACL: Final = 0x4
_PROTECTED_DACL: Final = 0x8000_0000
_TOKEN_QUERY: Final = 0x8
_TOKEN_USER: Final = 1


class SecurityAttributes(ctypes.Structure):
    """`SECURITY_ATTRIBUTES`."""

    _fields_ = (
        ("nLength", ctypes.c_uint32),
        ("lpSecurityDescriptor", ctypes.c_void_p),
        ("bInheritHandle", ctypes.c_int),
    )


def for_this_process(sddl: str) -> str:
    """A descriptor for objects of this process; for administrators only if it has an administrator's rights.

    Other programs of the same user do not have these rights, and must not get them by what such an object contains.
    """
    if is_administrator():
        return "O:BA" + OF_USER.sub("", sddl.removeprefix("O:{user}"))
    return sddl.format(user=user_sid())


@contextmanager
def security_attributes(sddl: str) -> Iterator[SecurityAttributes]:
    """Attributes for a new object, from a descriptor in SDDL. Raises OSError."""
    with _descriptor(sddl) as descriptor:
        yield SecurityAttributes(ctypes.sizeof(SecurityAttributes), descriptor, 0)


def create_directory(path: Path, sddl: str) -> None:
    """Create a directory with that descriptor. Raises OSError, FileExistsError if it exists."""
    with security_attributes(sddl) as attributes:
        if not winapi.library("kernel32").CreateDirectoryW(str(path), ctypes.byref(attributes)):
            raise winapi.last_error(str(path))


def set_dacl(path: Path, sddl: str) -> None:
    """Replace the DACL of a file or directory, and inherit nothing. Raises OSError."""
    with _descriptor(sddl) as descriptor:
        if not winapi.library("advapi32").SetFileSecurityW(
            ctypes.c_wchar_p(str(path)), ctypes.c_uint32(_DACL | _PROTECTED_DACL), descriptor
        ):
            raise winapi.last_error(str(path))


def describe(path: Path) -> str:
    """Owner and DACL of a file or directory in SDDL. Raises OSError."""
    advapi, kernel = winapi.library("advapi32"), winapi.library("kernel32")
    descriptor, text = ctypes.c_void_p(), ctypes.c_wchar_p()
    number = advapi.GetNamedSecurityInfoW(
        ctypes.c_wchar_p(str(path)), _SE_FILE_OBJECT, _OWNER | _DACL, None, None, None, None, ctypes.byref(descriptor)
    )
    if number:
        raise winapi.error_of(number, str(path))
    try:
        if not advapi.ConvertSecurityDescriptorToStringSecurityDescriptorW(
            descriptor, _SDDL_REVISION, _OWNER | _DACL, ctypes.byref(text), None
        ):
            raise winapi.last_error(str(path))
        try:
            return text.value or ""
        finally:
            kernel.LocalFree(text)
    finally:
        kernel.LocalFree(descriptor)


def is_administrator() -> bool:
    """Whether this process has an administrator's rights, elevated where that is needed."""
    return bool(winapi.library("shell32").IsUserAnAdmin())


def user_sid() -> str:
    """The SID of this process's user: `S-1-5-21-…`. Raises OSError."""
    advapi, kernel = winapi.library("advapi32"), winapi.library("kernel32")
    token = ctypes.c_void_p()
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    if not advapi.OpenProcessToken(ctypes.c_void_p(kernel.GetCurrentProcess()), _TOKEN_QUERY, ctypes.byref(token)):
        raise winapi.last_error("token of this process")
    try:
        return _token_user(advapi, token)
    finally:
        kernel.CloseHandle(token)


def _token_user(advapi: Any, token: ctypes.c_void_p) -> str:
    needed = ctypes.c_uint32()
    advapi.GetTokenInformation(token, _TOKEN_USER, None, 0, ctypes.byref(needed))
    buffer = ctypes.create_string_buffer(needed.value)
    if not advapi.GetTokenInformation(token, _TOKEN_USER, buffer, needed, ctypes.byref(needed)):
        raise winapi.last_error("token of this process")
    return _sid_text(ctypes.c_void_p.from_buffer(buffer))  # TOKEN_USER begins with the pointer to the SID


@contextmanager
def _descriptor(sddl: str) -> Iterator[ctypes.c_void_p]:
    descriptor = ctypes.c_void_p()
    if not winapi.library("advapi32").ConvertStringSecurityDescriptorToSecurityDescriptorW(
        ctypes.c_wchar_p(sddl), _SDDL_REVISION, ctypes.byref(descriptor), None
    ):
        raise winapi.last_error(sddl)
    try:
        yield descriptor
    finally:
        winapi.library("kernel32").LocalFree(descriptor)


def account_sid(name: str) -> str:
    """The SID of a user or group: `Administrators`, or `DOMAIN\\name`. Raises OSError if there is none."""
    advapi = winapi.library("advapi32")
    sid_bytes, domain_characters, kind = ctypes.c_uint32(0), ctypes.c_uint32(0), ctypes.c_uint32()

    def look_up(sid: Any, domain: Any) -> bool:
        return bool(
            advapi.LookupAccountNameW(
                None,
                ctypes.c_wchar_p(name),
                sid,
                ctypes.byref(sid_bytes),
                domain,
                ctypes.byref(domain_characters),
                ctypes.byref(kind),
            )
        )

    look_up(None, None)
    sid = ctypes.create_string_buffer(max(sid_bytes.value, 1))
    if not look_up(sid, ctypes.create_unicode_buffer(max(domain_characters.value, 1))):
        raise winapi.last_error(name)
    return _sid_text(ctypes.cast(sid, ctypes.c_void_p))


def _sid_text(sid: ctypes.c_void_p) -> str:
    text = ctypes.c_wchar_p()
    if not winapi.library("advapi32").ConvertSidToStringSidW(sid, ctypes.byref(text)):
        raise winapi.last_error("SID")
    try:
        return text.value or ""
    finally:
        winapi.library("kernel32").LocalFree(text)
