"""The console (the C runtime, as Python has it)."""

from __future__ import annotations

import sys

from zeek_agent.platforms import winapi


def has_typed_input() -> bool:
    """Whether keys that were pressed wait to be read."""
    if sys.platform == "win32":
        import msvcrt

        return msvcrt.kbhit()
    raise winapi.NotWindowsError("msvcrt")
