"""What happened on the host: tables that event sources append to."""

from __future__ import annotations

from zeek_agent.schema import Column
from zeek_agent.table import Table

processes_events = Table(
    "processes_events",
    "processes that started and stopped",
    description=(
        "A row when a process starts (a program is executed, or a process continues as a copy of its parent) and a row "
        "when it stops, kept in the event store. What a source cannot know is null; `zeek_agent_sources` shows which "
        "source is at work, and what it lost."
    ),
    columns=[
        Column("time", "time", "when it happened"),
        Column("name", "text", "short name of the process, at most 15 bytes (comm in proc(5))"),
        Column("pid", "count", "process id"),
        Column("ppid", "count", "process id of the parent, which is the process that forked this one"),
        Column("uid", "count", "effective user id"),
        Column("gid", "count", "effective group id"),
        Column("ruid", "count", "real user id"),
        Column("rgid", "count", "real group id"),
        Column("priority", "text", "the kernel's scheduling priority: 20 is normal, lower is more urgent"),
        Column("duration", "interval", "life time of a process that stopped"),
        Column("vsize", "count", "bytes of virtual memory"),
        Column("rsize", "count", "bytes of physical memory"),
        Column("utime", "interval", "processor time spent in user mode"),
        Column("stime", "interval", "processor time spent in the kernel"),
        Column("state", "text", "`started` or `stopped`"),
        Column("exe", "text", "executable's path, as /proc/PID/exe shows it", added=True),
        Column("cmdline", "text", "arguments joined by spaces, what `access.redact` matches masked", added=True),
        Column("cwd", "text", "working directory", added=True),
        Column("exit_code", "int", "exit status; minus the number of the signal that ended the process", added=True),
        Column("loginuid", "count", "user who logged in, whatever the process became since (audit)", added=True),
        Column("session", "count", "number of that login session (audit)", added=True),
        Column("cgroup", "text", "control group's path", added=True),
        Column("container_id", "text", "container's id, taken from the control group; null outside", added=True),
        Column("netns", "count", "network namespace, its inode number", added=True),
        Column("entity_id", "text", "the process's name that is never used again (as in `processes`)", added=True),
        Column("parent_entity_id", "text", "the parent's `entity_id`", added=True),
        Column("parent_name", "text", "the parent's short name", added=True),
        Column("parent_exe", "text", "the parent's executable's path", added=True),
    ],
    examples=[
        "SELECT time, exe, cmdline, uid FROM processes_events WHERE state = 'started'",
        'SELECT parent_exe, exe, count(*) AS "starts:count" FROM processes_events GROUP BY parent_exe, exe',
    ],
    kind="events",
)

sockets_events = Table(
    "sockets_events",
    "connections that were opened and closed, ports that were listened at, packet sockets that were opened",
    description=(
        "A row for each change of a connection or listening socket, with the process behind it, kept in the event "
        "store. A packet socket (packet(7)), as sniffers have, is a row when it is opened: `family` is `packet`, "
        "`state` is `listen`, and protocol, addresses, ports and `cookie` are null. What a source cannot know is null; "
        "`zeek_agent_sources` shows which source is at work, and what it lost. Where the host translates addresses "
        "(NAT), as it does for containers, the `translated_` columns have the connection's ends as they are on the "
        "other side, where a sensor sees them; they are null where nothing is translated."
    ),
    columns=[
        Column("time", "time", "when it happened"),
        Column("pid", "count", "process that opened or accepted the connection, or listens"),
        Column("process", "text", "short name of that process"),
        Column("uid", "count", "effective user id of that process"),
        Column("gid", "count", "effective group id of that process"),
        Column("family", "text", "`IPv4` or `IPv6`, as the packets are; `packet` for a packet socket"),
        Column("protocol", "count", "IP protocol: 1 ICMP, 6 TCP, 17 UDP, 58 ICMPv6, 132 SCTP, 136 UDP-Lite"),
        Column("local_addr", "address", "local address"),
        Column("local_port", "count", "local port; the type of an echo request"),
        Column("remote_addr", "address", "peer's address"),
        Column("remote_port", "count", "peer's port"),
        Column("state", "text", "`established`, `closed`, `failed`, `listen` or `expired`"),
        Column("direction", "text", "`outbound` or `inbound`: who opened the connection", added=True),
        Column("exe", "text", "executable's path of the process", added=True),
        Column("cmdline", "text", "command line of the process, what `access.redact` matches masked", added=True),
        Column("loginuid", "count", "user who logged in, whatever the process became since (audit)", added=True),
        Column("cookie", "count", "the kernel's name of the socket, unique until reboot (SO_COOKIE)", added=True),
        Column("netns", "count", "network namespace, its inode number", added=True),
        Column("container_id", "text", "container's id that the process is in; null outside", added=True),
        Column("entity_id", "text", "the process's name that is never used again (as in `processes`)", added=True),
        Column("parent_entity_id", "text", "the parent's `entity_id`", added=True),
        Column("community_id", "text", "Community ID (version 1) of the flow, as Zeek logs it", added=True),
        Column(
            "listener_stands_in",
            "bool",
            "who accepted the connection was not seen (io_uring), so its process is the one that listens",
            added=True,
        ),
        Column("translated_local_addr", "address", "local address beyond the host's address translation", added=True),
        Column("translated_local_port", "count", "local port there", added=True),
        Column("translated_remote_addr", "address", "peer's address there", added=True),
        Column("translated_remote_port", "count", "peer's port there", added=True),
    ],
    examples=[
        "SELECT time, process, remote_addr, remote_port FROM sockets_events WHERE direction = 'outbound'",
        "SELECT time, exe, cmdline, uid, netns FROM sockets_events WHERE family = 'packet'",
        (
            "SELECT s.time, p.cmdline, s.remote_addr FROM sockets_events AS s "
            "JOIN processes_events_history AS p ON s.entity_id = p.entity_id WHERE p.state = 'started'"
        ),
    ],
    kind="events",
)

TABLES = (processes_events, sockets_events)
