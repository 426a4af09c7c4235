"""Process and socket events from the kernel's audit records, read from their multicast group alongside a running
auditd.

Records contain program, command line, users and peer; the rest (entity id, control group, the local end of a
connection) is looked up at once. Rules of our own are set only if the configuration allows.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from zeek_agent import text
from zeek_agent.host.internet_sockets import ALL_STATES, TCP, UDP, InternetSocket, TcpState, on_the_wire
from zeek_agent.host.linux import inet_diag
from zeek_agent.host.linux.boot_clock import boot_time
from zeek_agent.host.linux.namespaces import in_network_namespace
from zeek_agent.host.linux.procfs import living_directory, network_namespace
from zeek_agent.host.linux.stamps import set_or_none
from zeek_agent.recording.audit import audit_records
from zeek_agent.recording.audit.audit_records import Assembler, AuditEvent
from zeek_agent.recording.audit.audit_rules import (
    CALLS,
    NETLINK_AUDIT,
    AuditControl,
    AuditRule,
    calls_of,
    process_rules,
    socket_rules,
)
from zeek_agent.recording.exclusions import Exclusions
from zeek_agent.recording.listener import Listener, enlarge
from zeek_agent.recording.processes.process import Process
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.recording.processes.process_event import PROCESSES_EVENTS
from zeek_agent.recording.processes.process_lifecycle import ProcessLifecycle, unknown_process
from zeek_agent.recording.sockets.socket_event import SOCKETS_EVENTS, Direction, Flow, SocketState, socket_event
from zeek_agent.recording.source import Sink, Source

if TYPE_CHECKING:
    from zeek_agent.config.sections import SourceSettings

log = logging.getLogger(__name__)

_READ_LOG: Final = 1  # AUDIT_NLGRP_READLOG
_BUFFER_BYTES: Final = 16 << 20
"""Receive buffer for bursts, some ten thousand records."""
_CHECK_SECONDS: Final = 1.0
"""Interval of comparing the kernel's counter of lost records."""
_COMPARE_SECONDS: Final = 0.5
"""Interval of scans of /proc for processes that audit does not report: starts without exec, ends by a signal."""
LAG_SECONDS: Final = 4.0
"""Two scans of /proc, or a record that waits for the others of its call, and a second for the kernel's queue."""
_CONNECTING_SECONDS_MAX: Final = 60.0
"""How long a pending connect is followed; by default the kernel retries for about two minutes."""

_EXECS: Final = {(arch, call) for arch, calls in CALLS.items() for call in (calls.execve, calls.execveat)}
_EXITS: Final = {(arch, calls.exit_group) for arch, calls in CALLS.items()}
_CONNECTS: Final = {(arch, calls.connect) for arch, calls in CALLS.items()}
_ACCEPTS: Final = {
    (arch, call) for arch, calls in CALLS.items() for call in (calls.accept, calls.accept4) if call is not None
}


