"""A leaf node that obeys nobody: NATS' leaf protocol by hand, with the credentials of a site, as a taken server has."""

from __future__ import annotations

import asyncio
import base64
import ssl
from typing import Any

import msgspec

from zeek_agent.fleet import jwt


class RawLeaf:
    """A connection to a hub's port for leaves. What the hub sends is in `received`, line by line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.received: list[bytes] = []
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, port: int, credentials: str, context: ssl.SSLContext, account: str) -> RawLeaf:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        info = _info(await reader.readline())
        await writer.start_tls(context, server_hostname="127.0.0.1")
        token, key = jwt.read_credentials(credentials)
        signature = base64.urlsafe_b64encode(key.sign(info["nonce"].encode())).rstrip(b"=").decode()
        options = {"jwt": token, "sig": signature, "name": "taken", "server_id": "taken", "headers": True}
        options |= {"version": "2.15.1", "remote_account": account}
        writer.write(b"CONNECT " + msgspec.json.encode(options) + b"\r\n")
        return cls(reader, writer)

    def send(self, line: str, payload: bytes | None = None) -> None:
        """A line of the protocol; with a payload, a message: `LMSG SUBJECT`."""
        text = line if payload is None else f"{line} {len(payload)}"
        self._writer.write(text.encode() + b"\r\n" + (b"" if payload is None else payload + b"\r\n"))

    async def is_answered(self, seconds: float = 10) -> bool:
        """Whether the hub has read everything so far, and keeps the connection."""
        before = self.received.count(b"PONG")
        self.send("PING")
        try:
            async with asyncio.timeout(seconds):
                while self.received.count(b"PONG") == before:
                    if self._reading.done():
                        return False
                    await asyncio.sleep(0.01)
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        self._writer.transport.abort()

    async def _read(self) -> None:
        while line := await self._reader.readline():
            self.received.append(line.strip())
            if line.startswith(b"PING"):
                self.send("PONG")


def _info(line: bytes) -> dict[str, Any]:
    return msgspec.json.decode(line.removeprefix(b"INFO "), type=dict[str, Any])
