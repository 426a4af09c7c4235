"""Entries that programs and the kernel write to the system log."""

from __future__ import annotations

from zeek_agent.schema import Column
from zeek_agent.table import Table

system_logs_events = Table(
    "system_logs_events",
    "entries of the system log",
    description=(
        "One row per entry of the systemd journal, from the event store. On a host without a journal, one row per line "
        "of the files that a syslog daemon writes (`sources.syslog_files`); level, facility and values that only "
        "the journal can verify are then null. Recording begins with the agent's first start. Entries that were "
        "logged while the agent was down are recorded once it is running again, unless they are older than "
        "`events.retention_age`. `pid`, `uid`, `exe` and `unit` come from the kernel through the journal; everything "
        "else is text that the logging program chose, so do not trust it. On macOS, one row per entry of the unified "
        "log that `sources.log_predicate` selects, while the agent runs; `identifier` is `subsystem:category`. "
        "On Windows, one row per event of the logs System, Application and Security, except starts and ends of "
        "processes and permitted connections, which other tables have; `process` is then the provider, and "
        "`identifier` the log."
    ),
    columns=[
        Column("time", "time", "when the entry was logged"),
        Column("process", "text", "short name of the process; if unknown, its executable or identifier"),
        Column("level", "text", "severity as in syslog, from `0` (emergency) to `7` (debug)"),
        Column(
            "message",
            "text",
            "the message, truncated to 65,536 bytes; secrets in command lines that it quotes are masked",
        ),
        Column("eventid", "text", "kind of event on Windows; null elsewhere"),
        Column("pid", "count", "process that logged it", added=True),
        Column("uid", "count", "user id of that process", added=True),
        Column("exe", "text", "path of that process's executable", added=True),
        Column("unit", "text", "systemd unit of that process", added=True),
        Column("identifier", "text", "syslog identifier (tag) of the program", added=True),
        Column("facility", "count", "syslog facility: 0 kernel, 3 daemon, 4 and 10 authentication", added=True),
        Column(
            "cursor",
            "text",
            "position of the entry: for `journalctl --cursor=…`; for files, the inode and the offset after it; on "
            "Windows the log and the number of the record",
            added=True,
        ),
    ],
    examples=[
        "SELECT time, process, message FROM system_logs_events WHERE level <= '3'",
        "SELECT time, process, pid, message FROM system_logs_events WHERE facility IN (4, 10)",
    ],
    kind="events",
    platforms=("linux", "darwin", "win32"),
)

TABLES = (system_logs_events,)
