"""The path gate for systems without O_PATH descriptors (macOS, Windows): it resolves paths, and so has races.

The rules are those of `file_rules`, without mounts and hard links.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Final

from zeek_agent import platforms
from zeek_agent.access import AccessPolicy, Contents, ShownFiles
from zeek_agent.host.files.file_rules import Listed, RefusedError, content_refusal
from zeek_agent.host.files.gate import OpenedFile, Purpose
from zeek_agent.host.files.path_handle import PathHandle
from zeek_agent.host.files.reads import FileReads, Omission
from zeek_agent.host.files.statx import FileStatus
from zeek_agent.host.linux.mounts import Mount
from zeek_agent.text import from_os

_ENTRIES_PER_READ: Final = 256
"""Directory entries between checks of the statement's limits."""
_NO_DESCRIPTOR: Final = -1
_UNKNOWN_MOUNT: Final = Mount(0, "", "/", "/", "")
_JUNCTION: Final = 0xA000_0003
"""IO_REPARSE_TAG_MOUNT_POINT."""
_OWNED: Final = hasattr(os, "getuid")


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
                yield name, _status(Path(platforms.HERE.native_path(path)).stat())
            except OSError:
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
        resolved = os.path.realpath(platforms.HERE.native_path(handle.path))
        names = (from_os(written), from_os(platforms.HERE.inner_path(resolved)))
        if not all(map(self._access.may_read, names)):
            raise RefusedError("denied by access.paths_deny or not in access.paths_allow")
        listed = self._access.contents(names[1], self._shown)
        if purpose is Purpose.CONTENTS and listed is not Contents.CONFIGURED:
            public = platforms.HERE.has_owner_ids and bool(handle.status.mode & stat.S_IROTH)
            cause = content_refusal(listed, readable_by_all=public, belongs_there=True)
            if cause is not None and not self._access.reports_only:
                raise RefusedError(cause)
            if cause is not None:
                self.reads.leave_out(Omission.REPORTED, written, cause)
        file = FileIO(os.open(resolved, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)))
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            return None
        return OpenedFile(file, masks_keys=listed is not Contents.CONFIGURED)

    def open_executable(self, process: PathHandle) -> OpenedFile | None:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), process.path)

    def is_process(self, directory: PathHandle) -> bool:
        return False

    def _handle_at(self, path: str, parent: PathHandle | None) -> PathHandle:
        native = path if path == "/" else platforms.HERE.native_path(path)
        return self._handle(path, _status(os.stat(native)), parent)  # noqa: PTH116

    def _handle(self, path: str, status: FileStatus, parent: PathHandle | None) -> PathHandle:
        handle = PathHandle(_NO_DESCRIPTOR, status, _UNKNOWN_MOUNT, path, None)
        handle.parent = parent
        return handle


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
