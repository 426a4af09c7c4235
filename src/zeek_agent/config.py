"""Configuration: one frozen object from flags, environment and a TOML file.

Every setting is declared here with its default; `docs/configuration.md` and the table `zeek_agent_config` are derived
from these declarations. `load` is in the same module to keep a setting's name, type and checks in one place.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias, cast, get_type_hints

import msgspec
from msgspec import Meta, Struct

from zeek_agent import access_defaults, files_defaults, platforms, setting_types
from zeek_agent.errors import UsageError

log = logging.getLogger(__name__)

Positive = Annotated[float, Meta(gt=0)]
PositiveInt = Annotated[int, Meta(gt=0)]
NotNegativeInt = Annotated[int, Meta(ge=0)]

_WATCH_TITLE: Final = "an absolute path, in which ** can only be the end"
_WATCH_PATTERN: Final = r"^!?(?=/)((?!\*\*)[^\0])*?(/\*\*)?$"

RETENTION_BYTES_MIN: Final = 16 << 20
"""Less would not hold what agents send in a second."""


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


class CollectorTlsSettings(Section, frozen=True):
    """TLS of `zeek-agent collector`, version 1.2 or later. Without a certificate it accepts unencrypted connections."""

    certificate: Annotated[
        str | None, Meta(description="PEM file of the collector's certificate, followed by intermediate ones")
    ] = None
    key: Annotated[str | None, Meta(description="PEM file of its private key; default: in `certificate`")] = None
    client_ca: Annotated[
        str | None,
        Meta(description="PEM file of CA certificates; agents then need a client certificate signed by one of these"),
    ] = None
    crl: Annotated[
        str | None,
        Meta(
            description="PEM file of these CAs' revocation lists, `collector/agents.crl` of a fleet; whose certificate "
            "is in it is refused, and so is everybody once a list has expired"
        ),
    ] = None
    ids: Annotated[
        Literal["any", "certificate"],
        Meta(
            description="`certificate`: an agent may only have the id in its certificate, in the alternative name "
            "`urn:zeek-agent:ID` as enrolment issues it, or else the common name; one of the organizational unit "
            "`gateway` may have connections for any"
        ),
    ] = "any"


class CollectorSettings(Section, frozen=True):
    """The embedded collector, or `zeek-agent collector`."""

    listen: Annotated[
        str,
        Meta(
            description="address and port that `zeek-agent collector` listens on; port 0: any free one. The embedded "
            "collector does not listen"
        ),
    ] = "127.0.0.1:27759"
    logs: Annotated[str, Meta(description="log directory")] = "./logs"
    format: Annotated[
        Literal["tsv", "json", "osquery"],
        Meta(description="log format: Zeek's TSV or JSON, or osquery's result format"),
    ] = "tsv"
    pack: Annotated[
        str | None,
        Meta(
            description="query pack, instead of the default one: a TOML file, or a pack or configuration of osquery "
            "(JSON); a pattern names several"
        ),
    ] = None
    packs: Annotated[
        tuple[str, ...], Meta(description="further query packs and patterns; `default` is the default pack")
    ] = ()
    schedule: Annotated[
        Positive | None,
        Meta(description="seconds between runs, overriding the pack except for the subscription `Events`"),
    ] = None
    rotate_interval: Annotated[float, Meta(ge=0, description="seconds after which logs are rotated; 0: never")] = 3600.0
    rotate_bytes: Annotated[int, Meta(ge=0, description="bytes after which a log is rotated; 0: never")] = 104_857_600
    compress: Annotated[bool, Meta(description="compress rotated logs with gzip")] = True
    retention_age: Annotated[
        float, Meta(ge=0, description="seconds after which rotated logs are removed; 0: never")
    ] = 2_592_000.0
    retention_bytes: Annotated[
        NotNegativeInt | None,
        Meta(
            description="maximum size of all logs together, rotated ones included; rotated logs are removed to stay "
            "below it. At least 16777216, or 0: no limit; unset: a tenth of the file system, but from 64 MiB to 10 GiB",
        ),
    ] = None
    agent_timeout: Annotated[
        Positive,
        Meta(
            description="seconds of silence after which an agent is offline; at least three times the longest "
            "`zeek.hello_interval` of the agents"
        ),
    ] = 180.0
    hosts_max: Annotated[
        PositiveInt,
        Meta(description="maximum number of hosts to remember; of those not connected, the least known one is removed"),
    ] = 20_000
    tls: CollectorTlsSettings = CollectorTlsSettings()

    @property
    def pack_names(self) -> tuple[str, ...]:
        """The paths and patterns of all query packs; none for the default pack alone."""
        return (*((self.pack,) if self.pack else ()), *self.packs)


class GatewayTlsSettings(TlsSettings, frozen=True):
    """TLS to NATS servers, for `tls://` URLs and servers that require it."""

    server_name: Annotated[
        str | None, Meta(description="expected name in the server's certificate, instead of the host")
    ] = None


class GatewaySettings(Section, frozen=True):
    """`zeek-agent gateway`, which connects the agents on a NATS bus with one Zeek or collector.

    The connection to Zeek has the settings of the section `zeek`.
    """

    servers: Annotated[
        tuple[str, ...], Meta(description="NATS servers (`nats://host:port`, `tls://…`), of which one is used")
    ] = ()
    cluster: Annotated[
        str | None,
        Meta(description="name of the Zeek cluster, the same for all its gateways: letters, digits, `-` and `_`"),
    ] = None
    name: Annotated[
        str | None,
        Meta(
            description="name of this gateway, unlike that of any other in the cluster; default: the name in its "
            "credentials, or the host name"
        ),
    ] = None
    zeek: Annotated[str, Meta(description="URL of the Zeek or collector")] = "ws://127.0.0.1:27759"
    credentials: Annotated[
        str | None,
        Meta(
            description="file with the gateway's NATS credentials (JWT and seed), whose tag `agents:KEY` names the key "
            "that signs agents; without a file, agents' ids and sites are not verified"
        ),
    ] = None
    agents_max: Annotated[PositiveInt, Meta(description="maximum number of agents; others are refused")] = 10_000
    queries_max: Annotated[PositiveInt, Meta(description="maximum number of queries per agent")] = 2_000
    places: Annotated[
        PositiveInt,
        Meta(description="batches of more than 4 KiB that may be on their way at one time, from all agents together"),
    ] = 64
    places_per_agent: Annotated[PositiveInt, Meta(description="those of one agent")] = 8
    rows_per_second: Annotated[
        float, Meta(ge=0, description="maximum rate of rows per agent, 10 s of which may be sent at once; 0: no limit")
    ] = 0.0
    bytes_per_second: Annotated[
        float, Meta(ge=0, description="maximum rate of bytes per agent, 10 s of which may be sent at once; 0: no limit")
    ] = 0.0
    hello_interval: Annotated[
        Positive,
        Meta(
            description="seconds between hellos of an agent that are passed on to Zeek if nothing has changed; at most "
            "60 to a collector"
        ),
    ] = 300.0
    hellos_per_second: Annotated[
        Positive, Meta(description="maximum rate of hellos to Zeek, and of agents that move to another gateway")
    ] = 500.0
    drain_per_second: Annotated[
        Positive, Meta(description="agents per second that are sent to other gateways when this one stops")
    ] = 200.0
    tls: GatewayTlsSettings = GatewayTlsSettings()


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


class Config(Section, frozen=True):
    """All settings."""

    state_dir: Annotated[str | None, Meta(description="directory of identity, event store and delivery state")] = None
    agent: AgentSettings = AgentSettings()
    zeek: ZeekSettings = ZeekSettings()
    bus: BusSettings = BusSettings()
    limits: LimitSettings = LimitSettings()
    access: AccessSettings = AccessSettings()
    events: EventSettings = EventSettings()
    sources: SourceSettings = SourceSettings()
    tables: TablesSettings = TablesSettings()
    collector: CollectorSettings = CollectorSettings()
    gateway: GatewaySettings = GatewaySettings()
    osquery: OsquerySettings = OsquerySettings()
    log: LogSettings = LogSettings()
    control: ControlSettings = ControlSettings()
    metrics: MetricsSettings = MetricsSettings()


ENVIRONMENT_PREFIX: Final = "ZEEK_AGENT_"
ENVIRONMENT_SHORT: Final = {"ZEEK_AGENT_ZEEK": "zeek.destinations"}
"""Variables with a special name, in addition to the general `ZEEK_AGENT_SECTION__KEY`."""


RENAMED: Final[Mapping[str, str]] = {}
"""Current names of settings, by their names in earlier versions, which still work with a warning; both dotted."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The declaration of a setting: dotted name, type, meaning, default."""

    name: str
    type: Any
    summary: str
    default: object

    @property
    def expected(self) -> str:
        """The values that it accepts, in words."""
        return setting_types.in_words(self.type)

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return _variable(self.name)

    def convert(self, value: object, origin: str, called: str | None = None) -> object:
        """Check and convert a value. Raises UsageError that names the key, its origin and the expected values.

        `called` is the key's name in the message if it differs from the setting's.
        """
        try:
            if not isinstance(value, float) or math.isfinite(value):
                return msgspec.convert(value, self.type)
            shown = str(value)
        except msgspec.ValidationError:
            shown = "a section" if isinstance(value, Mapping) else shorten(_literal(value), 80)
        raise UsageError(f"{origin}: {called or self.name}: expected {self.expected}, got {shown}")

    def parse(self, text: str, origin: str, called: str | None = None) -> object:
        """Convert a value given as text by the environment or `--set`."""
        return self.convert(setting_types.from_text(self.type, text), origin, called)


