"""Lines of crontab(5)."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

SYSTEM_CRONTABS: Final = ("/etc/crontab", "/etc/cron.d/*")
"""Patterns of the files whose lines name the user who runs the command."""
USER_CRONTABS: Final = ("/var/spool/cron/*", "/var/spool/cron/crontabs/*")
"""Patterns of the files of cronie (Red Hat) and of Debian's cron."""
_VARIABLE: Final = re.compile(rb"[\"']?[A-Za-z_][A-Za-z0-9_]*[\"']?\s*=")
_TIMES: Final = 5


class CronJob(NamedTuple):
    """A job: either `event`, such as `@reboot`, or the five fields of its times, the others being empty."""

    event: bytes
    times: tuple[bytes, ...]
    command: bytes
    """The rest of the line, in a system crontab with the user before the command; blanks between words are single."""


def cron_job(line: bytes) -> CronJob | None:
    """The job in a line; None for a comment, a variable, or a line that is none of these."""
    words = line.split()
    if not words or words[0].startswith(b"#") or _VARIABLE.match(line.lstrip()) is not None:
        return None
    if words[0].startswith(b"@"):
        job = CronJob(words[0], (b"",) * _TIMES, b" ".join(words[1:]))
    else:
        job = CronJob(b"", tuple(words[:_TIMES]), b" ".join(words[_TIMES:]))
    return job if job.command else None
