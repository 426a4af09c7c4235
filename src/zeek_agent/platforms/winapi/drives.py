"""Drive letters (kernel32.dll). The Security log names files by their devices."""

from __future__ import annotations

import ctypes
from ctypes import c_uint32, c_wchar_p
from string import ascii_uppercase
from typing import Any, Final

from zeek_agent.platforms import winapi

_NAME_CHARACTERS: Final = 1_024


def drive_letters(kernel32: Any = None) -> dict[str, str]:
    """Drive letters (`C:`) by device (`\\\\device\\\\harddiskvolume3`, in lower case). Raises OSError elsewhere."""
    query = (winapi.library("kernel32") if kernel32 is None else kernel32).QueryDosDeviceW
    query.restype, query.argtypes = c_uint32, [c_wchar_p, c_wchar_p, c_uint32]
    found: dict[str, str] = {}
    for letter in ascii_uppercase:
        buffer = ctypes.create_unicode_buffer(_NAME_CHARACTERS)
        if query(f"{letter}:", buffer, _NAME_CHARACTERS):
            found.setdefault(buffer.value.lower(), f"{letter}:")
    return found
