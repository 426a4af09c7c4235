"""What Linux and macOS have in common."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zeek_agent.platforms import CONFIGURATION, PROGRAM, Platform

if TYPE_CHECKING:
    import asyncio

    from zeek_agent.control_transport import ControlTransport
    from zeek_agent.file_lock import FileLock

SOCKET: Final = "zeek-agent.sock"


class Posix(Platform):
    """A system with users that have numbers, file modes, flock(2), signals and Unix sockets."""

    system_configuration: Path

    def is_privileged(self) -> bool:
        return os.geteuid() == 0

    def user(self) -> str:
        return f"uid {os.geteuid()}"

    def user_id(self) -> int | None:
        return os.geteuid()

    def configuration_file(self, environment: Mapping[str, str]) -> Path:
        if self.is_privileged():
            return self.system_configuration
        return xdg_directory(environment, "XDG_CONFIG_HOME", ".config") / CONFIGURATION

    def user_state(self, environment: Mapping[str, str]) -> Path:
        return xdg_directory(environment, "XDG_STATE_HOME", ".local/state")

    def user_control(self, environment: Mapping[str, str], state: Path) -> Path:
        runtime = environment.get("XDG_RUNTIME_DIR")
        return (Path(runtime) / PROGRAM if runtime else state) / SOCKET

    def control_of(self, state: Path) -> Path:
        return state / SOCKET

    def acquire_lock(self, path: Path, legacy_directory: Path | None = None, holder: int | None = None) -> FileLock:
        from zeek_agent.platforms import flock

        return flock.acquire_lock(path, legacy_directory, holder)

    def lock_directory(self, directory: Path) -> FileLock:
        from zeek_agent.platforms import flock

        return flock.lock_directory(directory)

    def is_lock_held(self, path: Path) -> bool:
        from zeek_agent.platforms import flock

        return flock.is_held(path)

    def directory_exposure(self, directory: Path) -> str | None:
        from zeek_agent.platforms import flock

        return flock.directory_exposure(directory)

    def group_exposure(self, directory: Path) -> str | None:
        from zeek_agent.platforms import flock

        return flock.group_exposure(directory)

    def make_private_directory(self, directory: Path, mode: int = 0o700) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=mode)

    def open_private(self, file: Path, flags: int) -> int:
        return os.open(file, flags | os.O_CLOEXEC, 0o600)

    def protect_file(self, file: Path) -> None:
        file.chmod(0o600)

    def sync_directory(self, directory: Path) -> None:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def file_system_bytes(self, place: Path | int) -> int:
        system = os.statvfs(place)
        return system.f_blocks * system.f_frsize

    def catch_stop_signals(self, loop: asyncio.AbstractEventLoop, stop: Callable[[str], None]) -> Callable[[], None]:
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, stop, number.name)
        # A full pipe wakes the loop as well; Python would write a traceback for each further signal.
        signal.set_wakeup_fd(signal.set_wakeup_fd(-1), warn_on_full_buffer=False)

        def restore() -> None:
            for number in numbers:
                loop.remove_signal_handler(number)

        return restore

    def allow_open_files(self, wanted: int) -> None:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))

    @property
    def hangup_signal(self) -> int | None:
        return signal.SIGHUP

    def has_terminal(self) -> bool:
        try:
            os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
        except OSError:
            return False
        return True

    def has_typed_input(self) -> bool:
        return bool(select.select([sys.stdin], [], [], 0)[0])

    @property
    def control(self) -> ControlTransport:
        from zeek_agent.platforms.unix_sockets import UnixSockets

        return UnixSockets()


def xdg_directory(environment: Mapping[str, str], variable: str, fallback: str) -> Path:
    """The agent's directory in an XDG base directory; a relative one is ignored, as the specification requires."""
    base = Path(environment.get(variable) or "")
    if not base.is_absolute():
        base = Path(environment.get("HOME") or "~").expanduser() / fallback
    return base / PROGRAM
