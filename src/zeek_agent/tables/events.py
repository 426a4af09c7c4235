"""Event tables, to which event sources append."""

from __future__ import annotations

from zeek_agent import platforms
from zeek_agent.schema import Column
from zeek_agent.table import Table
from zeek_agent.tables._process_columns import ACCOUNT, EXECUTABLE, process_columns
from zeek_agent.tables._traffic_columns import traffic_columns

processes_events = Table(
    "processes_events",
    "process starts and stops",
    description=(
        "One row when a process starts (by executing a program, or by a fork without exec) and one when it stops, from "
        "the event store. Values that a source cannot provide are null; `zeek_agent_sources` shows the active backend "
        "and its losses. `exe_device`, `exe_inode` and `exe_mntns` identify the executable at the moment of the exec, "
        "by eBPF and eslogger only (macOS has no mount namespaces): other sources learn of it later, when the process "
        "may already execute something else. Processes "
        "that began while the agent did not record, or whose start was lost, and that still run afterwards, have a row "
        "with `found_running`."
    ),
    columns=[
        Column("time", "time", "when it happened"),
        Column(
            "name", "text", "short name of the process, at most 15 bytes (comm in proc(5)); on macOS, its executable's"
        ),
        Column("pid", "count", "process id"),
        Column("ppid", "count", "process id of the parent, the process that forked this one"),
        Column("uid", "count", "effective user id"),
        Column("gid", "count", "effective group id"),
        Column("ruid", "count", "real user id"),
        Column("rgid", "count", "real group id"),
        Column("priority", "text", "the kernel's scheduling priority: 20 is normal, lower is more urgent"),
        Column("duration", "interval", "run time of a stopped process"),
        Column("vsize", "count", "bytes of virtual memory"),
        Column("rsize", "count", "bytes of physical memory"),
        Column("utime", "interval", "CPU time spent in user mode"),
        Column("stime", "interval", "CPU time spent in the kernel"),
        Column("state", "text", "`started` or `stopped`"),
        *process_columns("exe", "cmdline", added=True),
        Column("cwd", "text", "working directory", added=True),
        Column("exit_code", "int", "exit status; negative signal number if killed by a signal", added=True),
        *process_columns(
            "loginuid", "session", "cgroup", "container_id", "netns", "entity_id", "parent_entity_id", added=True
        ),
        Column("parent_name", "text", "the parent's short name", added=True),
        Column("parent_exe", "text", "path of the parent's executable", added=True),
        *process_columns("argv", added=True),
        *process_columns(*EXECUTABLE, added=True),
        Column(
            "found_running",
            "bool",
            "the start was not observed: the process began while the agent was not recording, or while the kernel's "
            "buffer was full, and was found running afterwards; the columns show it as it was then",
            added=True,
        ),
        *process_columns(*ACCOUNT, added=True, hidden=True),
    ],
    examples=[
        "SELECT time, exe, cmdline, uid FROM processes_events WHERE state = 'started'",
        'SELECT parent_exe, exe, count(*) AS "starts:count" FROM processes_events GROUP BY parent_exe, exe',
    ],
    kind="events",
    platforms=platforms.KEYS,
)

