"""Hashes of file contents."""

from __future__ import annotations

import os
from collections.abc import Iterator

from zeek_agent.host.files.file_rules import RefusedError
from zeek_agent.host.files.gate import Purpose
from zeek_agent.host.files.globbing import Match, literal
from zeek_agent.host.files.hashing import ALGORITHMS, hashes_of
from zeek_agent.host.files.reads import Omission
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints, Table
from zeek_agent.tables.files import PATTERN, asked_pattern, matched
from zeek_agent.text import from_os

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
                hashes = hashes_of(file, match.path, algorithms, reads, wanted.check)
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
    escaped = literal(spelt)
    if escaped == spelt:
        yield from matched(wanted)
        return
    yield from matched(wanted, escaped)
    yield from (match for match in matched(wanted) if match.path != spelt)


TABLES = (file_hashes,)