@cache
def settings() -> Mapping[str, Setting]:
    """Every setting by its dotted name, in the order of the declarations."""
    return {setting.name: setting for setting in _declared(Config, "")}


def _declared(section: type[Section], prefix: str) -> Iterator[Setting]:
    hints = get_type_hints(section, include_extras=True)
    for field in msgspec.structs.fields(section):
        hint = hints[field.name]
        if isinstance(hint, type) and issubclass(hint, Section):
            yield from _declared(hint, f"{prefix}{field.name}.")
        else:
            summary = next(meta.description for meta in reversed(hint.__metadata__) if meta.description)
            yield Setting(f"{prefix}{field.name}", hint, summary, field.default)


def load(
    path: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
    *,
    renamed: Mapping[str, str] = RENAMED,
    warn: Callable[[str], None] = log.warning,
    refuse: Callable[[UsageError], None] | None = None,
) -> tuple[Config, dict[str, str]]:
    """The configuration, and the origin of each setting (by dotted name).

    Precedence: flags, environment, file, defaults. `path` must exist; without one, `ZEEK_AGENT_CONFIG` and then the
    default location are tried. `flags` are by dotted name; a `str` for a setting of another type is parsed like an
    environment variable. Raises UsageError that names origin, key and remedy.

    `renamed` is like RENAMED; `warn` is called with a message for each setting given under a former name, or with a
    value that used to mean something else. `refuse` is called with each error, instead of raising the first one; the
    result then has the default in its place.
    """
    refuse = refuse or _raise
    environment = os.environ if environment is None else environment
    values = {name: setting.default for name, setting in settings().items()}
    origins = dict.fromkeys(values, "default")
    file = config_file(path, environment)
    names = _SettingNames(renamed, warn, refuse)
    for name, value, origin in (
        *(_file_values(file, names) if file else ()),
        *_environment_values(environment, names),
        *_flag_values(flags or {}, names),
    ):
        values[name], origins[name] = value, origin
    _check(values, origins, refuse)
    if not values["access.redact"] and origins["access.redact"] != "default" and origins["access.mask"] == "default":
        warn(
            f"{origins['access.redact']}: an empty access.redact no longer shows command lines in full: set "
            "access.mask = false for that, or true to silence this warning"
        )
    return with_values(values), origins


