"""Connections of the host: open ones from the kernel, those that have ended from the event store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, TypeAlias

from zeek_agent.community_id import packed_community_id
from zeek_agent.host.internet_sockets import (
    TCP,
    UDP,
    UDPLITE,
    InternetSocket,
    TcpState,
    TcpTraffic,
    address_text,
    state_mask,
)
from zeek_agent.host.linux.host_sockets import sockets_by_namespace
from zeek_agent.host.linux.procfs import Procfs, ProcfsProcess, socket_holders
from zeek_agent.schema import Column, Parameter, Row
from zeek_agent.table import Constraints, Table
from zeek_agent.tables._process_columns import process_columns
from zeek_agent.tables._traffic_columns import traffic_columns

connections = Table(
    "connections",
    "open and recent connections, with the bytes that they carried",
    description=(
        "One row for each open connection, and one for each that ended in the last hour, or in the time given: "
        "`connections(86400)` shows a day, as far as the event store retains it. A TCP connection that is open has the "
        "kernel's counts of this moment. A UDP flow is one socket's exchange with one peer. It is open until its "
        "socket is closed or it was idle for a minute, and its counts are those of its last row in `sockets_events`, "
        "null until it has one; flows that go on for more than an hour are missing if "
        "`sources.traffic_interval` is 0. Connections that ended have no counts unless eBPF recorded them. To add up "
        "the traffic of processes, use this table rather than `sockets_events`, whose rows with `active` count bytes "
        "again."
    ),
    columns=[
        Column(
            "state",
            "text",
            "`open`, `closed`, `expired` (idle, and not of TCP) or `failed` (never connected)",
        ),
        Column("pid", "count", "process that opened or accepted the connection"),
        Column("process", "text", "short name of that process"),
        Column("uid", "count", "effective user id of that process"),
        Column("family", "text", "`IPv4` or `IPv6`"),
        Column("protocol", "count", "IP protocol: 1 ICMP, 6 TCP, 17 UDP, 58 ICMPv6, 132 SCTP, 136 UDP-Lite"),
        Column("local_addr", "address", "local address"),
        Column("local_port", "count", "local port"),
        Column("remote_addr", "address", "peer's address"),
        Column("remote_port", "count", "peer's port"),
        Column("direction", "text", "`outbound` or `inbound`, by the side that opened the connection"),
        Column("began", "time", "when it was opened; null if that was not recorded"),
        Column("ended", "time", "when it ended; null if it is open"),
        *traffic_columns(),
        *process_columns("exe", "cmdline", "loginuid", "netns", "container_id", "entity_id"),
        Column("community_id", "text", "Community ID (version 1) of the flow, as Zeek logs it"),
        Column("cookie", "count", "the kernel's socket cookie (SO_COOKIE), unique until reboot"),
    ],
    parameters=[
        Parameter("ended_within", "interval", "seconds for which connections that ended are shown", default=3600.0)
    ],
    examples=[
        (
            'SELECT process, sum(bytes_sent) AS "sent:count", sum(bytes_received) AS "received:count" '
            "FROM connections GROUP BY process ORDER BY 2 DESC LIMIT 10"
        ),
        "SELECT process, remote_addr, remote_port, bytes_sent, duration FROM connections WHERE state = 'open'",
        "SELECT * FROM connections(60) WHERE bytes_sent > 1000000",
    ],
)

_CONNECTED: Final = state_mask(
    {
        TcpState.ESTABLISHED,
        TcpState.FIN_WAIT1,
        TcpState.FIN_WAIT2,
        TcpState.CLOSE_WAIT,
        TcpState.LAST_ACK,
        TcpState.CLOSING,
    }
)
_DATAGRAM_STATES: Final = state_mask({TcpState.ESTABLISHED, TcpState.CLOSE})
_OPEN_FLOW_SECONDS: Final = 3600.0
"""How far back the last row of an open datagram flow is sought, even if the query wants less: it has one every
`sources.traffic_interval`."""
_MEANWHILE_SECONDS: Final = 1.0
"""A connection that was open, and is recorded as closed so shortly before that or later, is one and the same."""
_PAGE_ROWS: Final = 5_000
"""Rows of the event store that are read in one transaction."""


class Recorded(NamedTuple):
    """A row of `sockets_events`."""

    seq: int | None
    time: float | None
    state: str | None
    stands_in: bool | None
    pid: int | None
    process: str | None
    uid: int | None
    family: str | None
    protocol: int | None
    local_addr: str | None
    local_port: int | None
    remote_addr: str | None
    remote_port: int | None
    direction: str | None
    duration: float | None
    bytes_sent: int | None
    bytes_received: int | None
    packets_sent: int | None
    packets_received: int | None
    exe: str | None
    cmdline: str | None
    loginuid: int | None
    netns: int | None
    container_id: str | None
    entity_id: str | None
    community_id: str | None
    cookie: int | None

    @property
    def flow(self) -> tuple[int | None, int | None, int | None, str | None, int | None]:
        return self.cookie, self.protocol, self.local_port, self.remote_addr, self.remote_port

    def with_counts_of(self, other: Recorded) -> Recorded:
        return self._replace(
            bytes_sent=other.bytes_sent,
            bytes_received=other.bytes_received,
            packets_sent=other.packets_sent,
            packets_received=other.packets_received,
        )

    @property
    def began(self) -> float | None:
        if self.state == "established":
            return self.time
        return None if self.duration is None or self.time is None else self.time - self.duration

    def row(self, state: str | None, began: float | None, ended: float | None) -> Row:
        return (state, *self[4:14], began, ended, *self[14:])


_SELECTED: Final = (
    "SELECT seq, time, state, listener_stands_in, pid, process, uid, family, protocol, local_addr, local_port, "
    "remote_addr, remote_port, direction, duration, bytes_sent, bytes_received, packets_sent, packets_received, exe, "
    "cmdline, loginuid, netns, container_id, entity_id, community_id, cookie FROM sockets_events "
)
_ENDS: Final = (
    f"{_SELECTED} WHERE seq > ? AND time > ? AND remote_addr IS NOT NULL AND ("
    f"protocol <> {TCP} AND state IN ('established', 'active', 'closed', 'expired') "
    f"OR state IN ('closed', 'expired', 'failed') AND time > ?) ORDER BY seq LIMIT {_PAGE_ROWS}"
)
"""Connections that ended since the second time, and all of datagram flows since the first one."""
_CORRECTIONS: Final = (
    "SELECT cookie, time, state FROM sockets_events "
    "WHERE correction AND time > ? AND state IN ('closed', 'expired') AND cookie IS NOT NULL"
)
_BEGINNINGS: Final = (
    f"{_SELECTED} WHERE state = 'established' AND protocol = {TCP} "
    "AND cookie IN (SELECT value FROM json_each(?)) ORDER BY seq"
)
"""The rows of open TCP connections; the last one of each may correct the process of an earlier one."""

_Found: TypeAlias = tuple[int | None, InternetSocket]
"""An open socket, with its network namespace."""


@connections.snapshot
def open_and_recent(wanted: Constraints) -> Iterator[Row]:
    now = wanted.context.clock()
    within = wanted.parameter("ended_within")
    since = now - (float(within) if isinstance(within, int | float) else 0.0)
    streams, datagrams = _open_sockets(wanted)
    yield from _open_streams(wanted, streams, now)
    yield from _from_the_store(wanted, since, {_flow(each) for _, each in streams}, datagrams, now)


def _open_sockets(wanted: Constraints) -> tuple[list[_Found], set[int]]:
    """Connected TCP sockets, and the cookies of datagram sockets."""
    root, pids = wanted.context.proc, Procfs(wanted.context.proc).pids()
    streams = [
        (netns, each)
        for netns, found in sockets_by_namespace(root, pids, (TCP,), _CONNECTED, wanted.check, with_traffic=True)
        for each in found
        if each.connected
    ]
    datagrams = {
        each.cookie
        for _, found in sockets_by_namespace(root, pids, (UDP, UDPLITE), _DATAGRAM_STATES, wanted.check)
        for each in found
        if each.cookie is not None
    }
    return streams, datagrams


def _open_streams(wanted: Constraints, streams: list[_Found], now: float) -> Iterator[Row]:
    cookies = json.dumps([each.cookie for _, each in streams if each.cookie is not None])
    known: dict[int | None, Recorded] = {}
    for row in _recorded(wanted, _BEGINNINGS, cookies):
        found = Recorded(*row)
        known[found.cookie] = found
    procfs = Procfs(wanted.context.proc)
    is_complete = all(each.cookie in known for _, each in streams)
    holders = {} if is_complete else socket_holders(procfs.root, procfs.pids(), wanted.check)
    for netns, stream in streams:
        wanted.check()
        recorded = known.get(stream.cookie)
        if recorded is None:
            pid = next((pid for pid, _ in holders.get(stream.inode, ())), None)
            recorded = _unrecorded(wanted, procfs, pid, netns, stream)
        else:
            recorded = recorded._replace(duration=None if recorded.time is None else now - recorded.time)
        yield _with_traffic(recorded, stream.traffic).row("open", recorded.began, None)


def _with_traffic(recorded: Recorded, traffic: TcpTraffic | None) -> Recorded:
    if traffic is None:
        return recorded
    return recorded._replace(
        bytes_sent=traffic.bytes_sent,
        bytes_received=traffic.bytes_received,
        packets_sent=traffic.segments_sent,
        packets_received=traffic.segments_received,
    )


def _unrecorded(
    wanted: Constraints, procfs: Procfs, pid: int | None, netns: int | None, stream: InternetSocket
) -> Recorded:
    """A connection that was opened before recording, or while nothing recorded, and the process that holds it."""
    described = Recorded._make([None] * len(Recorded._fields))._replace(
        state="open",
        pid=pid,
        family="IPv4" if len(stream.local) == 4 else "IPv6",
        protocol=stream.protocol,
        local_addr=address_text(stream.local),
        local_port=stream.local_port,
        remote_addr=address_text(stream.remote),
        remote_port=stream.remote_port,
        netns=netns,
        community_id=packed_community_id(
            stream.protocol, stream.local, stream.local_port, stream.remote, stream.remote_port
        ),
        cookie=stream.cookie,
    )
    if pid is None:
        return described
    try:
        with ProcfsProcess(procfs, pid) as process:
            raw = process.arguments if wanted.needs("cmdline") else None
            return described._replace(
                process=process.name,
                uid=process.uid,
                exe=process.exe if wanted.needs("exe") else None,
                cmdline=wanted.context.access.masker.command_line(raw).cmdline if raw else None,
                loginuid=process.loginuid if wanted.needs("loginuid") else None,
                container_id=process.container_id if wanted.needs("container_id") else None,
                entity_id=process.entity_id if wanted.needs("entity_id") else None,
            )
    except ProcessLookupError:
        return described


def _from_the_store(
    wanted: Constraints, since: float, streams: set[tuple[object, ...]], datagrams: set[int], now: float
) -> Iterator[Row]:
    """Connections that ended after `since`, and datagram flows of sockets that are still open.

    `streams` are TCP connections that were open at `now`: they have their rows, also those that ended meanwhile.
    """
    corrected = set(_recorded(wanted, _CORRECTIONS, since))
    is_open: dict[tuple[object, ...], tuple[Recorded, float | None]] = {}
    for found in _pages(wanted, min(since, now - _OPEN_FLOW_SECONDS), since):
        if found.stands_in and (found.cookie, found.time, found.state) in corrected:
            continue
        if found.state in {"established", "active"}:
            before, began = is_open.pop(found.flow, (None, found.began))
            if before is not None and found.state == "established" and found.began == began:
                found = found.with_counts_of(before)  # this row only corrects the process
            is_open[found.flow] = found, began
            continue
        is_open.pop(found.flow, None)
        if found.time is None or found.time <= since:
            continue
        if found.flow not in streams or found.time < now - _MEANWHILE_SECONDS:
            yield found.row(found.state, found.began, found.time)
    for found, began in is_open.values():
        if found.cookie in datagrams:
            duration = None if began is None else now - began
            yield found._replace(duration=duration).row("open", began, None)


def _flow(stream: InternetSocket) -> tuple[object, ...]:
    """As `Recorded.flow`."""
    return stream.cookie, stream.protocol, stream.local_port, address_text(stream.remote), stream.remote_port


def _recorded(wanted: Constraints, sql: str, *bindings: float | str | None) -> Iterator[tuple[Any, ...]]:
    for row in wanted.context.agent.recorded(sql, bindings, wanted.check):
        yield tuple(row)


def _pages(wanted: Constraints, flows_since: float, ends_since: float) -> Iterator[Recorded]:
    """The rows of `_ENDS`, without a transaction that stays open while others read them."""
    last: int | None = 0
    while True:
        page = [Recorded(*row) for row in _recorded(wanted, _ENDS, last, flows_since, ends_since)]
        yield from page
        if len(page) < _PAGE_ROWS:
            return
        last = page[-1].seq


TABLES = (connections,)
