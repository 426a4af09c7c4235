"""The sections of the configuration that agents use, and what all sections share.

A setting is declared here, or in `server_sections.py`, with its type, meaning and default.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from zeek_agent import access_defaults, files_defaults

Positive = Annotated[float, Meta(gt=0)]
PositiveInt = Annotated[int, Meta(gt=0)]
NotNegativeInt = Annotated[int, Meta(ge=0)]

_WATCH_TITLE: Final = "an absolute path, in which ** can only be the end"
_WATCH_PATTERN: Final = r"^!?(?=/)((?!\*\*)[^\0])*?(/\*\*)?$"


class Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the TOML file."""


class AgentSettings(Section, frozen=True):
    """Identity of this agent."""

    id: Annotated[
        str | None, Meta(description="agent id; by default generated once and kept in the state directory")
    ] = None
    hostname: Annotated[str | None, Meta(description="host name to report instead of the system's")] = None


class TlsSettings(Section, frozen=True):
    """TLS for `wss://` destinations."""

    ca_file: Annotated[str | None, Meta(description="PEM file of trusted CA certificates, instead of the system's")] = (
        None
    )
    certificate: Annotated[str | None, Meta(description="PEM file of the client certificate")] = None
    key: Annotated[str | None, Meta(description="PEM file of the client's private key; default: in `certificate`")] = (
        None
    )
    server_name: Annotated[str | None, Meta(description="expected name in Zeek's certificate, instead of the host")] = (
        None
    )
    insecure: Annotated[bool, Meta(description="accept any certificate (allows man-in-the-middle attacks)")] = False


class ZeekSettings(Section, frozen=True):
    """Connections to Zeek."""

    destinations: Annotated[
        tuple[str, ...],
        Meta(
            description="URLs (`ws://host:port`, `wss://…`, `host[:port]`); `nats://host[:port][,…]` and "
            "`tls+nats://…` are servers of a [bus](#bus)"
        ),
    ] = ()
    groups: Annotated[
        tuple[str, ...], Meta(description="groups of this agent, in addition to `all` and the platform")
    ] = ()
    hello_interval: Annotated[Positive, Meta(description="seconds between hello messages")] = 60.0
    instance_timeout: Annotated[
        Positive, Meta(description="seconds of silence after which a Zeek is considered gone")
    ] = 120.0
    connect_timeout: Annotated[Positive, Meta(description="seconds for TCP, TLS and the WebSocket upgrade")] = 10.0
    ack_timeout: Annotated[
        Positive, Meta(description="seconds to wait for Zeek's acknowledgement of the subscription")
    ] = 10.0
    script_timeout: Annotated[
        Positive,
        Meta(description="seconds without an acknowledgement by Zeek's script before rows are sent again"),
    ] = 10.0
    ping_interval: Annotated[Positive, Meta(description="seconds between pings on an idle connection")] = 10.0
    pong_timeout: Annotated[
        Positive, Meta(description="seconds without a pong before a connection is considered dead")
    ] = 120.0
    reconnect_min: Annotated[Positive, Meta(description="seconds before the first reconnect attempt")] = 0.5
    reconnect_max: Annotated[Positive, Meta(description="maximum seconds between reconnect attempts")] = 60.0
    batch_rows: Annotated[PositiveInt, Meta(description="maximum number of rows between pings")] = 100
    batch_bytes: Annotated[
        PositiveInt,
        Meta(
            description="maximum number of bytes between pings, not counting the blanks that pad frames to 2,048 bytes"
            " for Broker's own server (stock packages up to 2.3)"
        ),
    ] = 65_536
    window_bytes: Annotated[
        PositiveInt, Meta(description="initial limit on unacknowledged bytes (sent without a pong)")
    ] = 262_144
    window_bytes_max: Annotated[PositiveInt, Meta(description="maximum of this limit")] = 4_194_304
    slow_pong: Annotated[
        Positive, Meta(description="seconds after which a pong is late; the agent then sends one batch at a time")
    ] = 0.25
    queries_max: Annotated[PositiveInt, Meta(description="maximum number of queries per Zeek instance")] = 1_000
    instances_max: Annotated[PositiveInt, Meta(description="maximum number of Zeek instances per connection")] = 100
    message_bytes_max: Annotated[PositiveInt, Meta(description="maximum size of a message from Zeek")] = 4_194_304
    tls: TlsSettings = TlsSettings()


