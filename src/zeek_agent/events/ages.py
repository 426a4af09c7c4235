"""How long ago events were recorded, whatever happens to the time of day.

Ages are measured on a clock of the store's own: the time since boot plus a base, which is stored. It begins with the
time of day and does not follow when that is set. After a reboot it continues where it was: the time for which the host
was off does not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import apsw

from zeek_agent import platforms

STEP_SECONDS: Final = 1.0
"""A larger change of the time of day against the time since boot means that the clock was set."""
_QUICK_SECONDS: Final = 0.1
"""A longer measurement of the two clocks is repeated."""
_MEASUREMENTS: Final = 9
"""Repetitions, of which at least one is unlikely to be interrupted."""
_SPAN_SECONDS: Final = 60.0
_SPANS: Final = 1_000
"""Spans that the retention of a table is divided into at most; rows stay up to one of them longer."""
_SAVED_SECONDS: Final = 30.0
"""After a reboot rows stay up to this much longer; in return an idle store does not write at each heartbeat."""


@dataclass(frozen=True, slots=True)
class BootTime:
    """A clock that counts from boot, including suspension, in seconds; `boot_id` is empty if the boot has no name."""

    boot_id: str
    seconds: Callable[[], float]


def system_boot_time() -> BootTime:
    """This host's clock."""
    return BootTime(platforms.HERE.boot_id(), lambda: platforms.HERE.boot_nanoseconds() / 1e9)


class StoredClock(NamedTuple):
    """An age clock as a store has it: its base in a boot, and the last time that it showed."""

    boot_id: str
    base: float
    at: float
    ahead: float
    """How far the time of day was ahead of it then."""


class AgeClock:
    """The clock that ages are measured on, in seconds; `resume` starts it. `wall` is the time of day."""

    def __init__(self, boot: BootTime, wall: Callable[[], float] = time.time) -> None:
        self._boot = boot
        self._wall = wall
        self._base: float | None = None

    def __call__(self) -> float:
        assert self._base is not None
        return self._base + self._boot.seconds()

    def since_boot(self) -> float:
        """Seconds since boot."""
        return self._boot.seconds()

    def ahead(self) -> float:
        """How far the time of day is ahead of this clock.

        A thread that is held up between reading the two would find a clock that was set, so the quickest of several
        measurements counts.
        """
        measured = self._measure_ahead()
        if measured[0] > _QUICK_SECONDS:
            measured = min(measured, *(self._measure_ahead() for _ in range(_MEASUREMENTS - 1)))
        return measured[1]

    def _measure_ahead(self) -> tuple[float, float]:
        """The duration of the measurement, and the difference."""
        before = self()
        now = self._wall()
        after = self()
        return after - before, now - (before + after) / 2

    def resume(self, stored: StoredClock | None, latest: float) -> None:
        """Continue the clock of a store or, if it has none, start from `latest`. A running clock goes on as it is."""
        if self._base is not None:
            return
        since_boot = self._boot.seconds()
        if stored is None:
            self._base = latest - since_boot
        elif stored.boot_id == self._boot.boot_id != "" and stored.base + since_boot >= stored.at:
            self._base = stored.base
        elif stored.boot_id != self._boot.boot_id:  # another boot, so at least the time since it has passed
            self._base = stored.at
        else:
            self._base = stored.at - since_boot

    def step_since(self, stored: StoredClock) -> float:
        """By how many seconds the time of day was set since this; 0 if it was not, or if unknown."""
        present = self.stored()
        if (stored.boot_id, stored.base) != (present.boot_id, present.base):
            return 0.0
        step = present.ahead - stored.ahead
        return step if abs(step) > STEP_SECONDS else 0.0

    def stored(self) -> StoredClock:
        """What a store keeps of the clock."""
        assert self._base is not None
        return StoredClock(self._boot.boot_id, self._base, self(), self.ahead())