def config_file(path: Path | None, environment: Mapping[str, str]) -> Path | None:
    """The file to read: the given one, or else the default one if it exists.

    Raises UsageError for a default one that other users could have written for this one, who has more rights.
    """
    if path is None and (named := environment.get(f"{ENVIRONMENT_PREFIX}CONFIG")):
        path = Path(named)
    if path is not None:
        return path
    default = platforms.HERE.configuration_file(environment)
    if not os.access(default, os.F_OK):
        return None
    try:
        reason = platforms.HERE.configuration_exposure(default)
    except OSError as error:
        reason = f"it cannot be determined who may change {default}: {error.strerror or error}"
    if reason is not None:
        raise UsageError(f"the configuration is not read, because others could have written it: {reason}")
    return default


class SettingStatus(NamedTuple):
    """A row of `zeek_agent_config`, which describes the columns."""

    name: str
    value: str | None
    origin: str
    default_value: str | None


def rows(config: Config, origins: Mapping[str, str]) -> Iterator[SettingStatus]:
    """Every setting. None contains a secret; they only name files that do."""
    for name, setting in settings().items():
        yield SettingStatus(name, _shown(get(config, name)), origins.get(name, "default"), _shown(setting.default))


def get(config: Config, name: str) -> object:
    """The value of the setting with that dotted name."""
    value: object = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def with_values(values: Mapping[str, object]) -> Config:
    """The configuration with these values of all settings, by their dotted names."""
    return cast("Config", _build(Config, "", values))