class BusTlsSettings(TlsSettings, frozen=True):
    """TLS for `tls+nats://` destinations. The defaults are the CA and the client certificate of an enrolled agent."""

    server_name: Annotated[
        str | None, Meta(description="expected name in the servers' certificates, instead of the host")
    ] = None


class BusSettings(Section, frozen=True):
    """Sessions with Zeek clusters through gateways, over the NATS servers of a `nats://` or `tls+nats://` destination.

    Needs the extra `fleet`. Times and sizes are those of `zeek`.
    """

    credentials: Annotated[
        str | None,
        Meta(
            description="file of the agent's NATS credentials (.creds: user JWT and seed); default: "
            "`fleet/agent.creds` in the state directory, if it exists"
        ),
    ] = None
    clusters: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$", title="letters, digits, `-` and `_`")], ...],
        Meta(
            max_length=16,
            description="names of the Zeek clusters to have sessions with; empty: all whose gateways announce "
            "themselves, up to 16",
        ),
    ] = ()
    tls: BusTlsSettings = BusTlsSettings()


class LimitSettings(Section, frozen=True):
    """Limits per statement, from Zeek or a local user."""

    time: Annotated[Positive, Meta(description="maximum run time in seconds")] = 10.0
    rows: Annotated[PositiveInt, Meta(description="maximum number of rows in a result")] = 1_000_000
    result_bytes: Annotated[PositiveInt, Meta(description="maximum size of a result in bytes")] = 134_217_728
    statement_bytes: Annotated[PositiveInt, Meta(description="maximum length of a statement in bytes")] = 100_000
    value_bytes: Annotated[PositiveInt, Meta(description="maximum length of a text or blob value in bytes")] = 4_194_304
    memory_bytes: Annotated[
        PositiveInt,
        Meta(
            description="memory in bytes for SQLite's sorting, grouping and intermediate rows; up to half of it for "
            "recorded events that a statement reads together with other tables"
        ),
    ] = 134_217_728
    workers: Annotated[
        PositiveInt,
        Meta(description="number of snapshot queries that run concurrently, per destination and per local user"),
    ] = 2
    processes: Annotated[PositiveInt, Meta(description="maximum number of worker processes in all")] = 8
    cpu: Annotated[
        Positive,
        Meta(
            description="processor time for the statements of one destination or local user, in seconds per second; "
            "20 s may be saved, and statements wait once they are used up"
        ),
    ] = 0.25
    worker_bytes: Annotated[
        PositiveInt, Meta(description="maximum memory of a worker process in bytes, in which one statement runs")
    ] = 167_772_160
    file_bytes: Annotated[PositiveInt, Meta(description="maximum number of bytes to read lines from, per file")] = (
        16_777_216
    )
    file_lines: Annotated[PositiveInt, Meta(description="maximum number of lines to read per file")] = 100_000
    file_time: Annotated[Positive, Meta(description="maximum seconds for reading lines of one file")] = 1.0
    files_bytes: Annotated[
        PositiveInt, Meta(description="maximum number of bytes to read lines from, over all files")
    ] = 67_108_864
    files_lines: Annotated[PositiveInt, Meta(description="maximum number of lines to read over all files")] = 500_000
    files_time: Annotated[Positive, Meta(description="maximum seconds for reading and hashing files")] = 5.0
    state_bytes: Annotated[
        PositiveInt,
        Meta(
            description="maximum number of bytes for the last results of all queries that report differences; "
            "one query gets at most 64 MiB of it, and destinations share it equally when it is short"
        ),
    ] = 268_435_456