class Ages:
    """Until when the rows of each table were recorded, in a store's tables `_ages` and `_age_clock`.

    `at` is always the present time of the age clock, `ahead` how far the time of day is ahead of it. Raises apsw.Error.
    """

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def stored_clock(self) -> StoredClock | None:
        rows = self._select("SELECT boot_id, base, at, ahead FROM _age_clock")
        return StoredClock(*rows[0]) if rows else None

    def save_clock(self, clock: AgeClock) -> None:
        """Keep the clock, within a transaction, unless what is kept is recent and the time of day was not set since."""
        stored, present = self.stored_clock(), clock.stored()
        if (
            stored is not None
            and (stored.boot_id, stored.base) == (present.boot_id, present.base)
            and present.at < stored.at + _SAVED_SECONDS
            and abs(present.ahead - stored.ahead) <= STEP_SECONDS
        ):
            return
        self._connection.execute("DELETE FROM _age_clock")
        self._connection.execute("INSERT INTO _age_clock (boot_id, base, at, ahead) VALUES (?, ?, ?, ?)", present)

    def note(self, last: Mapping[str, int], at: float, ahead: float, age_seconds: float) -> None:
        """Record that the rows of each table up to the last `seq` are there, within a transaction."""
        span = max(_SPAN_SECONDS, age_seconds / _SPANS)
        stored = self.stored_clock()
        if stored is not None and abs(ahead - stored.ahead) > STEP_SECONDS:
            self._note_step(last, at, stored.ahead)
        for table, seq in last.items():
            newest = self._select(
                'SELECT seq, since, ahead FROM _ages WHERE "table" = ? ORDER BY seq DESC LIMIT 1', (table,)
            )
            known, since, was_ahead = newest[0] if newest else (0, at, ahead)
            if seq <= known:
                continue
            if newest and at < since + span and abs(ahead - was_ahead) <= STEP_SECONDS:
                self._connection.execute(
                    'UPDATE _ages SET seq = ?, at = ? WHERE "table" = ? AND seq = ?', (seq, at, table, known)
                )
            else:
                self._connection.execute(
                    'INSERT INTO _ages ("table", seq, since, at, ahead) VALUES (?, ?, ?, ?, ?)',
                    (table, seq, at, at, ahead),
                )

    def _note_step(self, tables: Iterable[str], at: float, was_ahead: float) -> None:
        """Record that the rows known so far have times from before a step, even if there are none."""
        for table in tables:
            known = self._scalar('SELECT max(seq) FROM _ages WHERE "table" = ?', (table,)) or 0
            self._connection.execute(
                'INSERT INTO _ages ("table", seq, since, at, ahead) VALUES (?, ?, ?, ?, ?) '
                'ON CONFLICT ("table", seq) DO UPDATE SET ahead = excluded.ahead',
                (table, known, at, at, was_ahead),
            )

    def recorded_before(self, table: str, limit: float) -> int:
        """The highest `seq` that is known to have been recorded before `limit`, on the age clock; 0 if none is."""
        return int(self._scalar('SELECT max(seq) FROM _ages WHERE "table" = ? AND at < ?', (table, limit)) or 0)

    def last_before_step(self, table: str, ahead: float) -> int:
        """The highest `seq` whose row may have a time from before the clock was last set; 0 if none may.

        The first rows that were recorded afterwards count as well: their events may be older.
        """
        before = self._scalar(
            'SELECT max(seq) FROM _ages WHERE "table" = ? AND abs(ahead - ?) > ?', (table, ahead, STEP_SECONDS)
        )
        if before is None:
            return 0
        first = self._scalar('SELECT min(seq) FROM _ages WHERE "table" = ? AND seq > ?', (table, before))
        return int(before if first is None else first)

    def forget(self, limit: float) -> None:
        """Drop what is known of rows that were recorded before `limit`, within a transaction.

        The last entry of each table stays: it may be from before a step, unlike the next.
        """
        self._connection.execute(
            "DELETE FROM _ages WHERE at < ?1 AND seq < "
            '(SELECT max(seq) FROM _ages AS later WHERE later."table" = _ages."table" AND later.at < ?1)',
            (limit,),
        )

    def adopt(self) -> None:
        """Take over what the attached store `other` knows, within a transaction; its age clock is the same."""
        self._connection.execute("INSERT OR REPLACE INTO main._ages SELECT * FROM other._ages")

    def _select(self, sql: str, bindings: tuple[int | float | str, ...] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql, bindings).fetchall()

    def _scalar(self, sql: str, bindings: tuple[int | float | str, ...] = ()) -> Any:
        return next((row[0] for row in self._select(sql, bindings)), None)
