"""Reading text files of the host, whatever they turn out to be."""

# ruff: noqa: PTH100, PTH115, PTH116, PTH118, PTH123
# Works on descriptors and links, which pathlib does not know.

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import BinaryIO, Final

from zeek_agent.access import AccessPolicy
from zeek_agent.errors import AccessDeniedError
from zeek_agent.sources.mounts import Mount, mounts
from zeek_agent.text import from_os

log = logging.getLogger(__name__)

LONGEST_LINE: Final = 2 << 20
"""Bytes of a line that are kept; the rest of a longer one is left out, which is logged."""

_REPEAT_AFTER: Final = 3600.0
_REMEMBERED: Final = 1000
_skipped: dict[tuple[str, str], float] = {}


def lines(path: str, access: AccessPolicy, check: Callable[[], None] = lambda: None) -> Iterator[bytes]:
    """The lines of a regular file without their ends.

    A file that cannot or may not be read has no lines, which is logged (for the same file once an hour); so has what
    is no regular file, which is never opened. `path` is in the form of `os.fsdecode`.
    """
    try:
        file = open_regular(path, access)
        if file is None:
            return
        with file:
            yield from _lines(file, path, check)
    except AccessDeniedError as error:
        log_skip(path, str(error))
    except OSError as error:
        log_skip(path, error.strerror or str(error))


def open_regular(path: str, access: AccessPolicy) -> BinaryIO | None:
    """Open a regular file for reading, so that nothing but that can happen; None when it is no regular file.

    The file that is opened is the one that was looked at: a link that changes meanwhile does not lead elsewhere.
    Raises AccessDeniedError when the access rules deny the path, what it leads to or, below a bind mount, that file's
    path in its file system, and OSError.
    """
    _demand(access, os.path.abspath(path))
    if not hasattr(os, "O_PATH"):
        return _open_plainly(path, access)
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            return None
        link = f"/proc/self/fd/{place}"
        resolved = os.readlink(link)
        _demand(access, resolved)
        origin = _behind_bind_mount(place, resolved)
        if origin is not None and access.denies(from_os(origin)):
            raise AccessDeniedError(f"the access rules deny {from_os(origin)}, which is mounted there")
        return os.fdopen(os.open(link, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb")
    finally:
        os.close(place)


def _behind_bind_mount(place: int, path: str) -> str | None:
    """The path from the root of its file system, for what a mount of only a part of that shows; else None."""
    with open(f"/proc/self/fdinfo/{place}") as facts:
        mount_id = next(int(line.split()[1]) for line in facts if line.startswith("mnt_id:"))
    mount = _mounts_in(int(time.monotonic())).get(mount_id)
    if mount is None or mount.root == "/":
        return None
    return os.path.normpath(os.path.join(mount.root, os.path.relpath(path, mount.place)))


@lru_cache(maxsize=1)
def _mounts_in(_second: int) -> dict[int, Mount]:
    """The mounts by their number, read once a second."""
    return {mount.id: mount for mount in mounts()}


def _open_plainly(path: str, access: AccessPolicy) -> BinaryIO | None:
    """The same where descriptors of mere places do not exist (macOS, Windows)."""
    resolved = os.path.realpath(path)
    _demand(access, resolved)
    if not stat.S_ISREG(os.stat(resolved).st_mode):
        return None
    file = os.fdopen(os.open(resolved, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        return None
    return file


def _demand(access: AccessPolicy, path: str) -> None:
    if not access.may_read(from_os(path)):
        raise AccessDeniedError("the access rules deny it")


def _lines(file: BinaryIO, path: str, check: Callable[[], None]) -> Iterator[bytes]:
    while line := file.readline(LONGEST_LINE):
        check()
        rest = line
        while not rest.endswith(b"\n") and (rest := file.readline(LONGEST_LINE)):
            check()
            if rest != b"\n":
                log_skip(path, f"a line is longer than {LONGEST_LINE} bytes, the rest of it is left out")
        yield line.removesuffix(b"\n")


def log_skip(path: str, reason: str) -> None:
    """Log what is left out of a file, the same thing once an hour."""
    now = time.monotonic()
    if now - _skipped.get((path, reason), -_REPEAT_AFTER) < _REPEAT_AFTER:
        return
    if len(_skipped) >= _REMEMBERED:
        _skipped.clear()
    _skipped[path, reason] = now
    log.warning("%s is left out: %s", path, reason)
