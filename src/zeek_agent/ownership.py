"""File ownership: log files readable only by their owner or one group, and paths that nobody else can replace.

The agent runs as root in directories that other users may be able to write to. What it finds there is trusted only if
it belongs to root or to the agent's own user; so are the symbolic links on the way.
"""

# ruff: noqa: PTH116
# Works on descriptors of directories, which pathlib does not support.

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Final


def open_flags(*names: str) -> int:
    """Flags of open(2), those of them that this system has."""
    return reduce(or_, (getattr(os, f"O_{name}", 0) for name in names))


LOG_MODE: Final = 0o600
LOG_MODE_GROUP: Final = 0o640
"""Mode of a log file in a setgid directory: the administrator wants the directory's group to read it."""

LINKS_MAX: Final = 40
"""Symbolic links on the path to a file, as many as Linux follows."""


_CAN_WALK: Final = hasattr(os, "O_PATH")
"""On other systems only the file itself is checked."""
_DIRECTORY: Final = open_flags("PATH", "DIRECTORY", "CLOEXEC")
_LOOK: Final = open_flags("PATH", "NOFOLLOW", "CLOEXEC")
_APPEND: Final = open_flags("WRONLY", "APPEND", "CLOEXEC", "BINARY")
_UNAMBIGUOUS: Final = open_flags("NOFOLLOW", "NONBLOCK")
"""Do not follow a link, or wait for the reader of a pipe."""
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
_OWN_DESCRIPTORS: Final = "/proc/self/fd"


