"""Audit records: `type=SYSCALL msg=audit(1700000000.123:42): arch=c000003e syscall=59 …`, several to an event.

Values that contain anything but plain printable text are hexadecimal. All records of an event have its serial number;
events of several processors are interleaved, and each ends with an EOE record.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Collection
from dataclasses import dataclass, field
from struct import Struct
from typing import Final, NamedTuple

SYSCALL: Final = 1300
SOCKADDR: Final = 1306
CWD: Final = 1307
EXECVE: Final = 1309
END: Final = 1320
_KINDS: Final = frozenset({SYSCALL, SOCKADDR, CWD, EXECVE, END})

_HEADER: Final = Struct("=IHHII")
_STAMP: Final = re.compile(rb"audit\((\d+)\.(\d+):(\d+)\): ?")
_FIELD: Final = re.compile(rb'([\w\[\]]+)=("[^"]*"|[^ ]*)')
_CALL: Final = re.compile(rb"arch=(\w+) syscall=(\d+) ")
_ARGUMENT: Final = re.compile(r"a(\d+)(?:\[(\d+)\])?")
_PENDING_EVENTS_MAX: Final = 2_000
"""Events without their end are bounded, because it may have been lost."""
_ARGUMENT_BYTES_MAX: Final = 4_096
"""Bounds a row; eBPF bounds its arguments too."""


class AuditRecord(NamedTuple):
    """One record: its kind, the event's time (seconds since the epoch) and serial number, and the text after them."""

    kind: int
    time: float
    serial: int
    body: bytes


@dataclass(slots=True)
class AuditEvent:
    """The records of one system call. `call` are the fields of SYSCALL; `token` is the caller's own."""

    time: float
    serial: int
    call: dict[str, bytes]
    arguments: dict[tuple[int, int], bytes] = field(default_factory=dict)
    cwd: bytes | None = None
    address: bytes | None = None
    token: object = None

    def number(self, name: str, base: int = 10) -> int:
        return int(self.call[name], base)

    def text(self, name: str) -> bytes | None:
        return decode_text(self.call.get(name, b"(null)"))

    @property
    def arch(self) -> int:
        return int(self.call["arch"], 16)

    @property
    def syscall(self) -> int:
        return int(self.call["syscall"])

    def command_line(self) -> tuple[bytes, bool]:
        """The arguments, each with its NUL, up to 4 KiB, and whether some are missing."""
        parts: dict[int, bytes] = {}
        for (index, _), value in sorted(self.arguments.items()):
            parts[index] = parts.get(index, b"") + value
        line = b"".join(part + b"\0" for _, part in sorted(parts.items()))
        return line[:_ARGUMENT_BYTES_MAX], len(line) > _ARGUMENT_BYTES_MAX


class Assembler:
    """Assembles the records of the wanted system calls, given as (architecture, number)."""

    def __init__(self, wanted: Collection[tuple[int, int]]) -> None:
        self._wanted = {(f"{arch:x}".encode(), str(call).encode()) for arch, call in wanted}
        self._pending: dict[int, AuditEvent] = {}

    def begin(self, record: AuditRecord) -> AuditEvent | None:
        """The event that a SYSCALL record begins, if it is wanted."""
        match = _CALL.match(record.body)
        if match is None or match.groups() not in self._wanted:
            return None
        fields = fields_of(record.body)
        if len(self._pending) >= _PENDING_EVENTS_MAX:
            del self._pending[next(iter(self._pending))]
        event = self._pending[record.serial] = AuditEvent(record.time, record.serial, fields)
        return event

    def add(self, record: AuditRecord) -> AuditEvent | None:
        """The event that this record completes, if any."""
        event = self._pending.get(record.serial)
        if event is None:
            return None
        if record.kind == END:
            return self._pending.pop(record.serial)
        if record.kind == EXECVE:
            _add_arguments(event, record.body)
        elif record.kind == CWD:
            event.cwd = decode_text(fields_of(record.body).get("cwd", b"(null)"))
        elif record.kind == SOCKADDR:
            event.address = decode_text(fields_of(record.body).get("saddr", b"(null)"))
        return None


def parse_record(datagram: bytes, kinds: Collection[int] = _KINDS) -> AuditRecord | None:
    """The record in a netlink message; None for other kinds. Raises ValueError if it is malformed."""
    kind = _HEADER.unpack_from(datagram)[1]
    if kind not in kinds:
        return None
    match = _STAMP.match(datagram, _HEADER.size)
    if match is None:
        raise ValueError(f"audit record of type {kind} without a stamp")
    return AuditRecord(
        kind, int(match[1]) + int(match[2]) / 1_000, int(match[3]), datagram[match.end() :].rstrip(b"\0")
    )


def fields_of(body: bytes) -> dict[str, bytes]:
    """`name=value` pairs, with undecoded values."""
    return {name.decode(): value for name, value in _FIELD.findall(body)}


def decode_text(value: bytes) -> bytes | None:
    """Decode a text value: quoted, hexadecimal, or empty. Raises ValueError for anything else."""
    if value.startswith(b'"'):
        return value[1:-1]
    if value.startswith(b"("):
        return None
    return bytes.fromhex(value.decode("ascii"))


def _add_arguments(event: AuditEvent, body: bytes) -> None:
    for name, value in fields_of(body).items():
        match = _ARGUMENT.fullmatch(name)
        if match is not None:
            event.arguments[int(match[1]), int(match[2] or 0)] = decode_text(value) or b""


def internet_address(raw: bytes) -> tuple[bytes, int] | None:
    """Address in network form and port of a `struct sockaddr`; None unless it is an internet one."""
    family = int.from_bytes(raw[:2], "little")
    if family == socket.AF_INET and len(raw) >= 8:
        return raw[4:8], int.from_bytes(raw[2:4], "big")
    if family == socket.AF_INET6 and len(raw) >= 24:
        return raw[8:24], int.from_bytes(raw[2:4], "big")
    return None
