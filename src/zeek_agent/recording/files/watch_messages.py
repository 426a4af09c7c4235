"""Messages between the agent and the process that watches files, as packets of a Unix SEQPACKET socket.

The watching process has no more modules than it needs, so they are packed by hand. The agent trusts none of them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

PACKET_BYTES_MAX: Final = 49_152
"""Below the default send buffer of a socket."""
PATH_BYTES_MAX: Final = 16_384
"""Directories can be nested deeper than PATH_MAX; a longer path is not reported."""
_CONFIGURATION_BYTES_MAX: Final = 131_072
_STATUS: Final = struct.Struct("=QQIIIB")
_CHANGE: Final = struct.Struct("=BBIIQQQQIHHB")
_ITEM: Final = struct.Struct("=BI")
_NUMBERS: Final = struct.Struct("=dIQd")
HASH_BYTES: Final = 32
_HAS_PATH, _HAS_OLD_PATH, _HAS_STATUS, _IS_DIRECTORY, _IS_FOUND = 1, 2, 4, 8, 16
_MESSAGE_BYTES_MAX: Final = 1_000


class Action(IntEnum):
    """What happened to a file. The names are those of the column `action`."""

    CREATED = 1
    WRITTEN = 2
    DELETED = 3
    RENAMED = 4
    ATTRIBUTES = 5
    EXECUTED = 6


class FileStatus(NamedTuple):
    """Attributes of a file, as of stat(2)."""

    device: int
    inode: int
    size: int
    mode: int


class Change:
    """What one process did to one path within a window, `count` times. None means not known or not applicable.

    `at` is when the first of these events was read (boot time in ns). `is_found`: found by comparing directories, after
    events were lost, so without its process. `target` is the file's key, which stays in the watching process.
    """

    __slots__ = (
        *("action", "pid", "at", "path", "old_path", "is_directory", "is_found", "count", "status", "sha256", "target"),
    )

    def __init__(
        self,
        action: Action,
        pid: int | None,
        at: int,
        path: bytes | None,
        old_path: bytes | None = None,
        *,
        is_directory: bool = False,
        is_found: bool = False,
        count: int = 1,
        status: FileStatus | None = None,
        sha256: bytes | None = None,
        target: bytes | None = None,
    ) -> None:
        self.action = action
        self.pid = pid
        self.at = at
        self.path = path
        self.old_path = old_path
        self.is_directory = is_directory
        self.is_found = is_found
        self.count = count
        self.status = status
        self.sha256 = sha256
        self.target = target


class Status(NamedTuple):
    """The state of the watching process, which it sends regularly and at the end of each batch of changes."""

    complete_until: int
    """The boot time (ns) until which all events have been sent."""
    received: int
    """Events read so far."""
    overflows: int
    """How often the kernel's queue was full."""
    directories: int
    """Directories that are watched."""
    unwatched: int
    """Directories that are not, because of the limit or an error."""
    ready: bool
    """Whether all directories have been marked."""
    message: str
    """The last problem."""


class Watch(NamedTuple):
    """The orders of the agent, its first and only message."""

    paths: Sequence[bytes]
    """Patterns of directories that are watched with everything below them; with `!`, those that are left out."""
    unexecuted: Sequence[bytes]
    """Patterns of directories in which executions are not reported."""
    file_systems: Sequence[bytes]
    """Mount points of file systems that are watched entirely."""
    kinds: Sequence[bytes]
    """Types of file systems that are entered."""
    window_seconds: float
    directories_max: int
    hash_bytes_max: int
    since: float
    """Report what changed since this time (seconds since the epoch), before the watch began; 0: nothing."""


class MessageError(ValueError):
    """A packet does not have the layout of such a message."""


def encode_watch(watch: Watch) -> bytes:
    """Raises ValueError for a configuration that is too large."""
    numbers = _NUMBERS.pack(watch.window_seconds, watch.directories_max, watch.hash_bytes_max, watch.since)
    lists = (watch.paths, watch.unexecuted, watch.file_systems, watch.kinds)
    items = [_ITEM.pack(kind, len(item)) + item for kind, each in enumerate(lists) for item in each]
    packet = numbers + b"".join(items)
    if len(packet) > _CONFIGURATION_BYTES_MAX:
        raise ValueError("the paths to watch are too many")
    return packet


