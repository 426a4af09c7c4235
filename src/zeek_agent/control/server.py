"""The agent's side of the control socket; `control` has the messages."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Final, TypeAlias

from zeek_agent import platforms
from zeek_agent.control import messages
from zeek_agent.control.connection_server import ConnectionServer
from zeek_agent.control.messages import Done, EncodedLines, Failed, Frame, Request
from zeek_agent.errors import UsageError, ZeekAgentError
from zeek_agent.text import clipped

log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 64
"""Far more than interactive users open; bounds memory and descriptors."""
SEND_TIMEOUT_SECONDS: Final = 60.0
"""How long a client may leave its answer unread."""
AnswerFunction: TypeAlias = Callable[[Request, str], AsyncGenerator[Frame | EncodedLines, None]]
"""Yields the frames of the answer to a client's request, without the last one; closed if the client disconnects."""


class ControlServer(ConnectionServer):
    """Listens on a Unix socket or a pipe and answers requests. Its owner and, if given, a group may use it."""

    def __init__(
        self,
        path: Path,
        group: str | None,
        answer: AnswerFunction,
        *,
        send_timeout_seconds: float = SEND_TIMEOUT_SECONDS,
    ) -> None:
        super().__init__(connections_max=CONNECTIONS_MAX, stream_bytes=messages.REQUEST_BYTES_MAX)
        self.path = path
        self._group = group
        self._answer = answer
        self._send_timeout_seconds = send_timeout_seconds

    async def start(self) -> None:
        """Start listening.

        Raises UsageError for an invalid path or group, NotListeningError if the system refuses, ZeekAgentError if
        something else is at the path.
        """
        await self.listen_on_path(self.path, self._group, "control")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if len(self._connections) > CONNECTIONS_MAX:
                await self._send(writer, Failed("ZeekAgentError", "too many connections to the control socket"))
            else:
                await self._answer_requests(reader, writer)
        except (ConnectionError, TimeoutError) as error:
            log.info("control connection ended: %s", error or "the client does not read the reply")
        except asyncio.CancelledError:
            log.debug("control connection closed: the agent is stopping")
        finally:
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _answer_requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer requests one after the other. A client that closes its connection ends the current answer."""
        origin = f"control{platforms.HERE.control.peer(writer)}"
        line = await _read_line(reader)
        while line:
            answering = asyncio.create_task(self._reply(writer, line, origin))
            following = asyncio.create_task(_read_line(reader))
            try:
                await asyncio.wait((answering, following), return_when=asyncio.FIRST_COMPLETED)
                if following.done() and not following.result():
                    return
                await answering
                line = await following
            finally:
                for task in (answering, following):
                    task.cancel()
                await asyncio.gather(answering, following, return_exceptions=True)

    async def _reply(self, writer: asyncio.StreamWriter, line: bytes, origin: str) -> None:
        try:
            if len(line) > messages.REQUEST_BYTES_MAX:
                raise UsageError(f"not a request: longer than {messages.REQUEST_BYTES_MAX} bytes")
            frames = self._answer(messages.decode_request(line), origin)
            async with contextlib.aclosing(frames):
                async for frame in frames:
                    await self._send(writer, frame)
            await self._send(writer, Done())
        except ZeekAgentError as error:
            await self._send(writer, Failed(type(error).__name__, str(error)))
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:
            log.exception("control request of %s failed", origin)
            shown = clipped(repr(error))
            await self._send(writer, Failed("ZeekAgentError", f"internal error, see the agent's log: {shown}"))

    async def _send(self, writer: asyncio.StreamWriter, frame: Frame | EncodedLines) -> None:
        for line in messages.encode_frame(frame):
            writer.write(line)
            async with asyncio.timeout(self._send_timeout_seconds):
                await writer.drain()
            await asyncio.sleep(0)


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    """The next line, empty at the end. Only the beginning of a line that is too long is returned."""
    start = b""
    while True:
        try:
            line = await reader.readuntil()
        except asyncio.IncompleteReadError as incomplete:
            return start or incomplete.partial
        except asyncio.LimitOverrunError as overrun:
            part = await reader.readexactly(max(overrun.consumed, 1))
            start = start or part + b"\n"
            continue
        except ConnectionError:
            return b""
        return start or line
