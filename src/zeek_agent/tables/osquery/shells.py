"""Commands that users have typed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from zeek_agent.access import ShownFiles
from zeek_agent.host.accounts.name_service import Account
from zeek_agent.host.accounts.shell_histories import HISTORY_FILES, shell_commands
from zeek_agent.host.files.contents import lines
from zeek_agent.host.files.globbing import Match
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import osquery_table
from zeek_agent.tables.osquery._user_files import user_rows
from zeek_agent.text import from_bytes, from_os

_SHOWN: Final = ShownFiles(tuple(f"/**/{name}" for name in HISTORY_FILES), permitted=True)

shell_history = osquery_table(
    "shell_history",
    "commands in the histories of shells",
    description=(
        f"One row per line in the files {', '.join(f'`{name}`' for name in HISTORY_FILES)} in the home directories of "
        "all accounts in `/etc/passwd`, or of those that `uid` names. Secrets in commands are masked. Denied by "
        "default, like the contents of these files: see [tables with secrets](security.md#tables-with-secrets)."
    ),
    columns=[
        Column("uid", "int", "id of the user in whose home directory the file is"),
        Column("time", "int", "when the command was typed; 0 if the shell does not record it"),
        Column("command", "text", "the command"),
        Column("history_file", "text", "path of the file"),
    ],
    opens_files=True,
    examples=["SELECT username, time, command FROM shell_history JOIN osquery_users USING (uid)"],
)


@shell_history.snapshot
def commands(wanted: Constraints) -> Iterator[Row]:
    mask = wanted.context.access.masker.line

    def rows(account: Account, match: Match, check: Callable[[], None]) -> Iterator[Row]:
        file = from_os(match.path)
        for time, command in shell_commands(lines(match, wanted.context.reads, check)):
            yield account.uid, time, mask(from_bytes(command)), file

    return user_rows(wanted, *HISTORY_FILES, rows=rows, shown=_SHOWN)


TABLES = (shell_history,)
