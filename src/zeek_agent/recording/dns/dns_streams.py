"""DNS messages out of the segments of TCP connections, which the kernel shows as packets: repeated, or out of order."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

_LENGTH_BYTES: Final = 2
STREAMS_MAX: Final = 1_000
"""Directions of connections that are followed at a time; the one that was idle longest gives way."""
BYTES_MAX: Final = 4 << 20
"""What all streams keep of incomplete messages and of segments that wait; beyond, the idlest streams are dropped."""
WAITING_MAX: Final = 64
"""Segments of one stream that wait for an earlier one."""
_SEQUENCES: Final = 1 << 32


class StreamMessage(NamedTuple):
    """A message; `is_cut` if its end is missing."""

    raw: bytes
    is_cut: bool


@dataclass(slots=True)
class _Stream:
    """One direction of a connection. `next` is the sequence number of the byte behind `data`."""

    next: int
    data: bytearray = field(default_factory=bytearray)
    waiting: dict[int, tuple[bytes, int]] = field(default_factory=dict)
    skip: int = 0
    """Bytes of a message whose end was not captured, which are still to come."""
    is_broken: bool = False
    kept: int = 0
    """Bytes in `data` and `waiting`."""


class DnsStreams:
    """Follows streams by a key, in bounded memory. `lost` counts streams in which messages can no longer be found.

    A stream that is forgotten between two messages is not lost: what comes next begins a message.
    """

    def __init__(self) -> None:
        self._streams: OrderedDict[Hashable, _Stream] = OrderedDict()
        self._kept = 0
        self.lost = 0

    def add(self, key: Hashable, sequence: int, captured: bytes, length: int) -> list[StreamMessage]:
        """The messages that are complete with this segment of `length` bytes, of which the first ones are captured."""
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream(sequence)
            if len(self._streams) > STREAMS_MAX:
                self._forget_oldest()
        self._streams.move_to_end(key)
        if stream.is_broken:
            return []
        if len(stream.waiting) >= WAITING_MAX:
            self._streams.move_to_end(key, last=False)
            self._forget_oldest()
            return []
        stream.waiting[sequence] = captured, length
        messages: list[StreamMessage] = []
        while (ready := self._take(stream)) is not None:
            self._extend(stream, *ready, messages)
        kept = len(stream.data) + sum(len(segment) for segment, _ in stream.waiting.values())
        self._kept += kept - stream.kept
        stream.kept = kept
        while self._kept > BYTES_MAX:
            self._forget_oldest()
        return messages

    def _forget_oldest(self) -> None:
        _, stream = self._streams.popitem(last=False)
        self._kept -= stream.kept
        if stream.kept or stream.skip:
            self.lost += 1

    @staticmethod
    def _take(stream: _Stream) -> tuple[bytes, int] | None:
        """The part of a waiting segment that continues the stream."""
        for sequence, (captured, length) in list(stream.waiting.items()):
            known = (stream.next - sequence) % _SEQUENCES
            if known >= _SEQUENCES // 2:
                continue  # an earlier one is missing
            del stream.waiting[sequence]
            if known < length:
                return captured[known:], length - known
        return None

    def _extend(self, stream: _Stream, captured: bytes, length: int, messages: list[StreamMessage]) -> None:
        stream.next = (stream.next + length) % _SEQUENCES
        skipped = min(stream.skip, length)
        stream.skip -= skipped
        stream.data += captured[skipped:]
        missing = length - max(skipped, len(captured))
        while len(stream.data) >= (end := self._end(stream)):
            messages.append(StreamMessage(bytes(stream.data[_LENGTH_BYTES:end]), False))
            del stream.data[:end]
        if not missing:
            return
        if len(stream.data) > _LENGTH_BYTES:
            messages.append(StreamMessage(bytes(stream.data[_LENGTH_BYTES:]), True))
        if len(stream.data) >= _LENGTH_BYTES and missing <= end - len(stream.data):
            stream.skip = end - len(stream.data) - missing
        else:  # where the next message begins is not known
            stream.is_broken = True
            self.lost += 1
        stream.data.clear()

    @staticmethod
    def _end(stream: _Stream) -> int:
        """Where the first message ends; at least the bytes of its length."""
        return _LENGTH_BYTES + int.from_bytes(stream.data[:_LENGTH_BYTES], "big")
