"""DNS messages out of the segments of TCP connections, which the kernel shows as packets: repeated, or out of order."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, NamedTuple

_LENGTH_BYTES: Final = 2
STREAMS_MAX: Final = 1_000
"""Directions of connections that are followed at a time; the one that was idle longest gives way."""
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


class DnsStreams:
    """Follows streams by a key, in bounded memory. `lost` counts streams in which messages can no longer be found."""

    def __init__(self) -> None:
        self._streams: OrderedDict[tuple[int, int], _Stream] = OrderedDict()
        self.lost = 0

    def add(self, key: tuple[int, int], sequence: int, captured: bytes, length: int) -> list[StreamMessage]:
        """The messages that are complete with this segment of `length` bytes, of which the first ones are captured."""
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream(sequence)
            if len(self._streams) > STREAMS_MAX:
                self._streams.popitem(last=False)
                self.lost += 1
        self._streams.move_to_end(key)
        if stream.is_broken:
            return []
        if len(stream.waiting) >= WAITING_MAX:
            del self._streams[key]
            self.lost += 1
            return []
        stream.waiting[sequence] = captured, length
        messages: list[StreamMessage] = []
        while (ready := self._take(stream)) is not None:
            self._extend(stream, *ready, messages)
        return messages

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
