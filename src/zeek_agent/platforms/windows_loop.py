"""The event loop on Windows: asyncio's Proactor, which can wait for pipes, and for listeners that choose.

Everything that needs names of asyncio that begin with an underscore is in this module.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zeek_agent.platforms import winapi

if TYPE_CHECKING or sys.platform != "win32":
    _Base = asyncio.SelectorEventLoop
else:
    _Base = asyncio.ProactorEventLoop

log = logging.getLogger(__name__)


class WindowsLoop(_Base):
    """A Proactor loop whose servers also take listeners that have a coroutine `next_connection(loop)`.

    The Proactor accepts connections itself, and so passes by the `accept` of a subclass of socket.
    """

    def __init__(self) -> None:
        super().__init__()
        self._choosing: dict[socket.socket, asyncio.Task[None]] = {}

    def accept_pipe(self, pipe: Any) -> asyncio.Future[Any]:
        """Wait for a client of a pipe's instance."""
        proactor: Any = getattr(self, "_proactor")  # noqa: B009
        accepting: asyncio.Future[Any] = proactor.accept_pipe(pipe)
        return accepting

    def serve_pipe(self, pipe: Any, protocol: asyncio.BaseProtocol) -> None:
        """Use an instance that has a client as a connection."""
        make: Any = getattr(self, "_make_duplex_pipe_transport")  # noqa: B009
        make(pipe, protocol)

    def _start_serving(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        sock: socket.socket,
        sslcontext: ssl.SSLContext | None = None,
        server: Any = None,
        backlog: int = 100,
        *timeouts: float | None,
    ) -> None:
        """`timeouts` are those of the TLS handshake and, from Python 3.11 on, of its shutdown."""
        if hasattr(sock, "next_connection"):
            names = ("ssl_handshake_timeout", "ssl_shutdown_timeout") if sslcontext else ()
            serving = self._serve(protocol_factory, sock, sslcontext, dict(zip(names, timeouts, strict=False)))
            self._choosing[sock] = self.create_task(serving)
            return
        start: Any = getattr(super(), "_start_serving")  # noqa: B009
        start(protocol_factory, sock, sslcontext, server, backlog, *timeouts)

    def _stop_serving(self, sock: socket.socket) -> None:
        task = self._choosing.pop(sock, None)
        if task is not None:
            task.cancel()
            sock.close()
            return
        stop: Any = getattr(super(), "_stop_serving")  # noqa: B009
        stop(sock)

    async def _serve(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        listener: Any,
        context: ssl.SSLContext | None,
        timeouts: dict[str, float | None],
    ) -> None:
        starting: set[asyncio.Task[Any]] = set()
        while True:
            try:
                connection, _ = await listener.next_connection(self)
            except OSError as error:
                log.info("a connection was not accepted: %s", error)
                await asyncio.sleep(0.1)
                continue
            connection.setblocking(False)
            begin = self.connect_accepted_socket(protocol_factory, connection, ssl=context, **timeouts)
            task = self.create_task(begin)
            starting.add(task)
            task.add_done_callback(starting.discard)
            task.add_done_callback(_note_failure)


def _note_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.info("a connection has failed: %s", error)


def current() -> WindowsLoop:
    """The loop that runs. Raises OSError on another system, or for another loop."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, WindowsLoop):
        raise winapi.NotWindowsError("the event loop for pipes")
    return loop
