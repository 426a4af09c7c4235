"""Types of file contents."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from zeek_agent.errors import SqlError
from zeek_agent.host.files.file_rules import RefusedError
from zeek_agent.host.files.gate import Gate, Purpose
from zeek_agent.host.files.path_lookup import NamedFile
from zeek_agent.host.files.reads import Omission
from zeek_agent.host.files.sql_patterns import leave_out
from zeek_agent.host.files.statx import FileStatus
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import osquery_table
from zeek_agent.tables.osquery._paths import open_gate, wanted_files
from zeek_agent.text import from_os

if TYPE_CHECKING:
    from zeek_agent.host.files.libmagic import Libmagic

magic = osquery_table(
    "magic",
    "types of file contents, by libmagic",
    description=(
        "One row per existing path that the statement names. It needs libmagic and its database (Debian: `libmagic1`, "
        "`libmagic-mgc`). A description can quote short texts from a file's header, so the access rules are those of "
        "hashes: denied files are omitted and counted in `zeek_agent_queries`. Files reached after the statement has "
        "used up `limits.files_time` have no type. A symbolic link is described itself."
    ),
    columns=[
        Column("path", "text", "path as the statement gives it"),
        Column("magic_db_files", "text", "the databases, always libmagic's own; another one cannot be given"),
        Column("data", "text", "description of the contents, as by file(1)"),
        Column("mime_type", "text", "MIME type"),
        Column("mime_encoding", "text", "MIME encoding, such as `us-ascii` or `binary`"),
    ],
    required=("path",),
    examples=["SELECT data, mime_type FROM magic WHERE path = '/bin/ls'"],
    opens_files=True,
)

_PREFIXES: Final = ((stat.S_ISUID, "setuid"), (stat.S_ISGID, "setgid"), (stat.S_ISVTX, "sticky"))
_SPECIAL_KINDS: Final = {
    stat.S_IFREG: ("empty", "inode/x-empty"),
    stat.S_IFDIR: ("directory", "inode/directory"),
    stat.S_IFIFO: ("fifo (named pipe)", "inode/fifo"),
    stat.S_IFSOCK: ("socket", "inode/socket"),
    stat.S_IFCHR: ("character special ({}/{})", "inode/chardevice"),
    stat.S_IFBLK: ("block special ({}/{})", "inode/blockdevice"),
}


@magic.snapshot
def types(wanted: Constraints) -> Iterator[Row]:
    from zeek_agent.host.files.libmagic import DATABASES

    databases = ":".join(DATABASES)
    if wanted.equal("magic_db_files") not in (None, {databases}):
        wanted.report(f"table magic: another database than {databases} cannot be given")
    gate = open_gate(wanted)
    with _library() as library:
        for each in wanted_files(wanted, gate):
            wanted.check()
            found = _types(gate, library, each, wanted)
            if found is not None:
                yield from_os(each.path), databases, *found


def _library() -> Libmagic:
    from zeek_agent.host.files.libmagic import Libmagic, LibmagicError

    try:
        return Libmagic()
    except LibmagicError as error:
        raise SqlError(f"table magic: {error}") from error


def _types(gate: Gate, library: Libmagic, each: NamedFile, wanted: Constraints) -> tuple[str | None, ...] | None:
    """The three columns of a file; None if it may not be read."""
    if isinstance(each.found, RefusedError):
        leave_out(gate, each.path, each.found)
        return None
    text = each.link_text(gate)
    if text is not None:
        is_broken = each.found.is_link and text
        data = f"{'broken ' if is_broken else ''}symbolic link{' to ' if text else ''}{from_os(text)}"
        return data, "inode/symlink", "" if is_broken else "binary"
    if not stat.S_ISREG(each.found.mode) or each.found.size == 0:
        return _special(each.found)
    try:
        opened = each.open(gate, Purpose.HASH)
        if opened is None:
            return None
        with opened.file as file:
            return _contents(library, file.fileno(), each, wanted)
    except (RefusedError, OSError) as error:
        leave_out(gate, each.path, error)
        return None


def _special(found: FileStatus) -> tuple[str, str, str]:
    data, mime_type = _SPECIAL_KINDS.get(stat.S_IFMT(found.mode), ("", ""))
    data = data.format(found.special_major, found.special_minor)
    return ", ".join([*_prefixes(found), data]), mime_type, "binary"


def _prefixes(found: FileStatus) -> list[str]:
    return [name for bit, name in _PREFIXES if found.mode & bit]


def _contents(library: Libmagic, descriptor: int, each: NamedFile, wanted: Constraints) -> tuple[str | None, ...]:
    from zeek_agent.host.files.libmagic import DESCRIPTION, MIME_ENCODING, MIME_TYPE, LibmagicError

    assert isinstance(each.found, FileStatus)
    forms = {"data": DESCRIPTION, "mime_type": MIME_TYPE, "mime_encoding": MIME_ENCODING}
    found: dict[str, str | None] = dict.fromkeys(forms)
    reads = wanted.context.reads
    if reads.seconds_left <= 0:
        reads.leave_out(Omission.TRUNCATED, each.path, "reading took longer than limits.files_time allows")
        return tuple(found.values())
    for column, form in forms.items():
        if wanted.needs(column):
            try:
                with reads.measure_time():
                    found[column] = library.type_of(descriptor, form)
            except LibmagicError as error:
                reads.leave_out(Omission.SKIPPED, each.path, str(error))
    if found["data"]:
        found["data"] = " ".join([", ".join(_prefixes(each.found)), found["data"]]).lstrip()
    return tuple(found.values())


TABLES = (magic,)
