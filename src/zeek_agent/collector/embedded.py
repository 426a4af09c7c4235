"""The agent's side of its embedded collector, which runs in a worker process without privileges.

The process is started when the collector is dialled, also again after it has ended: the connection's pauses between
attempts apply. The agent then sees a new Zeek in place of one that was killed, and delivers what that may have lost.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from msgspec import structs

from zeek_agent.collector import process_messages as messages
from zeek_agent.collector.process_messages import (
    MESSAGES_PER_SECOND,
    Begin,
    Serve,
    SetLogLevel,
    StartFailed,
    State,
    Stop,
)
from zeek_agent.collector.stats import CollectorStats
from zeek_agent.containment import channel
from zeek_agent.containment.channel import ChannelError
from zeek_agent.containment.messages import LogLine, Ready
from zeek_agent.containment.pool import WorkerStatus
from zeek_agent.containment.protections import WorkerClass
from zeek_agent.containment.usage import cpu_seconds, memory
from zeek_agent.destination import EMBEDDED
from zeek_agent.errors import ZeekAgentError
from zeek_agent.text import clipped

if TYPE_CHECKING:
    from zeek_agent.collector.pack import Pack
    from zeek_agent.config.server_sections import CollectorSettings
    from zeek_agent.containment.messages import Exited
    from zeek_agent.containment.protections import Protections
    from zeek_agent.containment.zygote import Started

log = logging.getLogger("zeek_agent.collector")

READY_SECONDS: Final = 20.0
"""Time to lock the logs and to drop privileges; the directory may be on a slow file system."""
STOP_SECONDS: Final = 4.0
"""Time to send the shutdown message and to write the last lines."""
KILL_SECONDS: Final = 1.0
"""Time for a killed process to end; one that waits for a file system is left behind."""
EXIT_STATUS_SECONDS: Final = 1.0
"""Time for the zygote to report how the process ended."""
_MESSAGES_PER_WAKEUP: Final = 20
_ERROR_CHARACTERS: Final = 1_000
_LOGGERS: Final = frozenset({"zeek_agent.collector", "zeek_agent.collector.websocket", "zeek_agent.locks", "asyncio"})

StartProcess = Callable[[Callable[["Exited"], None]], Awaitable["Started"]]
"""Starts a process of the collector's class, and calls the function at its end. Raises ZeekAgentError."""


