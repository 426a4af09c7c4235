"""Delivery state of queries in the store's file, with limits of its own, so that it cannot displace events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import apsw

_TABLE: Final = "_delivered (key, seqs, snapshot, under_way, time)"
_PAYLOAD: Final = "octet_length(key) + octet_length(seqs) + ifnull(octet_length(snapshot), 0) + octet_length(under_way)"
_KEPT_SECONDS: Final = 30 * 86_400.0
"""Delivery state of a query that was not installed for a month is of no use: its rows have expired."""
STATES_MAX: Final = 20_000
"""Queries whose state is kept: many times what a Zeek installs, and some MB on disk."""
_PAGE_BYTES: Final = 4_096
_OVERFLOW_BYTES: Final = _PAGE_BYTES - 4
_LOCAL_BYTES_MIN: Final = (_PAGE_BYTES - 12) * 32 // 255 - 23
_LOCAL_BYTES_MAX: Final = (_PAGE_BYTES - 12) * 64 // 255 - 23


@dataclass(frozen=True, slots=True)
class Delivered:
    """Delivery state of a query: the last acknowledged `seq` by table, and for differences the last snapshot.

    `under_way` is the end of a report that was sent and not yet acknowledged, so that it can be sent again unchanged.
    """

    seqs: Mapping[str, int]
    snapshot: bytes | None = None
    under_way: Mapping[str, int] = field(default_factory=dict)


class DeliveryStates:
    """The delivery states in the file of a connection: `count` of them, which take about `disk_bytes`.

    A snapshot that would exceed `bytes_max` is not stored, and neither is the state of a query beyond `STATES_MAX`.
    """

    def __init__(self, connection: apsw.Connection, bytes_max: int) -> None:
        self._connection = connection
        self._bytes_max = bytes_max
        self.recount()

    def recount(self) -> None:
        """Count what is in the file, after changes that did not go through `save` or were rolled back."""
        sizes = [int(size) for (size,) in self._select(f"SELECT {_PAYLOAD} FROM main._delivered")]
        self.count, self.disk_bytes = len(sizes), sum(map(_disk_bytes, sizes))

    @contextmanager
    def unchanged_on_error(self) -> Iterator[None]:
        """Restore the figures when the transaction fails."""
        figures = self.count, self.disk_bytes
        try:
            yield
        except BaseException:
            self.count, self.disk_bytes = figures
            raise

    def save(self, key: str, state: Delivered, now: float) -> bool:
        """Replace the state of a query, within a transaction. Returns whether it was stored completely."""
        seqs, under_way = json.dumps(dict(state.seqs)), json.dumps(dict(state.under_way))
        held = self._select(f"SELECT {_PAYLOAD} FROM _delivered WHERE key = ?", key)
        before = int(held[0][0]) if held else None
        if before is None and self.count >= STATES_MAX:
            return False
        snapshot, fixed = state.snapshot, len(key) + len(seqs) + len(under_way)
        others = self.disk_bytes - (0 if before is None else _disk_bytes(before))
        complete = snapshot is None or others + _disk_bytes(fixed + len(snapshot)) <= self._bytes_max
        if not complete:
            snapshot = None
        self._connection.execute(
            f"INSERT OR REPLACE INTO {_TABLE} VALUES (?, ?, ?, ?, ?)", (key, seqs, snapshot, under_way, now)
        )
        self.count += before is None
        self.disk_bytes = others + _disk_bytes(fixed + len(snapshot or b""))
        return complete

    def adopt(self) -> int:
        """Take over the states of the attached store `other`, within a transaction. Returns how many do not fit."""
        left = self._bytes_max
        states = self._select(f"SELECT key, {_PAYLOAD} AS payload FROM other._delivered ORDER BY payload")
        keys = [key for key, payload in states[:STATES_MAX] if (left := left - _disk_bytes(payload)) >= 0]
        self._connection.executemany(
            f"INSERT OR REPLACE INTO main.{_TABLE} "
            "SELECT key, seqs, snapshot, under_way, time FROM other._delivered WHERE key = ?",
            ((key,) for key in keys),
        )
        self.recount()
        return len(states) - len(keys)

    def expire(self, now: float) -> None:
        """Remove states that were not saved for a month."""
        self._connection.execute("DELETE FROM _delivered WHERE time < ?", (now - _KEPT_SECONDS,))
        if self._connection.changes():
            self.recount()

    def _select(self, sql: str, *bindings: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql, bindings).fetchall()


def _disk_bytes(payload: int) -> int:
    """Bytes on disk of a state: pages of its own, and its share of those that it shares, which are two thirds full.

    SQLite's file format, 1.6, has the distribution of long rows of an index.
    """
    local = payload
    if payload > _LOCAL_BYTES_MAX:
        local = _LOCAL_BYTES_MIN + (payload - _LOCAL_BYTES_MIN) % _OVERFLOW_BYTES
        local = local if local <= _LOCAL_BYTES_MAX else _LOCAL_BYTES_MIN
    return -(-(payload - local) // _OVERFLOW_BYTES) * _PAGE_BYTES + local * 3 // 2
