"""Configuration: one frozen object from flags, environment and a TOML file.

Every setting is declared here with its default; `docs/configuration.md` and the table `zeek_agent_config` are derived
from these declarations. `load` lives in the same module so that a setting's name, type and check are in one place.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Positive = Annotated[float, Meta(gt=0)]
PositiveInt = Annotated[int, Meta(gt=0)]
Port = Annotated[int, Meta(ge=0, le=65535)]


class Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the TOML file."""


class AgentSettings(Section):
    """Who this agent is."""

    id: Annotated[str | None, Meta(description="agent id; made once and kept in the state directory when not set")] = (
        None
    )
    hostname: Annotated[str | None, Meta(description="host name to report instead of the system's")] = None


class TlsSettings(Section):
    """TLS towards Zeek, for `wss://` destinations."""

    ca_file: Annotated[str | None, Meta(description="PEM file of trusted authorities instead of the system's")] = None
    certificate: Annotated[str | None, Meta(description="PEM file of the client certificate")] = None
    key: Annotated[str | None, Meta(description="PEM file of the client's key; in `certificate` when not set")] = None
    server_name: Annotated[str | None, Meta(description="name to expect in Zeek's certificate instead of the host")] = (
        None
    )
    insecure: Annotated[bool, Meta(description="accept any certificate (a man in the middle is not noticed)")] = False


class ZeekSettings(Section):
    """The connections to Zeek."""

    destinations: Annotated[tuple[str, ...], Meta(description="URLs (`ws://host:port`, `wss://…`, `host[:port]`)")] = ()
    groups: Annotated[tuple[str, ...], Meta(description="groups this agent is in, besides `all` and the platform")] = ()
    hello_interval: Annotated[Positive, Meta(description="seconds between hellos")] = 60.0
    instance_timeout: Annotated[Positive, Meta(description="seconds of silence after which a Zeek is forgotten")] = (
        120.0
    )
    connect_timeout: Annotated[Positive, Meta(description="seconds for TCP, TLS and the WebSocket upgrade")] = 10.0
    ack_timeout: Annotated[
        Positive, Meta(description="seconds to wait for Zeek's acknowledgement of the subscription")
    ] = 10.0
    ping_interval: Annotated[Positive, Meta(description="seconds between pings on an idle connection")] = 10.0
    pong_timeout: Annotated[Positive, Meta(description="seconds without a pong after which a connection is dead")] = (
        120.0
    )
    reconnect_min: Annotated[Positive, Meta(description="seconds before the first reconnect attempt")] = 0.5
    reconnect_max: Annotated[Positive, Meta(description="most seconds between reconnect attempts")] = 60.0
    batch_rows: Annotated[PositiveInt, Meta(description="most rows sent before a ping")] = 100
    batch_bytes: Annotated[PositiveInt, Meta(description="most bytes sent before a ping")] = 65_536
    window_bytes: Annotated[PositiveInt, Meta(description="bytes under way without a pong, at first")] = 262_144
    window_bytes_max: Annotated[PositiveInt, Meta(description="bytes under way without a pong, at most")] = 4_194_304
    slow_pong: Annotated[Positive, Meta(description="seconds after which a pong is late: then one batch at a time")] = (
        0.25
    )
    queries_max: Annotated[PositiveInt, Meta(description="queries that one Zeek instance may have installed")] = 1_000
    instances_max: Annotated[PositiveInt, Meta(description="Zeek instances behind one connection")] = 100
    message_bytes_max: Annotated[PositiveInt, Meta(description="largest message that is accepted from Zeek")] = (
        4_194_304
    )
    tls: TlsSettings = TlsSettings()


class LimitSettings(Section):
    """Limits of a statement, Zeek's as well as a user's."""

    time: Annotated[Positive, Meta(description="seconds that a statement may run")] = 10.0
    rows: Annotated[PositiveInt, Meta(description="rows that a statement may return")] = 1_000_000
    result_bytes: Annotated[PositiveInt, Meta(description="bytes that a statement's result may take")] = 268_435_456
    statement_bytes: Annotated[PositiveInt, Meta(description="length of a statement's text")] = 100_000
    value_bytes: Annotated[PositiveInt, Meta(description="length of one text or blob value")] = 4_194_304
    workers: Annotated[PositiveInt, Meta(description="snapshot queries that run at the same time")] = 2


class AccessSettings(Section):
    """What statements may see."""

    tables_allow: Annotated[tuple[str, ...], Meta(description="if not empty: only these tables (globs)")] = ()
    tables_deny: Annotated[tuple[str, ...], Meta(description="never these tables (globs)")] = ()
    paths_allow: Annotated[tuple[str, ...], Meta(description="if not empty: only these files are read (globs)")] = ()
    paths_deny: Annotated[tuple[str, ...], Meta(description="never these files (globs; `**` crosses directories)")] = (
        "/etc/shadow*",
        "/etc/gshadow*",
        "/etc/security/opasswd",
        "/etc/sudoers",
        "/etc/sudoers.d/*",
        "/etc/ssl/private/**",
        "/etc/pki/**/private/**",
        "/etc/ssh/ssh_host_*_key",
        "/**/.ssh/id_*[!.pub]",
        "/**/.gnupg/private-keys-v1.d/**",
        "/**/*.key",
        "/**/.aws/credentials",
        "/**/.netrc",
        "/**/.pgpass",
        "/**/.docker/config.json",
        "/**/.kube/config",
        "/proc/*/environ",
        "/proc/*/mem",
        "/proc/*/task/*/environ",
        "/proc/*/task/*/mem",
        "/proc/kcore",
        "/dev/**",
    )
    redact: Annotated[
        tuple[str, ...], Meta(description="regular expressions (RE2); what they match in command lines reads `***`")
    ] = (r"(?i)(?:password|passwd|token|secret|api[-_]?key)[=: ]\S+",)


