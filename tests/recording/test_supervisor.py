"""Choosing sources, and replacing one that fails: with small sources, a real store and a real thread."""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Callable, Sequence

import pytest
from waiting import until_sync

from zeek_agent.config.sections import SourceSettings
from zeek_agent.events.store import EventStore
from zeek_agent.recording.processes.proc_connector import ProcConnector
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.recording.registry import candidates
from zeek_agent.recording.snapshots import ProcessSnapshots
from zeek_agent.recording.source import Sink, Source
from zeek_agent.recording.supervisor import Supervisor
from zeek_agent.schema import Column, Row
from zeek_agent.table import Table
from zeek_agent.tables.events import TABLES

TABLE = Table(
    "processes_events",
    "for tests",
    description="For tests.",
    columns=[Column("time", "time", "a value"), Column("number", "count", "a value")],
    kind="events",
)


class Scripted(Source):
    """Does what a test tells it to."""

    kind = "processes"

    def __init__(self, backend: str, why_not: str | None = None, refuses: bool = False) -> None:
        super().__init__()
        self.backend = backend
        self.why_not = why_not
        self.refuses = refuses
        self.sink: Sink | None = None
        self.drained = 0
        self.probed = 0
        self.searched: list[float] = []

    def probe(self) -> str | None:
        self.probed += 1
        return self.why_not

    def start(self, sink: Sink) -> None:
        if self.refuses:
            raise OSError("refused after all")
        self.sink = sink

    def stop(self) -> None:
        self.sink = None

    def drain(self) -> None:
        self.drained += 1

    def find_lost(self, since: float) -> None:
        assert self.sink is not None
        self.searched.append(since)

    def emit(self, *rows: Row) -> None:
        assert self.sink is not None
        self.counters.received += len(rows)
        self.sink("processes_events", rows)


@pytest.fixture
def store() -> EventStore:
    return EventStore(None, [TABLE])


def supervisor(store: EventStore, sources: Sequence[Source], clock: Callable[[], float] = time.time) -> Supervisor:
    chosen = {"processes": list(sources)}
    return Supervisor(
        SourceSettings(), store, choose=lambda settings, redact: chosen, clock=clock, interval_seconds=0.02
    )


def test_the_first_working_source_is_used_and_the_others_have_a_reason(store: EventStore) -> None:
    best, second, third = Scripted("best", "no BTF"), Scripted("second", refuses=True), Scripted("third")
    chosen = supervisor(store, [best, second, third, Scripted("fourth")])
    chosen.start()
    third.emit((1.0, 1), (2.0, 2))
    assert chosen.status() == [
        ("processes", "best", False, "no BTF", 0, 0, 0, 0, 0, None),
        ("processes", "second", False, "refused after all", 0, 0, 0, 0, 0, None),
        ("processes", "third", True, None, 2, 0, 0, 0, 0, None),
        ("processes", "fourth", False, "a better one is active", 0, 0, 0, 0, 0, None),
    ]
    chosen.drain()
    assert third.drained == 1
    chosen.stop()
    assert third.sink is None
    chosen.stop()
    store.flush()
    assert store.last_seq("processes_events") == 2
    store.close()


def test_kinds_are_added_and_removed_while_others_are_recorded(store: EventStore) -> None:
    kept, first, second = Scripted("kept"), Scripted("first"), Scripted("second", "not yet")
    chosen = supervisor(store, [kept])
    chosen.start()
    chosen.change((), {"jobs": [first], "backups": [second]})
    assert [(one.source, one.backend, one.active) for one in chosen.status()] == [
        ("processes", "kept", True),
        ("jobs", "first", True),
        ("backups", "second", False),
    ]
    chosen.drain()
    assert (kept.drained, first.drained, second.drained) == (1, 1, 0)
    chosen.change(["jobs", "backups", "unknown"], {})
    assert first.sink is None
    assert [one.source for one in chosen.status()] == ["processes"]
    kept.emit((1.0, 1))
    store.flush()
    assert store.last_seq("processes_events") == 1
    assert store.gaps() == []
    chosen.stop()
    store.close()


