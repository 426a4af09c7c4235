"""A result whose frames a worker writes to a spool while they are sent."""

from __future__ import annotations

import asyncio
import logging
import os
import weakref
from array import array
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Final

import msgspec

from zeek_agent.containment import spool
from zeek_agent.containment.channel import ChannelError
from zeek_agent.containment.messages import Head, SpoolBatch
from zeek_agent.database.encodings import FRAME_BYTES_MAX, OMISSIONS_BYTES_MAX, FrameBatch
from zeek_agent.database.results import ResultColumn
from zeek_agent.errors import RevokedError, SqlError
from zeek_agent.host.files.reads import Omissions
from zeek_agent.schema import ZeekType

if TYPE_CHECKING:
    from zeek_agent.config.sections import LimitSettings

log = logging.getLogger(__name__)

READ_TOGETHER_BYTES: Final = 1 << 20
"""A batch up to this size is read at once and then split; a larger one frame by frame, which copies nothing."""

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

    `size_bytes` is the size of the packed rows, `row_count` their number. Nothing that the worker reports is believed
    unless it fits the limits and the spool, since it decides how much memory this process uses. `on_fault` is called
    when the spool turns out to lack what the worker reported.
    """

    def __init__(
        self,
        file: int,
        head: Head,
        limits: LimitSettings,
        on_fault: Callable[[], None],
        delta: DeltaDescriptor | None = None,
    ) -> None:
        rows_max = limits.rows if delta is None else 2 * limits.rows
        if not (0 <= head.rows <= rows_max and 0 <= head.size_bytes <= limits.result_bytes):
            raise ChannelError(f"a result of {head.rows} rows and {head.size_bytes} bytes exceeds the limits")
        self.delta = delta
        """The difference from the stored result, to be applied once the rows are delivered."""
        self.columns = tuple(ResultColumn(name, ZeekType.parse(kind)) for name, kind in head.columns)
        self.row_count = head.rows
        self.size_bytes = head.size_bytes
        self.errors = tuple(head.errors)
        self.files = _read_files(file, *head.files) if head.files else Omissions()
        self._file = file
        self._close = weakref.finalize(self, os.close, file)
        self._on_fault = on_fault
        self._offsets, self._rows, self._counts = array("Q"), array("I"), array("I")
        self._lengths = array("I")
        self._rows_written = 0
        self._end = 0
        self._complete = False
        self._error: SqlError | None = None
        self._is_revoked = False
        self._changed = asyncio.Event()

    async def batches(self) -> AsyncIterator[FrameBatch]:
        """All frames in order, from the first on; those that are not written yet as they come.

        Raises SqlError if the worker ended before it had written all, or the result has been closed or revoked.
        """
        index = frame = 0
        while True:
            self.check()
            while index < len(self._offsets):
                self.check()
                after = frame + self._counts[index]
                yield self._read(self._offsets[index], self._lengths[frame:after], self._rows[index])
                index, frame = index + 1, after
            self.check()
            if self._error is not None:
                raise self._error
            if self._complete:
                return
            self._changed.clear()
            await self._changed.wait()

    def check(self) -> None:
        """Raises RevokedError once the result is revoked, also for rows that were read and not sent."""
        if self._is_revoked:
            raise RevokedError

    def revoke(self) -> None:
        """The rows may not be sent any more."""
        self._is_revoked = True
        self._changed.set()

    def close(self) -> None:
        """Close the spool; the result cannot be read any more."""
        self._close()

    def add(self, batch: SpoolBatch) -> None:
        """The worker has written these frames. Raises ChannelError if the message contradicts the spool."""
        lengths = array("I")
        lengths.frombytes(batch.lengths)
        end = batch.offset + sum(lengths)
        rows = self._rows_written + batch.rows
        without_rows = batch.rows == 0 == self.row_count and not self._offsets
        if (
            not (batch.rows > 0 or without_rows)
            or rows > self.row_count
            or not 0 < len(lengths) <= max(batch.rows, 1)
            or not 0 < min(lengths) <= max(lengths) <= FRAME_BYTES_MAX
            or batch.offset < self._end
        ):
            raise ChannelError("a batch of frames does not fit its result")
        if self._close.alive and end > os.fstat(self._file).st_size:
            raise ChannelError("a batch of frames is outside the spool")
        self._end, self._rows_written = end, rows
        self._offsets.append(batch.offset)
        self._rows.append(batch.rows)
        self._counts.append(len(lengths))
        self._lengths += lengths
        self._changed.set()

    def finish(self, error: SqlError | None = None) -> None:
        """The worker has written all frames, or has failed. Raises ChannelError if frames are missing."""
        if error is None and self._rows_written != self.row_count:
            raise ChannelError(f"the frames hold {self._rows_written} of {self.row_count} rows")
        self._complete, self._error = True, error
        self._changed.set()

    def _read(self, offset: int, lengths: array[int], rows: int) -> FrameBatch:
        if not self._close.alive:
            raise SqlError("the result has been closed")
        try:
            return FrameBatch(_read_frames(self._file, offset, lengths), rows)
        except (ChannelError, OSError) as error:
            log.error("a result cannot be read back: %s", error)
            self._on_fault()
            raise SqlError(f"the result cannot be read back: {error}") from error


def _read_frames(file: int, offset: int, lengths: array[int]) -> list[bytes]:
    size = sum(lengths)
    frames = []
    if size > READ_TOGETHER_BYTES:
        for length in lengths:
            frames.append(spool.read(file, offset, length))
            offset += length
        return frames
    content, at = spool.read(file, offset, size), 0
    for length in lengths:
        frames.append(content[at : at + length])
        at += length
    return frames


def _read_files(file: int, offset: int, length: int) -> Omissions:
    if not (offset >= 0 and 0 < length <= OMISSIONS_BYTES_MAX and offset + length <= os.fstat(file).st_size):
        raise ChannelError("the omissions of files are outside the spool, or too long")
    return _decode_files(spool.read(file, offset, length))
