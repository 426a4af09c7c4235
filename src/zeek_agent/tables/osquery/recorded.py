"""osquery's event tables, made of the agent's recorded events."""

from __future__ import annotations

from typing import Final

from zeek_agent.schema import Column
from zeek_agent.tables.osquery._declaration import ALWAYS_NULL, osquery_events

_TIME: Final = Column("time", "int", "when it happened"), "CAST(time AS INTEGER)"
_UPTIME: Final = Column("uptime", "int", "always null: osquery's time since boot"), "NULL"
_EVENT_ID: Final = (
    Column("eid", "text", "id of the event: the number of its row in the event store"),
    "CAST(seq AS TEXT)",
)
_LOGIN_USER: Final = Column("auid", "int", "login user id; 4294967295 if unset"), "ifnull(loginuid, 4294967295)"
_UNKNOWN: Final = "always null: not recorded"
_FACILITIES: Final = (
    *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp"),
    *("ntp", "security", "console", "solaris-cron"),
    *(f"local{number}" for number in range(8)),
)
_FACILITY: Final = f"CASE facility {' '.join(f'WHEN {n} THEN {name!r}' for n, name in enumerate(_FACILITIES))} END"

process_events = osquery_events(
    "process_events",
    "process starts",
    description=(
        "The rows of `processes_events` with `started`. Unlike osquery's, they include processes that were forked and "
        "executed no program, and they need no audit."
    ),
    of="processes_events",
    where="state = 'started'",
    columns=[
        (Column("pid", "int", "process id"), "pid"),
        (Column("path", "text", "path of the executable"), "exe"),
        (Column("mode", "text", _UNKNOWN), "NULL"),
        (Column("cmdline", "text", "arguments joined by one blank each, with secrets masked"), "cmdline"),
        (Column("cwd", "text", "working directory"), "cwd"),
        _LOGIN_USER,
        (Column("uid", "int", "real user id"), "ruid"),
        (Column("euid", "int", "effective user id"), "uid"),
        (Column("gid", "int", "real group id"), "rgid"),
        (Column("egid", "int", "effective group id"), "gid"),
        *((Column(name, "int", _UNKNOWN), "NULL") for name in ("owner_uid", "owner_gid")),
        *((Column(name, "int", _UNKNOWN), "NULL") for name in ("atime", "mtime", "ctime", "btime")),
        (Column("parent", "int", "process id of the parent"), "ppid"),
        _TIME,
        _UPTIME,
        *((Column(name, "int", _UNKNOWN), "NULL") for name in ("fsuid", "suid", "fsgid", "sgid")),
        (Column("syscall", "text", _UNKNOWN), "NULL"),
        (Column("cmdline_size", "int", "bytes of `cmdline`"), "length(CAST(cmdline AS BLOB))"),
        (Column("env", "text", "always null: environments contain secrets"), "NULL"),
        *((Column(name, "int", _UNKNOWN), "NULL") for name in ("env_count", "env_size")),
        (Column("overflows", "text", _UNKNOWN), "NULL"),
        (Column("status", "int", ALWAYS_NULL), "NULL"),
        _EVENT_ID,
    ],
    examples=["SELECT time, pid, path, cmdline FROM osquery_process_events"],
)

