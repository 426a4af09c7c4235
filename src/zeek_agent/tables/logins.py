"""Login sessions, and the event table of logins."""

from __future__ import annotations

from collections.abc import Iterator

from zeek_agent.host.accounts.sessions import login_sessions
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints, Table

logins = Table(
    "logins",
    "login sessions that exist now",
    description=(
        "One row per session, from the session ids of processes, from systemd-logind's state files, and from "
        "`/run/utmp` where there is one. A session without a terminal, such as that of `ssh host command`, is in it "
        "too, and so are those of cron jobs and service managers of users. A session exists as long as one of its "
        "processes does, such as that of tmux, also after the logout. Names are those of local accounts. Without "
        "root, the sessions of other users' processes are missing."
    ),
    columns=[
        Column("session", "count", "the kernel's session id (sessionid in proc(5)), also that of logind"),
        Column("user", "text", "login name"),
        Column("uid", "count", "login user id, which setuid does not change"),
        Column("tty", "text", "terminal, below /dev"),
        Column("remote_addr", "address", "address that the user logged in from"),
        Column("remote_host", "text", "the same as the login program wrote it: a name, an address or a display"),
        Column("service", "text", "PAM service that opened the session: `sshd`, `login`, `gdm-password`, …"),
        Column("type", "text", "`tty`, `x11`, `wayland`, `unspecified`, … as logind has it"),
        Column("login_time", "time", "when it began; if no login program recorded it, the start of its oldest process"),
        Column("pid", "count", "the process that opened the session, or the oldest one in it"),
        Column("process", "text", "short name of that process"),
        Column("entity_id", "text", "unique id of that process, never reused"),
        Column("source", "text", "where it was found: `proc`, `logind`, `utmp`, separated by commas"),
    ],
    examples=[
        "SELECT user, tty, remote_addr, service, login_time FROM logins",
        "SELECT l.user, p.pid, p.name FROM logins AS l JOIN processes AS p ON p.session = l.session",
    ],
)


@logins.snapshot
def sessions(wanted: Constraints) -> Iterator[Row]:
    for one in login_sessions(wanted.context.proc, check=wanted.check):
        yield (
            one.session,
            one.user,
            one.uid,
            one.tty,
            one.remote_addr,
            one.remote_host,
            one.service,
            one.type,
            one.login_time,
            one.pid,
            one.process,
            one.entity_id,
            ",".join(one.sources),
        )


logins_events = Table(
    "logins_events",
    "logins, failed ones, changes of user, and their ends",
    description=(
        "One row per login, logout, failed attempt, use of su or sudo, and per other session that was opened or closed "
        "(as those of cron), from the event store. Several sources report the same event: the messages of sshd, su, "
        "sudo, login and PAM in the journal or a syslog daemon's files, audit records where audit is enabled, the "
        "session ids of processes, and the files of login accounting. They are merged into one row, which takes about "
        "two seconds; `source` names those that reported it. What none of them says is null. Events that happened "
        "while the agent was down are recorded once it is running again, as far as logs and files have them. "
        "`verified` is false if any local user could have written the only message about the event, as in the files "
        "of a syslog daemon. The user name of a failed login is what the client sent: it can be anything, even a "
        "password that was typed at the wrong prompt. On Windows, rows are the logon events of the Security log."
    ),
    columns=[
        Column("time", "time", "when it happened"),
        Column(
            "action",
            "text",
            "`login`, `logout`, `failed` (login), `su`, `sudo`, or `session_opened` and `session_closed` for sessions "
            "that are not logins",
        ),
        Column("user", "text", "name of the user who logs in, or who runs su or sudo; not that of an account for sure"),
        Column("uid", "count", "that user's id; null if it is not a local account"),
        Column("target_user", "text", "su and sudo: the user to become"),
        Column("tty", "text", "terminal, below /dev"),
        Column("remote_addr", "address", "the client's address"),
        Column("remote_port", "count", "the client's port; with `remote_addr` it joins the row with `sockets_events`"),
        Column("pid", "count", "process that reported the event: the one of sshd for this connection, su, sudo, …"),
        Column("process", "text", "short name of that process"),
        Column(
            "session",
            "count",
            "the kernel's session id, as in `processes` and `logins`; on Windows the logon id, "
            "as in `processes_events`",
        ),
        Column("entity_id", "text", "unique id of that process, never reused"),
        Column(
            "method",
            "text",
            "`password`, `publickey`, `keyboard-interactive/pam`, …; otherwise the PAM service; on Windows "
            "the type of logon and the protocol, as in `remote_interactive/Negotiate`",
        ),
        Column("command", "text", "sudo: the command, up to 4,096 characters; secrets in it are masked"),
        Column("outcome", "text", "`success` or `failure`"),
        Column("reason", "text", "why it failed: `unknown user`, `authentication failure`, sudo's own words, …"),
        Column(
            "source",
            "text",
            "sources that reported it: `journal`, `syslog`, `audit`, `kernel`, `wtmp`, `btmp`, `wtmpdb`, `lastlog2`, "
            "separated by commas; on Windows `security`",
        ),
        Column("verified", "bool", "whether only root, or the user himself, could have caused one of these reports"),
        Column("cursor", "text", "positions in the sources, from which recording resumes", added=True),
    ],
    examples=[
        "SELECT time, user, remote_addr, method FROM logins_events WHERE action = 'login'",
        "SELECT remote_addr, count(*) AS \"failures:count\" FROM logins_events WHERE action = 'failed' "
        "GROUP BY remote_addr",
        "SELECT time, user, target_user, command FROM logins_events WHERE action = 'sudo'",
    ],
    kind="events",
    platforms=("linux", "win32"),
)

TABLES = (logins, logins_events)
