"""Process events from the kernel's process connector: forks, execs and exits of all processes, without details.

Layouts: `struct cn_msg` of linux/connector.h, `struct proc_event` of linux/cn_proc.h.
"""

from __future__ import annotations

import os
import select
import socket
import time
from enum import IntEnum
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from zeek_agent.host.linux.boot_clock import boot_time
from zeek_agent.recording.exclusions import Exclusions
from zeek_agent.recording.listener import Listener, enlarge
from zeek_agent.recording.processes.process_event import PROCESSES_EVENTS
from zeek_agent.recording.processes.process_lifecycle import ProcessLifecycle
from zeek_agent.recording.source import Sink, Source

if TYPE_CHECKING:
    from zeek_agent.config.sections import SourceSettings
    from zeek_agent.recording.processes.process import Process
    from zeek_agent.recording.processes.process_cache import ProcessCache

_NETLINK_CONNECTOR: Final = 11
_NLMSG_DONE: Final = 3
_PROCESSES: Final = 1  # CN_IDX_PROC and CN_VAL_PROC: the connector's name, and its multicast group
_LISTEN: Final = 1
_IGNORE: Final = 2
_SENDING_NS: Final = 50_000_000
"""The kernel takes microseconds from reading the clock to the message in the queue; its CPU may be taken away."""
_BUFFER_BYTES: Final = 16 << 20
"""Receive buffer for bursts of forks."""

_NETLINK: Final = Struct("=IHHII")
_CONNECTOR: Final = Struct("=IIIIHH")
_EVENT: Final = Struct("=IIQ")
_IDS: Final = Struct("=IIII")
_HEAD: Final = _NETLINK.size
_BODY: Final = _HEAD + _CONNECTOR.size
_DATA: Final = _BODY + _EVENT.size


class _EventKind(IntEnum):
    """The members of `enum proc_cn_event` used here."""

    CONFIRMED = 0
    FORK = 0x1
    EXEC = 0x2
    UID = 0x4
    GID = 0x40
    EXIT = 0x8000_0000


class _Event(NamedTuple):
    """`stamp` is CLOCK_MONOTONIC in ns; `ids` are the fields of the event's struct, in order."""

    what: int
    stamp: int
    ids: tuple[int, int, int, int]
    shown: Process | None


