"""Rows as frames for Zeek: a pure function of columns, rows and an encoding, so that a worker process can run it.

Stock packages get one event per row. Our package gets batches: one event with the rows as one JSON text, which Zeek's
`from_json` turns into a script's records. That is twice as fast as typed values, and by name, so that records may grow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zeek_agent.database.encodings import BatchesEncoding, EventsEncoding, FrameBatch
from zeek_agent.text import escaped, from_bytes
from zeek_agent.zeek import broker_json, protocol
from zeek_agent.zeek.protocol import Batch, Context

if TYPE_CHECKING:
    from zeek_agent.database.results import ResultColumn
    from zeek_agent.queries.subscriptions import Change
    from zeek_agent.schema import Row, Value, ZeekType

_encode: Final = msgspec.json.Encoder().encode


def event_frames(
    columns: Sequence[ResultColumn], rows: Iterable[tuple[Change | None, Row]], encoding: EventsEncoding
) -> Iterator[FrameBatch]:
    """One frame per row, in batches of at most `batch_rows` and, except for a single larger row, `batch_bytes`."""
    encode = broker_json.row_encoder(columns)
    head, tail = protocol.event_frame(encoding.topic, encoding.event)
    heads: dict[Change | None, str] = {}
    batch: list[bytes] = []
    size = 0
    for change, row in rows:
        start = heads.get(change)
        if start is None:
            context = _context(encoding, change)
            start = heads[change] = f"{head}{protocol.context_record(context)},"
        frame = f"{start}{encode(row)}{tail}".encode()
        if batch and (len(batch) >= encoding.batch_rows or size + len(frame) > encoding.batch_bytes):
            yield FrameBatch(batch, len(batch))
            batch, size = [], 0
        batch.append(frame)
        size += len(frame)
    if batch:
        yield FrameBatch(batch, len(batch))


def batch_frames(
    columns: Sequence[ResultColumn], rows: Iterable[tuple[Change | None, Row]], encoding: BatchesEncoding
) -> Iterator[FrameBatch]:
    """The rows in batches of one change each, one frame per batch; the same rows are split the same way each time.

    A batch has at most `batch_rows` rows and, except for a single larger row, about `batch_bytes` bytes. No rows are
    one batch without rows.
    """
    encode = object_encoder(columns)
    pending: tuple[Change | None, list[bytes]] | None = None
    index, size = 0, 0

    def frame(change: Change | None, encoded_rows: list[bytes], *, last: bool) -> FrameBatch:
        batch = Batch(encoding.store, encoding.stream, encoding.low, encoding.high, index=index, last=last)
        text = b"[" + b",".join(encoded_rows) + b"]"
        message = protocol.rows(encoding.topic, _context(encoding, change), batch, text.decode())
        return FrameBatch([message.encode()], len(encoded_rows))

    for change, row in rows:
        encoded = encode(row)
        if pending is not None:
            is_full = len(pending[1]) >= encoding.batch_rows or size + len(encoded) > encoding.batch_bytes
            if is_full or pending[0] is not change:
                yield frame(*pending, last=False)
                index, pending = index + 1, None
        if pending is None:
            pending, size = (change, []), 0
        pending[1].append(encoded)
        size += len(encoded)
    yield frame(*(pending or (None, [])), last=True)


def _context(encoding: EventsEncoding | BatchesEncoding, change: Change | None) -> Context:
    return Context(encoding.agent_id, encoding.host_time, encoding.query_id, change, encoding.cookie)


def object_encoder(columns: Sequence[ResultColumn]) -> Callable[[Row], bytes]:
    """The function that writes rows of these columns as JSON objects, without the fields that are unset."""
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
    """The function that converts a cell of the type for `from_json`; None if none is needed."""
    if kind.element is not None:
        member = _converter(kind.element)
        return list if member is None else lambda cells: [member(cell) for cell in cells if cell is not None]
    return _CONVERTERS.get(kind.name)


def _text(value: str | bytes) -> str:
    return escaped(from_bytes(value) if isinstance(value, bytes) else value)


def _seconds(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _record(pairs: Mapping[str, Value] | Sequence[tuple[str, Value]]) -> dict[str, Value]:
    """A record by its fields' names, without the type that a name may end with."""
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
