"""Until when everything is recorded, and the gaps that follow from it: with scripted sources and a real store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from test_supervisor import TABLE, Scripted
from waiting import until_sync

from zeek_agent.config.sections import EventSettings, SourceSettings
from zeek_agent.events.event_file import EventFile, WriteBatch
from zeek_agent.events.store import EventStore, Gap
from zeek_agent.recording.source import Sink, Source
from zeek_agent.recording.supervisor import Supervisor

NOW = 1_790_000_000.0


class Punctual(Scripted):
    """Says since when it records, and until when it has passed on everything."""

    def __init__(self, backend: str, since: float | None = None, until: float | None = None, **more: str) -> None:
        super().__init__(backend, **more)  # type: ignore[arg-type]
        self.since, self.until = since, until
        self.real_losses = 0

    def recording_since(self) -> float | None:
        return self.since

    def recorded_until(self) -> float | None:
        return self.until

    def update_counters(self) -> None:
        self.counters.lost["overrun"] = self.real_losses


class Run:
    """A store and a supervisor, on a clock that stands still."""

    def __init__(self, path: Path, chosen: dict[str, Sequence[Source]], now: float, interval: float = 60.0) -> None:
        self.now = now
        self.supervisor: Supervisor | None = None
        self.store = EventStore(
            path, [TABLE], EventSettings(commit_interval=0.01), lambda: self.now, recorded_until=self.recorded_until
        )
        self.supervisor = Supervisor(
            SourceSettings(),
            self.store,
            choose=lambda *_: chosen,
            clock=lambda: self.now,
            interval_seconds=interval,
        )

    def recorded_until(self) -> float | None:
        return None if self.supervisor is None else self.supervisor.recorded_until()

    def start(self) -> None:
        assert self.supervisor is not None
        self.supervisor.start()
        assert self.store.flush()

    def stop(self) -> None:
        assert self.supervisor is not None
        self.supervisor.stop()
        self.store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


def image(path: Path, target: Path) -> Path:
    """The store as a crash would leave it now."""
    for suffix in ("", "-wal"):
        target.with_name(target.name + suffix).write_bytes(path.with_name(path.name + suffix).read_bytes())
    return target


def test_the_gap_of_a_restart_is_from_the_first_missing_event_to_the_last_source(path: Path) -> None:
    first, second = Punctual("first", NOW, NOW + 7.0), Punctual("second", NOW, NOW + 6.5)
    run = Run(path, {"processes": [first], "sockets": [second]}, NOW)
    run.start()
    assert run.store.gaps() == []
    run.now = NOW + 9.0
    run.stop()
    first, second = Punctual("first", NOW + 20.5, NOW + 30.0), Punctual("second", NOW + 20.9, NOW + 30.0)
    run = Run(path, {"processes": [first], "sockets": [second]}, NOW + 20.0)
    assert run.store.last_recorded == NOW + 6.5
    run.start()
    assert run.store.gaps() == [Gap("agent", NOW + 6.5, NOW + 20.9, "stopped")]
    assert first.missed is not None
    assert first.missed.since == NOW + 6.5
    run.stop()


def test_after_a_crash_the_gap_begins_where_events_may_not_have_been_passed_on(path: Path, tmp_path: Path) -> None:
    source, resumes = Punctual("source", NOW, NOW + 3.0), Punctual("resumes", NOW, None)
    run = Run(path, {"processes": [source], "system_logs": [resumes]}, NOW)
    run.start()
    run.now = NOW + 5.0
    source.emit((NOW + 2.0, 1))
    assert run.store.flush()
    crashed = image(path, tmp_path / "crashed.db")
    run.stop()
    again = Run(crashed, {"processes": [Punctual("source", NOW + 10.0, NOW + 10.0)]}, NOW + 9.0)
    again.start()
    assert again.store.gaps() == [Gap("agent", NOW + 3.0, NOW + 10.0, "crashed")]
    again.stop()


def test_an_agent_that_never_began_to_record_makes_the_gap_longer(path: Path) -> None:
    run = Run(path, {"processes": [Punctual("source", NOW, NOW + 1.0)]}, NOW)
    run.start()
    run.stop()
    for number in range(3):
        store = Run(path, {}, NOW + 10.0 + number).store
        store.append("processes_events", [(NOW, 1)])
        assert store.flush()
        store.close()
    run = Run(path, {"processes": [Punctual("source", NOW + 20.0, NOW + 20.0)]}, NOW + 19.0)
    run.start()
    ((source, begin, end, _),) = run.store.gaps()
    assert (source, begin, end) == ("agent", NOW + 1.0, NOW + 20.0)
    run.stop()


def test_a_queue_that_is_not_committed_whole_says_nothing_about_the_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zeek_agent.events.store._COMMIT_ROWS_MAX", 10)
    batches: list[float | None] = []
    write = EventFile.write

    def spied(self: EventFile, batch: WriteBatch, now: float) -> object:
        batches.append(batch.recorded_until if batch.rows else None)
        return write(self, batch, now)

    monkeypatch.setattr(EventFile, "write", spied)
    source = Punctual("source", NOW, NOW + 1.0)
    run = Run(path, {"processes": [source]}, NOW)
    run.start()
    sink: Sink | None = source.sink
    assert sink is not None
    with run.store._changed:
        for number in range(50):
            sink("processes_events", [(NOW, number)])
    assert run.store.flush()
    told = [one for one in batches if one is not None]
    assert told[-1] == NOW + 1.0
    assert told[0] == -float("inf")
    run.stop()


def test_events_lost_before_the_first_check_are_in_the_gap_of_the_overrun(path: Path) -> None:
    source = Punctual("source", NOW + 0.5, NOW + 1.0)
    run = Run(path, {"processes": [source]}, NOW + 1.0, interval=0.01)
    run.start()
    run.now = NOW + 3.0
    source.real_losses = 5
    until_sync(lambda: run.supervisor._recorders[0].losing_since is not None)  # type: ignore[union-attr]
    run.stop()
    (gap,) = run.store.gaps()
    assert gap.cause == "overrun"
    assert gap.begin <= NOW + 1.0
    assert gap.end == NOW + 3.0


def test_events_lost_before_a_source_reads_are_in_a_gap(path: Path) -> None:
    """What the kernel records waits in buffers until the agent has started, and they may be too small."""

    class Early(Punctual):
        def start(self, sink: Sink) -> None:
            super().start(sink)
            self.real_losses = 5
            self.update_counters()

    run = Run(path, {"processes": [Early("early", NOW + 0.5, NOW + 1.0)]}, NOW + 3.0)
    run.start()
    run.stop()
    ((_, begin, end, cause),) = run.store.gaps()
    assert (begin, end, cause) == (NOW + 0.5, NOW + 3.0, "overrun")


def test_a_failed_source_leaves_a_gap_from_the_last_event_that_it_has_passed_on(path: Path) -> None:
    failing, next_best = Punctual("failing", NOW, NOW - 0.3), Punctual("next", NOW + 4.0, NOW + 9.0)
    run = Run(path, {"processes": [failing, next_best]}, NOW, interval=0.01)
    run.start()
    failing.failure = "gone"
    until_sync(lambda: bool(run.store.flush() and run.store.gaps()))
    assert run.store.gaps() == [Gap("processes", NOW - 0.3, NOW + 4.0, "no source was active")]
    assert next_best.missed is not None
    assert next_best.missed.since == NOW - 0.3
    run.stop()


def test_a_source_that_fails_without_a_substitute_leaves_a_gap_until_the_end(path: Path) -> None:
    failing, other = Punctual("failing", NOW, NOW + 1.0), Punctual("other", NOW, NOW + 50.0)
    run = Run(path, {"processes": [failing], "sockets": [other]}, NOW + 2.0, interval=0.01)
    run.start()
    failing.why_not = failing.failure = "gone"
    until_sync(lambda: run.supervisor._recorders[0].active is None)  # type: ignore[union-attr]
    run.now = NOW + 50.0
    assert run.recorded_until() == NOW + 1.0
    run.stop()
    assert run.store.gaps() == [Gap("processes", NOW + 1.0, NOW + 50.0, "no source was active")]


def test_a_kind_that_nothing_can_record_at_first_leaves_a_gap_when_something_can(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zeek_agent.recording.supervisor._RETRY_SECONDS", 0.0)
    late, other = Punctual("late", NOW + 8.0, NOW + 9.0, why_not="not yet"), Punctual("other", NOW + 1.0, NOW + 9.0)
    run = Run(path, {"processes": [late], "sockets": [other]}, NOW, interval=0.01)
    run.start()
    assert run.recorded_until() == NOW + 9.0
    late.why_not = None
    until_sync(lambda: bool(run.store.flush() and run.store.gaps()))
    assert run.store.gaps() == [Gap("processes", NOW + 1.0, NOW + 8.0, "no source was active")]
    run.stop()
