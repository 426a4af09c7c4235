"""Encodings of a result: what a worker process makes of the rows, so that the agent only passes bytes on."""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

from msgspec import Struct

FRAME_BYTES_MAX: Final = 32 * 1024 * 1024
"""Longest frame. The agent holds one whole, and copies of it while it is sent."""
OMISSIONS_BYTES_MAX: Final = 8 * 1024 * 1024
"""Longest description of the files that a statement omitted; the agent holds it whole."""


class RowsEncoding(Struct, frozen=True, tag="rows"):
    """Cells as msgpack, for the agent's own use: osquery's export, differences."""


class ControlEncoding(Struct, frozen=True, tag="control"):
    """Lines of the control socket."""


class EventsEncoding(Struct, frozen=True, tag="events"):
    """One Zeek event per row, as packages of Zeek Agent v2 receive them."""

    topic: str
    event: str
    agent_id: str
    host_time: float
    query_id: str
    cookie: str | None
    batch_rows: int
    batch_bytes: int


class BatchesEncoding(Struct, frozen=True, tag="batches"):
    """One Zeek event per batch of rows; `low` and `high` are the report's window."""

    topic: str
    agent_id: str
    host_time: float
    query_id: str
    cookie: str | None
    batch_rows: int
    batch_bytes: int
    store: str
    stream: str
    low: int
    high: int


Encoding: TypeAlias = RowsEncoding | ControlEncoding | EventsEncoding | BatchesEncoding


class FrameBatch(NamedTuple):
    """Frames that are sent together, and how many rows they hold."""

    frames: list[bytes]
    rows: int