class AccessSettings(Section, frozen=True):
    """Access rules for statements."""

    tables_allow: Annotated[
        tuple[str, ...], Meta(description="if not empty: permit only these tables (globs); unknown ones are errors")
    ] = ()
    tables_deny: Annotated[tuple[str, ...], Meta(description="deny these tables (globs); unknown ones are errors")] = ()
    columns_deny: Annotated[
        tuple[str, ...],
        Meta(
            description="leave these columns unset (globs `table.column`, such as `logins_events.command` or "
            "`*.cmdline`), except `seq`; unknown ones are errors"
        ),
    ] = ()
    secrets_deny: Annotated[
        tuple[str, ...],
        Meta(
            description="tables and columns that hold secrets: denied as by `tables_deny` and left unset as by "
            "`columns_deny` (globs `table` and `table.column`), in addition to these; "
            "[tables with secrets](security.md#tables-with-secrets)"
        ),
    ] = access_defaults.SECRETS_DENY
    paths_allow: Annotated[
        tuple[str, ...],
        Meta(description="if not empty: only contents and hashes of these files (globs); implies `files_allow`"),
    ] = ()
    paths_deny: Annotated[
        tuple[str, ...],
        Meta(
            description="deny contents and hashes of these files (globs; `**` crosses directories, a leading `!` "
            "exempts matches of earlier patterns)"
        ),
    ] = access_defaults.PATHS_DENY
    files_allow: Annotated[
        tuple[str, ...],
        Meta(
            description="permit contents of these files, too, whatever their permissions (globs), in addition to the "
            "[default list](security.md#contents)"
        ),
    ] = ()
    filesystems_allow: Annotated[
        tuple[str, ...],
        Meta(
            description="file systems to enter although they can hang: types (`nfs4`, `fuse.*`) or mount "
            "points (`/srv/data`)"
        ),
    ] = ()
    mode: Annotated[
        Literal["enforce", "report"],
        Meta(
            description="`report` permits contents that are on no list, and logs a warning; `paths_deny` still applies."
            " For the migration from an older release; will be removed in the next one"
        ),
    ] = "enforce"
    user_database: Annotated[
        bool,
        Meta(
            description="query the name service's daemons (sssd, nslcd, systemd-userdbd) for accounts, in a helper "
            "process; false: local files only"
        ),
    ] = True
    privileges_allow: Annotated[
        tuple[str, ...],
        Meta(
            description="what tables may use of the [privileges](security.md#tables-with-privileges) that they declare:"
            " names of tables (all of them), paths of programs and of Unix sockets that only a group can use"
        ),
    ] = ()
    mask: Annotated[
        bool,
        Meta(description="mask [secrets in command lines](security.md#command-lines)"),
    ] = True
    redact: Annotated[
        tuple[str, ...],
        Meta(
            description="regular expressions (RE2) for other text in command lines to replace by `***`; they are "
            "applied to the arguments joined by blanks"
        ),
    ] = ()


class EventSettings(Section, frozen=True):
    """The event store."""

    retention_age: Annotated[Positive, Meta(description="maximum age of events in seconds")] = 86_400.0
    retention_bytes: Annotated[PositiveInt, Meta(description="maximum size of the store on disk in bytes")] = (
        268_435_456
    )
    queue_rows: Annotated[PositiveInt, Meta(description="maximum number of rows waiting for the store's writer")] = (
        200_000
    )
    commit_interval: Annotated[Positive, Meta(description="seconds between commits of waiting rows")] = 0.1