class EventSettings(Section):
    """The event store."""

    retention_age: Annotated[Positive, Meta(description="seconds that events are kept")] = 86_400.0
    retention_bytes: Annotated[PositiveInt, Meta(description="bytes that the store may take on disk")] = 268_435_456
    queue_rows: Annotated[PositiveInt, Meta(description="rows that may wait for the store's writer")] = 200_000
    commit_interval: Annotated[Positive, Meta(description="seconds after which waiting rows are committed")] = 0.1


class SourceSettings(Section):
    """Where events come from."""

    processes: Annotated[
        Literal["auto", "ebpf", "proc_connector", "audit", "snapshots", "off"],
        Meta(description="backend of process events; `auto` takes the best that works"),
    ] = "auto"
    sockets: Annotated[
        Literal["auto", "ebpf", "inet_diag", "audit", "snapshots", "off"],
        Meta(description="backend of socket events; `auto` takes the best that works"),
    ] = "auto"
    snapshot_interval: Annotated[
        Positive, Meta(description="seconds between snapshots, for the backend that compares them")
    ] = 1.0
    ring_bytes: Annotated[int, Meta(ge=0, description="bytes of each kernel ring buffer; 0: by the number of CPUs")] = 0
    audit_rules: Annotated[bool, Meta(description="let the audit backend set its own kernel rules")] = False
    ignore_loopback: Annotated[bool, Meta(description="leave out connections over loopback")] = False
    ignore_self: Annotated[bool, Meta(description="leave out the agent's own process")] = True
    ignore_executables: Annotated[
        tuple[str, ...], Meta(description="leave out processes of these executables (full paths)")
    ] = ()
    ignore_uids: Annotated[tuple[int, ...], Meta(description="leave out processes of these users")] = ()
    process_cache: Annotated[PositiveInt, Meta(description="exited processes that are remembered")] = 20_000
    process_grace: Annotated[Positive, Meta(description="seconds that exited processes are remembered")] = 60.0


class CollectorSettings(Section):
    """The embedded collector, or `zeek-agent collector`."""

    listen: Annotated[str, Meta(description="address and port to listen on; port 0: any free one")] = "127.0.0.1:27759"
    logs: Annotated[str, Meta(description="directory of the logs")] = "./logs"
    format: Annotated[Literal["tsv", "json"], Meta(description="log format")] = "tsv"
    pack: Annotated[str | None, Meta(description="query pack (TOML) instead of the default one")] = None
    schedule: Annotated[
        Positive | None, Meta(description="seconds between runs, instead of the pack's own for snapshots")
    ] = None
    rotate_interval: Annotated[float, Meta(ge=0, description="seconds after which logs are rotated; 0: never")] = 3600.0
    rotate_bytes: Annotated[int, Meta(ge=0, description="bytes after which a log is rotated; 0: never")] = 104_857_600
    agent_timeout: Annotated[Positive, Meta(description="seconds of silence after which an agent is offline")] = 600.0


class OsquerySettings(Section):
    """The bridge to osquery."""

    socket: Annotated[str | None, Meta(description="osquery's extensions socket; not set: no bridge")] = None


class LogSettings(Section):
    """The agent's own log."""

    level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="least level that is logged")] = (
        "info"
    )
    file: Annotated[str | None, Meta(description="file to write to instead of standard error")] = None
    entries: Annotated[PositiveInt, Meta(description="entries that the table zeek_agent_log keeps")] = 1_000


class ControlSettings(Section):
    """The control socket, through which `query`, `shell` and `status` reach a running agent."""

    socket: Annotated[
        str | None, Meta(description="path; by default beside the state directory's other files or in /run")
    ] = None
    group: Annotated[str | None, Meta(description="group that may use the socket, besides its owner")] = None


class Config(Section):
    """Everything that can be set."""

    state_dir: Annotated[str | None, Meta(description="directory of identity, event store and delivery state")] = None
    agent: AgentSettings = AgentSettings()
    zeek: ZeekSettings = ZeekSettings()
    limits: LimitSettings = LimitSettings()
    access: AccessSettings = AccessSettings()
    events: EventSettings = EventSettings()
    sources: SourceSettings = SourceSettings()
    collector: CollectorSettings = CollectorSettings()
    osquery: OsquerySettings = OsquerySettings()
    log: LogSettings = LogSettings()
    control: ControlSettings = ControlSettings()
