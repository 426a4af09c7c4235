"""Address translation (NAT) on this host, from connection tracking's netlink messages (`nfnetlink_conntrack.h`).

A masquerading host changes the addresses and ports of a container's connection, and Zeek sees the changed ones. This
module knows the translations of the agent's network namespace, whichever namespace the socket is in, but not the
translations inside other namespaces.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from zeek_agent.host.internet_sockets import address_text
from zeek_agent.host.linux import netlink
from zeek_agent.recording.listener import Listener, enlarge
from zeek_agent.recording.sockets.socket_event import SOCKETS_EVENTS, Ends, SocketEvent, Translation
from zeek_agent.recording.source import Sink, Source

if TYPE_CHECKING:
    from zeek_agent.schema import EventRow

_NETLINK_NETFILTER: Final = 12
_NEW: Final = 0x100  # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW
_GET: Final = 0x101
_GROUPS: Final = 0b101  # NFNLGRP_CONNTRACK_NEW and _DESTROY; an update never changes a translation
_SRC_NAT: Final = 0x10  # IPS_SRC_NAT, IPS_DST_NAT: what a translation has changed
_DST_NAT: Final = 0x20
_MESSAGE: Final = struct.Struct("=IHHII")
_NFGENMSG: Final = struct.Struct("=BBH")
_ORIGINAL, _REPLY, _STATUS, _STATUS_MASK = 1, 2, 3, 26
_IP, _PROTOCOL = 1, 2
_SO_ATTACH_FILTER: Final = 26
_BUFFER_BYTES: Final = 4 << 20
"""Receive buffer for bursts of translated connections."""
_REFUSALS: Final = frozenset({errno.EPERM, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT})
SYSCTL: Final = Path("/proc/sys/net/netfilter")

_TRANSLATED_ONLY: Final = (
    (0x00, 0, 0, _MESSAGE.size + _NFGENMSG.size),  # A: where attributes begin
    (0x01, 0, 0, _STATUS),  # X: the attribute to find
    (0x20, 0, 0, 0xFFFF_F00C),  # A: its offset (SKF_AD_NLATTR)
    (0x15, 3, 0, 0),  # missing: accept the message
    (0x07, 0, 0, 0),
    (0x40, 0, 0, 4),  # A: its value
    (0x45, 0, 1, _SRC_NAT | _DST_NAT),
    (0x06, 0, 0, 0xFFFF_FFFF),
    (0x06, 0, 0, 0),
)
"""A program for the kernel's packet filter that drops connections without translation, which may be very many."""


class ConnectionTuple(NamedTuple):
    """The addresses and ports of one direction's packets."""

    source: str
    source_port: int
    destination: str
    destination_port: int


class TrackedConnection(NamedTuple):
    """A tracked connection: the originator's packets as they arrive, and the expected reply packets."""

    protocol: int
    original: ConnectionTuple
    reply: ConnectionTuple

    def views(self) -> Iterator[tuple[Ends, Translation]]:
        """Each end's own view, and the view from the other side of the translation; none if nothing is translated."""
        original, reply = self.original, self.reply
        if original == (*reply[2:], *reply[:2]):
            return
        yield (self.protocol, *original), Translation(*reply[2:], *reply[:2])
        yield (self.protocol, *reply), Translation(*original[2:], *original[:2])


class Translations:
    """Address translations by view. Ended connections are kept for `grace_seconds`, up to `limit` in total."""

    def __init__(self, limit: int = 65_536, grace_seconds: float = 60.0) -> None:
        self._limit = limit
        self._grace_seconds = grace_seconds
        self._connections: dict[TrackedConnection, float | None] = {}
        self._by_view: dict[Ends, Translation] = {}
        self._ended: deque[tuple[float, TrackedConnection]] = deque()

    def __len__(self) -> int:
        return len(self._connections)

    def begin(self, connection: TrackedConnection) -> None:
        self._forget(connection)
        views = dict(connection.views())
        if views:
            self._connections[connection] = None
            self._by_view.update(views)
        if len(self._connections) > self._limit:
            self._forget(next(iter(self._connections)))

    def end(self, connection: TrackedConnection, now: float) -> None:
        if connection in self._connections:
            self._connections[connection] = now
            self._ended.append((now, connection))

    def replace(self, connections: set[TrackedConnection], now: float) -> None:
        """Set the current connections; any others have ended unobserved."""
        for connection in self._connections.keys() - connections:
            if self._connections[connection] is None:
                self.end(connection, now)
        for connection in connections - self._connections.keys():
            self.begin(connection)

    def expire(self, now: float) -> None:
        """Remove connections that ended before the grace period, unless they were opened again."""
        while self._ended and self._ended[0][0] < now - self._grace_seconds:
            ended, connection = self._ended.popleft()
            if self._connections.get(connection) == ended:
                self._forget(connection)

    def find(self, view: Ends) -> Translation | None:
        return self._by_view.get(view)

    def _forget(self, connection: TrackedConnection) -> None:
        if connection not in self._connections:
            return
        del self._connections[connection]
        for view, translation in connection.views():
            if self._by_view.get(view) == translation:
                del self._by_view[view]


