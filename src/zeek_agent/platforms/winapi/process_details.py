"""The executable and the user of a process.

References: OpenProcess, GetProcessTimes, QueryFullProcessImageNameW, GetTokenInformation and LookupAccountSidW in
Microsoft's documentation of Win32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Final, NamedTuple

from zeek_agent.platforms import winapi

_QUERY_LIMITED_INFORMATION: Final = 0x1000
_TOKEN_QUERY: Final = 0x8
_TOKEN_USER: Final = 1
_PATH_CHARACTERS: Final = 32_768
_ACCOUNTS_REMEMBERED: Final = 1_024


class User(NamedTuple):
    """An account: `DOMAIN\\name`, None if the domain does not answer, and its SID."""

    name: str | None
    sid: str


@contextmanager
def opened(pid: int) -> Iterator[int]:
    """A handle for questions that most processes permit to most users. Raises OSError."""
    kernel = winapi.library("kernel32")
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = kernel.OpenProcess(_QUERY_LIMITED_INFORMATION, 0, ctypes.c_uint32(pid))
    if not handle:
        raise winapi.last_error(f"process {pid}")
    try:
        yield int(handle)
    finally:
        kernel.CloseHandle(ctypes.c_void_p(handle))


def started(handle: int) -> int:
    """When the process was created, as FILETIME. Raises OSError."""
    created, *others = (ctypes.c_uint64() for _ in range(4))
    if not winapi.library("kernel32").GetProcessTimes(
        ctypes.c_void_p(handle), ctypes.byref(created), *map(ctypes.byref, others)
    ):
        raise winapi.last_error("times of a process")
    return created.value


def executable(handle: int) -> str:
    """The path of the executable. Raises OSError."""
    path, size = ctypes.create_unicode_buffer(_PATH_CHARACTERS), ctypes.c_uint32(_PATH_CHARACTERS)
    if not winapi.library("kernel32").QueryFullProcessImageNameW(ctypes.c_void_p(handle), 0, path, ctypes.byref(size)):
        raise winapi.last_error("executable of a process")
    return path.value


def user(handle: int) -> User:
    """The user of the process. Raises OSError."""
    kernel, advapi = winapi.library("kernel32"), winapi.library("advapi32")
    token = ctypes.c_void_p()
    if not advapi.OpenProcessToken(ctypes.c_void_p(handle), _TOKEN_QUERY, ctypes.byref(token)):
        raise winapi.last_error("token of a process")
    try:
        sid = _sid_of(token)
    finally:
        kernel.CloseHandle(token)
    return User(account_name(sid), sid)


def _sid_of(token: ctypes.c_void_p) -> str:
    """The SID of a token's user. Raises OSError."""
    kernel, advapi = winapi.library("kernel32"), winapi.library("advapi32")
    needed, text = ctypes.c_uint32(), ctypes.c_wchar_p()
    advapi.GetTokenInformation(token, _TOKEN_USER, None, 0, ctypes.byref(needed))
    buffer = ctypes.create_string_buffer(max(needed.value, ctypes.sizeof(ctypes.c_void_p)))
    if not advapi.GetTokenInformation(token, _TOKEN_USER, buffer, needed, ctypes.byref(needed)):
        raise winapi.last_error("user of a process")
    sid = ctypes.c_void_p.from_buffer(buffer)  # TOKEN_USER begins with it
    if not advapi.ConvertSidToStringSidW(sid, ctypes.byref(text)):
        raise winapi.last_error("user of a process")
    try:
        return text.value or ""
    finally:
        kernel.LocalFree(text)


@lru_cache(maxsize=_ACCOUNTS_REMEMBERED)
def account_name(sid: str) -> str | None:
    """`DOMAIN\\name` of a SID; None if it has no account any more, or the domain does not answer."""
    kernel, advapi = winapi.library("kernel32"), winapi.library("advapi32")
    binary = ctypes.c_void_p()
    if not advapi.ConvertStringSidToSidW(ctypes.c_wchar_p(sid), ctypes.byref(binary)):
        return None
    sizes = ctypes.c_uint32(0), ctypes.c_uint32(0)
    kind = ctypes.c_uint32()
    try:
        references = (ctypes.byref(sizes[0]), ctypes.byref(sizes[1]), ctypes.byref(kind))
        advapi.LookupAccountSidW(None, binary, None, references[0], None, references[1], references[2])
        name, domain = (ctypes.create_unicode_buffer(max(size.value, 1)) for size in sizes)
        if not advapi.LookupAccountSidW(None, binary, name, references[0], domain, references[1], references[2]):
            return None
    finally:
        kernel.LocalFree(binary)
    return f"{domain.value}\\{name.value}" if domain.value else name.value