sockets_events = Table(
    "sockets_events",
    "opened and closed connections, listening ports and opened packet sockets",
    description=(
        "One row per state change of a connection or listening socket, with the process behind it, from the event "
        "store. Without eBPF, an attempt to connect can end before its outcome is observed: it has a row with `closed` "
        "and none with `established` or `failed`. A packet socket (packet(7)), as used by sniffers, has a row when it "
        "is opened: `family` is `packet`, `state` is `listen`, and protocol, addresses, ports and `cookie` are null. "
        "Values that a source cannot provide are null; `zeek_agent_sources` shows the active backend and its losses. "
        "Where the host translates addresses (NAT), as for containers, the `translated_` columns contain the addresses "
        "and ports that a sensor outside the host sees. They are null for untranslated connections. `exe_device`, "
        "`exe_inode` and `exe_mntns` are those of `processes_events`. For more about the process than these columns "
        "contain, join its events as in the last example: a process has a row with "
        "`started` for its fork and one for each program that it executed, and `max(p.seq)` with `GROUP BY s.seq` "
        "takes the last one before the connection."
    ),
    columns=[
        Column("time", "time", "when it happened"),
        Column("pid", "count", "process that opened or accepted the connection, or is listening"),
        Column("process", "text", "short name of that process"),
        Column("uid", "count", "effective user id of that process"),
        Column("gid", "count", "effective group id of that process"),
        Column("family", "text", "`IPv4` or `IPv6`, as in the packets; `packet` for a packet socket"),
        Column("protocol", "count", "IP protocol: 1 ICMP, 6 TCP, 17 UDP, 58 ICMPv6, 132 SCTP, 136 UDP-Lite"),
        Column("local_addr", "address", "local address"),
        Column("local_port", "count", "local port; the type of an echo request"),
        Column("remote_addr", "address", "peer's address"),
        Column("remote_port", "count", "peer's port"),
        Column("state", "text", "`established`, `active`, `closed`, `expired`, `failed` or `listen`"),
        Column("direction", "text", "`outbound` or `inbound`, by the side that opened the connection", added=True),
        *process_columns("exe", "cmdline", "loginuid", added=True),
        Column("cookie", "count", "the kernel's socket cookie (SO_COOKIE), unique until reboot", added=True),
        *process_columns("netns", "container_id", "entity_id", "parent_entity_id", added=True),
        Column("community_id", "text", "Community ID (version 1) of the flow, as Zeek logs it", added=True),
        Column(
            "listener_stands_in",
            "bool",
            "the process that accepted or read the flow is unknown; the columns show another one that has the socket "
            "open, such as the listening process",
            added=True,
        ),
        Column("translated_local_addr", "address", "translated local address, as seen outside the host", added=True),
        Column("translated_local_port", "count", "translated local port", added=True),
        Column("translated_remote_addr", "address", "translated peer address", added=True),
        Column("translated_remote_port", "count", "translated peer port", added=True),
        *process_columns("argv", added=True),
        Column(
            "mptcp_token",
            "count",
            "MPTCP: the connection's token on this host (RFC 8684), the same for all its subflows; null for plain TCP",
            added=True,
        ),
        Column(
            "correction",
            "bool",
            "the row repeats an earlier one that had `listener_stands_in`, with the process that is known now",
            added=True,
        ),
        *process_columns(*EXECUTABLE, added=True),
        *traffic_columns(added=True),
        Column(
            "receive_drops",
            "count",
            "UDP: datagrams for the socket that were dropped because its receive buffer was full; on rows with "
            "`closed`",
            added=True,
        ),
        Column("remote_name", "text", "name for which the process had looked up `remote_addr`", added=True),
        *process_columns(*ACCOUNT, added=True, hidden=True),
    ],
    examples=[
        "SELECT time, process, remote_addr, remote_port FROM sockets_events WHERE direction = 'outbound'",
        "SELECT time, exe, cmdline, uid, netns FROM sockets_events WHERE family = 'packet'",
        (
            'SELECT s.time, s.remote_addr, p.cmdline, p.cwd, p.parent_exe, max(p.seq) AS "started:count" '
            "FROM sockets_events AS s LEFT JOIN processes_events_history AS p "
            "ON p.entity_id = s.entity_id AND p.state = 'started' AND p.time <= s.time "
            "WHERE s.state = 'established' GROUP BY s.seq"
        ),
    ],
    kind="events",
    platforms=platforms.KEYS,
)

