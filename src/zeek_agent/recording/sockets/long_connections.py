"""Rows of connections that go on: what they have carried so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from zeek_agent.host.internet_sockets import TCP, InternetSocket, TcpState, state_mask
from zeek_agent.host.linux.host_sockets import sockets_by_namespace
from zeek_agent.host.linux.procfs import Procfs
from zeek_agent.recording.sockets.socket_event import Flow, SocketEvent, socket_event

if TYPE_CHECKING:
    from zeek_agent.recording.sockets.bpf_connections import OpenSocket

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
_CHECKS_PER_INTERVAL: Final = 5
"""A row is late by a fifth of the interval at most."""


class LongConnections:
    """TCP connections that are open for `interval` seconds get a row, and another one after each further `interval`.

    `find` returns what is known of an open socket, by cookie; connections that it does not know get no rows.
    """

    def __init__(self, find: Callable[[int], OpenSocket | None], interval: float) -> None:
        self._find = find
        self._interval = int(interval * 1e9)
        self._next_check = 0
        self._reported: dict[int, int] = {}

    def rows(self, now: int, boot_time: float) -> list[SocketEvent]:
        """The rows that are due at `now` (ns since the boot at `boot_time`)."""
        if not self._interval or now < self._next_check:
            return []
        self._next_check = now + self._interval // _CHECKS_PER_INTERVAL
        return list(self.rows_of(_connections(), now, boot_time))

    def rows_of(
        self, connections: Iterable[tuple[int | None, InternetSocket]], now: int, boot_time: float
    ) -> Iterator[SocketEvent]:
        """The rows that are due among all connections of the host, each with its network namespace."""
        reported: dict[int, int] = {}
        for netns, connection in connections:
            cookie, traffic = connection.cookie, connection.traffic
            opened = None if cookie is None else self._find(cookie)
            if cookie is None or opened is None or traffic is None:
                continue
            since = self._reported.get(cookie, opened.began)
            if since is None or now - since < self._interval:
                reported[cookie] = now if since is None else since
                continue
            reported[cookie] = now
            yield socket_event(
                Flow(
                    connection.protocol,
                    connection.local,
                    connection.local_port,
                    connection.remote,
                    connection.remote_port,
                    cookie,
                    netns,
                ),
                "active",
                opened.direction,
                opened.process,
                time=boot_time + now / 1e9,
                stands_in=opened.stands_in,
                traffic=(None if opened.began is None else (now - opened.began) / 1e9, *traffic, None),
            )
        self._reported = reported


def _connections() -> Iterator[tuple[int | None, InternetSocket]]:
    root = "/proc"
    for netns, found in sockets_by_namespace(root, Procfs(root).pids(), (TCP,), _CONNECTED, with_traffic=True):
        for connection in found:
            yield netns, connection
