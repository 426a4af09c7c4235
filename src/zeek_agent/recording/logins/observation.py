"""What one source says about one login, before the statements of all sources about it are merged."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

Action: TypeAlias = Literal["login", "logout", "failed", "su", "sudo", "session_opened", "session_closed"]

LOGIN_SERVICES: Final = frozenset({"sshd", "login", "remote", "lightdm", "sddm", "xdm", "kdm", "lxdm", "cockpit"})
"""PAM services by which a person logs in, besides those that begin like `LOGIN_PREFIXES`."""
LOGIN_PREFIXES: Final = ("gdm-", "sshd-", "xrdp", "vsftpd", "cockpit-", "proftpd")


_TERMINAL: Final = re.compile(r"tty[A-Za-z]*\d|pts/\d|pty|console$|hvc\d|vc/\d|xvc\d|lxc/|sclp|3270/|:\d")


@dataclass(slots=True)
class Observation:
    """One statement. None: the source does not say."""

    time: float
    source: str
    statement: str
    """Kind of statement; a source says the same about one event only once."""
    action: Action | None
    """None: the kernel's new session, of which only the program that began it tells what it is."""
    succeeded: bool = True
    user: str | None = None
    uid: int | None = None
    target_user: str | None = None
    tty: str | None = None
    remote_addr: str | None = None
    remote_port: int | None = None
    pid: int | None = None
    other_pid: int | None = None
    """Another process of the same login: the child of sshd, which has the session."""
    process: str | None = None
    session: int | None = None
    entity_id: str | None = None
    method: str | None = None
    command: str | None = None
    reason: str | None = None
    verified: bool = True
    """False if any local user could have written it."""
    repeats: bool = False
    """It describes an event that others usually describe too, and never a second one."""
    awaits_log: bool = False
    """A log reports the same event, maybe seconds later."""
    merges_by_user: bool = False
    """The process that it names may not be the one that others name."""

    def copy(self) -> Observation:
        return replace(self)

    @property
    def ends(self) -> bool:
        return self.action in {"logout", "session_closed"}

    @property
    def family(self) -> str | None:
        """What statements about one event have in common."""
        return self.action if self.action in {"su", "sudo"} else None


def service_action(service: str, *, ends: bool) -> Action:
    """The action of a session of a PAM service that begins or ends."""
    if service in LOGIN_SERVICES or service.startswith(LOGIN_PREFIXES):
        return "logout" if ends else "login"
    if not ends and service in {"su", "su-l", "runuser"}:
        return "su"
    if not ends and service in {"sudo", "sudo-i"}:
        return "sudo"
    return "session_closed" if ends else "session_opened"


def terminal(name: str | None) -> str | None:
    """A terminal's name below /dev, or an X display; None for the words that programs write when there is none.

    PAM services name themselves, such as `ssh`, `sshd`, `cron`, `ftp` or `dovecot`.
    """
    name = name or ""
    below = name.removeprefix("/dev/")
    return below if below and (below != name or _TERMINAL.match(name)) else None
