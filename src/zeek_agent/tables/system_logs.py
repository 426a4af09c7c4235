"""What programs and the kernel write to the system's log."""

from __future__ import annotations

from zeek_agent.schema import Column
from zeek_agent.table import Table

system_logs_events = Table(
    "system_logs_events",
    "entries of the system's log",
    description=(
        "A row for each entry of the systemd journal, kept in the event store; on a host without a journal, for each "
        "line of the files that a syslog daemon writes (`sources.syslog_files`), where level, facility and what only "
        "the journal knows for certain are null. Recording begins with the agent's first start. Entries that were "
        "logged while the agent was down are recorded when it is back, once, as far as they are not older than "
        "`events.retention_age`. What programs say of themselves is text without any guarantee; `pid`, `uid`, `exe` "
        "and `unit` come from the kernel by way of the journal."
    ),
    columns=[
        Column("time", "time", "when the entry was logged"),
        Column("process", "text", "short name of the process; where that is unknown, its executable or identifier"),
        Column("level", "text", "severity as in syslog, from `0` (emergency) to `7` (debug)"),
        Column("message", "text", "the message, at most 65,536 bytes of it"),
        Column("eventid", "text", "kind of event on Windows; null elsewhere"),
        Column("pid", "count", "process that logged it", added=True),
        Column("uid", "count", "user id of that process", added=True),
        Column("exe", "text", "executable's path of that process", added=True),
        Column("unit", "text", "systemd unit of that process", added=True),
        Column("identifier", "text", "name that the program logs under (the tag of syslog)", added=True),
        Column("facility", "count", "syslog's facility: 0 kernel, 3 daemon, 4 and 10 authentication", added=True),
        Column(
            "cursor",
            "text",
            "where the entry is: `journalctl --cursor=…` shows all of it; of files, inode and offset after it",
            added=True,
        ),
    ],
    examples=[
        "SELECT time, process, message FROM system_logs_events WHERE level <= '3'",
        "SELECT time, process, pid, message FROM system_logs_events WHERE facility IN (4, 10)",
    ],
    kind="events",
)

TABLES = (system_logs_events,)
