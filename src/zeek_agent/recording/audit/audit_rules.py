"""The kernel's audit system: its state, its system call rules, and the agent's own rules among them.

The key of our rules contains the agent's process and the previous state: `zeek-agent:PID:START:ENABLED:BACKLOG`. It
distinguishes rules left by a crash from those of a running agent, and allows restoring the previous state.
Layouts: `struct audit_status`, `struct audit_rule_data` of linux/audit.h.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
import socket
import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from struct import Struct
from typing import Final, NamedTuple

from zeek_agent.host.linux import procfs

log = logging.getLogger(__name__)

NETLINK_AUDIT: Final = 9

_GET, _SET = 1000, 1001
_ADD_RULE, _DELETE_RULE, _LIST_RULES = 1011, 1012, 1013
_ERROR, _DONE = 2, 3
_REQUEST_ACK: Final = 0x5
_HEADER: Final = Struct("=IHHII")
_STATUS: Final = Struct("=10I")
_STATUS_ENABLED: Final = 0x01
_STATUS_BACKLOG: Final = 0x10
_LOCKED: Final = 2
_BACKLOG_RECORDS: Final = 8_192
"""Minimum of the kernel's queue for bursts, the default of distributions' rules."""

_RULE: Final = Struct("=III64I64I64I64II")
_AT_EXIT, _ALWAYS, _EQUAL = 4, 2, 0x4000_0000
_ARCH, _EXIT, _SUCCESS, _FAMILY, _KEY = 11, 103, 104, 113, 210
_OWN: Final = "zeek-agent"


class SystemCalls(NamedTuple):
    """Numbers of the recorded system calls on one architecture."""

    execve: int
    execveat: int
    exit_group: int
    connect: int
    accept: int | None
    accept4: int


CALLS: Final = {
    0xC000_003E: SystemCalls(59, 322, 231, 42, 43, 288),  # x86_64
    0x4000_0003: SystemCalls(11, 358, 252, 362, None, 364),  # i386
    0xC000_00B7: SystemCalls(221, 281, 94, 203, 202, 242),  # aarch64
}
"""By the architecture's number in audit records."""

_NATIVE: Final = {"x86_64": (0xC000_003E, 0x4000_0003), "aarch64": (0xC000_00B7,)}


class AuditStatus(NamedTuple):
    """`enabled` is 2 if rules are locked until reboot; `daemon` is auditd's pid or 0; `lost` counts records."""

    enabled: int
    daemon: int
    backlog_limit: int
    lost: int


@dataclass(frozen=True, slots=True)
class AuditRule:
    """A rule that records these system calls when each field has its value. `calls` and `fields` are numbers."""

    calls: tuple[int, ...]
    fields: tuple[tuple[int, int], ...]


class AuditControl:
    """A connection to the audit system. Raises OSError with the kernel's reason."""

    def __init__(self) -> None:
        self._channel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_AUDIT)
        self._channel.settimeout(10.0)
        self._sequence = 0
        self._lock = threading.Lock()

    def __enter__(self) -> AuditControl:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def status(self) -> AuditStatus:
        (body,) = self._request(_GET, b"", _GET)
        _, enabled, _, daemon, _, backlog_limit, lost = _STATUS.unpack_from(body.ljust(_STATUS.size, b"\0"))[:7]
        return AuditStatus(enabled, daemon, backlog_limit, lost)

    def set_up(self) -> None:
        """Enable auditing, with a backlog for bursts, and remove the rules of crashed agents."""
        self.clean_up()
        status = self.status()
        if status.enabled == _LOCKED:
            raise PermissionError(errno.EPERM, "audit rules are locked until reboot")
        enabled, backlog = self._before(status)
        self._key = f"{_OWN}:{os.getpid()}:{_started(os.getpid())}:{enabled}:{backlog}".encode()
        self._set(1, max(_BACKLOG_RECORDS, status.backlog_limit) if status.backlog_limit else 0)

    def add(self, rules: Iterable[AuditRule]) -> list[bytes]:
        """Add rules, after `set_up`. Returns the argument for `remove`."""
        added = [_packed(rule, self._key) for rule in rules]
        for raw in added:
            self._request(_ADD_RULE, raw, None)
        return added

    def remove(self, added: Iterable[bytes]) -> None:
        """Remove our rules, and restore the previous state with the last ones."""
        for raw in added:
            self._delete(raw)
        self._restore(_parts(_key_of(raw)) for raw in added)

    def clean_up(self) -> None:
        """Remove the rules of agents that are no longer running."""
        left = [raw for raw in self._rules() if (parts := _parts(_key_of(raw))) and not _runs(parts)]
        for raw in left:
            self._delete(raw)
        if left:
            log.warning("removed %d audit rules left behind by an agent", len(left))
            self._restore(_parts(_key_of(raw)) for raw in left)

    def recorded(self) -> set[tuple[int, int]]:
        """Architecture and number of the system calls recorded by some rule."""
        found = set()
        for raw in self._rules():
            flags, action, count, *rest = _RULE.unpack_from(raw)
            if flags & 0xF == _AT_EXIT and action == _ALWAYS:
                mask, fields, values = rest[:64], rest[64 : 64 + count], rest[128 : 128 + count]
                arches = [v for f, v in zip(fields, values, strict=True) if f == _ARCH] or list(CALLS)
                found |= {
                    (arch, call)
                    for arch in arches
                    for call in CALLS.get(arch, ())
                    if call is not None and mask[call // 32] >> call % 32 & 1
                }
        return found

    def _before(self, status: AuditStatus) -> tuple[int, int]:
        """The settings before the first agent: enabled, backlog limit."""
        for raw in self._rules():
            if parts := _parts(_key_of(raw)):
                return parts[2], parts[3]
        return status.enabled, status.backlog_limit

    def _restore(self, befores: Iterable[tuple[int, int, int, int] | None]) -> None:
        before = next((parts for parts in befores if parts), None)
        if before is not None and not any(_parts(_key_of(raw)) for raw in self._rules()) and not self.status().daemon:
            self._set(before[2], before[3])

    def _set(self, enabled: int, backlog: int) -> None:
        mask = _STATUS_ENABLED | _STATUS_BACKLOG
        self._request(_SET, _STATUS.pack(mask, enabled, 0, 0, 0, backlog, 0, 0, 0, 0), None)

    def _rules(self) -> list[bytes]:
        return self._request(_LIST_RULES, b"", _DONE)

    def _delete(self, raw: bytes) -> None:
        try:
            self._request(_DELETE_RULE, raw, None)
        except FileNotFoundError:  # already removed by someone else
            log.debug("an audit rule of the agent had already been removed")

    def _request(self, kind: int, body: bytes, last: int | None) -> list[bytes]:
        """The bodies of the reply, up to a message of kind `last`, or up to the acknowledgement if None."""
        with self._lock:
            self._sequence += 1
            self._channel.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST_ACK, self._sequence, 0) + body)
            return self._answer(kind, last)

    def _answer(self, kind: int, last: int | None) -> list[bytes]:
        bodies: list[bytes] = []
        while True:
            message = self._channel.recv(65_536)
            _, answer, _, sequence, _ = _HEADER.unpack_from(message)
            if sequence != self._sequence:
                continue
            if answer == _ERROR:
                code = int.from_bytes(message[16:20], "little", signed=True)
                if code:
                    raise OSError(-code, os.strerror(-code))
                if last is None:
                    return bodies
                continue
            if answer == kind:
                bodies.append(message[_HEADER.size :])
            if answer == last:
                return bodies


