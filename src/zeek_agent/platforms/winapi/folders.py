"""Known folders.

References: SHGetKnownFolderPath and KNOWNFOLDERID in Microsoft's documentation of the Windows shell.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from zeek_agent.platforms import winapi

_PROGRAM_DATA: Final = UUID("62ab5d82-fdc1-4dc3-a9dd-070d1d495d97")
"""FOLDERID_ProgramData."""


def program_data(shell32: Any = None) -> Path:
    """The directory for data of all users: `C:\\ProgramData`. Raises OSError.

    The environment variable of that name depends on who has started the program: under Wine 8, services have another
    value than everything else.
    """
    find = (winapi.library("shell32") if shell32 is None else shell32).SHGetKnownFolderPath
    identifier = (ctypes.c_ubyte * 16).from_buffer_copy(_PROGRAM_DATA.bytes_le)
    found = ctypes.c_wchar_p()
    status = find(ctypes.byref(identifier), ctypes.c_uint32(0), None, ctypes.byref(found))
    try:
        if status != 0 or not found.value:
            raise OSError(
                f"the directory for programs' data is unknown: SHGetKnownFolderPath: {status & 0xFFFF_FFFF:#x}"
            )
        return Path(found.value)
    finally:
        winapi.library("ole32").CoTaskMemFree(found)
