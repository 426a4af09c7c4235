"""Jobs of cron."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from zeek_agent.host.files.contents import lines
from zeek_agent.host.files.globbing import Match, matching, open_gate
from zeek_agent.host.linux.crontabs import SYSTEM_CRONTABS, USER_CRONTABS, cron_job
from zeek_agent.masking.masker import Masker
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import WITHOUT_NAMESPACES, osquery_table
from zeek_agent.tables.osquery._user_files import in_time
from zeek_agent.text import from_bytes, from_os

crontab = osquery_table(
    "crontab",
    "jobs of cron",
    description=(
        "One row per job in `/etc/crontab`, `/etc/cron.d` and the users' crontabs below `/var/spool/cron`. Hidden "
        "files there, which cron ignores, have no rows. Secrets in commands are masked."
    ),
    columns=[
        Column("event", "text", "event instead of a time, such as `@reboot`; otherwise empty"),
        Column("minute", "text", "minutes, as in the file; empty with an event, like the next four"),
        Column("hour", "text", "hours"),
        Column("day_of_month", "text", "days of the month"),
        Column("month", "text", "months"),
        Column("day_of_week", "text", "days of the week"),
        Column("command", "text", "the command; in files below `/etc` after the user who runs it"),
        Column("path", "text", "path of the file"),
        WITHOUT_NAMESPACES,
    ],
    opens_files=True,
    examples=["SELECT event, minute, hour, command FROM crontab WHERE path LIKE '/var/spool/cron/%'"],
)


@crontab.snapshot
def jobs(wanted: Constraints) -> Iterator[Row]:
    context = wanted.context
    gate = open_gate(context.access, context.reads, wanted.check)
    for pattern in (*SYSTEM_CRONTABS, *USER_CRONTABS):
        for match in matching(gate, pattern, wanted.check, explain=False):
            yield from in_time(wanted, match.path, partial(_jobs, wanted, match, pattern in SYSTEM_CRONTABS))


def _jobs(wanted: Constraints, match: Match, names_user: bool, check: Callable[[], None]) -> Iterator[Row]:
    file, masker = from_os(match.path), wanted.context.access.masker
    for line in lines(match, wanted.context.reads, check):
        job = cron_job(line)
        if job is not None:
            command = _masked(from_bytes(job.command), masker, names_user)
            check()
            yield from_bytes(job.event), *map(from_bytes, job.times), command, file, None


def _masked(command: str, masker: Masker, names_user: bool) -> str:
    user, blank, rest = command.partition(" ") if names_user else ("", "", command)
    return user + blank + masker.line(rest)


TABLES = (crontab,)
