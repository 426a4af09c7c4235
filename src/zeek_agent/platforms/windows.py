"""Windows."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import signal
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from zeek_agent.errors import ZeekAgentError
from zeek_agent.platforms import CONFIGURATION, PROGRAM, Platform, caseless, windows_descriptors, windows_paths

if TYPE_CHECKING:
    import asyncio

    from zeek_agent.control_transport import ControlTransport
    from zeek_agent.file_lock import FileLock

PIPES: Final = "\\\\.\\pipe\\"
DIRECTORY: Final = "ZeekAgent"

_T = TypeVar("_T")


class Windows(Platform):
    """Windows, with the places of known folders."""

    name = "Windows"
    key = "win32"
    group = "windows"
    kernel_name = None
    has_root = False
    ignores_case = True
    path_start = "a drive, such as C:\\"
    renames_open_files = False
    has_owner_ids = False
    reuses_addresses = False

    def is_privileged(self) -> bool:
        from zeek_agent.platforms.winapi import security

        return security.is_administrator()

    def user(self) -> str:
        import getpass

        return f"user {getpass.getuser()}"

    def user_id(self) -> int | None:
        return None

    def configuration_file(self, environment: Mapping[str, str]) -> Path:
        base = _for_all() if self.is_privileged() else _for_user(environment)
        return base / CONFIGURATION

    def user_state(self, environment: Mapping[str, str]) -> Path:
        return _for_user(environment) / "state"

    @property
    def system_state(self) -> Path:
        return _for_all() / "state"

    @property
    def system_control(self) -> Path:
        return Path(PIPES + PROGRAM)

    def user_control(self, environment: Mapping[str, str], state: Path) -> Path:
        return self.control_of(state)

    def control_of(self, state: Path) -> Path:
        """A pipe whose name has a hash of the directory's, since pipes are not in the file system."""
        digest = hashlib.sha256(str(state).lower().encode("utf-8", "surrogatepass")).hexdigest()
        return Path(f"{PIPES}{PROGRAM}-{digest[:16]}")

    def control_setting(self, address: str) -> Path:
        """The full name of a pipe, or its last part."""
        return Path(address if address.startswith(PIPES) else PIPES + address)

    def inner_path(self, path: str) -> str:
        return windows_paths.inner(path)

    def shown_path(self, path: str) -> str:
        return windows_paths.shown(path)

    def native_path(self, path: str) -> str:
        native = windows_paths.native(path)
        if native is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), windows_paths.shown(path))
        return native

    def comparable_path(self, path: str) -> str:
        return caseless.folded(windows_paths.inner(path))

    def link_target(self, directory: str, target: str) -> str | None:
        return windows_paths.link_target(directory, target)

    def opened_path(self, descriptor: int) -> str:
        """With long names, and without links and junctions."""
        from zeek_agent.platforms.winapi import files

        path = windows_paths.link_target("/", files.final_path(descriptor))
        if path is None:
            raise PermissionError(errno.EACCES, "it is not on a drive of this host")
        return path

    def change_time_ns(self, descriptor: int, status: os.stat_result) -> int:
        """`st_ctime` is the time of creation on Windows."""
        from zeek_agent.platforms.winapi import files

        return files.change_time_ns(descriptor)

    def machine_id(self) -> str | None:
        from zeek_agent.platforms.winapi import registry

        try:
            value = registry.value(r"SOFTWARE\Microsoft\Cryptography", "MachineGuid")
        except OSError:
            return None
        digits = str(value).replace("-", "").lower()
        return digits if re.fullmatch("[0-9a-f]{32}", digits) else None

    def boot_nanoseconds(self) -> int:
        from zeek_agent.platforms.winapi import clocks

        return clocks.since_boot_ns()

    def os_name(self) -> str:
        import platform

        edition = platform.win32_edition() or ""
        return " ".join(filter(None, ("Windows", platform.release(), edition, platform.version())))

    def acquire_lock(self, path: Path, legacy_directory: Path | None = None, holder: int | None = None) -> FileLock:
        from zeek_agent.platforms import windows_locks

        return windows_locks.acquire_lock(path, holder)

    def is_lock_held(self, path: Path) -> bool:
        from zeek_agent.platforms import windows_locks

        return windows_locks.is_held(path)

    def lock_directory(self, directory: Path) -> FileLock:
        from zeek_agent.platforms import windows_locks

        return windows_locks.lock_directory(directory)

    def directory_exposure(self, directory: Path) -> str | None:
        from zeek_agent.platforms.winapi import security

        who = windows_descriptors.writers(security.describe(directory)) - {security.user_sid()}
        return f"{directory} is owned or writable by {', '.join(sorted(who))}" if who else None

    def program_exposure(self, directory: Path) -> str | None:
        """The same, also for the directories above, which others could replace. Raises OSError."""
        from zeek_agent.platforms.winapi import security

        for above in directory.absolute().parents:
            if who := windows_descriptors.replacers(security.describe(above)) - {security.user_sid()}:
                return f"{above} is owned by {', '.join(sorted(who))}, or lets them replace what is in it"
        return self.directory_exposure(directory)

    def configuration_exposure(self, file: Path) -> str | None:
        """Every user may create files and directories in `%ProgramData%`."""
        if not self.is_privileged():
            return None
        return self.directory_exposure(file.parent) or self.directory_exposure(file)

    def group_exposure(self, directory: Path) -> str | None:
        return None

    def make_private_directory(self, directory: Path, mode: int = 0o700) -> None:
        from zeek_agent.platforms.winapi import security

        sddl = security.for_this_process(security.PRIVATE_DIRECTORY)
        missing = [above for above in directory.parents if not above.exists()]
        for each in (*reversed(missing), directory):
            try:
                security.create_directory(each, sddl)
            except FileExistsError:
                if not each.is_dir():
                    raise

    def make_temporary_directory(self, prefix: str, base: Path) -> Path:
        from zeek_agent.platforms.winapi import security

        directory = base / f"{prefix}{secrets.token_hex(16)}"
        security.create_directory(directory, security.PRIVATE_DIRECTORY.format(user=security.user_sid()))
        return directory

    def open_private(self, file: Path, flags: int) -> int:
        """A file never exists without its list, which would let others keep it open."""
        from zeek_agent.platforms.winapi import files, security

        if flags & os.O_CREAT:
            try:
                files.create(file, security.for_this_process(security.PRIVATE_FILE))
                flags &= ~os.O_EXCL
            except FileExistsError:
                if flags & os.O_EXCL:
                    raise
        return os.open(file, flags & ~os.O_CREAT | getattr(os, "O_NOINHERIT", 0))

    def protect_file(self, file: Path) -> None:
        from zeek_agent.platforms.winapi import security

        security.set_dacl(file, security.for_this_process(security.PRIVATE_FILE))

    def sync_directory(self, directory: Path) -> None:
        """Nothing: the file system's journal has the names in order."""

    def file_system_bytes(self, place: Path | int) -> int:
        import shutil

        return shutil.disk_usage(place).total

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        from zeek_agent.platforms import windows_loop

        return windows_loop.new_loop()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        import asyncio

        with asyncio.Runner(loop_factory=self.new_event_loop) as runner:
            return runner.run(work)

    def catch_stop_signals(self, loop: asyncio.AbstractEventLoop, stop: Callable[[str], None]) -> Callable[[], None]:
        """Ctrl-C, Ctrl-Break, and SIGTERM, which only this process itself can raise, as for the service manager."""
        numbers = [signal.SIGINT, signal.SIGTERM, *_ctrl_break()]

        def receive(number: int, _: object) -> None:
            loop.call_soon_threadsafe(stop, signal.Signals(number).name)

        before: dict[signal.Signals, Any] = {number: signal.signal(number, receive) for number in numbers}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        return restore

    @property
    def hangup_signal(self) -> int | None:
        return None

    def has_terminal(self) -> bool:
        from zeek_agent.platforms import winapi

        return bool(winapi.library("kernel32").GetConsoleWindow())

    def has_typed_input(self) -> bool:
        from zeek_agent.platforms.winapi import console

        return console.has_typed_input()

    @property
    def control(self) -> ControlTransport:
        from zeek_agent.platforms.named_pipes import NamedPipes

        return NamedPipes()


PLATFORM: Final = Windows()


def _ctrl_break() -> list[signal.Signals]:
    return [number for number in signal.Signals if number.name == "SIGBREAK"]


def _for_all() -> Path:
    """Raises ZeekAgentError."""
    from zeek_agent.platforms.winapi import folders

    try:
        return folders.program_data() / DIRECTORY
    except OSError as error:
        raise ZeekAgentError(str(error)) from None


def _for_user(environment: Mapping[str, str]) -> Path:
    local = environment.get("LOCALAPPDATA")
    return (Path(local) if local else Path("~").expanduser() / "AppData" / "Local") / DIRECTORY