def literal(value: object) -> str:
    """A value in TOML syntax; empty if unset."""
    return "" if value is None else _literal(value)


def _literal(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=0).decode()


def _shown(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else _literal(value)


def _build(section: type[Section], prefix: str, values: Mapping[str, object]) -> Section:
    parts = {}
    for field in msgspec.structs.fields(section):
        name = f"{prefix}{field.name}"
        parts[field.name] = values[name] if name in values else _build(type(field.default), f"{name}.", values)
    return section(**parts)


_Given: TypeAlias = tuple[str, object, str]
"""A setting's current name, value and origin."""


def _variable(name: str) -> str:
    return ENVIRONMENT_PREFIX + name.upper().replace(".", "__")


@dataclass(frozen=True, slots=True)
class _GivenSetting:
    """A setting and the name, current or former, under which it was given."""

    setting: Setting
    name: str

    @property
    def called(self) -> str:
        """Its name in messages."""
        return self.name if self.name == self.setting.name else f"{self.name} (now {self.setting.name})"

    def origin(self, place: str) -> str:
        return place if self.name == self.setting.name else f"{place} as {self.name}"


@dataclass(frozen=True, slots=True)
class _SettingNames:
    """The names under which settings may be given: current and former ones."""

    renamed: Mapping[str, str]
    warn: Callable[[str], None]
    refuse: Callable[[UsageError], None]

    def converted(self, convert: Callable[[], object]) -> Iterator[object]:
        """The converted value, or none if it is refused."""
        try:
            value = convert()
        except UsageError as error:
            self.refuse(error)
        else:
            yield value

    def __iter__(self) -> Iterator[str]:
        return iter((*settings(), *self.renamed))

    def __contains__(self, name: str) -> bool:
        return name in settings() or name in self.renamed

    def resolved(self, given: Iterable[str], place: str, spell: Callable[[str], str] = str) -> Iterator[_GivenSetting]:
        """The settings given by one source, all under known names; `spell` turns a name into that source's spelling.

        A former name is used unless the current one is given too; either way there is a warning.
        """
        taken = set(given) & settings().keys()
        for name in sorted(given):
            now = self.renamed.get(name, name)
            if now != name:
                if now in taken:
                    self.warn(f"{place}: {spell(name)} is ignored: {spell(now)}, its new name, is set too")
                    continue
                self.warn(f"{place}: {spell(name)} is deprecated, use its new name {spell(now)}")
                taken.add(now)
            yield _GivenSetting(settings()[now], name)


def _file_values(file: Path, names: _SettingNames) -> Iterator[_Given]:
    import tomllib

    try:
        document = tomllib.loads(file.read_bytes().decode())
    except OSError as error:
        names.refuse(UsageError(f"cannot read the configuration {file}: {error.strerror}"))
        return
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        names.refuse(UsageError(f"{file}: not valid TOML: {error}"))
        return
    place = str(file)
    given = dict(_flatten(document, "", place, names))
    for one in names.resolved(given, place):
        for value in names.converted(partial(one.setting.convert, given[one.name], place, one.called)):
            yield one.setting.name, value, one.origin(place)


def _flatten(
    document: Mapping[str, object], prefix: str, origin: str, names: _SettingNames
) -> Iterator[tuple[str, object]]:
    """Values by dotted name, current or former, not yet converted."""
    for key, value in document.items():
        name = f"{prefix}{key}"
        if name in names:
            yield name, value
        elif not any(known.startswith(f"{name}.") for known in names):
            names.refuse(_unknown(name, origin))
        elif isinstance(value, Mapping):
            yield from _flatten(value, f"{name}.", origin, names)
        else:
            got = shorten(_literal(value), 80)
            names.refuse(UsageError(f"{origin}: {name}: expected a section ([{name}]), got {got}"))


def _environment_values(environment: Mapping[str, str], names: _SettingNames) -> Iterator[_Given]:
    """Values of variables that are not empty. Unknown names without `__` are ignored."""
    known = {_variable(name): name for name in names}
    given: dict[str, str] = {}
    for variable in sorted(environment, key=lambda name: (name not in ENVIRONMENT_SHORT, name)):
        if not variable.startswith(ENVIRONMENT_PREFIX) or not environment[variable]:
            continue
        if name := ENVIRONMENT_SHORT.get(variable) or known.get(variable):
            given[name] = variable
        elif "__" in variable:
            name = variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
            names.refuse(_unknown(name, f"environment {variable}"))
    for one in names.resolved(given, "environment", _variable):
        variable = given[one.name]
        place = f"environment {variable}"
        for value in names.converted(partial(one.setting.parse, environment[variable], place, one.called)):
            yield one.setting.name, value, place


def _flag_values(flags: Mapping[str, object], names: _SettingNames) -> Iterator[_Given]:
    place = "command line"
    for name in flags:
        if name not in names:
            names.refuse(_unknown(name, place))
    known = {name: value for name, value in flags.items() if name in names}
    for one in names.resolved(known, place):
        value, setting = known[one.name], one.setting
        read = setting.parse if isinstance(value, str) else setting.convert
        for converted in names.converted(partial(read, value, place, one.called)):  # type: ignore[arg-type]
            yield setting.name, converted, one.origin(place)


def _unknown(name: str, origin: str) -> UsageError:
    last = name.rpartition(".")[2]
    sections = {known.rpartition(".")[0] for known in settings()} - {""}
    near = [known for known in settings() if known.rpartition(".")[2] == last]
    if not near:
        import difflib

        near = difflib.get_close_matches(name, [*settings(), *sections], n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return UsageError(f"{origin}: unknown key {name}{hint}")


def _raise(error: UsageError) -> None:
    raise error


def _check(values: dict[str, object], origins: dict[str, str], refuse: Callable[[UsageError], None]) -> None:
    """Check what types cannot express: syntax of destinations, upper bounds not below lower ones."""
    from zeek_agent import destination

    def reject(message: str, *names: str) -> None:
        refuse(UsageError(message))
        for name in names:
            values[name], origins[name] = settings()[name].default, "default"

    valid: list[str] = []
    for text in cast("Sequence[str]", values["zeek.destinations"]):
        try:
            destination.parse_all((*valid, text))
        except UsageError as error:
            refuse(UsageError(f"{origins['zeek.destinations']}: zeek.destinations: {error}"))
        else:
            valid.append(text)
    values["zeek.destinations"] = tuple(map(str, destination.parse_all(valid)))
    for name, problem in _listen_problems(values):
        reject(f"{origins[name]}: {name}: {problem}", name)
    retained = cast("int | None", values["collector.retention_bytes"])
    if retained is not None and 0 < retained < RETENTION_BYTES_MIN:
        name = "collector.retention_bytes"
        reject(f"{origins[name]}: {name} ({retained}) is less than {RETENTION_BYTES_MIN}; 0 stands for no limit", name)
    for low, high in (("zeek.reconnect_min", "zeek.reconnect_max"), ("zeek.window_bytes", "zeek.window_bytes_max")):
        if cast("float", values[low]) > cast("float", values[high]):
            origin = origins[high] if origins[high] != "default" else origins[low]
            reject(f"{origin}: {high} ({values[high]}) is less than {low} ({values[low]})", low, high)


def _listen_problems(values: Mapping[str, object]) -> Iterator[tuple[str, ValueError]]:
    """Addresses to listen on that are invalid: the setting, and what is wrong."""
    from zeek_agent import destination

    for name, parse in (
        ("collector.listen", destination.parse_listen),
        ("metrics.listen", destination.parse_local_listen),
    ):
        try:
            if values[name] is not None:
                parse(cast("str", values[name]))
        except ValueError as problem:
            yield name, problem