dns_events = Table(
    "dns_events",
    "names that processes looked up, with the answers",
    description=(
        "One row for each question that a process of this host asked a DNS server, when the answer has arrived, or "
        "after 15 seconds without one; from the event store. Servers are recognized by port 53 and those of "
        "`sources.dns_ports`, over UDP and TCP. Only eBPF records them, and Sysmon on Windows, which knows neither the "
        "server nor the type of the question. A process that leaves lookups to a service has "
        "no row of its own unless it asks the service over DNS, as it does with systemd-resolved's stub at 127.0.0.53: "
        "then the service has a row with `via`. Questions within an encrypted connection (DNS over TLS or HTTPS) are "
        "not visible. The first 4,096 bytes of a message are read."
    ),
    columns=[
        Column("time", "time", "when it was asked"),
        Column("pid", "count", "process that asked"),
        Column("process", "text", "short name of that process"),
        Column("uid", "count", "effective user id of that process"),
        Column("query", "text", "name that was asked for, in lower case, without the final dot"),
        Column("type", "text", "type of the question: `A`, `AAAA`, `PTR`, …; `TYPE65280` if it has no name"),
        Column("rcode", "text", "response code: `NOERROR`, `NXDOMAIN`, `SERVFAIL`, …; null without an answer"),
        Column(
            "answers",
            "vector[text]",
            "data of the answer's records in presentation format, at most 100; null without an answer",
        ),
        Column("latency", "interval", "time from the question to the answer"),
        Column("attempts", "count", "how often it was asked; null if no question was seen"),
        Column("truncated", "bool", "whether the answer is incomplete: cut by the server (TC), or not read to its end"),
        Column("protocol", "count", "IP protocol: 6 TCP, 17 UDP"),
        Column("local_addr", "address", "local address"),
        Column("local_port", "count", "local port"),
        Column("server_addr", "address", "the server's address"),
        Column("server_port", "count", "the server's port"),
        Column("via", "text", "name of the process, if it is a service that asks for others, which are not known"),
        *process_columns("exe", "cmdline", "loginuid", "netns", "container_id", "entity_id", "parent_entity_id"),
        Column("community_id", "text", "Community ID (version 1) of the flow, as Zeek logs it"),
        Column("cookie", "count", "the kernel's socket cookie (SO_COOKIE), unique until reboot"),
        *process_columns("argv"),
        *process_columns(*EXECUTABLE),
    ],
    examples=[
        "SELECT time, process, query, type, answers FROM dns_events",
        "SELECT process, query, count(*) AS \"failures:count\" FROM dns_events WHERE rcode = 'NXDOMAIN' "
        "GROUP BY process, query",
    ],
    kind="events",
    platforms=("linux", "win32"),
)

files_events = Table(
    "files_events",
    "files that processes created, changed, deleted, renamed or executed",
    description=(
        "One row for what a process did to a file or directory in the directories of `sources.files_watch`, from the "
        "event store. The same action of a process on the same path within `sources.files_window`, one second by "
        "default, is one row, which appears at the end of that time: `time` is that of the first, `count` their "
        "number. Columns about the file (`type` to `sha256`) are as at that end, and null if it was gone. Rows of a "
        "process are in the order of their first events, except that those with a hash come later; where the kernel "
        "merges events, `created` comes before `written`, and `deleted` comes last. A file that is renamed over "
        "another one replaces it without a row of its own. In what overlay file systems (containers) write, paths are "
        "those of their layers. See [sources](sources.md#file-events)."
    ),
    columns=[
        Column("time", "time", "when it happened"),
        Column("action", "text", "`created`, `written`, `deleted`, `renamed`, `attributes` or `executed`"),
        Column("path", "text", "full path; null if it is unknown, or the file was renamed to where nothing is watched"),
        Column("old_path", "text", "of `renamed`: the path before; null if nothing was watched there"),
        Column("type", "text", "`file`, `dir`, `link`, `block`, `char`, `fifo` or `socket`"),
        Column("count", "count", "number of events in this row"),
        Column("pid", "count", "process that did it"),
        Column("process", "text", "short name of that process"),
        Column("uid", "count", "effective user id of that process"),
        Column("gid", "count", "effective group id of that process"),
        Column("device", "count", "device number of the file's file system, as makedev(3) encodes it"),
        Column("inode", "count", "inode number of the file"),
        Column("size", "count", "size in bytes"),
        Column("permissions", "text", "permissions, in octal"),
        Column(
            "sha256",
            "text",
            "SHA-256 of a new or changed executable of up to `sources.files_hash_bytes`; null if access rules deny it",
        ),
        Column(
            "found",
            "bool",
            "the event was lost, or happened before the watch began; the change was found by comparing directories, "
            "so its process is unknown, and `time` is that of the comparison",
        ),
        *process_columns("exe", "cmdline", "loginuid", "session", "container_id", "entity_id", "parent_entity_id"),
        *process_columns("argv"),
        *process_columns(*EXECUTABLE),
    ],
    examples=[
        "SELECT time, action, path, old_path, process, uid FROM files_events",
        "SELECT time, path, sha256, exe, cmdline FROM files_events WHERE sha256 IS NOT NULL AND action <> 'attributes'",
    ],
    kind="events",
)

TABLES = (processes_events, sockets_events, dns_events, files_events)
