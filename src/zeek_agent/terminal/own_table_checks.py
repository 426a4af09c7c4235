"""`zeek-agent doctor`: whether own tables can be read on this host."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zeek_agent.access import AccessPolicy
from zeek_agent.errors import UsageError
from zeek_agent.host.files.contents import lines
from zeek_agent.host.files.globbing import matching, open_gate
from zeek_agent.host.files.reads import FileReads
from zeek_agent.host.program_files import ProgramError, executables
from zeek_agent.host_tables import own_tables
from zeek_agent.own_tables.declarations import CommandTable, FileTable, FollowedTable, OwnTable
from zeek_agent.recording.followed.followed_file import FollowedFile
from zeek_agent.terminal.check import Check

if TYPE_CHECKING:
    from zeek_agent.config.declarations import Config

NAME: Final = "own tables"
FILES_TRIED: Final = 20


def checks(config: Config) -> Iterator[Check]:
    """One check of the files, and one for each table that cannot be read as it is declared."""
    try:
        declared = own_tables(config)
    except UsageError as error:
        yield Check(NAME, "fail", str(error), "none of these tables is used until that is fixed")
        return
    access = AccessPolicy(config.access)
    yield Check(NAME, "ok", f"{len(declared)} declared in {', '.join(config.tables.files)}")
    for one in declared:
        yield from _table(one, access)


def _table(declared: OwnTable, access: AccessPolicy) -> Iterator[Check]:
    if not access.may_query(declared.name):
        advice = "see access.tables_deny and access.tables_allow"
        yield Check(NAME, "warn", f"{declared.name}: the access rules deny it", advice)
    elif isinstance(declared, CommandTable):
        yield from _command(declared)
    elif isinstance(declared, FileTable):
        yield from _files(declared, access)
    else:
        yield from _followed(declared, access)


def _command(declared: CommandTable) -> Iterator[Check]:
    for program in declared.privileges().programs:
        try:
            with executables(program):
                pass
        except (ProgramError, OSError) as error:
            advice = "statements on the table fail; root has to own the program and what is on the path to it"
            yield Check(NAME, "warn", f"{declared.name}: {program} cannot be used: {error}", advice)


def _files(declared: FileTable, access: AccessPolicy) -> Iterator[Check]:
    reads, found = FileReads(), 0
    for match in islice(matching(open_gate(access, reads), declared.files, explain=True), FILES_TRIED):
        next(lines(match, reads), None)
        found += 1
    if omitted := reads.omissions():
        advice = "see access.files_allow and access.paths_deny"
        yield Check(NAME, "warn", f"{declared.name}: {omitted.summary()}", advice)
    elif not found:
        yield Check(NAME, "warn", f"{declared.name}: no file matches {declared.files}", "the table is empty")


def _followed(declared: FollowedTable, access: AccessPolicy) -> Iterator[Check]:
    path = Path(declared.follow)
    if access.denies(declared.follow):
        yield Check(NAME, "warn", f"{declared.name}: the access rules deny {path}", "see access.paths_deny")
        return
    file = FollowedFile(path, None)
    try:
        file.begin(at_end=True)
    except FileNotFoundError:
        yield Check(NAME, "ok", f"{declared.name}: {path.parent} does not exist yet")
    except OSError as error:
        yield Check(NAME, "warn", f"{declared.name}: cannot read {path}: {error.strerror}", "no events are recorded")
    else:
        if not file.position.inode:
            yield Check(NAME, "ok", f"{declared.name}: {path} does not exist yet")
        file.close()