class AuditSource(Source):
    """Reads audit records of system calls, which subclasses select and interpret."""

    backend = "audit"
    calls: frozenset[tuple[int, int]]
    needed: frozenset[tuple[int, int]]

    def __init__(self, cache: ProcessCache, settings: SourceSettings) -> None:
        super().__init__()
        self._cache = cache
        self._settings = settings
        self._exclusions = Exclusions(settings)
        self._listener: Listener | None = None
        self._since = 0.0
        self._until: float | None = None

    @abstractmethod
    def rules(self) -> Sequence[AuditRule]:
        """Rules that make the kernel record the needed system calls."""

    @abstractmethod
    def _on_call(self, event: AuditEvent) -> None:
        """Handle the first record of a system call; the others follow. Read short-lived state now."""

    @abstractmethod
    def _on_complete(self, event: AuditEvent) -> None: ...

    @abstractmethod
    def _hand_over(self) -> None:
        """Pass rows to the sink."""

    def clean_up(self) -> None:
        """Remove rules that a crashed agent has left behind."""
        try:
            with AuditControl() as control:
                control.clean_up()
        except OSError as error:  # no audit, or not permitted: then we cannot have left rules either
            log.debug("cannot list audit rules: %s", error)

    def probe(self) -> str | None:
        try:
            subscribed().close()
            with AuditControl() as control:
                status = control.status()
                if self._settings.audit_rules:
                    return "audit rules are locked until reboot" if status.enabled == 2 else None
                if not status.enabled:
                    return "audit is disabled: start auditd with rules, or set sources.audit_rules"
                if not self.needed <= control.recorded():
                    return f"no audit rule covers {self.kind}: add some, or set sources.audit_rules"
        except OSError as error:
            return f"audit records cannot be read ({error.strerror}): that needs CAP_AUDIT_READ and CAP_AUDIT_CONTROL"
        return None

    def start(self, sink: Sink) -> None:
        self._sink = sink
        self._assembler = Assembler(self.calls)
        self._serial = 0
        self._missed = False
        self._rules: list[bytes] = []
        self._control = AuditControl()
        self._lost = self._control.status().lost
        self._checked = time.monotonic()
        self._listener = Listener(
            subscribed(),
            self._receive,
            settle=self._settle,
            overrun=self._overrun,
            failed=self.failed,
            batch_seconds=0.005,
            urgent=True,
        )
        self._listener.start()
        if self._settings.audit_rules:
            self._control.set_up()
            self._rules = self._control.add(self.rules())
        self._since = time.time()

    def stop(self) -> None:
        if self._listener is None:
            return
        self._until = self.recorded_until()
        listener, self._listener = self._listener, None
        try:
            self._control.remove(self._rules)
            listener.drain()
        finally:
            listener.stop()
            self._control.__exit__()

    def recording_since(self) -> float | None:
        return self._since

    def recorded_until(self) -> float | None:
        """Records and scans of /proc are up to `LAG_SECONDS` late."""
        listener = self._listener
        if listener is None:
            return self._until
        until = listener.settled_until
        return self._since if until is None else max(self._since, boot_time() + until / 1e9 - LAG_SECONDS)

    def drain(self) -> None:
        if self._listener is not None:
            self._listener.drain()

    def _overrun(self) -> None:
        self._missed = True

    def _receive(self, datagram: bytes) -> None:
        try:
            record = audit_records.parse_record(datagram)
            if record is None:
                return
            self._count_missed(record.serial)
            if record.kind != audit_records.SYSCALL:
                event = self._assembler.add(record)
                if event is not None:
                    self.counters.received += 1
                    self._on_complete(event)
            elif (event := self._assembler.begin(record)) is not None:
                self._on_call(event)
        except (ValueError, LookupError) as error:
            self.counters.lost["decode"] += 1
            self.counters.last_error = f"audit record: {error}"

    def _count_missed(self, serial: int) -> None:
        """After an overrun of our socket, count the lost events of all kinds by the gap in their serial numbers."""
        if self._missed and self._serial:
            self.counters.lost["overrun"] += max(serial - self._serial - 1, 0)
            self._missed = False
        self._serial = max(serial, self._serial)

    def _settle(self) -> None:
        now = time.monotonic()
        if now >= self._checked + _CHECK_SECONDS:
            self._checked = now
            lost = self._control.status().lost
            self.counters.lost["overrun"] += max(lost - self._lost, 0)
            self._lost = lost
        self._hand_over()


