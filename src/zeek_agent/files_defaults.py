"""The directories that are watched by default."""

from __future__ import annotations

from typing import Final

_PROGRAMS: Final = (
    "/usr/bin",
    "/usr/sbin",
    "/usr/lib*",
    "/usr/local/bin",
    "/usr/local/sbin",
    "/bin",
    "/sbin",
    "/lib*",
)
FILES_WATCH: Final = (
    "/etc",
    *_PROGRAMS,
    "/var/spool/cron",
    "/run/systemd/system",
    "/root/.ssh",
    "/home/*/.ssh",
    "/root/.config/systemd/user",
    "/home/*/.config/systemd/user",
    "/var/www",
    "/srv/www",
    "/srv/http",
    "/usr/share/nginx",
)
FILES_UNEXECUTED: Final = _PROGRAMS
"""Where executions are not reported: `processes_events` has each of these programs, and they are most of all."""
