"""Enrolment over HTTPS, for sites without NATS: POST of a request, one per connection.

An enrolment needs no certificate, a renewal that of the agent. Bounded in connections, bytes and time.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from zeek_agent.errors import UsageError
from zeek_agent.fleet.enrolled import certified_id
from zeek_agent.fleet.messages import ENROL_PATH, MESSAGE_BYTES_MAX, RENEW_PATH

log = logging.getLogger("zeek_agent.fleet")

CONNECTIONS_MAX: Final = 200
ACCEPTED_MAX: Final = 2 * CONNECTIONS_MAX
"""With those that have not made their TLS handshake."""
TIMEOUT_SECONDS: Final = 10.0
"""For the handshake, and for the request and its answer."""
HEAD_BYTES_MAX: Final = 8192
_LENGTH: Final = re.compile(rb"^content-length:[ \t]*([0-9]{1,9})[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_LINE: Final = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.[01]\r?\n")

Answering = Callable[[bytes, str, "str | None"], Awaitable[bytes]]
"""Answers a request: its payload, the client's address, and for a renewal the id in its certificate."""


class HttpsServer:
    """Listens from `start` to `stop`."""

    def __init__(self, answer: Answering) -> None:
        self._answer = answer
        self._servers: list[asyncio.Server] = []
        self._open: dict[asyncio.StreamWriter, None] = {}
        """In the order in which they were opened."""
        self.displaced = 0
        """Connections that were closed because there were newer ones: clients that say nothing keep nobody out."""

    async def start(self, host: str, port: int, certificate: Path, key: Path, client_ca: Path) -> int:
        """Returns the port. Raises UsageError if it cannot listen, or for files that it cannot use."""
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_cert_chain(certificate, key)
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_OPTIONAL
            for address in dict.fromkeys(await _addresses(host, port)):
                server = await asyncio.start_server(
                    self._serve,
                    sock=_Listener(*address, self._note_displaced),
                    ssl=context,
                    ssl_handshake_timeout=TIMEOUT_SECONDS,
                    limit=HEAD_BYTES_MAX,
                )
                self._servers.append(server)
        except OSError as error:
            raise UsageError(f"cannot serve HTTPS on {host} port {port}: {error.strerror or error}") from None
        return int(self._servers[0].sockets[0].getsockname()[1])

    async def stop(self) -> None:
        while self._servers:
            server = self._servers.pop()
            server.close()
            await server.wait_closed()

    def _note_displaced(self) -> None:
        self.displaced += 1
        if self.displaced.bit_count() == 1:
            log.warning("%d connections for enrolment were closed: more than %d", self.displaced, CONNECTIONS_MAX)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= CONNECTIONS_MAX:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.transport.abort()
            self._note_displaced()
        self._open[writer] = None
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                writer.write(await self._response(reader, writer))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.debug("HTTPS connection ended: %s", error or type(error).__name__)
        finally:
            self._open.pop(writer, None)
            writer.transport.abort()

    async def _response(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        line, length = _LINE.match(head), _LENGTH.search(head)
        if line is None:
            return _response(HTTPStatus.BAD_REQUEST)
        path = line[2].decode("latin-1")
        named = certified_id(writer.get_extra_info("peercert"))
        for refused, status in (
            (path not in (ENROL_PATH, RENEW_PATH), HTTPStatus.NOT_FOUND),
            (line[1] != b"POST", HTTPStatus.METHOD_NOT_ALLOWED),
            (path == RENEW_PATH and named is None, HTTPStatus.FORBIDDEN),
            (length is None, HTTPStatus.LENGTH_REQUIRED),
            (length is not None and int(length[1]) > MESSAGE_BYTES_MAX, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
        ):
            if refused:
                return _response(status)
        assert length is not None
        payload = await reader.readexactly(int(length[1]))
        address = writer.get_extra_info("peername")
        renewing = named if path == RENEW_PATH else None
        return _response(HTTPStatus.OK, await self._answer(payload, str(address[0]), renewing))


class _Listener(socket.socket):
    """A listening socket that shuts down the oldest of too many connections, also those without a TLS handshake."""

    def __init__(self, family: int, address: tuple[Any, ...], on_displaced: Callable[[], None]) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self._accepted: deque[socket.socket] = deque()
        self._on_displaced = on_displaced
        try:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                self.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self.bind(address)
        except OSError:
            self.close()
            raise

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        if len(self._accepted) >= ACCEPTED_MAX:
            self._accepted = deque(one for one in self._accepted if one.fileno() >= 0)
        if len(self._accepted) >= ACCEPTED_MAX:
            with suppress(OSError):  # its client has ended it
                self._accepted.popleft().shutdown(socket.SHUT_RDWR)
            self._on_displaced()
        self._accepted.append(connection)
        return connection, address


async def _addresses(host: str, port: int) -> list[tuple[int, tuple[Any, ...]]]:
    """Family and address of each address of a host."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return [(family, address) for family, _, _, _, address in found]


def _response(status: HTTPStatus, body: bytes = b"") -> bytes:
    body = body or f"{status.phrase}\n".encode()
    kind = "application/json" if status is HTTPStatus.OK else "text/plain"
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
