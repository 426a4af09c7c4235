"""Event workers are killed while slices are read and sent: no event is lost, and none comes twice to our package."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from recipients import Recorder
from waiting import until
from workers import contained

from zeek_agent.config.sections import EventSettings, LimitSettings
from zeek_agent.containment import rests
from zeek_agent.containment.protections import WorkerClass
from zeek_agent.containment.worker_process import WorkerState
from zeek_agent.database.encodings import BatchesEncoding, EventsEncoding
from zeek_agent.events.store import EventStore
from zeek_agent.queries import event_strategy
from zeek_agent.queries.runner import QueryRunner
from zeek_agent.queries.subscriptions import Query, Report, Subscription
from zeek_agent.tables import builtin_tables

EVENTS = 4_000


class Package(Recorder):
    """Takes batches as our package does: one that it has had is skipped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.taken: dict[tuple[Any, ...], list[float]] = {}
        self.repeated = 0

    def encoding(self, report: Report) -> BatchesEncoding:  # type: ignore[override]
        low, high = report.window
        return BatchesEncoding("", "H1", 0.0, "q", None, 7, 1 << 20, report.store, report.stream, low, high)

    async def deliver(self, report: Report) -> None:
        assert report.encoded is not None
        index = 0
        async for batch in report.encoded.batches():
            key = (report.store, report.stream, *report.window, index)
            self.repeated += key in self.taken
            self.taken.setdefault(key, times(batch.frames[0]))
            index += 1
            await asyncio.sleep(0)

    def all_taken(self) -> list[float]:
        return [time for batch in self.taken.values() for time in batch]


class Stock(Package):
    """Takes one event per row, and cannot tell that it has had one."""

    recognizes_replays = False

    def encoding(self, report: Report) -> EventsEncoding:  # type: ignore[override]
        return EventsEncoding("", "E", "H1", 0.0, "q", None, 7, 1 << 20)

    async def deliver(self, report: Report) -> None:
        assert report.encoded is not None
        async for batch in report.encoded.batches():
            for frame in batch.frames:
                self.taken[len(self.taken),] = [number(frame)]
            await asyncio.sleep(0)


def times(frame: bytes) -> list[float]:
    """The column `time` of a batch's rows."""
    return [float(row["number"]) for row in msgspec.json.decode(text_of(msgspec.json.decode(frame)))]


def text_of(value: Any) -> str:
    """The rows of a batch, which are JSON in a text."""
    if isinstance(value, dict):
        return next((found for part in value.values() if (found := text_of(part))), "")
    if isinstance(value, list):
        return next((found for part in value if (found := text_of(part))), "")
    return value if isinstance(value, str) and value.startswith("[{") else ""


def number(frame: bytes) -> float:
    """The last value of a row's event."""
    cell = msgspec.json.decode(frame)["data"][-1]["data"][-1]["data"][-1]["data"]
    while not isinstance(cell, int | float):
        cell = cell[-1]["data"]
    return float(cell)


@pytest.mark.long
@pytest.mark.parametrize("kind", [Package, Stock])
async def test_event_workers_are_killed_at_any_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Package]
) -> None:
    monkeypatch.setattr(rests, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(rests, "GROWTH", 1)
    monkeypatch.setattr(event_strategy, "EVENT_SLICE_ROWS", 300)
    chance = random.Random(11)
    store = EventStore(tmp_path / "events.db", builtin_tables(), EventSettings(retention_age=1e10))
    width = len(next(table for table in builtin_tables() if table.name == "processes_events").recorded)
    try:
        async with contained(tmp_path, store, limits=LimitSettings(cpu=100.0)) as database:
            runner = QueryRunner(database, store)
            recipient = kind()
            sql = 'SELECT CAST(time AS INT) AS "number:int" FROM processes_events'
            await runner.install(recipient, "q", Query(sql, "E", 0.05, Subscription.EVENTS))
            await until(lambda: runner.installed and runner.installed[0].runs)
            kills = written = 0
            while len(set(recipient.all_taken())) < EVENTS:
                if written < EVENTS:
                    rows = [(float(at), *[None] * (width - 1)) for at in range(written, written + 100)]
                    store.append("processes_events", rows)
                    assert store.flush(10)
                    written += 100
                await asyncio.sleep(chance.random() * 0.02)
                busy = [one for one in database.pool.processes if one.kind is WorkerClass.EVENTS and one.counts]
                if busy and kills < 150 and (chance.random() < 0.5 or busy[0].state is WorkerState.BUSY):
                    with suppress(ProcessLookupError):
                        os.kill(busy[0].pid, signal.SIGKILL)
                    kills += 1
            assert not runner.installed[0].lost
            assert runner.installed[0].errors > 0
            await runner.close()
    finally:
        store.close()
    assert kills > 5, "how many there can be depends on how fast the machine is"
    assert set(recipient.all_taken()) == set(map(float, range(EVENTS)))
    if kind is Package:
        assert len(recipient.all_taken()) == EVENTS