class UntrustedError(PermissionError):
    """The file at a path may be another user's; the message is the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(errno.EPERM, f"it may be another user's: {reason}", str(path))
        self.reason = reason


@dataclass(slots=True)
class _Place:
    """The directory of a path's last component, and that component."""

    path: Path
    name: str
    descriptor: int | None = None
    """Descriptor of the directory; None if the system has no O_PATH, and `name` is the whole path."""
    reason: str | None = None
    """Why users other than root and the agent's could replace the file; None if nobody can."""

    def enter(self, directory: int) -> None:
        """Continue in that directory, and record whether others could replace its files."""
        self.leave()
        self.descriptor = directory
        status = os.fstat(directory)
        mode = stat.S_IMODE(status.st_mode)
        if not is_trusted(status.st_uid):
            self.reason = f"a directory on the path belongs to uid {status.st_uid}"
        elif mode & _WRITABLE_BY_OTHERS and not mode & stat.S_ISVTX:
            self.reason = f"a directory on the path is writable by others (mode {mode:04o})"

    def leave(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def create_log(path: Path) -> int:
    """A descriptor of a new log file, with its mode independent of the umask. Raises OSError, also if it exists."""
    with _place(path, follow_last=False) as place:
        return _create(place)


def open_log(path: Path) -> int:
    """A descriptor that appends to a log file. Creates it if necessary, and removes bits not in `LOG_MODE_GROUP`.

    Raises UntrustedError for a file that another user owns or may have linked or put there, and OSError.
    """
    with _place(path, follow_last=True) as place:
        try:
            return _append(place)
        except FileNotFoundError:
            return _create(place)


def open_directory(path: Path) -> int:
    """A descriptor of a directory, for its files. Raises UntrustedError for another user's link to it, and OSError."""
    with _place(path / "_", follow_last=False) as place:
        flags = os.O_RDONLY | open_flags("DIRECTORY", "CLOEXEC")
        return os.open(path if place.descriptor is None else ".", flags, dir_fd=place.descriptor)


def read_log(path: Path) -> int:
    """A descriptor that reads an existing regular file. Raises OSError."""
    return os.open(path, os.O_RDONLY | open_flags("CLOEXEC", "BINARY") | _UNAMBIGUOUS)


def narrow_log(descriptor: int) -> None:
    """Remove the bits of a log file's mode that are not in `LOG_MODE_GROUP`. Raises OSError.

    A file with a second link is not changed, because something else may need that.
    """
    status = os.fstat(descriptor)
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and mode & ~LOG_MODE_GROUP:
        set_mode(descriptor, mode & LOG_MODE_GROUP)


def distrusted(path: Path) -> str | None:
    """Why the file at the path may be, or may be replaced by, another user's; None if it is root's or the agent's.

    A directory with the sticky bit (`/tmp`) protects its files from other users. Raises OSError if nothing is there.
    """
    try:
        with _place(path, follow_last=True) as place:
            owner = os.stat(place.name, dir_fd=place.descriptor, follow_symlinks=False).st_uid
            return place.reason if is_trusted(owner) else f"it belongs to uid {owner}"
    except UntrustedError as error:
        return error.reason


def is_trusted(uid: int) -> bool:
    """Whether the uid is root's or that of the agent's own user."""
    return uid in (0, os.geteuid() if hasattr(os, "geteuid") else 0)


@contextmanager
def _place(path: Path, *, follow_last: bool) -> Iterator[_Place]:
    """Walk to the directory of a path's last component, one name at a time, so that the checked directories are used.

    Raises OSError that names the path; UntrustedError for another user's symbolic link.
    """
    place = _Place(path, str(path.absolute()))
    try:
        if _CAN_WALK:
            _walk(place, follow_last=follow_last)
        yield place
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        place.leave()


def _walk(place: _Place, *, follow_last: bool) -> None:
    left = list(reversed(place.path.absolute().parts[1:]))
    links = 0
    place.enter(os.open("/", _DIRECTORY))
    while left:
        place.name = left.pop()
        if not left and (not follow_last or _is_own_descriptor(place)):
            return
        try:
            found = os.open(place.name, _LOOK, dir_fd=place.descriptor)
        except FileNotFoundError:
            if left:
                raise
            return
        status = os.fstat(found)
        if left and not stat.S_ISLNK(status.st_mode):
            place.enter(found)
            continue
        try:
            if not stat.S_ISLNK(status.st_mode):
                return
            links += 1
            if links > LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            target = _target(place, status, found)
        finally:
            os.close(found)
        if target.is_absolute():
            target = target.relative_to("/")
            place.enter(os.open("/", _DIRECTORY))
        left += reversed(target.parts)


def _target(place: _Place, status: os.stat_result, link: int) -> Path:
    """The target of a symbolic link, if it may be followed."""
    if not is_trusted(status.st_uid):
        raise UntrustedError(place.path, f"the symbolic link {place.name} on the path belongs to uid {status.st_uid}")
    if place.reason is not None:
        raise UntrustedError(place.path, f"{place.name} is a symbolic link, and {place.reason}")
    return Path(os.readlink("", dir_fd=link))


def _is_own_descriptor(place: _Place) -> bool:
    """Whether the name is one of this process's own descriptors, like the target of /dev/stdout."""
    try:
        return place.descriptor is not None and os.path.samestat(os.fstat(place.descriptor), os.stat(_OWN_DESCRIPTORS))
    except FileNotFoundError:
        return False


def _create(place: _Place) -> int:
    directory = os.stat(place.path.absolute().parent if place.descriptor is None else place.descriptor)
    mode = LOG_MODE_GROUP if directory.st_mode & stat.S_ISGID else LOG_MODE
    made = os.open(place.name, _APPEND | os.O_CREAT | os.O_EXCL, mode, dir_fd=place.descriptor)
    try:
        set_mode(made, mode)
    except OSError:
        os.close(made)
        raise
    return made


def _append(place: _Place) -> int:
    own = _is_own_descriptor(place)
    found = os.open(place.name, _APPEND if own else _APPEND | _UNAMBIGUOUS, dir_fd=place.descriptor)
    try:
        if not own:
            _require_own(place, os.fstat(found))
        narrow_log(found)
        if hasattr(os, "set_blocking") and _UNAMBIGUOUS:
            os.set_blocking(found, True)
    except OSError:
        os.close(found)
        raise
    return found


def set_mode(descriptor: int, mode: int) -> None:
    """Set an open file's mode, where files have one. Raises OSError."""
    if hasattr(os, "fchmod"):
        os.fchmod(descriptor, mode)


def _require_own(place: _Place, status: os.stat_result) -> None:
    if not is_trusted(status.st_uid):
        raise UntrustedError(place.path, f"it belongs to uid {status.st_uid}")
    if place.reason is not None and stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
        raise UntrustedError(place.path, f"it has another hard link, and {place.reason}")
