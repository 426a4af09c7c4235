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
_WINDOW: Final = 256 * 1024
"""Bytes of a buffer that are mapped at a time: far more than the longest record, and whole pages."""


class Ring:
    """The consumer of one ring buffer. Only one thread at a time may use it.

    The kernel shows the buffer twice in a row, so that no record is cut at its end. Of that a window is mapped, which
    moves along with the reading: what is mapped counts as resident, and a buffer has megabytes.
    """

    def __init__(self, fd: int, size: int) -> None:
        page = mmap.PAGESIZE
        self._fd = fd
        self._mask = size - 1
        self._length = min(_WINDOW, size + page)
        self._consumer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._first = 0
        self._window = self._map(0)
        self._barrier = threading.Lock()
        self._poll = select.epoll()
        self._poll.register(fd, select.EPOLLIN)

    def wait(self, seconds: float) -> None:
        """Return after that time, or sooner when the ring is filling up."""
        self._poll.poll(seconds)

    def end(self) -> int:
        """Where the next record will begin: a mark for `read`."""
        position: int = _POSITION.unpack_from(self._producer)[0]
        return position

    def passed(self, mark: int) -> bool:
        """Whether all before that mark has been read: a record that is still being written holds up the rest."""
        position: int = _POSITION.unpack_from(self._consumer)[0]
        return position >= mark

    def read(self, end: int | None = None, limit: int = 2048) -> list[bytes]:
        """Complete records in order, up to `limit` of them and not beyond `end`; their space is free again."""
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
        """Where complete records lie in the window, from `position` on, and the position behind the last of them."""
        found: list[tuple[int, int]] = []
        window, first, last, header = self._window, self._first, self._length - _HEADER_SIZE, _HEADER.unpack_from
        while position < end and len(found) < limit and 0 <= (start := position - first) <= last:
            (length,) = header(window, start)
            size = length & ~_DISCARDED
            if length & _BUSY or start + size > last:
                break
            if not length & _DISCARDED:
                found.append((start + _HEADER_SIZE, start + _HEADER_SIZE + size))
            position += (size + _HEADER_SIZE + 7) & ~7
        return found, position

    def _move(self, position: int) -> bool:
        """Have the window begin with the page of a position; False if it does already."""
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
        """Loads and stores before stay before those after, also on machines that would exchange them."""
        with self._barrier:
            pass
