"""A result whose frames a worker writes to a spool while they are sent."""

from __future__ import annotations

import asyncio
import os
import weakref
from array import array
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

import msgspec

from zeek_agent.containment import spool
from zeek_agent.containment.channel import ChannelError
from zeek_agent.containment.messages import Head, SpoolBatch
from zeek_agent.database.encodings import FrameBatch
from zeek_agent.database.results import ResultColumn
from zeek_agent.host.files.reads import Omissions
from zeek_agent.schema import ZeekType

if TYPE_CHECKING:
    from zeek_agent.errors import SqlError

_decode_files: Final = msgspec.msgpack.Decoder(Omissions).decode


class DeltaDescriptor:
    """A delta file that a worker has written; `length` is 0 if nothing has changed."""

    def __init__(self, file: int, length: int) -> None:
        self.file = file
        self.length = length
        self._close = weakref.finalize(self, os.close, file)

    def close(self) -> None:
        self._close()


class EncodedResult:
    """A result that is not in this process. Frames are read from the spool each time they are iterated.

    `size_bytes` is the size of the packed rows, `row_count` their number.
    """

    def __init__(self, file: int, head: Head, delta: DeltaDescriptor | None = None) -> None:
        self.delta = delta
        """The difference from the stored result, to be applied once the rows are delivered."""
        self.columns = tuple(ResultColumn(name, ZeekType.parse(kind)) for name, kind in head.columns)
        self.row_count = head.rows
        self.size_bytes = head.size_bytes
        self.errors = tuple(head.errors)
        self.files = _decode_files(head.files) if head.files else Omissions()
        self._file = file
        self._close = weakref.finalize(self, os.close, file)
        self._batches: list[tuple[int, array[int], int]] = []
        self._end = 0
        self._complete = False
        self._error: SqlError | None = None
        self._changed = asyncio.Event()

    async def batches(self) -> AsyncIterator[FrameBatch]:
        """All frames in order, from the first on; those that are not written yet as they come.

        Raises SqlError if the worker ended before it had written all.
        """
        index = 0
        while True:
            while index < len(self._batches):
                yield self._read(*self._batches[index])
                index += 1
            if self._error is not None:
                raise self._error
            if self._complete:
                return
            self._changed.clear()
            await self._changed.wait()

    def close(self) -> None:
        """Close the spool; the result cannot be read any more."""
        self._close()

    def add(self, batch: SpoolBatch) -> None:
        """The worker has written these frames. Raises ChannelError if the message contradicts the spool."""
        lengths = array("I")
        lengths.frombytes(batch.lengths)
        end = batch.offset + sum(lengths)
        if batch.offset < self._end or end > os.fstat(self._file).st_size or not 0 <= batch.rows <= self.row_count:
            raise ChannelError("a batch of frames is outside the spool")
        self._end = end
        self._batches.append((batch.offset, lengths, batch.rows))
        self._changed.set()

    def finish(self, error: SqlError | None = None) -> None:
        """The worker has written all frames, or has failed."""
        self._complete, self._error = True, error
        self._changed.set()

    def _read(self, offset: int, lengths: array[int], rows: int) -> FrameBatch:
        content = memoryview(spool.read(self._file, offset, sum(lengths)))
        frames, at = [], 0
        for length in lengths:
            frames.append(bytes(content[at : at + length]))
            at += length
        return FrameBatch(frames, rows)
