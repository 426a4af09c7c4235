"""Named pipes between commands and a running agent on Windows, for its user, administrators and a group.

asyncio's own server of pipes (`start_serving_pipe`) takes no security descriptor, so the instances are made here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet

from zeek_agent.control_transport import (
    Connection,
    ControlTransport,
    Listener,
    NotListeningError,
    Section,
    ServeConnection,
)
from zeek_agent.errors import UsageError, ZeekAgentError
from zeek_agent.platforms import winapi, windows_loop
from zeek_agent.platforms.winapi import pipes, security

log = logging.getLogger(__name__)

_PAUSE_SECONDS: Final = 1.0
"""Until the next attempt to accept connections."""
PREFIX: Final = "\\\\.\\pipe\\"


class NamedPipes(ControlTransport):
    """Connections over named pipes, whose address begins with `\\\\.\\pipe\\`."""

    async def listen(
        self,
        address: Path,
        group: str | None,
        section: Section,
        serve: ServeConnection,
        *,
        backlog: int,
        stream_bytes: int,
    ) -> Listener:
        name = _checked(address)
        sddl = security.for_this_process(pipes.OWNERS)
        if group is not None:
            sddl += pipes.GROUP.format(sid=_group_sid(group, section))
        try:
            return _PipeListener(name, sddl, serve, stream_bytes)
        except PermissionError:
            raise ZeekAgentError(f"another program listens on {name}; stop it or set another address") from None
        except OSError as error:
            raise NotListeningError(f"cannot create the {section} pipe {name}: {error.strerror or error}") from None

    def connect(self, address: Path, timeout_seconds: float) -> Connection:
        return _PipeConnection(_checked(address), timeout_seconds)

    def peer(self, writer: asyncio.StreamWriter) -> str:
        pipe = writer.get_extra_info("pipe")
        pid = None if pipe is None else pipes.client_process(pipe.fileno())
        return "" if pid is None else f" pid={pid}"

    def check_group(self, group: str, section: str) -> None:
        _group_sid(group, section)


class _PipeListener:
    """Has one instance of the pipe that waits for a client, from the event loop of the Proactor."""

    def __init__(
        self,
        name: str,
        sddl: str,
        serve: ServeConnection,
        stream_bytes: int,
        *,
        pause_seconds: float = _PAUSE_SECONDS,
    ) -> None:
        """Raises OSError."""
        self._name = name
        self._sddl = sddl
        self._serve = serve
        self._stream_bytes = stream_bytes
        self._loop = windows_loop.current()
        self._accepting: asyncio.Future[Any] | None = None
        self._pipe: Any = None
        self._closed = False
        self._open: WeakSet[Any] = WeakSet()
        """Instances that have clients; while there is one, or one that waits, nobody else can have the name."""
        self._pause_seconds = pause_seconds
        self._failing = False
        self._wait_for_client(_new_pipe(name, sddl, is_first=True))

    def close(self) -> None:
        self._closed = True
        if self._accepting is not None:
            self._accepting.cancel()
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def _wait_for_client(self, pipe: Any) -> None:
        try:
            accepting = self._loop.accept_pipe(pipe)
        except OSError as error:  # its client has closed it already
            log.info("a connection to %s has failed: %s", self._name, error)
            self._open.add(pipe)
            self._loop.call_soon(self._replace, pipe)
            return
        self._pipe, self._accepting = pipe, accepting
        accepting.add_done_callback(self._accepted)

    def _replace(self, pipe: Any) -> None:
        self._wait_for_next()
        pipe.close()

    def _accepted(self, accepting: asyncio.Future[Any]) -> None:
        pipe, self._pipe = self._pipe, None
        if self._closed or accepting.cancelled():
            if pipe is not None:
                pipe.close()
            return
        self._open.add(pipe)
        # The next instance comes first, so that there always is one and nobody else can create the name.
        self._wait_for_next()
        if failure := accepting.exception():
            log.info("a connection to %s has failed: %s", self._name, failure)
            pipe.close()
        else:
            self._begin(pipe)

    def _wait_for_next(self) -> None:
        """Make an instance for the next client; where that fails, as with too many clients, try again later."""
        if self._closed:
            return
        is_first = not any(pipe.handle is not None for pipe in self._open)
        try:
            following = _new_pipe(self._name, self._sddl, is_first=is_first)
        except OSError as error:
            if not self._failing:
                self._failing = True
                log.error("the pipe %s accepts no connections at present: %s", self._name, error)
            self._loop.call_later(self._pause_seconds, self._wait_for_next)
            return
        if self._failing:
            self._failing = False
            log.info("the pipe %s accepts connections again", self._name)
        self._wait_for_client(following)

    def _begin(self, pipe: Any) -> None:
        reader = asyncio.StreamReader(limit=self._stream_bytes, loop=self._loop)
        protocol = asyncio.StreamReaderProtocol(reader, self._serve, loop=self._loop)
        self._loop.serve_pipe(pipe, protocol)


class _PipeConnection:
    def __init__(self, name: str, timeout_seconds: float) -> None:
        self._file = os.fdopen(pipes.connect(name, timeout_seconds), "r+b", buffering=0)
        self._received = bytearray()

    def send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) or 0 :]

    def read_line(self) -> bytes:
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            try:
                chunk = self._file.read(pipes.BUFFER_BYTES)
            except BrokenPipeError:
                chunk = b""
            if not chunk:
                end = len(self._received) - 1
                break
            self._received += chunk
        line = bytes(self._received[: end + 1])
        del self._received[: end + 1]
        return line

    def close(self) -> None:
        self._file.close()


def _new_pipe(name: str, sddl: str, *, is_first: bool) -> Any:
    if sys.platform == "win32":
        from asyncio.windows_utils import PipeHandle

        return PipeHandle(pipes.create(name, sddl, is_first=is_first))
    raise winapi.NotWindowsError("kernel32")


def _checked(address: Path) -> str:
    name = str(address)
    if not name.startswith(PREFIX) or len(name) > 256:
        raise UsageError(f"{name} is not the name of a pipe: it begins with {PREFIX}, and has up to 256 characters")
    return name


def _group_sid(group: str, section: str) -> str:
    try:
        return security.account_sid(group)
    except OSError as error:
        raise UsageError(f"{section}.group: no such group: {group!r} ({error.strerror or error})") from None