class SourceSettings(Section, frozen=True):
    """Event sources."""

    processes: Annotated[
        Literal["auto", "ebpf", "proc_connector", "audit", "eslogger", "sysmon", "security", "snapshots", "off"],
        Meta(
            description="backend for process events; `auto` selects the best available. `eslogger` is that of macOS, "
            "`sysmon` and `security` are those of Windows"
        ),
    ] = "auto"
    sockets: Annotated[
        Literal["auto", "ebpf", "inet_diag", "audit", "sysmon", "security", "snapshots", "off"],
        Meta(description="backend for socket events; `auto` selects the best available"),
    ] = "auto"
    translations: Annotated[
        Literal["auto", "conntrack", "off"],
        Meta(description="backend for address translation (NAT), for the `translated_` columns of socket events"),
    ] = "auto"
    system_logs: Annotated[
        Literal["auto", "journal", "syslog", "unified_log", "event_log", "off"],
        Meta(
            description="backend for the system log; `auto` selects the journal, or else the files of a syslog daemon; "
            "on macOS the unified log, on Windows its event logs"
        ),
    ] = "auto"
    log_predicate: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=4_096,
            pattern=r"^[^\0]+$",
            description="entries of macOS's unified log to record, as for `log stream --predicate`; it has hundreds of "
            "entries per second on a busy Mac",
        ),
    ] = 'eventType == "logEvent" OR eventType == "lossEvent"'
    dns: Annotated[
        Literal["auto", "ebpf", "sysmon", "off"],
        Meta(description="backend for name lookups; `auto` selects the best available"),
    ] = "auto"
    dns_ports: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=65535)], ...],
        Meta(max_length=63, description="ports of DNS servers besides 53, whose messages `dns_events` shows"),
    ] = ()
    files: Annotated[
        Literal["auto", "fanotify", "off"],
        Meta(description="backend for file events, in the directories of `files_watch`"),
    ] = "auto"
    files_watch: Annotated[
        tuple[Annotated[str, Meta(title=_WATCH_TITLE, pattern=_WATCH_PATTERN)], ...],
        Meta(
            description="directories whose files `files_events` shows, with all directories below them (globs, in "
            "which `*` does not match `/`, and `**` can only be the end; a leading `!` leaves directories out)"
        ),
    ] = files_defaults.FILES_WATCH
    files_filesystems: Annotated[
        tuple[Annotated[str, Meta(title="an absolute path", pattern=r"^/[^\0]*$")], ...],
        Meta(
            description="mount points of file systems whose files `files_events` shows, all of them; every process "
            "that changes a file there takes somewhat longer"
        ),
    ] = ()
    files_window: Annotated[
        float,
        Meta(
            ge=0.1,
            le=30,  # the process has to be in the cache when it ends
            description="seconds in which repeated changes of a file by a process are one row of `files_events`",
        ),
    ] = 1.0
    files_directories: Annotated[
        int, Meta(gt=0, le=200_000, description="maximum number of directories to watch for file events")
    ] = 20_000
    files_hash_bytes: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 30,
            description="maximum size in bytes of new executables whose SHA-256 `files_events` has; 0: no hashes",
        ),
    ] = 67_108_864
    logins: Annotated[
        Literal["auto", "combined", "journal", "syslog", "audit", "wtmp", "kernel", "security", "off"],
        Meta(
            description="backend for logins; `auto` and `combined` merge what all of them know, any other is one of "
            "them alone; on Windows only `security`"
        ),
    ] = "auto"
    syslog_files: Annotated[
        tuple[str, ...],
        Meta(description="syslog files to follow; default: `syslog` or `messages`, `auth.log` or `secure` in /var/log"),
    ] = ()
    snapshot_interval: Annotated[
        Positive, Meta(description="seconds between snapshots, for the `snapshots` backend")
    ] = 1.0
    traffic_interval: Annotated[
        float,
        Meta(
            ge=0,
            description="seconds after which a connection that is still open has a row in `sockets_events` with "
            "what it has carried so far, and then another one each time; 0: none. Only with eBPF",
        ),
    ] = 300.0
    ring_bytes: Annotated[
        int, Meta(ge=0, description="size of each kernel ring buffer in bytes; 0: by the number of CPUs")
    ] = 0
    audit_rules: Annotated[bool, Meta(description="let the audit backend install its own kernel rules")] = False
    ignore_loopback: Annotated[bool, Meta(description="ignore connections over loopback")] = False
    ignore_self: Annotated[bool, Meta(description="ignore the agent's own process")] = True
    ignore_executables: Annotated[
        tuple[str, ...],
        Meta(
            description="ignore processes that execute one of these files (full paths) in the host's mount namespace, "
            "from the start of recording on and only with eBPF, or eslogger on macOS; see docs/security.md"
        ),
    ] = ()
    ignore_uids: Annotated[tuple[int, ...], Meta(description="ignore processes of these users")] = ()
    process_cache: Annotated[PositiveInt, Meta(description="exited processes to keep in the cache")] = 20_000
    process_grace: Annotated[Positive, Meta(description="seconds that exited processes stay in the cache")] = 60.0


