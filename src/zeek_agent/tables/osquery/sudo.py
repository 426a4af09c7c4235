"""Rules of sudo."""

from __future__ import annotations

from collections.abc import Iterator

from zeek_agent.host.accounts.sudoers import sudo_lines
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import osquery_table
from zeek_agent.text import from_bytes, from_os

sudoers = osquery_table(
    "sudoers",
    "rules of sudo",
    description=(
        "One row per line of `/etc/sudoers` and the files that it includes, other than comments. Lines that continue "
        "others are joined. Denied by default, like the contents of these files: see "
        "[tables with secrets](security.md#tables-with-secrets)."
    ),
    columns=[
        Column("source", "text", "path of the file"),
        Column("header", "text", "first word of the line: a user, `%group`, `Defaults`, `@includedir`, …"),
        Column("rule_details", "text", "the rest of the line"),
    ],
    opens_files=True,
    examples=["SELECT header, rule_details FROM sudoers WHERE rule_details LIKE '%NOPASSWD%'"],
)


@sudoers.snapshot
def rules(wanted: Constraints) -> Iterator[Row]:
    for line in sudo_lines(wanted.report):
        wanted.check()
        yield from_os(str(line.file)), from_bytes(line.header), from_bytes(line.details)


TABLES = (sudoers,)
