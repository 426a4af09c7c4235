"""Reading a BPF ring buffer through its mapped memory (Documentation/bpf/ringbuf.rst in the kernel's sources).

It costs two thirds of a callback per record, and reads a batch at once.
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
_HEADER_BYTES: Final = 8
_WINDOW_BYTES: Final = 256 * 1024
"""Part of a buffer that is mapped at a time: far more than the longest record, and a multiple of any page size."""


class Ring:
    """The consumer of one ring buffer. Only one thread at a time may use it.

    The kernel maps the buffer twice in a row, so that every record is contiguous. Here only a window of it is mapped,
    which moves with the read position, because mapped memory counts as resident and a buffer has megabytes.
    """

    def __init__(self, fd: int, size: int) -> None:
        page = mmap.PAGESIZE
        self._fd = fd
        self._mask = size - 1
        self._length = min(_WINDOW_BYTES, size + page)
        self._consumer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._first = 0
        self._window = self._map(0)
        self._barrier = threading.Lock()
        self._poll = select.epoll()
        self._poll.register(fd, select.EPOLLIN)

    def wait(self, seconds: float) -> None:
        """Wait for that time, or until the ring is filling up."""
        self._poll.poll(seconds)

    def end(self) -> int:
        """The position of the next record to be written, for `read`."""
        position: int = _POSITION.unpack_from(self._producer)[0]
        return position

    def passed(self, mark: int) -> bool:
        """Whether everything before that position has been read: a record still being written blocks the rest."""
        position: int = _POSITION.unpack_from(self._consumer)[0]
        return position >= mark

    def read(self, end: int | None = None, limit: int = 2048) -> list[bytes]:
        """Consume complete records in order, up to `limit` of them and not beyond `end`."""
        (begin,) = _POSITION.unpack_from(self._consumer)
        end = self.end() if end is None else end
        self._order_memory()
        records: list[bytes] = []
        position = begin
        while position < end and len(records) < limit:
            found, reached = self._complete(position, end, limit - len(records))
            if reached == position and not self._move(position):
                break
            self._order_memory()
            records += [self._window[start:stop] for start, stop in found]
            position = reached
        if position != begin:
            self._order_memory()
            _POSITION.pack_into(self._consumer, 0, position)
        return records

    def close(self) -> None:
        """Unmap. May be called twice."""
        self._poll.close()
        self._consumer.close()
        self._producer.close()
        self._window.close()

    def _complete(self, position: int, end: int, limit: int) -> tuple[list[tuple[int, int]], int]:
        """The complete records in the window from `position` on, and the position after the last of them."""
        found: list[tuple[int, int]] = []
        window, first, last, header = self._window, self._first, self._length - _HEADER_BYTES, _HEADER.unpack_from
        while position < end and len(found) < limit and 0 <= (start := position - first) <= last:
            (length,) = header(window, start)
            size = length & ~_DISCARDED
            if length & _BUSY or start + size > last:
                break
            if not length & _DISCARDED:
                found.append((start + _HEADER_BYTES, start + _HEADER_BYTES + size))
            position += (size + _HEADER_BYTES + 7) & ~7
        return found, position

    def _move(self, position: int) -> bool:
        """Move the window to the page of a position; False if it is there already."""
        first = position & ~(mmap.PAGESIZE - 1)
        if first == self._first:
            return False
        before, self._window = self._window, self._map(first)
        self._first = first
        before.close()
        return True

    def _map(self, first: int) -> mmap.mmap:
        offset = 2 * mmap.PAGESIZE + (first & self._mask)
        return mmap.mmap(self._fd, self._length, mmap.MAP_SHARED, mmap.PROT_READ, offset=offset)

    def _order_memory(self) -> None:
        """Memory barrier: loads and stores are not reordered across it on any machine."""
        with self._barrier:
            pass
