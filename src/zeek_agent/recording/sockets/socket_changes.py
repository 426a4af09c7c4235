"""Socket events from successive lists of open sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zeek_agent.host.internet_sockets import TCP, InternetSocket, TcpState, state_mask
from zeek_agent.recording.sockets.socket_event import Direction, Flow, SocketEvent, SocketState, socket_event

if TYPE_CHECKING:
    from zeek_agent.recording.exclusions import Exclusions
    from zeek_agent.recording.processes.process import Process

_CONNECTED: Final = frozenset(
    {
        TcpState.ESTABLISHED,
        TcpState.FIN_WAIT1,
        TcpState.FIN_WAIT2,
        TcpState.CLOSE_WAIT,
        TcpState.LAST_ACK,
        TcpState.CLOSING,
    }
)
WANTED_STATES: Final = state_mask(_CONNECTED | {TcpState.SYN_SENT, TcpState.LISTEN, TcpState.CLOSE})
"""The relevant states; `CLOSE` is a datagram socket without a peer."""

_ACCEPT_TIMEOUT_SECONDS: Final = 1.0
"""How long a connection may wait to be accepted before it is reported without a process; servers accept sooner."""
_SEARCHES_MAX: Final = 3
"""Searches for the process of a socket; each reads the descriptors of all processes, which is expensive."""
_CLOSED_REMEMBERED_SECONDS: Final = 10.0
"""How long a close is remembered, because a list that was started before may still contain the socket."""


@dataclass(slots=True)
class _OpenSocket:
    """An open socket. `state` is None while a connection is being opened."""

    flow: Flow
    state: SocketState | None
    direction: Direction | None
    inode: int
    uid: int | None
    since: float
    process: Process | None = None
    searches: int = 0
    missed: int = 0
    missing_since: float = 0.0


class SocketChanges:
    """Compares lists of open sockets, and accepts notifications of closed ones.

    `find` returns the owners of sockets, by inode. The owner of a socket is searched for up to `attribution_timeout`
    seconds. A socket missing from a list is gone after `misses` more lists, because the kernel's dump can omit a socket
    while others are opened and closed. An attempt to connect that is gone waits `outcome_timeout` seconds for the
    kernel's report of its outcome. `key` identifies a socket in all lists, by its network namespace and its record.
    `ephemeral` are the ports where no server listens; by default, those of Linux's kernel. Times are seconds since the
    epoch.
    """

    def __init__(
        self,
        find: Callable[[set[int]], dict[int, Process]],
        exclusions: Exclusions,
        *,
        attribution_timeout: float,
        misses: int = 0,
        outcome_timeout: float = 0.0,
        key: Callable[[int | None, InternetSocket], object] | None = None,
        ephemeral: range | None = None,
    ) -> None:
        self._key = key or _key
        self._find = find
        self._exclusions = exclusions
        self._attribution_timeout = attribution_timeout
        self._misses = misses
        self._outcome_timeout = outcome_timeout
        self._open: dict[object, _OpenSocket] = {}
        self._unreported: dict[object, _OpenSocket] = {}
        self._members: dict[int | None, set[object]] = {}
        self._listeners: dict[int | None, dict[int, _OpenSocket]] = {}
        self._closed: dict[object, float] = {}
        self._ephemeral = _ephemeral_ports() if ephemeral is None else ephemeral
        self._rows: list[SocketEvent] = []

    def seed(self, netns: int | None, sockets: Iterable[InternetSocket], now: float) -> None:
        """Add sockets that are already open: without rows now, but with their owners for the closing row."""
        self._note(netns, sockets, now)
        self._attribute()
        self._unreported.clear()

    def update(self, netns: int | None, sockets: Iterable[InternetSocket], now: float) -> None:
        """Compare with the current list of sockets in a network namespace."""
        before = self._members.get(netns, set())
        self._note(netns, sockets, now)
        members = self._members[netns]
        for key in before - members:
            entry = self._open[key]
            if not entry.missed:
                entry.missing_since = now
            entry.missed += 1
            awaits_outcome = entry.state is None and _is_within(self._outcome_timeout, entry.missing_since, now)
            if entry.missed > self._misses and not awaits_outcome:
                self._close(key, now)
            else:
                members.add(key)

    def destroyed(self, netns: int | None, socket: InternetSocket, now: float, *, was_established: bool | None) -> None:
        """Record a close that the kernel reported; no list may have contained the socket.

        `was_established`: whether its connection ever was; None if the kernel did not report that.
        """
        key = self._key(netns, socket)
        if key in self._open:
            self._close(key, now, was_established)
        elif key not in self._closed and socket.connected:
            self._closed[key] = now
            entry = _OpenSocket(_flow(netns, socket), None, None, 0, socket.uid, now)
            entry.direction = self._direction(entry.flow)
            self._report_unseen(entry, now, was_established)

    def collect(self, now: float) -> list[SocketEvent]:
        """The rows since the last call."""
        self._attribute()
        for key, entry in list(self._unreported.items()):
            if entry.state is not None and self._is_due(entry, now):
                del self._unreported[key]
                self._report(entry, entry.state, entry.since)
        for key, at in list(self._closed.items()):
            if _is_within(_CLOSED_REMEMBERED_SECONDS, at, now):
                break
            del self._closed[key]
        rows, self._rows = self._rows, []
        return rows

    def forget(self, netns: int | None, now: float) -> None:
        """Close all sockets of a network namespace that is gone."""
        for key in list(self._members[netns]):
            self._close(key, now)
        del self._members[netns], self._listeners[netns]

    def has_attempts(self, netns: int | None) -> bool:
        """Whether a network namespace has an attempt to connect whose outcome is not known yet."""
        return any(self._open[key].state is None for key in self._members[netns])

    def end_waiting(self, now: float) -> None:
        """Close the attempts that wait for the kernel's report."""
        for key, entry in list(self._open.items()):
            if entry.state is None and entry.missed:
                self._close(key, now)

    def _note(self, netns: int | None, sockets: Iterable[InternetSocket], now: float) -> None:
        """Add new sockets and update the others."""
        present: set[object] = set()
        listeners: dict[int, _OpenSocket] = {}
        added: list[_OpenSocket] = []
        for socket in sockets:
            state = self._state(socket)
            if state is None and socket.state != TcpState.SYN_SENT:
                continue
            key = self._key(netns, socket)
            present.add(key)
            entry = self._open.get(key)
            if entry is not None and entry.state is None and entry.flow[3:5] != socket[4:6]:
                self._close(key, now)  # the same socket connects to another peer
                entry = None
            if entry is None:
                entry = _OpenSocket(_flow(netns, socket), state, None, socket.inode, socket.uid, now)
                self._open[key] = self._unreported[key] = entry
                added.append(entry)
            elif entry.state is None and state is not None:
                entry.flow, entry.state, entry.since = _flow(netns, socket), state, now
            entry.missed = 0
            if socket.inode and not entry.inode:
                entry.inode, entry.uid = socket.inode, socket.uid
            if state == "listen" and socket.protocol == TCP:
                listeners[socket.local_port] = entry
        self._members[netns], self._listeners[netns] = present, listeners
        for entry in added:
            if entry.state != "listen":
                entry.direction = self._direction(entry.flow)

    def _state(self, socket: InternetSocket) -> SocketState | None:
        if socket.protocol == TCP:
            if socket.state == TcpState.FIN_WAIT2 and not socket.inode:
                return None  # closed by its process, and waiting for the peer, like TIME_WAIT
            return (
                "listen" if socket.state == TcpState.LISTEN else "established" if socket.state in _CONNECTED else None
            )
        if socket.state == TcpState.ESTABLISHED and socket.connected:
            return "established"
        return "listen" if socket.local_port and socket.local_port not in self._ephemeral else None

    def _direction(self, flow: Flow) -> Direction:
        return "outbound" if self._listener(flow) is None else "inbound"

    def _listener(self, flow: Flow) -> _OpenSocket | None:
        """The listener at the local port."""
        if flow.protocol != TCP or flow.local_port is None:
            return None
        return self._listeners.get(flow.netns, {}).get(flow.local_port)

    def _attribute(self) -> None:
        """Find the processes of sockets whose rows are not reported yet."""
        wanted: dict[int, list[_OpenSocket]] = {}
        for entry in self._unreported.values():
            if entry.inode and entry.process is None and entry.searches < _SEARCHES_MAX:
                entry.searches += 1
                wanted.setdefault(entry.inode, []).append(entry)
        for inode, process in self._find(set(wanted)).items() if wanted else ():
            for entry in wanted[inode]:
                entry.process = process

    def _is_due(self, entry: _OpenSocket, now: float) -> bool:
        if entry.process is not None:
            return True
        timeout = self._attribution_timeout if entry.inode else max(self._attribution_timeout, _ACCEPT_TIMEOUT_SECONDS)
        return not _is_within(timeout, entry.since, now)

    def _close(self, key: object, now: float, was_established: bool | None = None) -> None:
        entry = self._open.pop(key)
        unreported = self._unreported.pop(key, None)
        self._members.get(entry.flow.netns, set()).discard(key)
        self._closed[key] = now
        if entry.state is None:
            self._report_unseen(entry, now, was_established)
            return
        if unreported is not None:
            self._report(entry, entry.state, entry.since)
        self._report(entry, "closed", now)

    def _report_unseen(self, entry: _OpenSocket, now: float, was_established: bool | None) -> None:
        """Report the end of a connection that no list has shown as established.

        It may have been established between two lists. If the kernel did not report that, the state is `closed` alone,
        which claims neither success nor failure.
        """
        at = entry.missing_since if entry.missed else now
        if was_established:
            self._report(entry, "established", at)
        self._report(entry, "failed" if was_established is False else "closed", at)

    def _report(self, entry: _OpenSocket, state: SocketState, at: float) -> None:
        if self._exclusions.process(entry.process) or self._exclusions.flow(entry.flow):
            return
        self._rows.append(socket_event(entry.flow, state, entry.direction, entry.process, time=at, uid=entry.uid))


def _is_within(seconds: float, begin: float, now: float) -> bool:
    """Whether less than this has passed; not so if the clock was set back, which would make it pass much later."""
    return 0 <= now - begin < seconds


def _key(netns: int | None, socket: InternetSocket) -> object:
    """Key of an open socket."""
    return socket.cookie or (netns, socket.inode, *socket[2:6])


def _flow(netns: int | None, socket: InternetSocket) -> Flow:
    return Flow(
        socket.protocol,
        socket.local,
        socket.local_port,
        socket.remote,
        socket.remote_port,
        socket.cookie,
        netns,
    )


def _ephemeral_ports() -> range:
    """The kernel's ephemeral ports, where no server listens."""
    try:
        low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    except OSError:
        return range(32_768, 61_000)
    return range(low, high + 1)