class AuditProcesses(AuditSource):
    """Executed programs and processes that exit by themselves; others are found in /proc twice a second."""

    kind = "processes"
    shortcoming = "processes that only fork are missed unless they live for a second"
    calls = frozenset(_EXECS | _EXITS)
    needed = frozenset(calls_of(("execve", "exit_group")))

    def start(self, sink: Sink) -> None:
        self._life = ProcessLifecycle(self._cache, self._exclusions)
        self._cache.seed()
        self._compared = time.monotonic()
        self._life.find_missed(self.missed, time.time())
        super().start(sink)

    def rules(self) -> Sequence[AuditRule]:
        return process_rules()

    def _on_call(self, event: AuditEvent) -> None:
        if _is(event, _EXECS) and event.call.get("success") == b"yes":
            event.token = self._life.read(event.number("pid"))

    def _on_complete(self, event: AuditEvent) -> None:
        pid, at = event.number("pid"), round((event.time - boot_time()) * 1e9)
        if _is(event, _EXITS):
            known = self._cache.lookup(pid)
            if known is None or not known.exited:
                self._life.exit(pid, at, (event.number("a0", 16) & 0xFF) << 8)
        elif event.call.get("success") == b"yes":
            shown = event.token
            assert shown is None or isinstance(shown, Process)
            process = self._life.exec(pid, at, shown)
            process.since = max(process.since, process.started)
            _fill_in(process, event, self._cache)
            process.command_line = self._cache.command_line(*event.command_line())
            if event.cwd is not None:
                process.cwd = text.from_bytes(event.cwd)

    def _hand_over(self) -> None:
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if time.monotonic() >= self._compared + _COMPARE_SECONDS:
            self._compared = time.monotonic()
            self._life.reconcile(now)
        if rows := self._life.collect(now, boot_time()):
            self._sink(PROCESSES_EVENTS, rows)


class _CompletedCall(NamedTuple):
    """A completed connect or accept, and the inodes of its socket and, for accept, of the listener."""

    event: AuditEvent
    direction: Direction
    state: SocketState | None
    process: Process
    inode: int | None
    listener: int | None


class AuditSockets(AuditSource):
    """Opened and accepted connections. Neither their end nor a listener's is audited."""

    kind = "sockets"
    shortcoming = "ends of connections and failed ones, most UDP, ICMP and packet sockets are missed"
    calls = frozenset(_CONNECTS | _ACCEPTS)
    needed = frozenset(calls_of(("connect", "accept4")))

    def start(self, sink: Sink) -> None:
        self._completed: list[_CompletedCall] = []
        self._connecting: list[_CompletedCall] = []
        self._own = network_namespace("/proc", "self")
        super().start(sink)

    def rules(self) -> Sequence[AuditRule]:
        return socket_rules()

    def _on_call(self, event: AuditEvent) -> None:
        pid = event.number("pid")
        if _is(event, _CONNECTS):
            event.token = (_inode(pid, event.number("a0", 16)), None)
        elif event.call.get("success") == b"yes":
            event.token = (_inode(pid, event.number("exit")), _inode(pid, event.number("a0", 16)))

    def _on_complete(self, event: AuditEvent) -> None:
        if event.token is None or event.address is None or audit_records.internet_address(event.address) is None:
            return
        succeeded = event.call.get("success") == b"yes"
        if not succeeded and event.number("exit") != -115:
            return
        assert isinstance(event.token, tuple)
        inode, listener = event.token
        direction: Direction = "outbound" if _is(event, _CONNECTS) else "inbound"
        process = self._process(event)
        if not self._exclusions.process(process):
            state: SocketState | None = "established" if succeeded else None
            self._completed.append(_CompletedCall(event, direction, state, process, inode, listener))

    def _process(self, event: AuditEvent) -> Process:
        pid, at = event.number("pid"), round((event.time - boot_time()) * 1e9)
        known = self._cache.find(pid)
        if known is not None and known.exited and (known.until or 0) < at - 1_000_000_000:
            known = self._cache.read(pid)
        process = unknown_process(pid, at, None) if known is None else replace(known)
        _fill_in(process, event, self._cache)
        return process

    def _hand_over(self) -> None:
        calls, self._completed = self._connecting + self._completed, []
        self._connecting = []
        if not calls:
            return
        open_by_namespace = {
            netns: _open_sockets(pid, netns == self._own)
            for netns, pid in {call.process.netns or self._own: call.process.pid for call in calls}.items()
        }
        rows = []
        for call in calls:
            found = open_by_namespace[call.process.netns or self._own]
            own = found.get(call.inode or 0)
            if own is not None and not _is_connected_to(own, *_peer(call)):
                own = None  # its descriptor had been reused before the record was read
            state = call.state
            if state is None and own is not None:
                if own.state == TcpState.SYN_SENT and time.time() < call.event.time + _CONNECTING_SECONDS_MAX:
                    self._connecting.append(call)
                    continue
                state = None if own.state == TcpState.SYN_SENT else "established"
            flow = _flow(call, own, found.get(call.listener or 0))
            if not self._exclusions.flow(flow):
                rows.append(socket_event(flow, state, call.direction, call.process, time=call.event.time))
        if rows:
            self._sink(SOCKETS_EVENTS, rows)


