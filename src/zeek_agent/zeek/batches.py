"""Rows in batches that the script acknowledges: an extension of version 1 of the API that our Zeek package supports.

A batch is one event with all rows as one JSON text, which Zeek's `from_json` turns into a script's records. This is
twice as fast as typed values, and by name, so that records can be extended. The script acknowledges each batch with the
number of the last one that its handlers have processed, and recognizes a repeated batch by stream, store and window.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zeek_agent.text import escaped, from_bytes
from zeek_agent.zeek import protocol
from zeek_agent.zeek.protocol import Batch, Context

if TYPE_CHECKING:
    from zeek_agent.database.database import ResultColumn
    from zeek_agent.queries.subscriptions import Change, Report
    from zeek_agent.schema import Row, Value, ZeekType

_encode: Final = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class OutgoingBatch:
    """A batch ready to be sent."""

    index: int
    rows: int
    frame: bytes


def split_report(
    report: Report, topic: str, context: Context, rows_max: int, bytes_max: int
) -> Iterator[OutgoingBatch]:
    """The report's rows as batches of one change each; the same report is always split the same way.

    A batch has at most `rows_max` rows and, except for a single larger row, about `bytes_max` bytes. A report without
    rows is a batch without rows.
    """
    encode = object_encoder(report.columns)
    pending: tuple[Change | None, list[bytes]] | None = None
    index, size = 0, 0

    def outgoing(change: Change | None, rows: list[bytes], *, last: bool) -> OutgoingBatch:
        batch = Batch(report.store, report.stream, *report.window, index=index, last=last)
        about = Context(context.agent_id, context.host_time, context.query_id, change, context.cookie)
        text = b"[" + b",".join(rows) + b"]"
        return OutgoingBatch(index, len(rows), protocol.rows(topic, about, batch, text.decode()).encode())

    for change, row in report.rows:
        encoded = encode(row)
        if pending is not None:
            is_full = len(pending[1]) >= rows_max or size + len(encoded) > bytes_max
            if is_full or pending[0] is not change:
                yield outgoing(*pending, last=False)
                index, pending = index + 1, None
        if pending is None:
            pending, size = (change, []), 0
        pending[1].append(encoded)
        size += len(encoded)
    yield outgoing(*(pending or (None, [])), last=True)


def object_encoder(columns: Sequence[ResultColumn]) -> Callable[[Row], bytes]:
    """A function that writes rows of these columns as JSON objects, without unset fields."""
    fields = [(column.name, _converter(column.type)) for column in columns]

    def encode_row(row: Row) -> bytes:
        return _encode(
            {
                name: cell if convert is None else convert(cell)
                for (name, convert), cell in zip(fields, row, strict=True)
                if cell is not None
            }
        )

    return encode_row


def _converter(kind: ZeekType) -> Callable[[Any], Value] | None:
    """A function that converts a cell of the type for `from_json`; None if no conversion is needed."""
    if kind.element is not None:
        member = _converter(kind.element)
        return list if member is None else lambda cells: [member(cell) for cell in cells if cell is not None]
    return _CONVERTERS.get(kind.name)


def _text(value: str | bytes) -> str:
    return escaped(from_bytes(value) if isinstance(value, bytes) else value)


def _seconds(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _record(pairs: Mapping[str, Value] | Sequence[tuple[str, Value]]) -> dict[str, Value]:
    """A record by field names, without their type suffixes."""
    fields = pairs.items() if isinstance(pairs, Mapping) else pairs
    return {
        name.partition(":")[0]: _text(cell) if isinstance(cell, str | bytes) else cell
        for name, cell in fields
        if cell is not None
    }


_CONVERTERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "blob": _text,
    "enum": _text,
    "interval": _seconds,
    "port": lambda cell: f"{cell[0]}/{cell[1]}",
    "real": lambda cell: cell if math.isfinite(cell) else None,
    "record": _record,
    "text": _text,
    "time": _seconds,
}


class Acknowledgements:
    """The acknowledgements of the reports in flight, by query."""

    def __init__(self) -> None:
        self._reports: dict[str, _Awaited] = {}

    def expect(self, report: Report) -> None:
        """Accept acknowledgements for this report until `stop_expecting`."""
        self._reports[report.query_id] = _Awaited(report)

    def stop_expecting(self, report: Report) -> None:
        """Stop accepting acknowledgements: the delivery succeeded or failed."""
        self._reports.pop(report.query_id, None)

    def accept(self, ack: protocol.RowsAck) -> bool:
        """Record an acknowledgement. Returns False if no report is waiting for it, for example of a cancelled query."""
        awaited = self._reports.get(ack.query_id)
        if awaited is None or (awaited.report.stream, awaited.report.window[1]) != (ack.stream, ack.high):
            return False
        if ack.index > awaited.index:
            awaited.index = ack.index
            awaited.progress.set()
        return True

    def index(self, report: Report) -> int:
        """The number of the last acknowledged batch; -1 for none."""
        return self._reports[report.query_id].index

    async def wait(self, report: Report, index: int, seconds: float) -> None:
        """Wait until the batch `index` is acknowledged. Raises TimeoutError after `seconds` without progress."""
        awaited = self._reports[report.query_id]
        while awaited.index < index:
            awaited.progress.clear()
            async with asyncio.timeout(seconds):
                await awaited.progress.wait()


@dataclass(slots=True)
class _Awaited:
    report: Report
    index: int = -1
    progress: asyncio.Event = field(default_factory=asyncio.Event)