def decode_watch(packet: bytes) -> Watch:
    """Raises MessageError."""
    paths: list[bytes] = []
    unexecuted: list[bytes] = []
    file_systems: list[bytes] = []
    kinds: list[bytes] = []
    lists = (paths, unexecuted, file_systems, kinds)
    try:
        window, directories, size, since = _NUMBERS.unpack_from(packet)
        at = _NUMBERS.size
        while at < len(packet):
            kind, length = _ITEM.unpack_from(packet, at)
            at += _ITEM.size
            lists[kind].append(packet[at : at + length])
            at += length
    except (struct.error, IndexError) as error:
        raise MessageError(f"invalid orders: {error}") from error
    return Watch(paths, unexecuted, file_systems, kinds, window, directories, size, since)


def encode_status(status: Status) -> bytes:
    """A status without changes."""
    head = _STATUS.pack(
        status.complete_until,
        status.received,
        status.overflows,
        status.directories,
        status.unwatched,
        status.ready,
    )
    return b"s" + head + status.message.encode(errors="replace")[:_MESSAGE_BYTES_MAX]


def encode_changes(changes: Iterable[Change]) -> Iterator[bytes]:
    """Packets of changes."""
    packet = bytearray(b"c")
    for change in changes:
        path, old_path = change.path or b"", change.old_path or b""
        status = change.status or FileStatus(0, 0, 0, 0)
        flags = (
            (change.path is not None) * _HAS_PATH
            | (change.old_path is not None) * _HAS_OLD_PATH
            | (change.status is not None) * _HAS_STATUS
            | change.is_directory * _IS_DIRECTORY
            | change.is_found * _IS_FOUND
        )
        sha256 = change.sha256 or b""
        head = _CHANGE.pack(
            change.action,
            flags,
            change.pid or 0,
            change.count,
            change.at,
            *status[:3],
            status.mode,
            len(path),
            len(old_path),
            len(sha256),
        )
        size = len(head) + len(path) + len(old_path) + len(sha256)
        if len(packet) + size > PACKET_BYTES_MAX:
            yield bytes(packet)
            packet = bytearray(b"c")
        packet += head + path + old_path + sha256
    if len(packet) > 1:
        yield bytes(packet)


def decode(packet: bytes) -> Status | list[Change]:
    """A message of the watching process. Raises MessageError."""
    try:
        if packet[:1] == b"s":
            return _decode_status(packet)
        if packet[:1] == b"c":
            return list(_decode_changes(packet))
    except (struct.error, ValueError) as error:
        raise MessageError(f"invalid message: {error}") from error
    raise MessageError(f"message of unknown kind {packet[:1]!r}")


def _decode_status(packet: bytes) -> Status:
    complete, received, overflows, directories, unwatched, ready = _STATUS.unpack_from(packet, 1)
    text = packet[1 + _STATUS.size :]
    if len(text) > _MESSAGE_BYTES_MAX:
        raise MessageError("a text that is too long")
    return Status(complete, received, overflows, directories, unwatched, bool(ready), text.decode(errors="replace"))


def _decode_changes(packet: bytes) -> Iterator[Change]:
    at = 1
    while at < len(packet):
        action, flags, pid, count, when, device, inode, size, mode, path_bytes, old_bytes, hash_bytes = (
            _CHANGE.unpack_from(packet, at)
        )
        at += _CHANGE.size
        end = at + path_bytes + old_bytes + hash_bytes
        if (
            end > len(packet)
            or hash_bytes not in (0, HASH_BYTES)
            or not count
            or max(path_bytes, old_bytes) > PATH_BYTES_MAX
        ):
            raise MessageError("a change with lengths that are not possible")
        path, old_path = packet[at : at + path_bytes], packet[at + path_bytes : at + path_bytes + old_bytes]
        for one in (path, old_path):
            if one and (one[:1] != b"/" or b"\0" in one):
                raise MessageError("a change with a path that is not absolute")
        yield Change(
            Action(action),
            pid or None,
            when,
            path if flags & _HAS_PATH else None,
            old_path if flags & _HAS_OLD_PATH else None,
            is_directory=bool(flags & _IS_DIRECTORY),
            is_found=bool(flags & _IS_FOUND),
            count=count,
            status=FileStatus(device, inode, size, mode) if flags & _HAS_STATUS else None,
            sha256=packet[end - hash_bytes : end] if hash_bytes else None,
        )
        at = end
