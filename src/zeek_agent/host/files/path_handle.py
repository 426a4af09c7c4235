"""An open component of a path, and the users who may read it by its permissions and those of its parents."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from zeek_agent.host.files.statx import FileStatus
from zeek_agent.host.linux.mounts import Mount


class PathHandle:
    """One component of a path, open by an `O_PATH` descriptor that is closed with the last reference."""

    __slots__ = ("depth", "descriptor", "mount", "name", "parent", "path", "status")

    def __init__(self, descriptor: int, status: FileStatus, mount: Mount, name: str, parent: PathHandle | None) -> None:
        self.descriptor = descriptor
        self.status = status
        self.mount = mount
        self.name = name
        self.parent = parent
        self.path: str = name if parent is None else joined(parent, name)
        """Absolute, with all links resolved, in the form of `os.fsdecode`."""
        self.depth: int = 0 if parent is None else parent.depth + 1

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def ancestors(self) -> Iterator[PathHandle]:
        """The parent directories, the nearest first."""
        handle = self.parent
        while handle is not None:
            yield handle
            handle = handle.parent

    def path_in_file_system(self) -> str:
        """The path from the root of its file system, whichever part of it is mounted."""
        names: list[str] = []
        handle = self
        while handle.parent is not None and handle.parent.status.mount == handle.status.mount:
            names.append(handle.name)
            handle = handle.parent
        return "/".join((self.mount.root.rstrip("/"), *reversed(names))) or "/"


def joined(directory: PathHandle, name: str) -> str:
    return f"/{name}" if directory.parent is None else f"{directory.path}/{name}"


def readable_by_all(handle: PathHandle) -> bool:
    """Whether every local user may read a file: by its own mode, and by those of the directories above it."""
    return bool(handle.status.mode & stat.S_IROTH) and all(
        directory.status.mode & stat.S_IXOTH for directory in handle.ancestors()
    )


def belongs_there(handle: PathHandle) -> bool:
    """Whether no user can have moved another user's secret here, by a link or by renaming a directory above it.

    That is the case if only root and the file's owner can write to them, groups aside, and if the only other user who
    can write may read the file anywhere.
    """
    above = [directory.status for directory in handle.ancestors()]
    if any(directory.mode & stat.S_IWOTH for directory in above):
        return False
    others = {directory.uid for directory in above} - {0, handle.status.uid}
    if not others:
        return True
    reachable = all(directory.uid in others or directory.mode & stat.S_IXOTH for directory in above)
    return len(others) == 1 and reachable and handle.status.links == 1 and bool(handle.status.mode & stat.S_IROTH)


def users_can_rename(directory: PathHandle) -> bool:
    """Whether anyone but root may be able to rename a directory, or one above it."""
    return any(
        each.status.uid != 0 or (each.status.mode & stat.S_IWOTH and not each.status.mode & stat.S_ISVTX)
        for each in (directory, *directory.ancestors())
    )


def user_of(handle: PathHandle) -> int:
    """The user whose directory contains a file: the owner of the topmost one that is not root's, or of the file."""
    user = handle.status.uid
    for directory in handle.ancestors():
        user = directory.status.uid or user
    return user or 0
