"""Whose files are: log files that only their owner, or one group, can read, and paths that nobody else can replace.

The agent runs as root in directories that other users may be able to write to. What it finds there is trusted only if
it belongs to root or to the agent's own user; so are the symbolic links on the way.
"""

# ruff: noqa: PTH116
# Works on descriptors of directories, which pathlib does not know.

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LOG_MODE: Final = 0o600
LOG_MODE_GROUP: Final = 0o640
"""Of a log file in a directory that hands its group on (setgid): the administrator means that group to read it."""

LINKS_MAX: Final = 40
"""Symbolic links on the way to a file, as many as Linux follows."""

_CAN_WALK: Final = hasattr(os, "O_PATH")
_PATH: Final = getattr(os, "O_PATH", 0)
_DIRECTORY: Final = _PATH | os.O_DIRECTORY | os.O_CLOEXEC
_LOOK: Final = _PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_APPEND: Final = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
_UNAMBIGUOUS: Final = os.O_NOFOLLOW | os.O_NONBLOCK
"""Neither a link nor a pipe without a reader, which would be waited for."""
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
_OWN_DESCRIPTORS: Final = "/proc/self/fd"


class UntrustedError(PermissionError):
    """What is at a path may be somebody else's, for this reason."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(errno.EPERM, f"it may be another user's: {reason}", str(path))
        self.reason = reason


@dataclass(slots=True)
class _Place:
    """The directory in which a path ends, and the name there. `descriptor` is of the directory."""

    path: Path
    descriptor: int
    name: str
    reason: str | None = None
    """Why others than root and the agent's user could put something else at the path; None if nobody can."""

    def look(self) -> None:
        """Note whether others could replace what is in the directory."""
        status = os.fstat(self.descriptor)
        mode = stat.S_IMODE(status.st_mode)
        if not is_trusted(status.st_uid):
            self.reason = f"a directory on the way to it belongs to uid {status.st_uid}"
        elif mode & _WRITABLE_BY_OTHERS and not mode & stat.S_ISVTX:
            self.reason = f"a directory on the way to it can be written by others (mode {mode:04o})"


def create_log(path: Path) -> int:
    """A descriptor of a new log file, with its mode set whatever the umask is. Raises OSError, also if it is there."""
    with _place(path, follow_last=False) as place:
        return _create(place)


def open_log(path: Path) -> int:
    """A descriptor that appends to a log file, which is made if need be, and loses what `LOG_MODE_GROUP` lacks.

    Raises UntrustedError for a file that another user owns or may have linked or put there, and OSError.
    """
    with _place(path, follow_last=True) as place:
        try:
            return _append(place)
        except FileNotFoundError:
            return _create(place)


def narrow_log(descriptor: int) -> None:
    """Take from a log file's mode what `LOG_MODE_GROUP` lacks. Raises OSError.

    A file with a second name is left alone: somebody else may need it under that.
    """
    status = os.fstat(descriptor)
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and mode & ~LOG_MODE_GROUP:
        os.fchmod(descriptor, mode & LOG_MODE_GROUP)


def distrusted(path: Path) -> str | None:
    """Why what is at the path may be, or may be replaced by, another user's; None if it is root's or the agent's.

    A directory with the sticky bit (`/tmp`) keeps what is there from others. Raises OSError when there is nothing.
    """
    try:
        with _place(path, follow_last=True) as place:
            owner = os.stat(place.name, dir_fd=place.descriptor, follow_symlinks=False).st_uid
            return place.reason if is_trusted(owner) else f"it belongs to uid {owner}"
    except UntrustedError as error:
        return error.reason


def is_trusted(uid: int) -> bool:
    """Whether it is root's number or that of the agent's own user."""
    return uid in (0, os.geteuid())


@contextmanager
def _place(path: Path, *, follow_last: bool) -> Iterator[_Place]:
    """Walk to the directory that a path ends in, one name at a time, so that what was looked at is what is used.

    Raises OSError that names the path; UntrustedError for a symbolic link of somebody else.
    """
    start = path.absolute().parent if not _CAN_WALK else "/"
    place = _Place(path, os.open(start, _DIRECTORY), path.name)
    try:
        place.look()
        if _CAN_WALK:  # elsewhere only the file itself and its directory are looked at
            _walk(place, follow_last=follow_last)
        yield place
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(place.descriptor)


def _walk(place: _Place, *, follow_last: bool) -> None:
    left = list(reversed(place.path.absolute().parts[1:]))
    links = 0
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
        try:
            status = os.fstat(found)
            if stat.S_ISLNK(status.st_mode):
                links += 1
                if links > LINKS_MAX:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                target = _target(place, status, found)
                left += reversed(target.relative_to("/").parts if target.is_absolute() else target.parts)
                if target.is_absolute():
                    found, place.descriptor = place.descriptor, os.open("/", _DIRECTORY)
            elif left:
                found, place.descriptor = place.descriptor, found
                place.look()
        finally:
            os.close(found)


def _target(place: _Place, status: os.stat_result, link: int) -> Path:
    """Where a symbolic link leads, if it may be followed."""
    if not is_trusted(status.st_uid):
        raise UntrustedError(
            place.path, f"the symbolic link {place.name} on the way to it belongs to uid {status.st_uid}"
        )
    if place.reason is not None:
        raise UntrustedError(place.path, f"{place.name} is a symbolic link, and {place.reason}")
    return Path(os.readlink("", dir_fd=link))


def _is_own_descriptor(place: _Place) -> bool:
    """Whether the name is one of this process's own descriptors, as /dev/stdout leads to."""
    try:
        return os.path.samestat(os.fstat(place.descriptor), os.stat(_OWN_DESCRIPTORS))
    except FileNotFoundError:
        return False


def _create(place: _Place) -> int:
    mode = LOG_MODE_GROUP if os.fstat(place.descriptor).st_mode & stat.S_ISGID else LOG_MODE
    made = os.open(place.name, _APPEND | os.O_CREAT | os.O_EXCL, mode, dir_fd=place.descriptor)
    try:
        os.fchmod(made, mode)
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
        os.set_blocking(found, True)
    except OSError:
        os.close(found)
        raise
    return found


def _require_own(place: _Place, status: os.stat_result) -> None:
    if not is_trusted(status.st_uid):
        raise UntrustedError(place.path, f"it belongs to uid {status.st_uid}")
    if place.reason is not None and stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
        raise UntrustedError(place.path, f"it has another name (hard link), and {place.reason}")
