"""A result on its way into the spool: rows from SQLite in, frames out.

A small result is complete before its first frame is written, so that an error still reports an error and no rows. A
larger one is kept as packed rows in the spool meanwhile, and read back in blocks: memory does not grow with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from zeek_agent.control.messages import Rows, encode_frame
from zeek_agent.database.encodings import (
    BatchesEncoding,
    ControlEncoding,
    Encoding,
    EventsEncoding,
    FrameBatch,
    RowsEncoding,
)
from zeek_agent.database.results import Heading, ResultColumn, ResultTyping, RowErrors
from zeek_agent.queries.subscriptions import Change
from zeek_agent.schema import Row
from zeek_agent.zeek.frames import batch_frames, event_frames

HELD_BYTES: Final = 4 * 1024 * 1024
"""Packed rows that are held in memory. As Python objects they take about ten times as much."""
BLOCK_ROWS: Final = 1_000
JOINED_BYTES: Final = 1 << 20

ChangedRow: TypeAlias = "tuple[Change | None, Row]"
_encode: Final = msgspec.msgpack.Encoder().encode
_decode_block: Final = msgspec.msgpack.Decoder(list[list[Any]]).decode


class ResultWriter:
    """The rows of one statement (`RowSink`), and then its frames, in one spool.

    `SqlConnection.stream` fills it; `settle` fixes the columns' types; `frames` then yields what to send.
    """

    def __init__(self, spool: int) -> None:
        self._spool = spool
        self._rows: list[tuple[Any, ...]] = []
        self._held = 0
        self._blocks: list[tuple[int, int]] = []
        self._end = 0
        self._kinds: list[set[type]] = []
        self._typing: ResultTyping | None = None

    @property
    def is_complete(self) -> bool:
        """Whether all rows are in memory, so that frames may be sent as they are encoded."""
        return not self._blocks

    def begin(self) -> Callable[[tuple[Any, ...], bytes], None]:
        """Discard all rows: the statement starts, or starts again."""
        os.ftruncate(self._spool, 0)
        self._rows, self._held, self._blocks, self._end = [], 0, [], 0
        self._kinds = []
        return self._add

    def _add(self, row: tuple[Any, ...], packed: bytes) -> None:
        self._rows.append(row)
        self._held += len(packed)
        if self._held > HELD_BYTES or (self._blocks and len(self._rows) >= BLOCK_ROWS):
            self._write_block()

    def _write_block(self) -> None:
        for start in range(0, len(self._rows), BLOCK_ROWS):
            block = self._rows[start : start + BLOCK_ROWS]
            self._note_kinds(block)
            packed = _encode(block)
            self._blocks.append((self._end, len(packed)))
            self.write(packed)
        self._rows, self._held = [], 0

    def write(self, content: bytes) -> int:
        """Append to the spool. Returns the offset. Raises OSError (EFBIG) at the worker's limit."""
        at, view = self._end, memoryview(content)
        while view:
            written = os.pwrite(self._spool, view, self._end)
            self._end += written
            view = view[written:]
        return at

    def write_all(self, frames: Sequence[bytes]) -> int:
        """Append frames one after the other. Returns the offset. Short ones are joined, long ones not copied."""
        if sum(map(len, frames)) <= JOINED_BYTES:
            return self.write(b"".join(frames))
        at = self._end
        for frame in frames:
            self.write(frame)
        return at

    def settle(self, heads: Sequence[Heading], errors: RowErrors) -> tuple[ResultColumn, ...]:
        """The columns, once all rows are there."""
        if self._blocks:
            self._write_block()
        self._note_kinds(self._rows)
        typing = self._typing = ResultTyping(heads, errors, self._kinds)
        return typing.columns

    def _note_kinds(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Remember which types of values each column has."""
        for index, cells in enumerate(zip(*rows, strict=True)):
            if index == len(self._kinds):
                self._kinds.append(set())
            self._kinds[index].update(map(type, cells))

    def rows(self, change: Change | None) -> Iterator[ChangedRow]:
        """The rows in result form."""
        assert self._typing is not None
        for block in self._read_blocks():
            for row in self._typing.fit(block):
                yield change, row

    def _read_blocks(self) -> Iterator[list[tuple[Any, ...]]]:
        for offset, length in self._blocks:
            yield [tuple(row) for row in _decode_block(os.pread(self._spool, length, offset))]
        for start in range(0, len(self._rows), BLOCK_ROWS):
            yield self._rows[start : start + BLOCK_ROWS]


def frames(columns: Sequence[ResultColumn], rows: Iterator[ChangedRow], encoding: Encoding) -> Iterator[FrameBatch]:
    """The rows in the wanted encoding."""
    match encoding:
        case BatchesEncoding():
            return batch_frames(columns, rows, encoding)
        case EventsEncoding():
            return event_frames(columns, rows, encoding)
        case ControlEncoding():
            return _control_lines(rows)
        case RowsEncoding():
            return _packed_rows(rows)


def _control_lines(rows: Iterator[ChangedRow]) -> Iterator[FrameBatch]:
    for block in _blocks(rows):
        changes = None if block[0][0] is None else [None if change is None else change.value for change, _ in block]
        lines = list(encode_frame(Rows([row for _, row in block], changes)))  # type: ignore[arg-type]
        yield FrameBatch(lines, len(block))


def _packed_rows(rows: Iterator[ChangedRow]) -> Iterator[FrameBatch]:
    for block in _blocks(rows):
        yield FrameBatch([_encode([row for _, row in block])], len(block))


def _blocks(rows: Iterator[ChangedRow]) -> Iterator[list[ChangedRow]]:
    block = []
    for row in rows:
        block.append(row)
        if len(block) == BLOCK_ROWS:
            yield block
            block = []
    if block:
        yield block
