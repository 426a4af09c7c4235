"""The list of processes as Windows' kernel writes it, from records made here, and by Windows itself."""

from __future__ import annotations

import ctypes
import os
import struct
import sys

import pytest

from zeek_agent.platforms.winapi import NotWindowsError, accounts, process_details, process_list
from zeek_agent.platforms.winapi.process_list import EPOCH, ListedProcess

RECORD_BYTES = 256
NAMES: list[ctypes.Array[ctypes.c_char]] = []
"""Names that records point to."""


def record(pid: int, ppid: int, name: str, started: int, *, is_last: bool = False) -> bytes:
    """A SYSTEM_PROCESS_INFORMATION of 64-bit Windows."""
    encoded = name.encode("utf-16-le", "surrogatepass")
    text = ctypes.create_string_buffer(encoded, max(len(encoded), 1))
    NAMES.append(text)
    head = struct.pack("<IIqIIQqqq", 0 if is_last else RECORD_BYTES, 7, 0, 0, 0, 0, started, 20_000_000, 30_000_000)
    head += struct.pack("<HHxxxxQ", len(encoded), len(encoded), ctypes.addressof(text) if name else 0)
    head += struct.pack("<ixxxxQQIIQ", 8, pid, ppid, 5, 1, 0)
    sizes = struct.pack("<QQIxxxxQQQQQQQQQ", 1, 2, 3, 4, 4096, 6, 7, 8, 9, 10, 11, 8192)
    return (head + sizes).ljust(RECORD_BYTES, b"\xff")


def parse(*records: bytes) -> list[ListedProcess]:
    content = b"".join(records)
    return process_list.parse(ctypes.create_string_buffer(content, len(content)))


@pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="the records are those of 64-bit Windows")
def test_records_have_the_layout_of_windows() -> None:
    found = parse(record(4, 0, "System", 1), record(700, 4, "smss.exe", EPOCH + 5, is_last=True))
    assert found == [
        ListedProcess(4, 0, "System", 1, 20_000_000, 30_000_000, 7, 8, 8192, 4096),
        ListedProcess(700, 4, "smss.exe", EPOCH + 5, 20_000_000, 30_000_000, 7, 8, 8192, 4096),
    ]


@pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="the records are those of 64-bit Windows")
def test_names_may_be_missing_or_no_valid_text() -> None:
    found = parse(record(0, 0, "", 0), record(9, 4, "ä\udc00.exe", 1, is_last=True))
    assert [one.name for one in found] == ["", "ä\udc00.exe"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has these functions")
@pytest.mark.parametrize(
    "function", [process_list.list_processes, process_list.booted, accounts.local_users, accounts.profiles]
)
def test_another_system_is_named_in_the_error(function: object) -> None:
    with pytest.raises(NotWindowsError, match="exists on Windows only"):
        function()  # type: ignore[operator]


@pytest.mark.skipif(sys.platform != "win32", reason="needs Windows")
def test_this_process_is_in_the_list_with_its_start_and_user() -> None:
    (own,) = [one for one in process_list.list_processes() if one.pid == os.getpid()]
    with process_details.opened(os.getpid()) as handle:
        assert process_details.started(handle) == own.started
        assert process_details.executable(handle).lower().endswith("python.exe")
        user = process_details.user(handle)
    assert own.name.lower() == "python.exe"
    assert process_list.booted() < own.started
    assert user.sid.startswith("S-1-5-")
    assert user.name == process_details.account_name(user.sid)
