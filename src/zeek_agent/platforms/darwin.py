"""macOS."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Final

from zeek_agent.platforms import CONFIGURATION
from zeek_agent.platforms.posix import SOCKET, Posix

BASE: Final = Path("/Library/Application Support/ZeekAgent")
IOREG: Final = ("/usr/sbin/ioreg", "-rd1", "-c", "IOPlatformExpertDevice")

_IOREG_SECONDS: Final = 10.0


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