class Conntrack(Source):
    """Tracks translations, and adds them to the socket events of other sources."""

    kind = "translations"
    backend = "conntrack"
    essential = False

    def __init__(self, limit: int = 65_536, grace_seconds: float = 60.0, sysctl: Path = SYSCTL) -> None:
        super().__init__()
        self._limit = limit
        self._grace_seconds = grace_seconds
        self._sysctl = sysctl
        self._lock = threading.Lock()
        self._listener: Listener | None = None
        self._requests: socket.socket | None = None

    def probe(self) -> str | None:
        if (failure := why_not(self._sysctl)) is not None:
            return failure
        events = self._sysctl / "nf_conntrack_events"
        if not events.exists():
            return "the kernel does not report connection-tracking events (CONFIG_NF_CONNTRACK_EVENTS)"
        if events.read_text().strip() == "0":
            return "connection-tracking events are disabled: sysctl net.netfilter.nf_conntrack_events=1"
        try:
            _subscribed().close()
        except OSError as error:
            return str(error)
        return None

    def start(self, sink: Sink) -> None:
        """Translations of the calling thread's network namespace."""
        self._translations = Translations(self._limit, self._grace_seconds)
        channel = _subscribed()
        try:
            self._requests = netlink.channel(_NETLINK_NETFILTER)
            self._resume()
        except OSError:
            channel.close()
            self._close()
            raise
        self._listener = Listener(
            channel,
            self._receive,
            settle=self._settle,
            overrun=self._overrun,
            failed=self.failed,
            batch_seconds=0.1,
            tick_seconds=1.0,
        )
        self._listener.start()

    def stop(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.stop()
        self._close()

    def drain(self) -> None:
        listener = self._listener
        if listener is not None:
            listener.drain()

    def complete(self, table: str, rows: Sequence[EventRow]) -> Sequence[EventRow]:
        """Add the addresses on the other side of the translation to rows of translated connections."""
        if table != SOCKETS_EVENTS:
            return rows
        try:
            self.drain()
        except OSError as error:
            self.failed(str(error))
        with self._lock:
            if not self._translations:
                return rows
            return [self._completed(event) for event in cast("Sequence[SocketEvent]", rows)]

    def _completed(self, event: SocketEvent) -> SocketEvent:
        translation = self._translations.find(event.ends)
        return event if translation is None else event.translated(translation)

    def _receive(self, datagram: bytes) -> None:
        offset = 0
        while offset + _MESSAGE.size <= len(datagram):
            length, kind, *_ = _MESSAGE.unpack_from(datagram, offset)
            if length < _MESSAGE.size:
                break
            self._apply(kind, datagram[offset + _MESSAGE.size : offset + length])
            offset += (length + 3) & ~3

    def _apply(self, kind: int, body: bytes) -> None:
        self.counters.received += 1
        try:
            connection = parse_connection(body)
        except (struct.error, LookupError, ValueError) as error:
            self.counters.lost["decode"] += 1
            self.counters.last_error = f"invalid connection-tracking message: {error}"
            return
        if connection is None:
            return
        with self._lock:
            if kind == _NEW:
                self._translations.begin(connection)
            else:
                self._translations.end(connection, time.monotonic())

    def _settle(self) -> None:
        with self._lock:
            self._translations.expire(time.monotonic())

    def _overrun(self) -> None:
        self.counters.lost["overrun"] += 1
        self._resume()

    def _resume(self) -> None:
        """Replace the translations by the kernel's current list."""
        assert self._requests is not None
        listed = set(_listed(self._requests))
        with self._lock:
            self._translations.replace(listed, time.monotonic())

    def _close(self) -> None:
        if self._requests is not None:
            self._requests.close()
            self._requests = None


def why_not(sysctl: Path = SYSCTL) -> str | None:
    """Why there are no translations here; None if connections are tracked, so that some may be translated."""
    if not (sysctl / "nf_conntrack_count").exists():
        return "connections are not tracked (module nf_conntrack is not loaded), so nothing is translated"
    return None


_provider: Callable[[], dict[Ends, Translation]] | None = None


def use(provider: Callable[[], dict[Ends, Translation]]) -> None:
    """Let this function answer `list_translations`: in a process that may not ask the kernel."""
    global _provider  # noqa: PLW0603
    _provider = provider


def list_translations() -> dict[Ends, Translation]:
    """The translations of the calling thread's network namespace by each end's own view.

    Empty if the kernel does not list them, or not to us (it requires CAP_NET_ADMIN). Raises OSError for other failures.
    Even a short list takes the kernel some 20 ms, because its table is large.
    """
    if _provider is not None:
        return _provider()
    if why_not() is not None or int((SYSCTL / "nf_conntrack_count").read_text()) == 0:
        return {}
    try:
        with netlink.channel(_NETLINK_NETFILTER) as requests:
            return {view: translation for found in _listed(requests) for view, translation in found.views()}
    except OSError as error:
        if error.errno in _REFUSALS:
            return {}
        raise


def parse_connection(body: bytes) -> TrackedConnection | None:
    """The connection in a message, from its `struct nfgenmsg` on; None for protocols without ports.

    Raises struct.error, LookupError or ValueError for any other message.
    """
    found = dict(netlink.attributes(body, _NFGENMSG.size))
    protocol, original = _tuple(found[_ORIGINAL])
    _, reply = _tuple(found[_REPLY])
    return None if original is None or reply is None else TrackedConnection(protocol, original, reply)


def _tuple(nested: bytes) -> tuple[int, ConnectionTuple | None]:
    parts = dict(netlink.attributes(nested, 0))
    ends = dict(netlink.attributes(parts[_IP], 0))
    transport = dict(netlink.attributes(parts[_PROTOCOL], 0))
    protocol = transport[1][0]
    if 2 not in transport or 3 not in transport:
        return protocol, None
    source, destination = (ends[1], ends[2]) if 1 in ends else (ends[3], ends[4])
    (source_port,), (destination_port,) = struct.unpack("!H", transport[2]), struct.unpack("!H", transport[3])
    return protocol, ConnectionTuple(address_text(source), source_port, address_text(destination), destination_port)


def _listed(requests: socket.socket) -> Iterator[TrackedConnection]:
    """Translated connections; a kernel that cannot select by status lists all connections, twice."""
    for status in (_SRC_NAT, _DST_NAT):
        wanted = _attribute(_STATUS, status) + _attribute(_STATUS_MASK, status)
        for body in netlink.dump_on(requests, _GET, _NFGENMSG.pack(socket.AF_UNSPEC, 0, 0) + wanted):
            connection = parse_connection(body)
            if connection is not None:
                yield connection


def _attribute(kind: int, number: int) -> bytes:
    return struct.pack("=HH", 8, kind) + struct.pack("!I", number)


def _subscribed() -> socket.socket:
    """A socket subscribed to the beginning and end of translated connections."""
    channel = netlink.channel(_NETLINK_NETFILTER)
    try:
        enlarge(channel, _BUFFER_BYTES)
        program = b"".join(struct.pack("=HBBI", *instruction) for instruction in _TRANSLATED_ONLY)
        buffer = ctypes.create_string_buffer(program, len(program))
        filtered = struct.pack("@HP", len(_TRANSLATED_ONLY), ctypes.addressof(buffer))
        channel.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filtered)
        channel.bind((0, _GROUPS))
    except PermissionError as error:
        channel.close()
        raise PermissionError("tracking translations (conntrack) needs CAP_NET_ADMIN") from error
    except OSError:
        channel.close()
        raise
    return channel
