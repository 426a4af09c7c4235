"""The event loop on Windows: asyncio's Proactor, which can wait for pipes, and for listeners that choose.

Everything that needs names of asyncio that begin with an underscore is in this module.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import platform
import socket
import ssl
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from zeek_agent.errors import ZeekAgentError
from zeek_agent.platforms import winapi

log = logging.getLogger(__name__)

_WAIT_SECONDS: Final = 0.5
"""The longest wait for the completion of an operation. Wine 8 loses one wake-up in about 60,000, and then the loop
would wait for ever, although the completion is there."""

if TYPE_CHECKING or sys.platform != "win32":
    _Base = asyncio.SelectorEventLoop

    def _proactor() -> Any:
        raise winapi.NotWindowsError("the event loop for pipes")
else:
    _Base = asyncio.ProactorEventLoop

    class _Proactor(asyncio.IocpProactor):
        def select(self, timeout: float | None = None) -> list[Any]:
            return super().select(_WAIT_SECONDS if timeout is None else min(timeout, _WAIT_SECONDS))

    def _proactor() -> Any:
        return _Proactor()


_NEEDED: Final = ("_start_serving", "_stop_serving", "_make_duplex_pipe_transport")
_SERVING: Final = ("protocol_factory", "sock", "sslcontext", "server", "backlog")


def unsupported(loop: type) -> str | None:
    """Why the methods of asyncio's loop are not those that this module replaces and calls; None if they are."""
    missing = [name for name in _NEEDED if not callable(getattr(loop, name, None))]
    if missing:
        return f"it has no {', '.join(missing)}"
    accepted = [*inspect.signature(getattr(loop, _NEEDED[0])).parameters][1 : len(_SERVING) + 1]
    return None if tuple(accepted) == _SERVING else f"{_NEEDED[0]} takes {', '.join(accepted)}"


class WindowsLoop(_Base):
    """A Proactor loop whose servers also take listeners that have a coroutine `next_connection(loop)`.

    The Proactor accepts connections itself, and so passes by the `accept` of a subclass of socket.
    """

    def __init__(self) -> None:
        super().__init__(_proactor())
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


def new_loop() -> WindowsLoop:
    """Raises ZeekAgentError on a version of Python that this was not written for."""
    if reason := unsupported(_Base):
        raise ZeekAgentError(
            f"asyncio of Python {platform.python_version()} cannot serve pipes ({reason}): use Python 3.11 to 3.13"
        )
    return WindowsLoop()


def _note_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.info("a connection has failed: %s", error)


def current() -> WindowsLoop:
    """The loop that runs. Raises OSError on another system, or for another loop."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, WindowsLoop):
        raise winapi.NotWindowsError("the event loop for pipes")
    return loop
