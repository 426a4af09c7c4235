"""Socket events from frequent sock_diag(7) dumps of open sockets, and its multicasts of closed ones.

A connection shorter than a round is known from the latter alone: both its ends, but not its process. The same message
tells a TCP connection that was established from an attempt that failed.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from zeek_agent.host.internet_sockets import TCP, UDP, InternetSocket
from zeek_agent.host.linux import inet_diag, netlink
from zeek_agent.host.linux.namespaces import in_network_namespace
from zeek_agent.host.linux.procfs import living_directory, network_namespace
from zeek_agent.recording.exclusions import Exclusions
from zeek_agent.recording.listener import enlarge
from zeek_agent.recording.periodic import Periodic
from zeek_agent.recording.sockets.socket_changes import WANTED_STATES, SocketChanges
from zeek_agent.recording.sockets.socket_event import SOCKETS_EVENTS
from zeek_agent.recording.sockets.socket_owners import SocketOwners, living_owners
from zeek_agent.recording.source import Sink, Source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zeek_agent.config.sections import SourceSettings
    from zeek_agent.recording.processes.process import Process
    from zeek_agent.recording.processes.process_cache import ProcessCache

log = logging.getLogger(__name__)

_ROUND: Final = 0.025
_SHARE: Final = 1.5
_ATTRIBUTION_TIMEOUT: Final = 0.1
_OUTCOME_TIMEOUT: Final = 4.0
"""The kernel keeps a closed socket until the resolution of its peer's address has failed, after 3 seconds."""
_NAMESPACES: Final = 1.0
_NAMESPACES_MAX: Final = 1_000
_DESTROYED: Final = 0b1111  # SKNLGRP_INET_TCP_DESTROY and those of UDP, TCP over IPv6, UDP over IPv6
_BUFFER: Final = 4 << 20
_MESSAGE: Final = 16
_ATTRIBUTES: Final = 72  # behind struct inet_diag_msg
_INFO: Final = 2  # INET_DIAG_INFO, a struct tcp_info
_PROTOCOL: Final = 10  # INET_DIAG_PROTOCOL
_RECEIVE_SPACE: Final = struct.Struct("=96xI")  # tcpi_rcv_space of struct tcp_info


class _Namespace(NamedTuple):
    """A network namespace, and the netlink sockets that were opened in it."""

    inode: int | None
    requests: socket.socket
    destroyed: socket.socket

    def close(self) -> None:
        self.requests.close()
        self.destroyed.close()


