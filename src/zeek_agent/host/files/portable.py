"""The path gate for systems without O_PATH descriptors (macOS, Windows): it resolves paths, and so has races.

The rules are those of `file_rules`, without mounts and hard links.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Final

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
_OWNED: Final = hasattr(os, "getuid")


class PortableGate:
    """Walks and opens paths for one statement, as `gate.Gate` does on Linux."""

    def __init__(self, access: AccessPolicy, reads: FileReads, shown: ShownFiles | None = None) -> None:
        self._access = access
        self._shown = shown
        self.reads = reads
        self.root = self._handle_at("/", None)

    def walk(self, start: PathHandle, path: str) -> PathHandle:
        return self._handle_at(os.path.normpath(f"{start.path}/{path}"), start)

    def enter(self, directory: PathHandle, name: str) -> PathHandle:
        return self.walk(directory, name)

    def entry_status(self, directory: PathHandle, name: str) -> FileStatus:
        return _status(os.lstat(f"{directory.path}/{name}"))

    def statuses(self, directory: PathHandle, names: Iterable[str], links: Collection[str]) -> Iterator[Listed]:
        for name in names:
            path = Path(directory.path, name)
            try:
                yield name, _status(path.stat())
            except OSError:
                try:
                    yield name, _status(path.lstat())
                except FileNotFoundError:
                    continue
                except OSError as error:
                    yield name, error

    def entries(self, directory: PathHandle, check: Callable[[], None]) -> Iterator[list[os.DirEntry[str]]]:
        with os.scandir(directory.path) as entries:
            while some := list(islice(entries, _ENTRIES_PER_READ)):
                check()
                yield some

    def reports_types(self, directory: PathHandle) -> bool:
        return True

    def working_directory(self) -> PathHandle:
        return self._handle_at(str(Path.cwd()), None)

    def open_regular(self, handle: PathHandle, written: str, purpose: Purpose) -> OpenedFile | None:
        if not stat.S_ISREG(handle.status.mode):
            return None
        resolved = os.path.realpath(handle.path)
        names = (from_os(written), from_os(resolved))
        if not all(map(self._access.may_read, names)):
            raise RefusedError("denied by access.paths_deny or not in access.paths_allow")
        listed = self._access.contents(names[1], self._shown)
        if purpose is Purpose.CONTENTS and listed is not Contents.CONFIGURED:
            public = bool(handle.status.mode & stat.S_IROTH)
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
        handle = PathHandle(_NO_DESCRIPTOR, _status(os.stat(path)), _UNKNOWN_MOUNT, path, None)  # noqa: PTH116
        handle.parent = parent
        return handle


def _status(found: os.stat_result) -> FileStatus:
    seconds, nanoseconds = divmod(found.st_mtime_ns, 10**9)
    return FileStatus(
        mask=0,
        block_size=0,
        links=found.st_nlink,
        uid=found.st_uid if _OWNED else None,
        gid=found.st_gid if _OWNED else None,
        mode=found.st_mode,
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