class ProcConnector(Source):
    """Every fork, exec and exit; the process is read from /proc immediately, and stays unknown if that is too late."""

    kind = "processes"
    backend = "proc_connector"
    shortcoming = "executables and command lines of processes that exit within 0.1 ms are unknown"

    def __init__(self, cache: ProcessCache, settings: SourceSettings) -> None:
        super().__init__()
        self._cache = cache
        self._exclusions = Exclusions(settings)
        self._listener: Listener | None = None
        self._complete_until: int | None = None
        self._since = 0.0

    def probe(self) -> str | None:
        try:
            with _subscribed() as channel:
                _send_operation(channel, _IGNORE)
        except OSError as error:
            return str(error)
        return None

    def start(self, sink: Sink) -> None:
        self._sink = sink
        self._life = ProcessLifecycle(self._cache, self._exclusions)
        self._threads: dict[int, int] = {}
        self._leaders: dict[int, int] = {}
        self._counts: dict[int, int] = {}
        self._missed = False
        self._events: list[_Event] = []
        self._channel = _subscribed()
        self._since = time.time()
        _trigger_numbering()
        self._listener = Listener(
            self._channel,
            self._receive,
            settle=self._settle,
            overrun=self._overrun,
            failed=self.failed,
            urgent=True,
        )
        self._cache.seed()
        self._life.find_missed(self.missed, self._since)
        self._listener.start()

    def stop(self) -> None:
        if self._listener is not None:
            listener, self._listener = self._listener, None
            try:
                listener.drain()
                self._complete_until = self._until(listener)
                _send_operation(self._channel, _IGNORE)
                listener.drain()
            finally:
                listener.stop()
            self._hand_over(at_end=True)

    def recording_since(self) -> float | None:
        return self._since

    def recorded_until(self) -> float | None:
        listener = self._listener
        until = self._complete_until if listener is None else self._until(listener)
        return self._since if until is None else boot_time() + until / 1e9

    def _until(self, listener: Listener) -> int | None:
        until = listener.settled_until
        return None if until is None else min(until - _SENDING_NS, self._life.oldest_fork() or until)

    def drain(self) -> None:
        if self._listener is not None:
            self._listener.drain()

    def _overrun(self) -> None:
        self._missed = True

    def _receive(self, datagram: bytes) -> None:
        what, cpu, stamp = _EVENT.unpack_from(datagram, _BODY)
        self._count(_CONNECTOR.unpack_from(datagram, _HEAD)[2], cpu)
        if what == _EventKind.CONFIRMED:  # including the confirmations of other listeners
            return
        self.counters.received += 1
        ids = _IDS.unpack_from(datagram, _DATA)
        shown = self._life.read(ids[1]) if what == _EventKind.EXEC else None
        self._events.append(_Event(what, stamp, ids, shown))

    def _handle(self, event: _Event, at: int) -> None:
        thread, process, third, fourth = event.ids
        match event.what:
            case _EventKind.FORK:
                self._fork(process, third, fourth, at)
            case _EventKind.EXEC:
                self._threads.pop(process, None)
                self._leaders.pop(process, None)
                self._life.exec(process, at, event.shown)
            case _EventKind.UID:
                self._life.set_user(process, third, fourth)
            case _EventKind.GID:
                self._life.set_group(process, third, fourth)
            case _EventKind.EXIT:
                self._exit(thread, process, third, at)

    def _count(self, number: int, cpu: int) -> None:
        """Each processor numbers its messages, including confirmations: a gap is the number of dropped messages."""
        expected = self._counts.get(cpu)
        if expected is not None and number != expected:
            self.counters.lost["overrun"] += (number - expected) & 0xFFFF_FFFF
            self._missed = True
        self._counts[cpu] = (number + 1) & 0xFFFF_FFFF

    def _fork(self, parent: int, thread: int, process: int, at: int) -> None:
        if thread == process:
            self._life.fork(process, parent, at)
        else:
            self._threads[process] = self._threads.get(process, 0) + 1

    def _exit(self, thread: int, process: int, status: int, at: int) -> None:
        """A process ends with its last thread, which need not be the leader; the status comes from either."""
        others = self._threads.get(process, 0)
        if thread != process:
            others -= 1
            self._threads[process] = others
            if others > 0 or process not in self._leaders:
                return
            status = status or self._leaders[process]
        elif others > 0:
            self._leaders[process] = status
            return
        self._threads.pop(process, None)
        self._leaders.pop(process, None)
        self._life.exit(process, at, status)

    def _settle(self) -> None:
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        suspended = now - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        events, self._events = self._events, []
        for event in events:
            self._handle(event, event.stamp + suspended)
        if self._missed:
            self._missed = not self._life.reconcile(now)
            _trigger_numbering()
        self._hand_over()

    def _hand_over(self, *, at_end: bool = False) -> None:
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if rows := self._life.collect(now, boot_time(), at_end=at_end):
            self._sink(PROCESSES_EVENTS, rows)


def _subscribed() -> socket.socket:
    """A socket subscribed to process events, confirmed by the kernel. Raises OSError with the reason."""
    channel = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_CONNECTOR)
    try:
        enlarge(channel, _BUFFER_BYTES)
        channel.bind((0, _PROCESSES))
        _send_operation(channel, _LISTEN)
        _await_confirmation(channel)
    except PermissionError as error:
        channel.close()
        raise PermissionError("the process connector needs CAP_NET_ADMIN") from error
    except ConnectionRefusedError as error:
        channel.close()
        raise OSError("the process connector is in the host's own network namespace only") from error
    except BaseException:
        channel.close()
        raise
    return channel


def _trigger_numbering() -> None:
    """Trigger a message on each processor, whose number reveals losses there: the calling thread renames itself."""
    own = Path("/proc/thread-self/comm")
    name, allowed = own.read_bytes()[:-1], os.sched_getaffinity(0)
    try:
        for processor in allowed:
            os.sched_setaffinity(0, {processor})
            own.write_bytes(name)
    finally:
        os.sched_setaffinity(0, allowed)


def _send_operation(channel: socket.socket, operation: int) -> None:
    message = _CONNECTOR.pack(_PROCESSES, _PROCESSES, 0, os.getpid(), 4, 0) + operation.to_bytes(4, "little")
    channel.send(_NETLINK.pack(_NETLINK.size + len(message), _NLMSG_DONE, 0, 0, 0) + message)


def _await_confirmation(channel: socket.socket) -> None:
    deadline = time.monotonic() + 1.0
    while (left := deadline - time.monotonic()) > 0 and select.select([channel], [], [], left)[0]:
        datagram = channel.recv(4_096)
        ours = _CONNECTOR.unpack_from(datagram, _HEAD)[3] == os.getpid() + 1  # not another listener's
        if ours and _EVENT.unpack_from(datagram, _BODY)[0] == _EventKind.CONFIRMED:
            code = _IDS.unpack_from(datagram.ljust(_DATA + _IDS.size, b"\0"), _DATA)[0]
            if code:
                raise OSError(code, os.strerror(code))
            return
    raise OSError("the kernel does not answer: no CONFIG_PROC_EVENTS, or the agent runs in a container's namespaces")