def test_a_source_that_fails_is_replaced_which_is_logged_and_a_gap(
    store: EventStore, caplog: pytest.LogCaptureFixture
) -> None:
    best, next_best = Scripted("best"), Scripted("next")
    chosen = supervisor(store, [best, next_best])
    caplog.set_level(logging.INFO)
    chosen.start()
    best.failure = "the ring is gone"
    until_sync(lambda: next_best.sink is not None)
    assert best.sink is None
    assert "source best has failed: the ring is gone" in caplog.text
    until_sync(lambda: "processes events are recorded by next" in caplog.text)
    reasons = {row.backend: (row.active, row.reason, row.last_error) for row in chosen.status()}
    assert reasons == {"best": (False, "the ring is gone", "the ring is gone"), "next": (True, None, None)}
    until_sync(lambda: store.flush() and bool(store.gaps()))
    ((source, begin, end, cause),) = store.gaps()
    assert (source, cause) == ("processes", "no source was active")
    assert isinstance(begin, float)
    assert isinstance(end, float)
    assert begin <= end <= time.time()
    chosen.stop()
    store.close()


@pytest.mark.root
def test_recording_continues_when_a_real_source_breaks() -> None:
    store = EventStore(None, TABLES)
    settings, cache = SourceSettings(snapshot_interval=0.05), ProcessCache()
    connector = ProcConnector(cache, settings)
    chosen = supervisor(store, [connector, ProcessSnapshots(cache, settings)])
    chosen.start()
    connector._channel.close()
    until_sync(lambda: bool(chosen.status()[1].active))
    assert "ValueError" in str(chosen.status()[0].reason) or "descriptor" in str(chosen.status()[0].reason)
    before = store.counters["processes_events"].received
    subprocess.run(["/bin/sleep", "0.3"], check=True)
    chosen.drain()
    assert store.counters["processes_events"].received >= before + 2
    chosen.stop()
    store.close()


def test_an_error_while_draining_counts_as_a_failure(store: EventStore) -> None:
    class Broken(Scripted):
        def drain(self) -> None:
            raise OSError("bad descriptor")

    broken, next_best = Broken("broken"), Scripted("next")
    chosen = supervisor(store, [broken, next_best])
    chosen.start()
    chosen.drain()
    until_sync(lambda: next_best.sink is not None)
    chosen.stop()
    store.close()


