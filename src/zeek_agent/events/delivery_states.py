"""Delivery state of queries in the store's file, with limits of its own, so that it cannot displace events."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import apsw

from zeek_agent.text import byte_length

_COLUMNS: Final = "key, seqs, snapshot, under_way, time, owner, incarnation, steps, shape"
_PAYLOAD: Final = (
    "octet_length(key) + octet_length(seqs) + ifnull(octet_length(snapshot), 0) + octet_length(under_way)"
    " + octet_length(incarnation) + octet_length(steps) + octet_length(shape)"
)
_KEPT_SECONDS: Final = 30 * 86_400.0
"""Delivery state of a query that was not installed for a month is of no use: its rows have expired."""
STATES_MAX: Final = 20_000
"""Queries whose state is kept: many times what a Zeek installs, and some MB on disk."""
_PAGE_BYTES: Final = 4_096
_RECORD_BYTES: Final = 20
"""The time, and the lengths of the columns."""
_OVERFLOW_BYTES: Final = _PAGE_BYTES - 4
_LOCAL_BYTES_MIN: Final = (_PAGE_BYTES - 12) * 32 // 255 - 23
_LOCAL_BYTES_MAX: Final = (_PAGE_BYTES - 12) * 64 // 255 - 23


class Step(NamedTuple):
    """What a recipient had acknowledged `at` that time of the store's age clock: the last `seq` by table."""

    at: float
    seqs: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class RecentProgress:
    """The last seconds of a query's progress with one incarnation of its recipient, oldest step first, never empty."""

    incarnation: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Delivered:
    """Delivery state of a query: the last acknowledged `seq` by table, and for differences the last snapshot.

    `under_way` is the end of a report that was sent and not yet acknowledged, so that it can be sent again unchanged.
    """

    seqs: Mapping[str, int]
    snapshot: bytes | None = None
    under_way: Mapping[str, int] = field(default_factory=dict)
    owner: str = field(default="", compare=False)
    """The recipient, whose share of the limits the state counts towards."""
    recent: RecentProgress | None = None
    """None if there is nothing that the recipient could lose by being killed."""
    shape: str = ""
    """Of the unacknowledged report: `Report.shape`. Empty if there is none, or if it is not known."""


class EndedIncarnation(NamedTuple):
    """An incarnation of a recipient that ended in order, and so lost nothing that it had acknowledged."""

    owner: str
    incarnation: str

    def had(self, state: Delivered) -> bool:
        """Whether this is the incarnation that the state was delivered to."""
        return state.recent is not None and state.owner == self.owner and state.recent.incarnation == self.incarnation


def packed_steps(recent: RecentProgress | None) -> tuple[str, str]:
    """The incarnation and its steps, as they are stored."""
    if recent is None:
        return "", "[]"
    return recent.incarnation, json.dumps([[round(at, 3), dict(seqs)] for at, seqs in recent.steps])


def unpacked_steps(incarnation: str, steps: str) -> RecentProgress | None:
    """The reverse of `packed_steps`."""
    found = tuple(Step(at, seqs) for at, seqs in json.loads(steps))
    return RecentProgress(incarnation, found) if found else None