class SocketPolling(Source):
    """TCP connections and listeners, connected and bound UDP sockets, of all network namespaces that can be entered."""

    kind = "sockets"
    backend = "inet_diag"
    shortcoming = "connections that live for less than 50 ms, most UDP, ICMP and packet sockets are missed"

    def __init__(self, cache: ProcessCache, settings: SourceSettings) -> None:
        super().__init__()
        self._cache = cache
        self._fed = settings.processes != "off"
        self._exclusions = Exclusions(settings)
        self._owners = SocketOwners()
        self._periodic: Periodic | None = None
        self._since = 0.0

    def probe(self) -> str | None:
        try:
            _open(None).close()
        except PermissionError:
            return "notification of closed sockets (sock_diag) needs CAP_NET_ADMIN"
        except OSError as error:
            return f"the kernel does not offer sock_diag: {error}"
        return None

    def start(self, sink: Sink) -> None:
        self._sink = sink
        self._changes = SocketChanges(
            self._find,
            self._exclusions,
            attribution_timeout=_ATTRIBUTION_TIMEOUT,
            misses=1,
            outcome_timeout=_OUTCOME_TIMEOUT,
        )
        self._own = network_namespace("/proc", "self")
        self._namespaces = {self._own: _open(self._own)}
        self._look_at = 0.0
        self._enter_namespaces()
        now = time.time()
        for namespace in self._namespaces.values():
            self._changes.seed(namespace.inode, _listed(namespace), now)
        self._since = now
        self._periodic = self._rounds = Periodic(self._round, _ROUND, self.failed, share=_SHARE, urgent=True)
        self._periodic.start()

    def stop(self) -> None:
        if self._periodic is None:
            return
        periodic, self._periodic = self._periodic, None
        periodic.stop()
        self._changes.end_waiting(time.time())
        try:
            periodic.now()
        finally:
            for namespace in self._namespaces.values():
                namespace.close()

    def recording_since(self) -> float | None:
        return self._since

    def recorded_until(self) -> float | None:
        """Connections wait for their process or their outcome."""
        return max(self._since, (self._rounds.before_last() or 0.0) - _OUTCOME_TIMEOUT - _NAMESPACES)

    def drain(self) -> None:
        if self._periodic is not None:
            self._periodic.now()

    def _round(self) -> None:
        if time.monotonic() >= self._look_at:
            self._enter_namespaces()
        for namespace in self._namespaces.values():
            self._changes.update(namespace.inode, _listed(namespace), time.time())
            for gone, was_established in self._gone(namespace):
                self._changes.destroyed(namespace.inode, gone, time.time(), was_established=was_established)
        rows = self._changes.collect(time.time())
        self.counters.received += len(rows)
        if rows:
            self._sink(SOCKETS_EVENTS, rows)

    def _gone(self, namespace: _Namespace) -> Iterator[tuple[InternetSocket, bool | None]]:
        """Sockets that the kernel reported as closed since the last call, and whether they were ever connected."""
        while True:
            try:
                message = namespace.destroyed.recv(4_096)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.counters.lost["overrun"] += 1  # of unknown number; those that a round has seen are not lost
                continue
            body = message[_MESSAGE:]
            attributes = dict(netlink.attributes(body, _ATTRIBUTES))
            protocol = attributes.get(_PROTOCOL, b"\0")[0]
            if protocol in {TCP, UDP}:
                was_established = _was_established(attributes.get(_INFO, b"")) if protocol == TCP else True
                for gone in inet_diag.parse_messages(protocol, [body]):
                    yield gone, was_established

    def _find(self, inodes: set[int]) -> dict[int, Process]:
        return living_owners(self._owners, self._cache, inodes, self._fed)

    def _enter_namespaces(self) -> None:
        """Follow the network namespaces that processes are in."""
        self._look_at = time.monotonic() + _NAMESPACES
        members: dict[int, str] = {}
        for name in os.listdir("/proc"):  # noqa: PTH208
            if name.isdecimal() and (inode := network_namespace("/proc", name)) is not None:
                members.setdefault(inode, name)
        for inode in self._namespaces.keys() - members.keys() - {self._own}:
            if not self._changes.has_attempts(inode):
                self._changes.forget(inode, time.time())
                self._namespaces.pop(inode).close()
        for inode in list(members.keys() - self._namespaces.keys())[: _NAMESPACES_MAX - len(self._namespaces)]:
            self._enter(inode, members[inode])

    def _enter(self, inode: int, pid: str) -> None:
        try:
            self._namespaces[inode] = in_network_namespace(
                f"{living_directory('/proc', pid)}/ns/net", lambda: _open(inode)
            )
        except OSError as error:
            self.counters.last_error = f"network namespace {inode}: {error}"
            log.debug("socket events: cannot enter network namespace %d: %s", inode, error)


def _was_established(info: bytes) -> bool | None:
    """Whether a TCP socket ever had an established connection, by its `struct tcp_info`; None if that is missing.

    The kernel first sets the receive space when a connection is established, by either side, and never resets it.
    A reset clears the counters of bytes and segments.
    """
    return _RECEIVE_SPACE.unpack_from(info)[0] > 0 if len(info) >= _RECEIVE_SPACE.size else None


def _open(inode: int | None) -> _Namespace:
    """The sockets for the network namespace that the calling thread is in."""
    destroyed = netlink.channel(netlink.NETLINK_SOCK_DIAG)
    try:
        enlarge(destroyed, _BUFFER)
        destroyed.setblocking(False)
        destroyed.bind((0, _DESTROYED))
        return _Namespace(inode, netlink.channel(netlink.NETLINK_SOCK_DIAG), destroyed)
    except OSError:
        destroyed.close()
        raise


def _listed(namespace: _Namespace) -> Iterator[InternetSocket]:
    for protocol in (TCP, UDP):
        yield from inet_diag.dump_on(namespace.requests, protocol, WANTED_STATES)