class EmbeddedCollector:
    """The collector's process: starts it on demand, passes connections to it, and knows its figures."""

    place: Final = "in the agent"
    warning: str | None = None

    def __init__(self, settings: CollectorSettings, pack: Pack, start: StartProcess) -> None:
        self.logs = Path(settings.logs).absolute()
        self.stats = CollectorStats()
        self.lost = 0
        """Processes that ended without having been told to."""
        self.pack = pack
        self._settings = structs.replace(settings, logs=str(self.logs))
        self._start = start
        self._process: CollectorProcess | None = None
        self._reports: set[asyncio.Task[None]] = set()

    @property
    def pid(self) -> int | None:
        """The process, if there is one."""
        return None if self._process is None else self._process.pid

    @property
    def protections(self) -> Protections | None:
        """What confines the process."""
        return None if self._process is None else self._process.protections

    def status(self) -> list[WorkerStatus]:
        """Its row of `zeek_agent_workers`, if there is a process."""
        return [] if self._process is None else [self._process.status()]

    async def dial(self) -> socket.socket:
        """A socket connected to the collector. Raises ZeekAgentError if that cannot start now."""
        process = self._process or await self._launch()
        client, served = socket.socketpair()
        with served:
            try:
                process.send(Serve(), served.fileno())
            except OSError as error:
                client.close()
                process.kill()
                raise ZeekAgentError(f"its process {process.pid} does not answer: {error.strerror}") from error
        return client

    async def stop(self) -> bool:
        """Have it send the shutdown message to the agent and close the logs; killed if that takes too long.

        Returns whether its logs have all that it received.
        """
        process, self._process = self._process, None
        in_order = process is not None and await process.stop()
        for report in self._reports:
            report.cancel()
        await asyncio.gather(*self._reports, return_exceptions=True)
        return in_order

    def set_log_level(self) -> None:
        """Have the process send log lines of the agent's level."""
        if self._process is None:
            return
        try:
            self._process.send(SetLogLevel(_log_level()))
        except OSError as error:
            log.warning("process %d of the embedded collector keeps its log level: %s", self._process.pid, error)

    async def _launch(self) -> CollectorProcess:
        """Start a process and wait until it is confined. Raises ZeekAgentError, and shows the reason in `stats`."""
        try:
            return await self._launched()
        except ZeekAgentError as error:
            self.stats = replace(self.stats, disk_errors=self.stats.disk_errors + 1, disk_error=str(error))
            raise

    async def _launched(self) -> CollectorProcess:
        process = self._process = await CollectorProcess.start(self._start, self._note, self._note_loss)
        try:
            process.send(Begin(self._settings, self.pack, os.getpid(), _log_level()))
            async with asyncio.timeout(READY_SECONDS):
                await asyncio.shield(process.ready)
        except BaseException as reason:
            self._process = None
            process.discard()
            if isinstance(reason, TimeoutError):
                text = f"{self.logs} does not answer: its process was not ready after {READY_SECONDS:g} s"
                raise ZeekAgentError(text) from None
            if isinstance(reason, OSError):
                raise ZeekAgentError(f"its process has ended: {reason}") from reason
            raise
        return process

    def _note(self, stats: CollectorStats) -> None:
        error = stats.disk_error
        self.stats = replace(stats, disk_error=None if error is None else clipped(error, _ERROR_CHARACTERS))

    def _note_loss(self, process: CollectorProcess) -> None:
        """The process has ended on its own."""
        if process is not self._process or not process.was_ready:
            return
        self._process = None
        self.lost += 1
        self.stats = CollectorStats(disk_error=f"its process {process.pid} has ended; another one is about to start")
        report = asyncio.get_running_loop().create_task(process.report_end())
        self._reports.add(report)
        report.add_done_callback(self._reports.discard)


