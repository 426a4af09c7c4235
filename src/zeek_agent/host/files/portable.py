"""The path gate for systems without O_PATH descriptors (macOS, Windows).

It looks paths up by their names, so what it lists may be exchanged meanwhile. What is opened is decided by the open
file: the rules apply to the path that the system gives for its descriptor, and files with several hard links are
compared with the denied ones by device and inode. Mounts are not considered.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Final

from zeek_agent import platforms
from zeek_agent.access import AccessPolicy, Contents, ShownFiles
from zeek_agent.host.files import path_handle
from zeek_agent.host.files.file_rules import Listed, RefusedError, content_refusal
from zeek_agent.host.files.gate import OpenedFile, Purpose
from zeek_agent.host.files.path_handle import PathHandle
from zeek_agent.host.files.reads import FileReads, Omission
from zeek_agent.host.files.statx import FileStatus
from zeek_agent.host.linux.mounts import Mount
from zeek_agent.text import from_os

LINKS_MAX: Final = 40
"""Links on the path to a file."""
_ENTRIES_PER_READ: Final = 256
"""Directory entries between checks of the statement's limits."""
_NO_DESCRIPTOR: Final = -1
_UNKNOWN_MOUNT: Final = Mount(0, "", "/", "/", "")
_SYMBOLIC_LINK: Final = 0xA000_000C
_JUNCTION: Final = 0xA000_0003
"""IO_REPARSE_TAG_SYMLINK and IO_REPARSE_TAG_MOUNT_POINT."""
_LEADS_ELSEWHERE: Final = 0x2000_0000
"""The bit of all tags of files that stand for other ones."""
_OWNED: Final = hasattr(os, "getuid")
_READ_FLAGS: Final = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_NOINHERIT", 0)
)


class PortableGate:
    """Walks and opens paths for one statement, as `gate.Gate` does on Linux."""

    def __init__(self, access: AccessPolicy, reads: FileReads, shown: ShownFiles | None = None) -> None:
        self._access = access
        self._shown = shown
        self.reads = reads
        self.root = self._handle_at("/", None)

    def walk(self, start: PathHandle, path: str) -> PathHandle:
        return self._handle_at(posixpath.normpath(posixpath.join(start.path, path)), start)

    def enter(self, directory: PathHandle, name: str) -> PathHandle:
        path = posixpath.normpath(posixpath.join(directory.path, name))
        status = _status(os.lstat(platforms.HERE.native_path(path)))
        return self._handle(path, status, directory)

    def entry_status(self, directory: PathHandle, name: str) -> FileStatus:
        return _status(os.lstat(platforms.HERE.native_path(posixpath.join(directory.path, name))))

    def statuses(self, directory: PathHandle, names: Iterable[str], links: Collection[str]) -> Iterator[Listed]:
        for name in names:
            path = posixpath.join(directory.path, name)
            try:
                demand_local(path)
                yield name, _status(Path(platforms.HERE.native_path(path)).stat())
            except (OSError, RefusedError):
                try:
                    yield name, _status(Path(platforms.HERE.native_path(path)).lstat())
                except FileNotFoundError:
                    continue
                except OSError as error:
                    yield name, error

    def entries(self, directory: PathHandle, check: Callable[[], None]) -> Iterator[list[os.DirEntry[str]]]:
        if directory is self.root and not platforms.HERE.has_root:
            return  # drives are entered by name only: each may be a disk that has to be woken up
        with os.scandir(platforms.HERE.native_path(directory.path)) as entries:
            while some := list(islice(entries, _ENTRIES_PER_READ)):
                check()
                yield some

    def reports_types(self, directory: PathHandle) -> bool:
        return True

    def working_directory(self) -> PathHandle:
        return self._handle_at(platforms.HERE.inner_path(str(Path.cwd())), None)

    def open_regular(self, handle: PathHandle, written: str, purpose: Purpose) -> OpenedFile | None:
        if not stat.S_ISREG(handle.status.mode):
            return None
        demand_local(handle.path)
        resolved = os.path.realpath(platforms.HERE.native_path(handle.path))
        names = (from_os(written), from_os(platforms.HERE.inner_path(resolved)))
        self._demand_readable(*names)
        file = FileIO(os.open(resolved, _READ_FLAGS))
        try:
            return self._checked(file, names, purpose)
        except BaseException:
            file.close()
            raise

    def open_executable(self, process: PathHandle) -> OpenedFile | None:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), process.path)

    def is_process(self, directory: PathHandle) -> bool:
        return False

    def _checked(self, file: FileIO, names: tuple[str, str], purpose: Purpose) -> OpenedFile | None:
        """The open file, if the rules permit it by what it is. Raises RefusedError and OSError."""
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            file.close()
            return None
        path = platforms.HERE.opened_path(file.fileno())
        if not os.path.samestat(status, os.lstat(platforms.HERE.native_path(path))):
            raise RefusedError("it was exchanged while it was opened")
        handle = self._real_handle(path)
        self._demand_readable(*names, from_os(handle.path))
        if status.st_nlink != 1 and _identity(status) in self._denied_objects:
            raise RefusedError("a hard link to a file denied by access.paths_deny, or to one of the agent's own")
        listed = self._access.contents(from_os(handle.path), self._shown)
        if purpose is Purpose.CONTENTS and listed is not Contents.CONFIGURED:
            self._demand_contents(handle, names[0], listed)
        return OpenedFile(file, masks_keys=listed is not Contents.CONFIGURED)

    def _demand_readable(self, *names: str) -> None:
        if not all(map(self._access.may_read, names)):
            raise RefusedError("denied by access.paths_deny or not in access.paths_allow")

    def _demand_contents(self, handle: PathHandle, written: str, listed: Contents) -> None:
        """Where files have no modes, only what is configured may be shown."""
        has_modes = platforms.HERE.has_owner_ids
        cause = content_refusal(
            listed,
            readable_by_all=has_modes and path_handle.readable_by_all(handle),
            belongs_there=has_modes and path_handle.belongs_there(handle),
        )
        if cause is not None and not self._access.reports_only:
            raise RefusedError(cause)
        if cause is not None:
            self.reads.leave_out(Omission.REPORTED, written, cause)

    @cached_property
    def _denied_objects(self) -> frozenset[tuple[int, int]]:
        """Device and inode of the literal denied paths, and of the agent's own files."""
        found: set[tuple[int, int]] = set()
        for path in (*self._access.literals, *self._access.protected):
            with suppress(OSError):  # missing, or not accessible: no hard link of it can be opened either
                place = Path(platforms.HERE.native_path(platforms.HERE.inner_path(path)))
                found.add(_identity(place.stat()))
                for entry in place.iterdir() if path in self._access.protected else ():
                    with suppress(OSError):
                        found.add(_identity(entry.stat()))
        return frozenset(found)

    def _real_handle(self, path: str) -> PathHandle:
        """The file at a path without links, with all directories above it. Raises OSError."""
        handle, at = self.root, ""
        for name in path.split("/")[1:]:
            at = f"{at}/{name}"
            handle = self._handle(at, _status(os.lstat(platforms.HERE.native_path(at))), handle)
        return handle

    def _handle_at(self, path: str, parent: PathHandle | None) -> PathHandle:
        demand_local(path)
        native = path if path == "/" else platforms.HERE.native_path(path)
        return self._handle(path, _status(os.stat(native)), parent)  # noqa: PTH116

    def _handle(self, path: str, status: FileStatus, parent: PathHandle | None) -> PathHandle:
        handle = PathHandle(_NO_DESCRIPTOR, status, _UNKNOWN_MOUNT, path, None)
        handle.parent = parent
        return handle