def test_a_kind_without_a_working_source_is_logged_once(
    store: EventStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zeek_agent.recording.supervisor._RETRY_SECONDS", 0.01)
    only = Scripted("only", "not here")
    chosen = supervisor(store, [only])
    chosen.start()
    until_sync(lambda: only.probed > 3)
    assert caplog.text.count("processes events are not recorded: no backend works (only: not here)") == 1
    assert [row.active for row in chosen.status()] == [False]
    chosen.stop()
    store.close()


def test_a_time_of_losses_is_one_gap(store: EventStore) -> None:
    source = Scripted("lossy")
    chosen = supervisor(store, [source])
    chosen.start()
    for _ in range(5):
        source.counters.lost["overrun"] += 10
        time.sleep(0.03)
    until_sync(lambda: store.flush() and bool(store.gaps()))
    ((name, begin, _, cause),) = store.gaps()
    assert (name, cause) == ("processes", "overrun")
    until_sync(lambda: source.searched == [begin])
    assert chosen.status()[0].lost_overrun == 50
    chosen.stop()
    store.close()


def test_what_was_lost_until_the_end_is_searched_for_before_it(store: EventStore) -> None:
    source = Scripted("lossy")
    chosen = supervisor(store, [source])
    chosen.start()
    source.counters.lost["overrun"] += 10
    chosen.stop()
    assert store.flush()
    assert source.searched == [gap.begin for gap in store.gaps()]
    assert len(source.searched) == 1
    store.close()


def test_what_a_failed_source_lost_is_left_to_the_next_one(store: EventStore) -> None:
    lossy, next_best = Scripted("lossy"), Scripted("next best")
    chosen = supervisor(store, [lossy, next_best])
    chosen.start()
    lossy.counters.lost["overrun"] += 10
    lossy.failed("the file was closed")
    until_sync(lambda: next_best.sink is not None and store.flush() and bool(store.gaps()))
    begin = min(gap.begin for gap in store.gaps())
    assert not lossy.searched
    assert next_best.missed is not None
    assert next_best.missed.since <= begin
    chosen.stop()
    store.close()


def test_continuing_losses_are_a_gap_every_minute(store: EventStore) -> None:
    source, now = Scripted("lossy"), time.time()

    def clock() -> float:
        """A second later each time, at which more is lost."""
        nonlocal now
        now += 1.0
        source.counters.lost["overrun"] += 1
        return now

    chosen = supervisor(store, [source], clock=clock)
    chosen.start()
    until_sync(lambda: store.flush() and len(store.gaps()) >= 2)
    (_, first, first_end, _), (_, second, second_end, _), *_ = sorted(store.gaps(), key=lambda gap: gap[1])
    assert first < first_end < second + 5 < second_end
    assert 50 < first_end - first < 90
    chosen.stop()
    store.close()


def test_a_time_of_losses_is_over_when_the_clock_was_set_back(store: EventStore) -> None:
    source, begun = Scripted("lossy"), time.time()
    chosen = supervisor(store, [source], clock=lambda: now)
    now = begun
    chosen.start()
    source.counters.lost["overrun"] += 10
    until_sync(lambda: chosen._recorders[0].losing_since is not None)
    now = begun - 10 * 365 * 86_400
    until_sync(lambda: store.flush() and bool(store.gaps()))
    assert store.gaps() == [("processes", begun, begun, "overrun")]
    chosen.stop()
    store.close()


def test_rows_that_the_store_loses_are_shown_with_the_source(store: EventStore) -> None:
    source = Scripted("source")
    chosen = supervisor(store, [source])
    chosen.start()
    source.emit((1.0, 1), ("not", "a row"))
    store.close()
    source.emit((2.0, 2))
    row = chosen.status()[0]
    assert (row.received, row.lost_decode, row.lost_store) == (3, 1, 1)
    chosen.stop()


@pytest.mark.parametrize(
    ("settings", "processes", "sockets", "system_logs"),
    [
        (
            {},
            ["ebpf", "proc_connector", "audit", "snapshots"],
            ["ebpf", "inet_diag", "audit", "snapshots"],
            ["journal", "syslog"],
        ),
        ({"processes": "audit", "sockets": "snapshots", "system_logs": "syslog"}, ["audit"], ["snapshots"], ["syslog"]),
        ({"processes": "off", "sockets": "off", "system_logs": "off"}, [], [], []),
    ],
)
def test_the_configuration_chooses_among_the_backends(
    settings: dict[str, str], processes: list[str], sockets: list[str], system_logs: list[str]
) -> None:
    found = candidates(SourceSettings(**settings))  # type: ignore[arg-type]
    assert [source.backend for source in found["system_logs"]] == system_logs
    assert [source.backend for source in found["processes"]] == processes
    assert [source.backend for source in found["sockets"]] == sockets


def test_a_source_that_has_worked_for_a_while_is_started_again_before_the_next_one(store: EventStore) -> None:
    best, next_best = Scripted("best"), Scripted("next")
    best.restart_after_seconds = 0.0
    with_it = supervisor(store, [best, next_best])
    with_it.start()
    best.failed("killed")
    until_sync(lambda: best.probed == 2 and store.flush() and bool(store.gaps()))
    assert [(one.backend, one.active, one.last_error) for one in with_it.status()] == [
        ("best", True, "killed"),
        ("next", False, None),
    ]
    assert [gap.cause for gap in store.gaps()] == ["no source was active"]
    best.restart_after_seconds = 3_600.0
    best.failed("killed again")
    until_sync(lambda: next_best.sink is not None)
    assert best.probed == 2
    with_it.stop()


def test_a_better_source_returns_when_it_works_again(store: EventStore) -> None:
    best, second = Scripted("best", "Full Disk Access is missing"), Scripted("second")
    best.return_seconds = 0.05
    chosen = supervisor(store, [best, second])
    chosen.start()
    second.emit((1.0, 1))
    until_sync(lambda: best.probed >= 3)
    assert second.sink is not None
    best.why_not = None
    until_sync(lambda: best.sink is not None)
    assert second.sink is None
    assert [(status.backend, status.active) for status in chosen.status()] == [("best", True), ("second", False)]
    assert best.missed is not None
    probed = best.probed
    time.sleep(0.2)
    assert best.probed == probed
    chosen.stop()
    store.flush()
    assert [cause for _, _, _, cause in store.gaps()] == ["no source was active"]
    store.close()


def test_a_better_source_that_does_not_start_after_all_leaves_the_other_one_recording(store: EventStore) -> None:
    best, second = Scripted("best", "not yet"), Scripted("second")
    best.return_seconds = 0.05
    chosen = supervisor(store, [best, second])
    chosen.start()
    best.refuses, best.why_not = True, None
    until_sync(lambda: best.probed >= 6)
    until_sync(lambda: second.sink is not None)
    assert chosen.status()[0].reason == "refused after all"
    chosen.stop()
    store.close()


def test_a_source_that_cannot_get_better_is_not_tried_again(store: EventStore) -> None:
    best, second = Scripted("best", "no BTF"), Scripted("second")
    chosen = supervisor(store, [best, second])
    chosen.start()
    time.sleep(0.2)
    assert best.probed == 1
    chosen.stop()
    store.close()
