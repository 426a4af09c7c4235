"""Hashes of file contents."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from io import FileIO
from typing import Final

from zeek_agent.host.files.file_rules import RefusedError
from zeek_agent.host.files.gate import Purpose
from zeek_agent.host.files.globbing import Match
from zeek_agent.host.files.reads import Omission
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints, Table
from zeek_agent.tables.files import PATTERN, asked_pattern, matched
from zeek_agent.text import from_os

ALGORITHMS: Final = ("md5", "sha1", "sha256")
HASHED_BYTES_MAX: Final = 256 << 20
"""Maximum size of a hashed file, which bounds the time; larger files are not read."""
CACHED_HASHES_MAX: Final = 4096
"""Files whose hashes are cached: more than a host has programs in use."""
SETTLED_SECONDS: Final = 0.1
"""How long after a change of a file another change could go unnoticed, because the kernel's timestamps are coarse."""
_TOO_LARGE: Final = f"larger than {HASHED_BYTES_MAX} bytes, so without hashes"
_WILDCARD: Final = re.compile(r"[*?\[\\]")
_CHUNK_BYTES: Final = 1 << 20
"""Bytes hashed between checks of the time limit."""

file_hashes = Table(
    "file_hashes",
    "hashes of files that match a pattern",
    description=(
        "One row per matching regular file; symbolic links are followed. Files that are unreadable or denied are "
        "omitted and counted in `zeek_agent_queries`. Files larger than 256 MB have no hashes, nor have files reached "
        "after the statement has used up `limits.files_time`. A file is read again only if it has changed, and only "
        "for the hashes that the statement uses. `/proc/PID/exe` is the executable of a process, even if it is in a "
        "container or deleted; no other link of proc(5) is followed."
    ),
    columns=[
        Column("path", "text", "full path"),
        Column("size", "count", "size in bytes"),
        Column("mtime", "time", "last modification of the contents"),
        Column("md5", "text", "MD5 in hexadecimal"),
        Column("sha1", "text", "SHA-1 in hexadecimal"),
        Column("sha256", "text", "SHA-256 in hexadecimal"),
    ],
    parameters=[PATTERN],
    examples=[
        "SELECT sha256 FROM file_hashes('/bin/sh')",
        "SELECT path, size, md5, sha1, sha256 FROM file_hashes('/etc/host*')",
    ],
    platforms=("linux", "darwin", "win32"),
)


@file_hashes.snapshot
def hashed(wanted: Constraints) -> Iterator[Row]:
    algorithms = tuple(name for name in ALGORITHMS if wanted.needs(name))
    reads = wanted.context.reads
    for match in _matches(wanted):
        try:
            opened = match.open(Purpose.HASH)
            if opened is None:
                continue
            with opened.file as file:
                attributes = os.fstat(file.fileno())
                hashes = _cached(file, match.path, attributes, algorithms, wanted)
        except RefusedError as error:
            reads.leave_out(error.omission, match.path, str(error))
        except FileNotFoundError:
            continue  # removed after its directory was listed
        except OSError as error:
            reads.leave_out(Omission.SKIPPED, match.path, error.strerror or str(error))
        else:
            digests = (hashes.get(name) for name in ALGORITHMS)
            yield from_os(match.path), attributes.st_size, attributes.st_mtime, *digests


def _matches(wanted: Constraints) -> Iterator[Match]:
    """The paths that match the pattern, and the path equal to it, because names of programs may contain wildcards."""
    spelt = asked_pattern(wanted)
    if _WILDCARD.search(spelt) is None:
        yield from matched(wanted)
        return
    escaped = _WILDCARD.sub(r"\\\g<0>", spelt)
    yield from matched(wanted, escaped)
    yield from (match for match in matched(wanted) if match.path != spelt)


_State = tuple[int, int, int, int, int]
_known: OrderedDict[_State, dict[str, str]] = OrderedDict()
_lock = threading.Lock()


def _state(attributes: os.stat_result) -> _State:
    """Attributes that change with a file's content. Its owner can reset the mtime, but not the ctime."""
    return (attributes.st_dev, attributes.st_ino, attributes.st_size, attributes.st_mtime_ns, attributes.st_ctime_ns)


def _cached(
    file: FileIO, path: str, attributes: os.stat_result, algorithms: tuple[str, ...], wanted: Constraints
) -> dict[str, str]:
    """The hashes of an open file by algorithm, computed unless they are cached; empty for a file that is too large."""
    state = _state(attributes)
    with _lock:
        known = dict(_known.get(state, {}))
    missing = tuple(name for name in algorithms if name not in known)
    if not missing:
        return known
    size, found = _hashes(file, missing, attributes.st_size, wanted)
    if isinstance(found, str):
        wanted.context.reads.leave_out(Omission.TRUNCATED, path, found)
        return known
    # Files generated by the kernel (proc(5), sysfs(5)) do not have the size that they report.
    if size == attributes.st_size and time.time() - attributes.st_ctime > SETTLED_SECONDS:
        _remember(state, found, os.fstat(file.fileno()))
    return known | found


def _remember(state: _State, found: dict[str, str], after: os.stat_result) -> None:
    if _state(after) != state:
        return
    with _lock:
        _known[state] = _known.get(state, {}) | found
        _known.move_to_end(state)
        while len(_known) > CACHED_HASHES_MAX:
            _known.popitem(last=False)


def _hashes(
    file: FileIO, algorithms: tuple[str, ...], size: int, wanted: Constraints
) -> tuple[int, dict[str, str] | str]:
    """The size and hashes of an open file's content, or, instead of the hashes, why they are not computed.

    `size` is the reported size. Raises OSError, also for a kernel file that has nothing to read yet.
    """
    if size > HASHED_BYTES_MAX:
        return size, _TOO_LARGE
    reads = wanted.context.reads
    states = [hashlib.new(name, usedforsecurity=False) for name in algorithms]
    size = 0
    while True:
        wanted.check()
        if reads.seconds_left <= 0:
            return size, "hashing took longer than limits.files_time allows"
        with reads.measure_time():
            chunk = file.read(_CHUNK_BYTES)
            if chunk is None:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            for state in states:
                state.update(chunk)
        if not chunk:
            return size, {state.name: state.hexdigest() for state in states}
        size += len(chunk)
        if size > HASHED_BYTES_MAX:
            return size, _TOO_LARGE


TABLES = (file_hashes,)