def demand_local(
    path: str,
    lstat: Callable[[str], os.stat_result] = os.lstat,
    readlink: Callable[[str], str] = os.readlink,
) -> None:
    """Raises RefusedError if a link on the path leads off the drives of a system that has them.

    To follow it there would send the agent's credentials to a server that whoever made the link has chosen. Raises
    OSError.
    """
    if platforms.HERE.has_root:
        return
    place, left, links = "/", _names(path), 0
    while left:
        at = posixpath.join(place, left.pop())
        native = platforms.HERE.native_path(at)
        tag = getattr(lstat(native), "st_reparse_tag", 0)
        if not tag & _LEADS_ELSEWHERE:
            place = at
            continue
        links += 1
        target = platforms.HERE.link_target(place, readlink(native)) if tag in {_SYMBOLIC_LINK, _JUNCTION} else None
        if target is None or links > LINKS_MAX:
            raise RefusedError("a link on the path does not lead to a directory or file of this host's drives")
        place, left = "/", [*left, *_names(target)]


def _names(path: str) -> list[str]:
    """The components of an absolute path, the last one first."""
    return [name for name in reversed(path.split("/")) if name]


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _status(found: os.stat_result) -> FileStatus:
    """`mode` is a link's for everything that leads to another place, such as Windows' junctions."""
    seconds, nanoseconds = divmod(found.st_mtime_ns, 10**9)
    return FileStatus(
        mask=0,
        block_size=0,
        links=found.st_nlink,
        uid=found.st_uid if _OWNED else None,
        gid=found.st_gid if _OWNED else None,
        mode=stat.S_IFLNK if getattr(found, "st_reparse_tag", 0) == _JUNCTION else found.st_mode,
        inode=found.st_ino,
        size=found.st_size,
        atime_seconds=int(found.st_atime),
        ctime_seconds=int(found.st_ctime),
        mtime_seconds=seconds,
        mtime_nanoseconds=nanoseconds,
        special_major=0,
        special_minor=0,
        device_major=0,
        device_minor=0,
        mount=0,
    )
