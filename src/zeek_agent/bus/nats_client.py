"""The client of the NATS library, with limits on what it reads, and pings in their turn.

Imported only for a connection to a bus.
"""

from __future__ import annotations

import asyncio
from typing import Final

from nats import errors
from nats.aio.client import PING_PROTO, Client
from nats.protocol import parser

MESSAGE_BYTES_MAX: Final = 8 * 1024 * 1024
"""Longest message of a server: more than any gateway sends, and than the 1 MiB that servers accept by default."""
LINE_BYTES_MAX: Final = 256 * 1024
"""Longest line of NATS' protocol: a server may name many others in its description."""
NO_TLS: Final = "it does not require TLS, so the connection would not be encrypted"
"""Of a server with a `tls://` URL."""


class BoundedParser(parser.Parser):
    """The library's parser would keep a line or message without end in memory."""

    async def parse(self, data: bytes = b"") -> None:
        await super().parse(data)
        in_message = self.state == parser.AWAITING_MSG_PAYLOAD
        if (self.needed > MESSAGE_BYTES_MAX) if in_message else (len(self.buf) > LINE_BYTES_MAX):
            raise errors.ProtocolError


class BoundedClient(Client):
    """Reads with a `BoundedParser`."""

    def __init__(self) -> None:
        super().__init__()
        self._ps = BoundedParser(self)

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        """The library's own overtakes what waits to be sent, so its PONG, and `flush`, would confirm nothing."""
        self._pongs.append(asyncio.get_running_loop().create_future() if future is None else future)
        await self._send_command(PING_PROTO)
        await self._flush_pending()


class TlsClient(BoundedClient):
    """The library's client would continue without TLS if the server, or somebody between, does not offer it."""

    def _connect_command(self) -> bytes:
        if not self._server_info.get("tls_required"):
            raise errors.Error(NO_TLS)
        return super()._connect_command()