def subscribed() -> socket.socket:
    """A socket that receives all audit records."""
    channel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_AUDIT)
    try:
        enlarge(channel, _BUFFER_BYTES)
        channel.bind((0, _READ_LOG))
    except OSError:
        channel.close()
        raise
    return channel


def _is(event: AuditEvent, calls: set[tuple[int, int]]) -> bool:
    return (event.arch, event.syscall) in calls


def _fill_in(process: Process, event: AuditEvent, cache: ProcessCache) -> None:
    """Fill in the record's fields: program, users, parent."""
    name, exe = event.text("comm"), event.text("exe")
    process.name = text.from_bytes(name) if name is not None else process.name
    process.exe = text.from_bytes(exe) if exe is not None else process.exe
    process.ruid, process.rgid = event.number("uid"), event.number("gid")
    process.uid, process.gid = event.number("euid"), event.number("egid")
    process.loginuid, process.session = set_or_none(event.number("auid")), set_or_none(event.number("ses"))
    process.ppid = event.number("ppid")
    if process.parent_entity_id is None and (parent := cache.lookup(process.ppid)) is not None:
        process.parent_entity_id, process.parent_name, process.parent_exe = parent.entity_id, parent.name, parent.exe


def _inode(pid: int, descriptor: int) -> int | None:
    """The socket's inode number; None if the process no longer has it open."""
    try:
        target = os.readlink(f"{living_directory('/proc', pid)}/fd/{descriptor}")  # noqa: PTH115
    except OSError:
        return None
    return int(target[8:-1]) if target.startswith("socket:[") else None


def _open_sockets(pid: int, own: bool) -> dict[int, InternetSocket]:
    """The sockets of the process's network namespace by inode; empty if it is gone or not accessible."""

    def open_sockets() -> dict[int, InternetSocket]:
        return {found.inode: found for found in inet_diag.list_sockets((TCP, UDP), ALL_STATES) if found.inode}

    try:
        return open_sockets() if own else in_network_namespace(f"{living_directory('/proc', pid)}/ns/net", open_sockets)
    except OSError:
        return {}


def _peer(call: _CompletedCall) -> tuple[bytes, int]:
    """The peer's address and port by the record."""
    assert call.event.address is not None
    peer = audit_records.internet_address(call.event.address)
    assert peer is not None
    return on_the_wire(b"", peer[0])[1], peer[1]


def _is_connected_to(own: InternetSocket, remote: bytes, remote_port: int) -> bool:
    """Whether a socket has that peer. A connection to the unspecified address is one to the host itself."""
    return own.connected and own.remote_port == remote_port and (own.remote == remote or not any(remote))


def _flow(call: _CompletedCall, own: InternetSocket | None, listener: InternetSocket | None) -> Flow:
    """Both ends: the peer from the record, the local end from the socket if it was still open."""
    netns = call.process.netns
    if own is not None:
        return Flow(own.protocol, own.local, own.local_port, own.remote, own.remote_port, own.cookie, netns)
    remote, remote_port = _peer(call)
    if listener is not None:
        specific = any(listener.local) and len(listener.local) == len(remote)
        ours = listener.local if specific else None
        return Flow(listener.protocol, ours, listener.local_port, remote, remote_port, None, netns)
    return Flow(None, None, None, remote, remote_port, None, netns)
