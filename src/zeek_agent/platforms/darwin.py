"""macOS."""

from __future__ import annotations

import errno
import os
import re
import time
import unicodedata
from pathlib import Path
from typing import Final

from zeek_agent.platforms import CONFIGURATION, caseless
from zeek_agent.platforms.posix import SOCKET, Posix

BASE: Final = Path("/Library/Application Support/ZeekAgent")
IOREG: Final = ("/usr/sbin/ioreg", "-rd1", "-c", "IOPlatformExpertDevice")

DATA: Final = "/system/volumes/data"
"""The volume of everything that can be written, in the form in which paths are compared."""
PRIVATE: Final = "/private"
LINKED: Final = ("/etc", "/tmp", "/var")
FORKS: Final = "..namedfork"
"""Below a file, leads to its contents and to its resource fork."""
FILES_BY_NUMBER: Final = ".vol"
"""Has all files by the numbers of their volume and of the file."""

_IOREG_SECONDS: Final = 10.0
_F_GETPATH: Final = 50
"""Of <sys/fcntl.h>."""
_PATH_BYTES: Final = 1_024
"""MAXPATHLEN."""


class Darwin(Posix):
    """macOS, with the places that Apple's file system guide gives to programs of the system."""

    name = "Darwin"
    key = "darwin"
    group = "darwin"
    kernel_name = "Darwin"
    ignores_case = True
    system_configuration = BASE / CONFIGURATION
    system_state = BASE / "state"
    system_control = Path("/var/run") / SOCKET

    def native_path(self, path: str) -> str:
        """Neither forks of a file nor files by their numbers, which access rules could not tell by the path."""
        names = path.lower().split("/")
        if FORKS in names or names[1:2] == [FILES_BY_NUMBER]:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return path

    def comparable_path(self, path: str) -> str:
        """Names are the same in every normal form of Unicode."""
        return caseless.folded(path if path.isascii() else unicodedata.normalize("NFC", path))

    def names_of(self, path: str) -> tuple[str, ...]:
        """`/etc`, `/tmp` and `/var` are links to directories in `/private`; firmlinks lead to the volume Data."""
        path = path.removeprefix(DATA) or "/"
        if path.startswith(f"{PRIVATE}/") and _is_below(path.removeprefix(PRIVATE), LINKED):
            path = path.removeprefix(PRIVATE)
        names = (path, PRIVATE + path) if _is_below(path, LINKED) else (path,)
        return (*names, *(DATA + name for name in names))

    def opened_path(self, descriptor: int) -> str:
        """Without links and firmlinks, with the case of the directories."""
        import fcntl

        return os.fsdecode(fcntl.fcntl(descriptor, _F_GETPATH, bytes(_PATH_BYTES)).partition(b"\0")[0])

    def machine_id(self) -> str | None:
        """The hardware's UUID, `IOPlatformUUID` of ioreg(8), without dashes."""
        import subprocess

        try:
            done = subprocess.run(IOREG, capture_output=True, check=False, timeout=_IOREG_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return platform_uuid(done.stdout.decode("utf-8", "replace"))

    def boot_nanoseconds(self) -> int:
        """Python's monotonic clock is mach_absolute_time, which stops in sleep; CLOCK_MONOTONIC does not."""
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC)

    def os_name(self) -> str:
        import platform

        return f"macOS {platform.mac_ver()[0]}".rstrip()


PLATFORM: Final = Darwin()


def platform_uuid(ioreg: str) -> str | None:
    """The 32 digits of `"IOPlatformUUID" = "…"` in the output of ioreg(8)."""
    found = re.search(r'"IOPlatformUUID"\s*=\s*"([0-9A-Fa-f-]{36})"', ioreg)
    digits = found[1].replace("-", "").lower() if found else ""
    return digits if len(digits) == 32 else None


def _is_below(path: str, directories: tuple[str, ...]) -> bool:
    return any(path == directory or path.startswith(f"{directory}/") for directory in directories)