socket_events = osquery_events(
    "socket_events",
    "opened connections and listening ports",
    description=(
        "The rows of `sockets_events` that are not about the end of a connection. An accepted connection has the "
        "client's address as `remote_address`, as with osquery, and the server's as `local_address`, which osquery "
        "leaves empty."
    ),
    of="sockets_events",
    where="state IN ('established', 'active', 'failed', 'listen') AND family <> 'packet'",
    columns=[
        (
            Column("action", "text", "`connect`, `accept` or `bind`"),
            "CASE WHEN state = 'listen' THEN 'bind' WHEN direction = 'inbound' THEN 'accept' ELSE 'connect' END",
        ),
        (Column("pid", "int", "process id"), "pid"),
        (Column("path", "text", "path of the executable"), "exe"),
        (Column("fd", "text", _UNKNOWN), "NULL"),
        _LOGIN_USER,
        (Column("family", "int", "2 for IPv4, 10 for IPv6"), "CASE family WHEN 'IPv6' THEN 10 ELSE 2 END"),
        (Column("local_address", "text", "local address"), "local_addr"),
        (Column("remote_address", "text", "the peer's address"), "remote_addr"),
        (Column("local_port", "int", "local port"), "local_port"),
        (Column("remote_port", "int", "the peer's port"), "remote_port"),
        _TIME,
        _UPTIME,
        (
            Column("status", "text", "`succeeded` or `failed`"),
            "CASE state WHEN 'failed' THEN 'failed' ELSE 'succeeded' END",
        ),
        (Column("protocol", "int", "IP protocol"), "protocol"),
        (Column("socket", "text", _UNKNOWN), "NULL"),
        (Column("success", "int", "1, or 0 if it failed"), "state <> 'failed'"),
        _EVENT_ID,
    ],
    examples=["SELECT time, action, path, remote_address, remote_port FROM osquery_socket_events"],
)

file_events = osquery_events(
    "file_events",
    "changes of files",
    description=(
        "The rows of `files_events`, which watches what `sources.files_watch` names. Those of `executed` are left out. "
        "A renamed file has its new path."
    ),
    of="files_events",
    where="action <> 'executed'",
    columns=[
        (Column("target_path", "text", "path of the file; of a renamed one, the new path"), "ifnull(path, old_path)"),
        (Column("category", "text", "always empty: the agent's watches have no categories"), "''"),
        (
            Column(
                "action", "text", "`CREATED`, `UPDATED`, `DELETED`, `MOVED_TO`, `MOVED_FROM`, `ATTRIBUTES_MODIFIED`"
            ),
            "CASE action WHEN 'created' THEN 'CREATED' WHEN 'written' THEN 'UPDATED' WHEN 'deleted' THEN 'DELETED'"
            " WHEN 'attributes' THEN 'ATTRIBUTES_MODIFIED' ELSE iif(path IS NULL, 'MOVED_FROM', 'MOVED_TO') END",
        ),
        (Column("transaction_id", "int", _UNKNOWN), "NULL"),
        (Column("inode", "int", "inode number"), "inode"),
        (Column("uid", "int", _UNKNOWN), "NULL"),
        (Column("gid", "int", _UNKNOWN), "NULL"),
        (Column("mode", "text", "permissions in octal, such as `0644`"), "substr('000' || permissions, -4)"),
        (Column("size", "int", "size in bytes"), "size"),
        *((Column(name, "int", _UNKNOWN), "NULL") for name in ("atime", "mtime", "ctime")),
        (Column("md5", "text", _UNKNOWN), "NULL"),
        (Column("sha1", "text", _UNKNOWN), "NULL"),
        (Column("sha256", "text", "SHA-256 of a new or changed executable"), "sha256"),
        (Column("hashed", "int", "1 with a hash, else 0"), "sha256 IS NOT NULL"),
        _TIME,
        _EVENT_ID,
    ],
    examples=["SELECT time, action, target_path FROM file_events"],
)

syslog_events = osquery_events(
    "syslog_events",
    "entries of the system log",
    description="The rows of `system_logs_events`.",
    osquery_aliases=("syslog",),
    of="system_logs_events",
    where="true",
    columns=[
        _TIME,
        (Column("datetime", "text", "the time in UTC"), "strftime('%Y-%m-%dT%H:%M:%S+00:00', time, 'unixepoch')"),
        (Column("host", "text", "always empty: this host"), "''"),
        (Column("severity", "int", "severity, from 0 (emergency) to 7 (debug)"), "CAST(level AS INTEGER)"),
        (Column("facility", "text", "facility: `kern`, `daemon`, `authpriv`, …"), _FACILITY),
        (Column("tag", "text", "syslog identifier of the program"), "ifnull(identifier, process)"),
        (Column("message", "text", "the message, in which secrets of command lines are masked"), "message"),
        _EVENT_ID,
    ],
    examples=["SELECT time, tag, message FROM syslog_events WHERE severity <= 3"],
)

TABLES = (process_events, socket_events, file_events, syslog_events)