class CollectorProcess:
    """One process of the collector. `note` is called with its figures, `lost` at an end that nobody asked for."""

    def __init__(
        self, started: Started, note: Callable[[CollectorStats], None], lost: Callable[[CollectorProcess], None]
    ) -> None:
        self.pid = started.pid
        self.protections: Protections | None = None
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.exit_status: asyncio.Future[int] = self._loop.create_future()
        """How it ended, as from waitpid(2)."""
        self._connection = started.connection
        self._pidfd = started.pidfd
        self._note = note
        self._lost = lost
        self._ended = asyncio.Event()
        self._since = time.time()
        self._second = 0
        self._received = 0
        self._refused: str | None = None
        self._loop.add_reader(self._connection, self._read)
        self._loop.add_reader(self._pidfd, self._on_end)

    @classmethod
    async def start(
        cls,
        start: StartProcess,
        note: Callable[[CollectorStats], None],
        lost: Callable[[CollectorProcess], None],
    ) -> CollectorProcess:
        """Raises ZeekAgentError."""
        early: list[Exited] = []
        process: CollectorProcess | None = None

        def exited(end: Exited) -> None:
            if process is None:
                early.append(end)
            elif not process.exit_status.done():
                process.exit_status.set_result(end.status)

        process = cls(await start(exited), note, lost)
        for end in early:
            exited(end)
        return process

    def status(self) -> WorkerStatus:
        """As in `zeek_agent_workers`."""
        used, shown = memory(self.pid), self.protections
        return WorkerStatus(
            recipient=str(EMBEDDED),
            worker_class=WorkerClass.COLLECTOR.value,
            pid=self.pid,
            state="starting" if shown is None else "busy",
            since=self._since,
            statements=0,
            cpu=cpu_seconds(self.pid) or 0.0,
            resident_bytes=used.resident,
            peak_bytes=used.peak,
            uid=None if shown is None else shown.uid,
            capabilities=None if shown is None else list(shown.capabilities),
            seccomp=None if shown is None else shown.seccomp,
            landlock_abi=None if shown is None else shown.landlock_abi,
            missing=None if shown is None else list(shown.missing),
        )

    @property
    def was_ready(self) -> bool:
        return self.ready.done() and self.ready.exception() is None

    def send(self, message: messages.ToCollector, *descriptors: int) -> None:
        """Raises OSError."""
        channel.send(self._connection, messages.encode(message), descriptors)

    def kill(self) -> None:
        """End it at once, without closing the logs."""
        if self._ended.is_set():
            return
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            log.debug("process %d has ended already", self.pid)
        except PermissionError:
            log.error("cannot kill process %d of the embedded collector: CAP_KILL is missing", self.pid)

    def discard(self) -> None:
        """Kill it and forget about it: it did not get ready."""
        self._lost = _ignore
        self.kill()
        self._disconnect()

    async def stop(self) -> bool:
        """Have it end, within `STOP_SECONDS`, or kill it. Returns whether it ended in order."""
        self._lost = _ignore
        if self._connection.fileno() < 0:
            await self._end()
            return False
        try:
            self.send(Stop())
            async with asyncio.timeout(STOP_SECONDS):
                await self._ended.wait()
        except OSError as error:  # a TimeoutError, too
            reason = error.strerror or f"after {STOP_SECONDS:g} s"
            log.warning("the embedded collector does not end (%s): killed, its last lines may be missing", reason)
            await self._end()
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout(EXIT_STATUS_SECONDS):
                return await asyncio.shield(self.exit_status) == 0
        return False

    async def _end(self) -> None:
        self.kill()
        try:
            async with asyncio.timeout(KILL_SECONDS):
                await self._ended.wait()
        except TimeoutError:
            log.warning("process %d of the embedded collector is left behind: it waits in the kernel", self.pid)
            self._disconnect()

    async def report_end(self) -> None:
        """Log how it ended, once that is known."""
        try:
            async with asyncio.timeout(EXIT_STATUS_SECONDS):
                how = _described(await asyncio.shield(self.exit_status))
        except TimeoutError:
            how = "has ended, as has its zygote"
        log.error("process %d of the embedded collector %s; another one is started", self.pid, self._refused or how)

    def _read(self) -> None:
        try:
            for _ in range(_MESSAGES_PER_WAKEUP):
                received = channel.receive(self._connection)
                if received is None:
                    self._disconnect()
                    return
                body, descriptors = received
                channel.close_all(descriptors)
                self._count()
                self._handle(messages.decode_from_collector(body))
        except BlockingIOError:
            return
        except ConnectionError as error:
            log.debug("process %d of the embedded collector: %s", self.pid, error)
            self._disconnect()
        except (ChannelError, ValueError) as error:
            self._refused = f"was killed because of an invalid message: {clipped(str(error), _ERROR_CHARACTERS)}"
            self.kill()
            self._disconnect()

    def _count(self) -> None:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._received = second, 0
        self._received += 1
        if self._received > MESSAGES_PER_SECOND:
            raise ChannelError(f"more than {MESSAGES_PER_SECOND} messages in a second")

    def _handle(self, message: Any) -> None:
        match message:
            case LogLine():
                name = message.logger if message.logger in _LOGGERS else log.name
                logging.getLogger(name).log(message.level, "%s", message.text)
            case State():
                self._note(message.stats)
            case Ready() if not self.ready.done():
                self.protections, self._since = message.protections, time.time()
                self.ready.set_result(None)
            case StartFailed() if not self.ready.done():
                self.ready.set_exception(ZeekAgentError(message.text))
            case _:
                raise ChannelError(f"{type(message).__name__} was not expected")

    def _on_end(self) -> None:
        while self._connection.fileno() >= 0 and self._has_more():
            self._read()
        self._disconnect()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._ended.set()
        if not self.ready.done():
            self.ready.set_exception(ZeekAgentError("its process has ended before it was ready"))
            self.ready.exception()
        self._lost(self)

    def _has_more(self) -> bool:
        """Whether messages of the ended process are left; bounded by the socket's buffer."""
        try:
            return bool(self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:
            return False

    def _disconnect(self) -> None:
        if self._connection.fileno() >= 0:
            self._loop.remove_reader(self._connection)
            self._connection.close()


def _log_level() -> int:
    return logging.getLogger("zeek_agent").getEffectiveLevel()


def _described(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _ignore(_: CollectorProcess) -> None:
    """Nothing is lost when it ends."""