class TablesSettings(Section, frozen=True):
    """[Own tables](own-tables.md), without code."""

    files: Annotated[
        tuple[Annotated[str, Meta(pattern="^/")], ...],
        Meta(
            description="TOML files that declare tables from commands, file columns and followed files; they and the "
            "directories above them must belong to root, and nobody else may have write permission"
        ),
    ] = ()


class OsquerySettings(Section, frozen=True):
    """The bridge to osquery."""

    socket: Annotated[
        str,
        Meta(description="osquery's extensions socket; `auto`: the default of its daemon or shell; `off`: no bridge"),
    ] = "auto"
    refresh: Annotated[Positive, Meta(description="seconds between checks for osquery and its tables")] = 5.0
    time: Annotated[Positive, Meta(description="maximum seconds for a result of osquery")] = 10.0
    rows: Annotated[PositiveInt, Meta(description="maximum number of rows in a result of osquery")] = 200_000
    tables_exclude: Annotated[tuple[str, ...], Meta(description="tables to exclude (globs)")] = (
        "augeas",
        "carves",
        "curl",
        "curl_certificate",
        "docker_container_envs",
        "process_envs",
        "process_memory_map",
        "shadow",
        "shell_history",
        "sudoers",
        "yara",
        "yara_*",
    )
    prefer: Annotated[
        tuple[str, ...],
        Meta(description="tables of osquery that the agent has, too, to be read from osquery while it runs (globs)"),
    ] = ()
    event_tables: Annotated[tuple[str, ...], Meta(description="event tables to record (globs)")] = ()
    required_columns: Annotated[
        tuple[str, ...],
        Meta(
            description="`table.column` of columns that require a value, in addition to those of osquery's own tables"
        ),
    ] = ()
    export: Annotated[tuple[str, ...], Meta(description="agent tables to export to osquery (globs)")] = ()


class LogSettings(Section, frozen=True):
    """The agent's own log."""

    level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="minimum level")] = "info"
    file: Annotated[
        str | None,
        Meta(
            description="log file, instead of standard error (mode 0600, or 0640 in a setgid directory);"
            " a file that another user may control is refused"
        ),
    ] = None
    entries: Annotated[PositiveInt, Meta(description="number of entries in the table zeek_agent_log")] = 1_000


class ControlSettings(Section, frozen=True):
    """The control socket of a running agent, used by commands such as `query`, `shell` and `status`."""

    socket: Annotated[str | None, Meta(description="path; default: in the state directory or in /run")] = None
    group: Annotated[str | None, Meta(description="group that may use the socket, in addition to its owner")] = None


class MetricsSettings(Section, frozen=True):
    """[Metrics](metrics.md) for Prometheus, of the agent and of `zeek-agent collector`."""

    listen: Annotated[
        str | None,
        Meta(
            description="`unix:PATH`, or HOST:PORT with a loopback address, which any local user can connect to; "
            "unset: metrics are only shown by `zeek-agent status --format prometheus`"
        ),
    ] = None
    group: Annotated[str | None, Meta(description="group that may use the Unix socket, in addition to its owner")] = (
        None
    )
