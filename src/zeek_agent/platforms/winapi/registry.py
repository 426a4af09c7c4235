"""The registry."""

from __future__ import annotations

import sys

from zeek_agent.platforms import winapi


def value(key: str, name: str) -> object:
    """A value of a key below HKEY_LOCAL_MACHINE. Raises OSError, FileNotFoundError if there is none."""
    if sys.platform == "win32":
        import winreg

        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key) as opened:
            return winreg.QueryValueEx(opened, name)[0]
    raise winapi.NotWindowsError("winreg")
