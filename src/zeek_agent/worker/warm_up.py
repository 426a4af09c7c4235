"""Work that every worker would do, done once in the zygote, so that workers share the memory of its results.

Imports, compiled patterns and caches are made here; every file and database is closed again before the first fork.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  a worker can import nothing
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from zeek_agent.containment import lockdown, seccomp  # noqa: F401
from zeek_agent.database.encodings import BatchesEncoding, ControlEncoding, Encoding, EventsEncoding, RowsEncoding
from zeek_agent.database.sandbox import Run
from zeek_agent.database.scans import SharedScans
from zeek_agent.database.sql_connection import Profile, SqlConnection
from zeek_agent.host import docker, programs  # noqa: F401  for tables in helpers
from zeek_agent.host.files import mount_rules
from zeek_agent.host.files.statx import memory_mount
from zeek_agent.host.linux import systemd_units  # noqa: F401
from zeek_agent.table import TableContext
from zeek_agent.worker.result_writer import ResultWriter, frames

if TYPE_CHECKING:
    from zeek_agent.table import AgentView
    from zeek_agent.worker.serve import Shared

STATEMENTS: Final = (
    "SELECT * FROM processes WHERE pid = 1",
    "SELECT * FROM sockets WHERE pid = 1",
    "SELECT * FROM files_list('/etc/host*')",
    "SELECT * FROM files_lines('/etc/hostname')",
)
"""One for each kind of reader of the host.

None of a table with privileges: it would run as root here, and leave connections to daemons to the workers.
"""
_ENCODINGS: Final[tuple[Encoding, ...]] = (
    RowsEncoding(),
    ControlEncoding(),
    EventsEncoding("", "", "", 0.0, "", None, 100, 65_536),
    BatchesEncoding("", "", 0.0, "", None, 100, 65_536, "", "", 0, 0),
)


def warm_up(shared: Shared, agent: AgentView) -> None:
    """Run a few statements and encode their rows."""
    import grp  # noqa: F401  for the table users
    import pwd  # noqa: F401

    memory_mount()
    context = TableContext(agent, shared.access)
    limits = shared.config.limits
    spool = os.memfd_create("zeek-agent-warm-up", os.MFD_CLOEXEC)
    try:
        for profile in Profile:
            connection = SqlConnection(shared.catalog, profile, context=context, limits=limits, scans=SharedScans())
            try:
                for sql in _allowed(STATEMENTS, shared):
                    run = Run(limits)
                    run.start(memory_ceiling=1 << 40)
                    rows = ResultWriter(spool)
                    streamed = connection.stream(sql, run, rows)
                    columns = rows.settle(streamed.headings, run.errors)
                    for encoding in _ENCODINGS:
                        for batch in frames(columns, rows.rows(None), encoding):
                            rows.write(b"".join(batch.frames))
            finally:
                connection.close()
    finally:
        os.close(spool)
        mount_rules.own_mounts.cache_clear()  # forked workers would share its offset, and one notice of a change


def _allowed(statements: Iterable[str], shared: Shared) -> list[str]:
    names = {table.name for table in shared.catalog.tables.values() if shared.access.may_query(table.name)}
    return [sql for sql in statements if sql.partition("FROM ")[2].split("(")[0].split()[0] in names]
