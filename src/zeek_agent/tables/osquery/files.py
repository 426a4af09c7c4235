"""Attributes of files, and hashes of their contents."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from zeek_agent.host.files.file_rules import RefusedError
from zeek_agent.host.files.gate import Purpose
from zeek_agent.host.files.hashing import ALGORITHMS, hashes_of
from zeek_agent.host.files.path_lookup import may_be_hashed
from zeek_agent.host.files.sql_patterns import leave_out
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import osquery_table
from zeek_agent.tables.osquery._paths import NAMESPACE_COLUMNS, PATTERNS, open_gate, wanted_files
from zeek_agent.text import from_os

file = osquery_table(
    "file",
    "attributes of files",
    description=(
        "One row per existing path that the statement names, by `path` or, for the entries of a directory, by "
        f"`directory`. {PATTERNS} The path of a directory that matches a pattern has a slash at its end. Attributes "
        "are those of what a symbolic link leads to; those of a broken link, and of the magic links of proc(5), are "
        "its own. For a file system that could hang, only the mount point is listed, without attributes."
    ),
    columns=[
        Column("path", "text", "path as the statement gives it"),
        Column("directory", "text", "the path without its last component"),
        Column("filename", "text", "last component of the path; `.` after a slash"),
        Column("inode", "int", "inode number"),
        Column("uid", "int", "owner's user id"),
        Column("gid", "int", "owner's group id"),
        Column("mode", "text", "permissions as four octal digits, such as `0644`"),
        Column("device", "int", "for a device file, the number of its device; otherwise 0"),
        Column("size", "int", "size in bytes"),
        Column("block_size", "int", "preferred size of reads, in bytes"),
        Column("atime", "int", "last access, in seconds since 1970"),
        Column("mtime", "int", "last modification of the contents, in seconds since 1970"),
        Column("ctime", "int", "last change of the attributes, in seconds since 1970"),
        Column("btime", "int", "always 0 on Linux, as in osquery"),
        Column("hard_links", "int", "number of hard links"),
        Column("symlink", "int", "1 for a symbolic link, otherwise 0"),
        Column(
            "type",
            "text",
            "`regular`, `directory`, `block`, `character`, `fifo` or `socket`; `unknown` for a broken link",
        ),
        Column("symlink_target_path", "text", "text of the symbolic link; empty for anything else"),
        *NAMESPACE_COLUMNS,
    ],
    foreign=(
        "attributes volume_serial file_id file_version product_version original_filename shortcut_target_path "
        "shortcut_target_type shortcut_target_location shortcut_start_in shortcut_run shortcut_comment bsd_flags"
    ),
    required=("path", "directory"),
    examples=[
        "SELECT path, mode, size, mtime FROM file WHERE path = '/etc/hosts'",
        "SELECT path, uid, mode FROM file WHERE path LIKE '/etc/cron%/%'",
        "SELECT filename, type, symlink_target_path FROM file WHERE directory = '/usr/bin' AND symlink = 1",
    ],
    opens_files=True,
)

_TYPES: Final = {
    stat.S_IFREG: "regular",
    stat.S_IFDIR: "directory",
    stat.S_IFBLK: "block",
    stat.S_IFCHR: "character",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


@file.snapshot
def attributes(wanted: Constraints) -> Iterator[Row]:
    gate = open_gate(wanted)
    links_needed = wanted.needs("symlink", "symlink_target_path")
    for each in wanted_files(wanted, gate):
        path, directory, name, found, may_be_link, _, _ = each
        names = from_os(path), from_os(directory), from_os(name)
        if isinstance(found, RefusedError):
            wanted.context.reads.leave_out(found.omission, path, str(found))
            yield *names, *(None,) * 12, 0, "directory", "", None, None
            continue
        text = each.link_text(gate) if may_be_link and links_needed else None
        yield (
            *names,
            found.inode,
            found.uid,
            found.gid,
            _permissions(found.mode),
            os.makedev(found.special_major, found.special_minor),
            found.size,
            found.block_size,
            found.atime_seconds,
            found.mtime_seconds,
            found.ctime_seconds,
            0,
            found.links,
            0 if text is None else 1,
            _TYPES.get(stat.S_IFMT(found.mode), "unknown"),
            from_os(text or ""),
            None,
            None,
        )


@lru_cache(maxsize=1024)
def _permissions(mode: int) -> str:
    return f"{stat.S_IMODE(mode):04o}"


hashes = osquery_table(
    "hash",
    "hashes of files",
    description=(
        "One row per existing regular file that the statement names, by `path` or, for the files of a directory, by "
        f"`directory`. {PATTERNS} Symbolic links are followed. Files that are unreadable or denied are omitted and "
        "counted in `zeek_agent_queries`; the access rules are those of `file_hashes`. Files larger than 256 MB have "
        "no hashes, nor have files reached after the statement has used up `limits.files_time`."
    ),
    columns=[
        Column("path", "text", "path as the statement gives it"),
        Column("directory", "text", "the path without its last component"),
        Column("md5", "text", "MD5 in hexadecimal", collation="nocase"),
        Column("sha1", "text", "SHA-1 in hexadecimal", collation="nocase"),
        Column("sha256", "text", "SHA-256 in hexadecimal", collation="nocase"),
        *NAMESPACE_COLUMNS,
    ],
    required=("path", "directory"),
    examples=[
        "SELECT sha256 FROM hash WHERE path = '/bin/sh'",
        "SELECT path, md5 FROM hash WHERE directory = '/etc/cron.daily'",
        "SELECT DISTINCT h.path, h.sha256 FROM processes p JOIN hash h ON h.path = p.exe",
    ],
    opens_files=True,
)


@hashes.snapshot
def hashed(wanted: Constraints) -> Iterator[Row]:
    algorithms = tuple(name for name in ALGORITHMS if wanted.needs(name))
    reads = wanted.context.reads
    gate = open_gate(wanted)
    for each in wanted_files(wanted, gate):
        if not may_be_hashed(gate, each):
            continue
        try:
            opened = each.open(gate, Purpose.HASH)
            if opened is None:
                continue
            with opened.file as contents:
                found = hashes_of(contents, each.path, algorithms, reads, wanted.check)
        except (RefusedError, OSError) as error:
            leave_out(gate, each.path, error)
        else:
            digests = (found.get(name) for name in ALGORITHMS)
            yield from_os(each.path), from_os(each.directory), *digests, None, None


TABLES = (file, hashes)
