"""The process of the embedded collector: prepare the logs with the agent's privileges, drop them, then serve.

It receives its connections from the agent, and can open nothing but logs. It ends when the agent says so or is gone.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 - which Python would load later, when files are out of reach
import encodings.idna  # noqa: F401
import gc
import logging
import os
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zeek_agent import heap
from zeek_agent.collector import process_messages as messages
from zeek_agent.collector.process_messages import (
    LOG_LINES_PER_SECOND,
    Begin,
    Serve,
    SetLogLevel,
    StartFailed,
    State,
    Stop,
)
from zeek_agent.collector.server import EMBEDDED_LIMITS, Collector
from zeek_agent.containment import channel
from zeek_agent.containment.accounts import directory_owner
from zeek_agent.containment.agent_log import AgentLog
from zeek_agent.containment.lockdown import lock_down
from zeek_agent.containment.messages import Ready
from zeek_agent.containment.protections import LockdownError, WorkerClass, WorkerLimits
from zeek_agent.errors import ZeekAgentError

if TYPE_CHECKING:
    from zeek_agent.collector.stats import CollectorStats
    from zeek_agent.containment.protections import Protections

DATA_BYTES: Final = 512 << 20
"""Enough for `EMBEDDED_LIMITS.unread_bytes`, a message that is being read, and all lines that wait for a full disk."""
STATE_INTERVAL_SECONDS: Final = 1.0
LOGS_REPLACED: Final = 3
"""Exit code when the log directory is not the one that the lockdown permits; the agent then starts another process."""

_READABLE: Final = ("/etc/localtime", "/usr/share/zoneinfo", "/proc/self", "/dev/null")
"""Read in addition to the log directory and, where its owner can, Python's libraries."""

log = logging.getLogger("zeek_agent.collector")


def run(connection: socket.socket, parent: int) -> None:
    """Serve until the end. `connection` is the socket to the agent, `parent` the process that must be alive."""
    gc.enable()
    heap.share()
    received = channel.receive(connection)
    if received is None:
        return
    begin = messages.decode_to_collector(received[0])
    assert isinstance(begin, Begin)
    agent = AgentChannel(connection)
    _let_go_of_descriptors(connection.fileno())
    _log_to(agent, begin.log_level)
    collector = Collector(begin.settings, begin.pack, limits=EMBEDDED_LIMITS, holder=begin.agent_pid)
    try:
        collector.prepare()
        directory = LogDirectoryHandle(Path(begin.settings.logs))
        protections = _lock_down(directory, parent)
    except (ZeekAgentError, LockdownError) as error:
        agent.send(StartFailed(str(error)))
        return
    except OSError as error:
        agent.send(StartFailed(f"cannot confine its process: {error}"))
        return
    asyncio.run(_serve(collector, agent, directory, protections))


class AgentChannel:
    """This process's end of the socket to the agent."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def send(self, message: messages.FromCollector) -> None:
        """Raises OSError, BlockingIOError while the agent does not read."""
        channel.send(self.connection, messages.encode(message))


def pinned(descriptor: int) -> str:
    """A path that leads to an open file, whatever its name leads to now and whoever may look it up."""
    return f"/proc/self/fd/{descriptor}"


class LogDirectoryHandle:
    """The log directory that the lockdown permits, which may not be the one that has its name later."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    @property
    def pinned(self) -> str:
        """A path that leads to this directory."""
        return pinned(self._descriptor)

    def is_in_place(self) -> bool:
        """Whether the path still leads to it."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except OSError:
            return False


def _log_to(agent: AgentChannel, level: int) -> None:
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(AgentLog(agent.send, LOG_LINES_PER_SECOND))
    _set_log_level(level)


def _set_log_level(level: int) -> None:
    logging.getLogger().setLevel(level)
    logging.getLogger("websockets").setLevel(max(level, logging.WARNING))


def _lock_down(directory: LogDirectoryHandle, parent: int) -> Protections:
    """Drop privileges. What is granted is opened before, because the log directory's owner may not reach it."""
    readable = [os.open(path, os.O_PATH | os.O_CLOEXEC) for path in _readable() if os.access(path, os.F_OK)]
    try:
        return lock_down(
            WorkerClass.COLLECTOR,
            parent=parent,
            account=directory_owner(directory.pinned),
            limits=WorkerLimits(DATA_BYTES, file_bytes=None),
            log_directory=directory.pinned,
            readable=[pinned(descriptor) for descriptor in readable],
        )
    finally:
        channel.close_all(readable)


def _readable() -> Iterable[str]:
    return dict.fromkeys((*_READABLE, *filter(None, sys.path)))


def _let_go_of_descriptors(kept: int) -> None:
    """Replace what was inherited by the null device, standard output included.

    The numbers stay in use, so that objects of the zygote that still hold one cannot close another file.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        if int(name) not in (kept, null):
            with suppress(OSError):  # the descriptor of the listing itself
                os.dup2(null, int(name), inheritable=int(name) <= 2)
    os.close(null)


async def _serve(
    collector: Collector, agent: AgentChannel, directory: LogDirectoryHandle, protections: Protections
) -> None:
    stopped = asyncio.Event()

    def read() -> None:
        try:
            while (received := channel.receive(agent.connection)) is not None:
                body, descriptors = received
                match messages.decode_to_collector(body):
                    case Serve():
                        (descriptor,) = descriptors
                        served = socket.socket(fileno=descriptor)
                        served.setblocking(False)
                        collector.serve_connection(served)
                    case SetLogLevel(level=level):
                        _set_log_level(level)
                    case Stop():
                        break
        except BlockingIOError:
            return
        loop.remove_reader(agent.connection)
        stopped.set()

    loop = asyncio.get_running_loop()
    await collector.start_embedded()
    agent.send(Ready(protections))
    agent.connection.setblocking(False)
    loop.add_reader(agent.connection, read)
    reporting = asyncio.create_task(_report(collector, agent, directory))
    heap.trim()
    await stopped.wait()
    reporting.cancel()
    await collector.stop()


async def _report(collector: Collector, agent: AgentChannel, directory: LogDirectoryHandle) -> None:
    """Keep the agent informed. Ends the process when its log directory was removed or replaced.

    Rows that the agent sent since the last flush are then sent again, as after any end without a shutdown message.
    """
    reported: CollectorStats | None = None
    while True:
        stats = collector.stats
        if stats.disk_error is not None and not directory.is_in_place():
            log.warning("the log directory was removed or replaced; the collector starts again")
            os._exit(LOGS_REPLACED)
        if stats != reported:
            with suppress(BlockingIOError):  # the agent is busy; the next one has all figures, too
                agent.send(State(stats))
                reported = stats
        await asyncio.sleep(STATE_INTERVAL_SECONDS)
