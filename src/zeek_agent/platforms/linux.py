"""Linux."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from zeek_agent.platforms.posix import SOCKET, Posix

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
OWN_DESCRIPTORS: Final = "/proc/self/fd"
MACHINE_ID_FILES: Final = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
OS_RELEASE_FILES: Final = (Path("/etc/os-release"), Path("/usr/lib/os-release"))

_ARENA_MAX: Final = -8


class Linux(Posix):
    """Linux, with the file system hierarchy's places."""

    name = "Linux"
    key = "linux"
    group = "linux"
    kernel_name = "Linux"
    confines_workers = True
    system_configuration = Path("/etc/zeek-agent/zeek-agent.toml")
    system_state = Path("/var/lib/zeek-agent")
    system_control = Path("/run/zeek-agent") / SOCKET
    memory_directory = Path("/dev/shm")

    def machine_id(self) -> str | None:
        return machine_id()

    def boot_id(self) -> str:
        return BOOT_ID.read_text().strip()

    def boot_nanoseconds(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def os_name(self) -> str:
        return distribution_name()

    def opened_path(self, descriptor: int) -> str:
        return os.readlink(f"{OWN_DESCRIPTORS}/{descriptor}")  # noqa: PTH115 - the text as it is

    def set_thread_niceness(self, niceness: int) -> None:
        import threading

        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)

    def share_heap(self) -> None:
        """By default, glibc has a heap per thread, each of which stays as large as its largest result: mallopt(3)."""
        import ctypes

        if hasattr(library := ctypes.CDLL(None), "mallopt"):
            library.mallopt(_ARENA_MAX, 1)

    def trim_heap(self) -> None:
        import ctypes

        if hasattr(library := ctypes.CDLL(None), "malloc_trim"):
            library.malloc_trim(0)


PLATFORM: Final = Linux()


def machine_id(files: Sequence[Path] = MACHINE_ID_FILES) -> str | None:
    """The machine id of machine-id(5); None without one, as in some containers."""
    for file in files:
        try:
            text = file.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if re.fullmatch("[0-9a-f]{32}", text):
            return text
    return None


def distribution_name(files: Sequence[Path] = OS_RELEASE_FILES) -> str:
    """The distribution's name (os-release(5)), or else the kernel's with its version."""
    from zeek_agent.text import from_bytes

    for file in files:
        try:
            content = from_bytes(file.read_bytes())
        except OSError:
            continue
        if name := re.search(r"^PRETTY_NAME=(.*)$", content, re.MULTILINE):
            return name[1].strip().strip("\"'")
    import platform

    return platform.platform(terse=True)
