"""Serves metrics over HTTP/1.1 on a Unix socket or a loopback address, as `metrics.listen` says."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zeek_agent import destination
from zeek_agent.control.connection_server import ConnectionServer
from zeek_agent.errors import ZeekAgentError
from zeek_agent.metrics.exposition import CONTENT_TYPE

if TYPE_CHECKING:
    from zeek_agent.config.sections import MetricsSettings

log = logging.getLogger(__name__)

PATH: Final = "/metrics"
CONNECTIONS_MAX: Final = 16
"""A few Prometheus servers; bounds descriptors and memory."""
REQUEST_BYTES_MAX: Final = 8_192
TIMEOUT_SECONDS: Final = 10.0
"""For the request, and for the client to take the answer: as long as Prometheus waits by default."""
_REQUEST_LINE: Final = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.[01]\r?\n")
_HOST: Final = re.compile(rb"^host:[ \t]*(\S*?)(?::\d+)?[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)


class MetricsServer(ConnectionServer):
    """Answers `GET /metrics` with the text that `text` returns at that moment; one request per connection.

    If there are too many connections, the oldest is closed: clients that say nothing keep nobody out.
    """

    def __init__(self, settings: MetricsSettings, text: Callable[[], str]) -> None:
        """Takes `settings.listen`, which must be set and valid."""
        assert settings.listen is not None
        super().__init__(connections_max=CONNECTIONS_MAX, stream_bytes=REQUEST_BYTES_MAX)
        self._place = destination.parse_local_listen(settings.listen)
        self._group = settings.group
        self._text = text

    async def start(self) -> None:
        """Start listening. Raises ZeekAgentError if that is not possible, UsageError for an unknown group."""
        if isinstance(self._place, Path):
            await self.listen_on_path(self._place, self._group, "metrics")
            return
        host, port = self._place
        try:
            await self.listen_on_port(host, port)
        except OSError as error:
            raise ZeekAgentError(f"cannot serve metrics on {host} port {port}: {error.strerror or error}") from None

    @property
    def port(self) -> int:
        """The port that it listens on. Raises LookupError if it has none."""
        if self._server is None or isinstance(self._place, Path):
            raise LookupError("not a TCP server")
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) > CONNECTIONS_MAX:
            next(iter(self._connections)).cancel()
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                writer.write(self._answer(await reader.readuntil(b"\n\r\n")))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.debug("connection for metrics ended: %s", error or type(error).__name__)
        except asyncio.CancelledError:
            log.debug("connection for metrics closed: there are newer ones, or the program is stopping")
        finally:
            writer.transport.abort()

    def _answer(self, request: bytes) -> bytes:
        """The response to the head of a request."""
        line = _REQUEST_LINE.match(request)
        if line is None:
            return _response(HTTPStatus.BAD_REQUEST, "not an HTTP/1.1 request\n")
        if isinstance(self._place, tuple) and not _names_this_host(request):
            return _response(HTTPStatus.FORBIDDEN, "the Host header must have a loopback address or localhost\n")
        method, target = line.groups()
        if target.partition(b"?")[0] != PATH.encode():
            return _response(HTTPStatus.NOT_FOUND, f"metrics are at {PATH}\n")
        if method not in (b"GET", b"HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD\n", "Allow: GET, HEAD\r\n")
        return _response(HTTPStatus.OK, self._text(), with_body=method == b"GET")


def _names_this_host(request: bytes) -> bool:
    """Whether the request was addressed to this host by address; a name could be a web page's (DNS rebinding)."""
    host = _HOST.search(request)
    if host is None:
        return False
    name = host[1].decode(errors="replace").strip("[]")
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _response(status: HTTPStatus, text: str, header: str = "", *, with_body: bool = True) -> bytes:
    kind = CONTENT_TYPE if status is HTTPStatus.OK else "text/plain; charset=utf-8"
    body = text.encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n{header}Content-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (body if with_body else b"")