def process_rules() -> list[AuditRule]:
    """Rules for executed programs and exiting processes."""
    rules = []
    for arch, calls in _native():
        rules.append(AuditRule((calls.execve, calls.execveat), ((_ARCH, arch), (_SUCCESS, 1))))
        rules.append(AuditRule((calls.exit_group,), ((_ARCH, arch),)))
    return rules


def socket_rules() -> list[AuditRule]:
    """Rules for opened and accepted internet connections, including those still being opened."""
    rules = []
    for arch, calls in _native():
        accepted = [call for call in (calls.connect, calls.accept, calls.accept4) if call is not None]
        for family in (socket.AF_INET, socket.AF_INET6):
            rules.append(AuditRule(tuple(accepted), ((_ARCH, arch), (_SUCCESS, 1), (_FAMILY, family))))
            under_way = (_EXIT, -errno.EINPROGRESS & 0xFFFF_FFFF)
            rules.append(AuditRule((calls.connect,), ((_ARCH, arch), under_way, (_FAMILY, family))))
    return rules


def calls_of(names: Collection[str]) -> set[tuple[int, int]]:
    """Architecture and number of these system calls on this machine; none if they are unknown there."""
    native = _native()[:1]
    return {
        (arch, getattr(calls, name)) for arch, calls in native for name in names if getattr(calls, name) is not None
    }


def _native() -> list[tuple[int, SystemCalls]]:
    return [(arch, CALLS[arch]) for arch in _NATIVE.get(platform.machine(), ())]


def _packed(rule: AuditRule, key: bytes) -> bytes:
    mask = [0] * 64
    for call in rule.calls:
        mask[call // 32] |= 1 << call % 32
    fields = [*rule.fields, (_KEY, len(key))]
    padding = [0] * (64 - len(fields))
    return (
        _RULE.pack(
            _AT_EXIT,
            _ALWAYS,
            len(fields),
            *mask,
            *(name for name, _ in fields),
            *padding,
            *(value for _, value in fields),
            *padding,
            *(_EQUAL for _ in fields),
            *padding,
            len(key),
        )
        + key
    )


def _key_of(raw: bytes) -> str:
    """The key of a rule, at the end of its strings; empty if it has none."""
    count = _RULE.unpack_from(raw)[2]
    for index in range(count):
        field = int.from_bytes(raw[268 + 4 * index : 272 + 4 * index], "little")
        if field == _KEY:
            size = int.from_bytes(raw[524 + 4 * index : 528 + 4 * index], "little")
            texts = raw[_RULE.size :].rstrip(b"\0")
            return texts[len(texts) - size :].decode(errors="replace")
    return ""


def _parts(key: str) -> tuple[int, int, int, int] | None:
    """Pid, start, enabled and backlog limit from one of our keys; None for others."""
    name, *numbers = key.split(":")
    if name != _OWN or len(numbers) != 4 or not all(number.isdecimal() for number in numbers):
        return None
    pid, started, enabled, backlog = map(int, numbers)
    return pid, started, enabled, backlog


def _runs(parts: tuple[int, int, int, int]) -> bool:
    return _started(parts[0]) == parts[1]


def _started(pid: int) -> int | None:
    try:
        with procfs.ProcfsProcess(procfs.Procfs(), pid) as process:
            return process.start_ticks
    except ProcessLookupError:
        return None
