"""Whether root alone controls what is at a path, where the system has no O_PATH to find out without a race."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

LINKS_MAX: Final = 32
"""Symbolic links on the path to a file, as many as macOS follows."""
_ROOT: Final = 0
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


def distrusted(path: Path, owner: int = _ROOT) -> str | None:
    """Why users other than `owner` could replace the file at an absolute path; None if nobody can.

    Everything on the path counts: directories, links, and what is on the paths that these lead through.
    """
    try:
        for place, status in _walk(path):
            if status.st_uid != owner:
                return f"{place} belongs to uid {status.st_uid}"
            is_sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
            if status.st_mode & _WRITABLE_BY_OTHERS and not is_sticky and not stat.S_ISLNK(status.st_mode):
                return f"{place} is writable by others (mode {stat.S_IMODE(status.st_mode):04o})"
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return None


def _walk(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Each directory, link and file on the path, with its status. Raises OSError."""
    place, names, links = Path(path.anchor), list(reversed(path.parts[1:])), 0
    yield place, place.lstat()
    while names:
        name = names.pop()
        if name == "..":
            place = place.parent
            continue
        at = place / name
        status = at.lstat()
        yield at, status
        if not stat.S_ISLNK(status.st_mode):
            place = at
            continue
        links += 1
        if links > LINKS_MAX:
            raise OSError(0, "too many symbolic links", str(path))
        target = at.readlink()
        if target.is_absolute():
            place = Path(target.anchor)
        names += reversed(target.parts[1:] if target.is_absolute() else target.parts)
