"""Listening sockets that bound the connections of TLS clients from their first byte, also during the handshake.

A client without a certificate gets no further than the handshake, so the bound per address keeps those of one address
from taking the places of agents elsewhere. For IPv6 the bound is for a /64 network, all addresses of which one host
can use.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any

from zeek_agent import platforms


class AcceptedSockets:
    """Counts open connections, and refuses those beyond `limit`, or `per_address` from one address."""

    def __init__(self, *, limit: int, per_address: int, refuse: Callable[[str], None]) -> None:
        self._limit = limit
        self._per_address = per_address
        self._refuse = refuse
        self._by_address: Counter[str] = Counter()

    def admit(self, address: str) -> bool:
        """Count a connection that was accepted, unless there are too many."""
        address = bounded_source(address)
        if self._by_address.total() >= self._limit:
            self._refuse(f"more than {self._limit:,} connections")
            return False
        if self._by_address[address] >= self._per_address:
            self._refuse(f"more than {self._per_address:,} connections from {address}")
            return False
        self._by_address[address] += 1
        return True

    def end(self, address: str) -> None:
        address = bounded_source(address)
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]


def bounded_source(address: str) -> str:
    """The address, or the /64 network of an IPv6 address."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((int(parsed), 64), strict=False))


class AcceptedSocket(socket.socket):
    """A connection that is counted until it is closed."""

    def __init__(self, accepted: socket.socket, address: str, counted: AcceptedSockets) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        self._address: str | None = address
        self._counted = counted

    def close(self) -> None:
        super().close()
        if self._address is not None:
            self._counted.end(self._address)
            self._address = None


class BoundedListener(socket.socket):
    """A listening socket; `accept` skips connections that are refused."""

    def __init__(self, family: int, address: Any, counted: AcceptedSockets) -> None:
        """Raises OSError."""
        super().__init__(family, socket.SOCK_STREAM)
        self._counted = counted
        try:
            if platforms.HERE.reuses_addresses:
                self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                self.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self.bind(address)
        except OSError:
            self.close()
            raise

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection. Raises BlockingIOError if there is none."""
        connection, address = super().accept()
        if not self._counted.admit(address[0]):
            connection.close()
            raise BlockingIOError
        return AcceptedSocket(connection, address[0], self._counted), address

    async def next_connection(self, loop: asyncio.AbstractEventLoop) -> tuple[socket.socket, Any]:
        """The same for a loop that accepts connections without `accept`, as on Windows."""
        while True:
            connection, address = await loop.sock_accept(self)
            if self._counted.admit(address[0]):
                return AcceptedSocket(connection, address[0], self._counted), address
            connection.close()


async def open_listeners(host: str, port: int, counted: AcceptedSockets) -> list[BoundedListener]:
    """A socket for each address of the host, as `asyncio.loop.create_server` makes them. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[BoundedListener] = []
    try:
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
            listeners.append(BoundedListener(family, address, counted))
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    return listeners