class DeliveryStates:
    """The delivery states in the file of a connection: `count` of them, which take about `disk_bytes`.

    A snapshot that would exceed `bytes_max` is not stored, and neither is the state of a query beyond `STATES_MAX`.
    Recipients share both equally when they are short: one that is within its share gets the room of the one with the
    most, whose oldest states and largest snapshots are dropped.
    """

    def __init__(self, connection: apsw.Connection, bytes_max: int) -> None:
        self._connection = connection
        self._bytes_max = bytes_max
        self.recount()

    def set_limit(self, bytes_max: int) -> None:
        """Use another limit for what is saved from now on."""
        self._bytes_max = bytes_max

    def recount(self) -> None:
        """Count what is in the file, after changes that did not go through `save` or were rolled back."""
        self._counts: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        for owner, size in self._select(f"SELECT owner, {_PAYLOAD} FROM main._delivered"):
            self._counts[owner] += 1
            self._bytes[owner] += _disk_bytes(size)
        self._sum()

    def _sum(self) -> None:
        self.count, self.disk_bytes = self._counts.total(), self._bytes.total()

    @contextmanager
    def unchanged_on_error(self) -> Iterator[None]:
        """Restore the figures when the transaction fails."""
        figures = self._counts.copy(), self._bytes.copy()
        try:
            yield
        except BaseException:
            self._counts, self._bytes = figures
            self._sum()
            raise

    def save_all(self, states: Mapping[str, Delivered], ended: Sequence[EndedIncarnation], now: float) -> list[str]:
        """Replace states, within a transaction, and forget what `ended` ones could have lost.

        Returns the keys of states that were not stored, or without their snapshot.
        """
        refused = [key for key, state in states.items() if not self.save(key, state, now)]
        if ended:
            self._connection.executemany(
                "UPDATE _delivered SET incarnation = '', steps = '[]' WHERE owner = ? AND incarnation = ?", ended
            )
            self.recount()
        return refused

    def save(self, key: str, state: Delivered, now: float) -> bool:
        """Replace the state of a query, within a transaction. Returns whether it was stored completely."""
        seqs, under_way = json.dumps(dict(state.seqs)), json.dumps(dict(state.under_way))
        incarnation, steps = packed_steps(state.recent)
        held = self._select(f"SELECT owner, {_PAYLOAD} FROM _delivered WHERE key = ?", key)
        for owner, size in held:
            self._add(owner, -1, -_disk_bytes(size))
        if not held and self.count >= STATES_MAX and not self._drop_state(state.owner):
            return False
        snapshot, fixed = state.snapshot, sum(map(byte_length, (key, seqs, under_way, incarnation, steps, state.shape)))
        complete = snapshot is None or self._has_room(key, state.owner, _disk_bytes(fixed + len(snapshot)))
        if not complete:
            snapshot = None
        self._connection.execute(
            f"INSERT OR REPLACE INTO _delivered ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (key, seqs, snapshot, under_way, now, state.owner, incarnation, steps, state.shape),
        )
        self._add(state.owner, 1, _disk_bytes(fixed + len(snapshot or b"")))
        return complete

    def _add(self, owner: str, count: int, size: int) -> None:
        self._counts[owner] += count
        self._bytes[owner] += size
        if not self._counts[owner]:
            del self._counts[owner], self._bytes[owner]
        self._sum()

    def _drop_state(self, owner: str) -> bool:
        """Drop the oldest state of the recipient with the most, if it has more than its share and `owner` has not."""
        share = STATES_MAX // len(self._counts.keys() | {owner})
        most = max(self._counts, key=self._counts.__getitem__)
        if self._counts[owner] >= share or self._counts[most] <= share:
            return False
        sql = f"SELECT key, {_PAYLOAD} FROM _delivered WHERE owner = ? ORDER BY time LIMIT 1"
        ((oldest, size),) = self._select(sql, most)
        self._connection.execute("DELETE FROM _delivered WHERE key = ?", (oldest,))
        self._add(most, -1, -_disk_bytes(size))
        return True

    def _has_room(self, key: str, owner: str, size: int) -> bool:
        """Whether a state of this size fits, if need be once snapshots of those with too much were dropped."""
        share = self._bytes_max // len(self._bytes.keys() | {owner})
        while self.disk_bytes + size > self._bytes_max:
            most = max(self._bytes, key=self._bytes.__getitem__, default=owner)
            if self._bytes[owner] + size > share or self._bytes[most] <= share:
                return False
            sql = (
                f"SELECT key, {_PAYLOAD}, {_PAYLOAD} - octet_length(snapshot) FROM _delivered "
                "WHERE owner = ? AND key <> ? AND snapshot IS NOT NULL ORDER BY octet_length(snapshot) DESC LIMIT 1"
            )
            largest = self._select(sql, most, key)
            if not largest:
                return False
            ((other, before, after),) = largest
            self._connection.execute("UPDATE _delivered SET snapshot = NULL WHERE key = ?", (other,))
            self._add(most, 0, _disk_bytes(after) - _disk_bytes(before))
        return True

    def adopt(self) -> int:
        """Take over the states of the attached store `other`, within a transaction. Returns how many do not fit."""
        left = self._bytes_max
        states = self._select(f"SELECT key, {_PAYLOAD} AS payload FROM other._delivered ORDER BY payload")
        keys = [key for key, payload in states[:STATES_MAX] if (left := left - _disk_bytes(payload)) >= 0]
        self._connection.executemany(
            f"INSERT OR REPLACE INTO main._delivered ({_COLUMNS}) "
            f"SELECT {_COLUMNS} FROM other._delivered WHERE key = ?",
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
    payload += _RECORD_BYTES
    local = payload
    if payload > _LOCAL_BYTES_MAX:
        local = _LOCAL_BYTES_MIN + (payload - _LOCAL_BYTES_MIN) % _OVERFLOW_BYTES
        local = local if local <= _LOCAL_BYTES_MAX else _LOCAL_BYTES_MIN
    return -(-(payload - local) // _OVERFLOW_BYTES) * _PAGE_BYTES + local * 3 // 2
