"""What differs between operating systems: nothing outside this package asks which one this is.

`HERE` is the one that the program runs on. Functions whose behaviour depends on the system take a `Platform`, with
`HERE` as the default.
"""

from __future__ import annotations

import os
import posixpath
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

if TYPE_CHECKING:
    import asyncio

    from zeek_agent.control_transport import ControlTransport
    from zeek_agent.file_lock import FileLock

PROGRAM: Final = "zeek-agent"
CONFIGURATION: Final = "zeek-agent.toml"

_T = TypeVar("_T")


class Platform(ABC):
    """An operating system. It has no state of its own: every method can be called from any thread."""

    name: ClassVar[str]
    """As uname(1) and Python's `platform.system()` call it: Linux, Darwin or Windows."""
    key: ClassVar[str]
    """As `sys.platform` and the declarations of tables call it: linux, darwin or win32."""
    group: ClassVar[str]
    """The group of all agents on it, with version 2's names: linux, darwin or windows."""
    kernel_name: ClassVar[str | None]
    """The kernel's name; null on Windows, as with version 2."""
    confines_workers: ClassVar[bool] = False
    """Whether SQL runs in worker processes with their own privileges and limits; otherwise in the agent's process."""
    reuses_addresses: ClassVar[bool] = True
    """Whether SO_REUSEADDR only permits to listen where old connections linger; Windows lets others take the port."""
    renames_open_files: ClassVar[bool] = True
    """Whether a file can be renamed and removed while a program has it open."""
    has_owner_ids: ClassVar[bool] = True
    """Whether files and processes have numeric owners and modes."""

    # Users

    @abstractmethod
    def is_privileged(self) -> bool:
        """Whether this process is root's, or has an administrator's rights."""

    @abstractmethod
    def user(self) -> str:
        """The user of this process, for messages: `uid 1000`."""

    @abstractmethod
    def user_id(self) -> int | None:
        """The effective uid of this process, where users have numbers."""

    def is_own(self, status: os.stat_result) -> bool:
        """Whether a file or directory belongs to this process's user, where owners are numbers."""
        return not self.has_owner_ids or status.st_uid == self.user_id()

    # Places

    @abstractmethod
    def configuration_file(self, environment: Mapping[str, str]) -> Path:
        """The default path of the configuration file for the current user."""

    @abstractmethod
    def user_state(self, environment: Mapping[str, str]) -> Path:
        """The directory for what this user's agent and shell keep."""

    @property
    @abstractmethod
    def system_state(self) -> Path:
        """The state directory of the system's agent."""

    @property
    @abstractmethod
    def system_control(self) -> Path:
        """The control address of the system's agent."""

    @abstractmethod
    def user_control(self, environment: Mapping[str, str], state: Path) -> Path:
        """The control address of a user's agent; `state` is its default state directory."""

    @abstractmethod
    def control_of(self, state: Path) -> Path:
        """The control address of an agent whose state directory was chosen."""

    def control_setting(self, address: str) -> Path:
        """The control address that the configuration sets."""
        return Path(address).expanduser().absolute()

    @property
    def memory_directory(self) -> Path | None:
        """A directory for temporary files in memory, if the system has one."""
        return None

    def state_directory(self, environment: Mapping[str, str]) -> Path:
        """The default state directory for the current user."""
        return self.system_state if self.is_privileged() else self.user_state(environment)

    # Paths in statements and access rules

    has_root: ClassVar[bool] = True
    """Whether all paths begin at one directory, `/`, and backslashes are ordinary characters."""
    path_start: ClassVar[str] = "/"
    """How an absolute path begins, for messages."""
    ignores_case: ClassVar[bool] = False
    """Whether a file answers to its name in capitals and small letters."""

    def inner_path(self, path: str) -> str:
        """A path or pattern with slashes, as access rules and the path gate have it; absolute ones begin with one."""
        return path

    def shown_path(self, path: str) -> str:
        """The inverse: the path as people write it."""
        return path

    def native_path(self, path: str) -> str:
        """What the system opens for an absolute path with slashes. Raises FileNotFoundError if it names nothing."""
        return path

    def comparable_path(self, path: str) -> str:
        """The form in which access rules and paths are compared."""
        return path.lower() if self.ignores_case else path

    def names_of(self, path: str) -> tuple[str, ...]:
        """All names that the system itself gives to a path in its comparable form, by its own links."""
        return (path,)

    def link_target(self, directory: str, target: str) -> str | None:
        """The path that a link in a directory leads to, with slashes; None if it leaves the host's own file systems."""
        return posixpath.join(directory, target)

    @abstractmethod
    def opened_path(self, descriptor: int) -> str:
        """The path of an open file as the system names it, with slashes. Raises OSError if it has none."""

    def change_time_ns(self, descriptor: int, status: os.stat_result) -> int:
        """When an open file last changed in any way; nobody can set that time. Raises OSError."""
        return status.st_ctime_ns

    # The machine

    @abstractmethod
    def machine_id(self) -> str | None:
        """An id of this installation that a clone does not share: 32 hexadecimal digits; None if there is none."""

    def boot_id(self) -> str:
        """The name of this boot; empty if it has none. Raises OSError."""
        return ""

    @abstractmethod
    def boot_nanoseconds(self) -> int:
        """Time since boot, including suspension."""

    @abstractmethod
    def os_name(self) -> str:
        """The name and version of the operating system for people: `Debian GNU/Linux 12 (bookworm)`."""

    # Locks

    @abstractmethod
    def acquire_lock(self, path: Path, legacy_directory: Path | None = None, holder: int | None = None) -> FileLock:
        """Lock the file at `path`, which is created if it does not exist.

        `legacy_directory` is the directory that older versions locked instead: an agent that holds it is respected, and
        it is locked too where possible, which excludes older versions that start later. `holder` is the process that
        the lock names, if not this one. Raises LockHeldError when another agent holds the lock, and OSError.
        """

    @abstractmethod
    def is_lock_held(self, path: Path) -> bool:
        """Whether a process holds the lock of the file at `path`, without taking it. Raises OSError, but not if there
        is no file."""

    @abstractmethod
    def lock_directory(self, directory: Path) -> FileLock:
        """Lock a private directory itself. Raises BlockingIOError if another process has, and OSError."""

    @abstractmethod
    def directory_exposure(self, directory: Path) -> str | None:
        """Why users other than the agent's and administrators control the files in a directory; None if they do not.

        Raises OSError.
        """

    @abstractmethod
    def group_exposure(self, directory: Path) -> str | None:
        """The same for the directory's group. Raises OSError."""

    def configuration_exposure(self, file: Path) -> str | None:
        """Why others than those whose configuration it is can write the one at its default path. Raises OSError."""
        return None

    # Private files

    @abstractmethod
    def make_private_directory(self, directory: Path, mode: int = 0o700) -> None:
        """Create a directory, with its parents, in which only this user and administrators can read files.

        An existing one is left as it is. Where modes decide, `mode` does. Raises OSError.
        """

    def make_temporary_directory(self, prefix: str, base: Path) -> Path:
        """Create such a directory in `base`, with a name that begins with the prefix. Raises OSError."""
        import tempfile

        return Path(tempfile.mkdtemp(prefix=prefix, dir=base))

    @abstractmethod
    def open_private(self, file: Path, flags: int) -> int:
        """open(2), where a new file can be opened by this user and administrators only; an existing one stays as it is.

        Raises OSError.
        """

    def make_private_file(self, file: Path) -> None:
        """Create such a file, empty, if it does not exist. Raises OSError."""
        os.close(self.open_private(file, os.O_RDWR | os.O_CREAT))

    @abstractmethod
    def protect_file(self, file: Path) -> None:
        """Permit an existing file's use to its owner and administrators only. Raises OSError."""

    @abstractmethod
    def sync_directory(self, directory: Path) -> None:
        """Have the names in a directory on the disk, where a program can see to that. Raises OSError."""

    @abstractmethod
    def file_system_bytes(self, place: Path | int) -> int:
        """Size of the file system of a path or, where that is possible, of an open directory. Raises OSError."""

    # The program

    @abstractmethod
    def catch_stop_signals(self, loop: asyncio.AbstractEventLoop, stop: Callable[[str], None]) -> Callable[[], None]:
        """Call `stop` in the loop with the name of each signal to end; returns what restores the former handling."""

    @property
    @abstractmethod
    def hangup_signal(self) -> int | None:
        """The signal on which a program reloads its configuration; None on systems without one."""

    @abstractmethod
    def has_terminal(self) -> bool:
        """Whether the process has a controlling terminal."""

    @abstractmethod
    def has_typed_input(self) -> bool:
        """Whether input of the terminal waits to be read, as while a text is pasted."""

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """`asyncio.run`, with the event loop that the agent needs."""
        import asyncio

        return asyncio.run(work)

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """An event loop as `run` has it."""
        import asyncio

        return asyncio.new_event_loop()

    def allow_open_files(self, wanted: int) -> None:  # noqa: B027
        """Raise the soft limit on open files to that number, as far as the hard limit permits, where there is one."""

    def set_thread_niceness(self, niceness: int) -> None:  # noqa: B027
        """Set the calling thread's nice value, where threads have one. Raises PermissionError."""

    def share_heap(self) -> None:  # noqa: B027 - nothing to do on most systems
        """Let all threads share one heap; to be called before there are any."""

    def trim_heap(self) -> None:  # noqa: B027
        """Return freed memory to the system."""

    # Control connections

    @property
    @abstractmethod
    def control(self) -> ControlTransport:
        """How commands and a running agent are connected."""


def of(key: str) -> Platform:
    """The platform with that key, which need not be the one that the program runs on; Linux for any other Unix."""
    platform: Platform = import_module(f"{__name__}.{_MODULES.get(key, 'linux')}").PLATFORM
    return platform


_MODULES: Final = {"linux": "linux", "darwin": "darwin", "win32": "windows"}
KEYS: Final = tuple(_MODULES)
"""The keys of all platforms, as tables declare them."""
HERE: Final = of(sys.platform)
