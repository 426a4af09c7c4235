"""Retention by age while the time of day is set, forward and back, by days and years."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from waiting import until_sync

from zeek_agent.config.sections import EventSettings
from zeek_agent.events.ages import AgeClock, BootTime
from zeek_agent.events.delivery_states import Delivered
from zeek_agent.events.event_file import EventFile, Gap, WriteBatch
from zeek_agent.events.reading import read_rows
from zeek_agent.events.store import EventStore
from zeek_agent.schema import Column
from zeek_agent.table import Table

DAY = 86_400.0
YEAR = 365 * DAY
STEPS = pytest.mark.parametrize("step", [3 * DAY, -3 * DAY, 10 * YEAR, -10 * YEAR], ids=["3d", "-3d", "10y", "-10y"])
THINGS = Table(
    "things_events",
    "things",
    description="For tests.",
    columns=[Column("time", "time", "a value"), Column("number", "count", "a value")],
    kind="events",
)


class Host:
    """A host's clocks."""

    def __init__(self) -> None:
        self.wall = 1_790_000_000.0
        self.since_boot = 5_000.0
        self.boot_id = "first"

    def pass_time(self, seconds: float) -> None:
        self.wall += seconds
        self.since_boot += seconds

    def reboot(self, off_seconds: float = 60.0) -> None:
        self.wall += off_seconds
        self.since_boot = 10.0
        self.boot_id += "'"

    @property
    def boot_time(self) -> BootTime:
        return BootTime(self.boot_id, lambda: self.since_boot)


class Store:
    """A store's file, as its owner uses it: rows as they come, retention at each heartbeat."""

    def __init__(self, path: Path, host: Host, bytes_max: int = 2**28) -> None:
        self.path = path
        self.host = host
        self.bytes_max = bytes_max
        self.number = 0
        self.removed = 0
        self.open()

    def open(self) -> None:
        clock = AgeClock(self.host.boot_time, lambda: self.host.wall)
        self.file = EventFile(self.path, [THINGS], self.bytes_max, self.host.wall, age_clock=clock)

    def restart(self, *, clean: bool = True) -> None:
        self.file.close(self.host.wall, clean=clean)
        self.open()

    def record(self, time_: float | None = None) -> int:
        self.number += 1
        rows = [(self.host.wall if time_ is None else time_, self.number)]
        self.file.write(WriteBatch(rows={"things_events": rows}), self.host.wall)
        return self.number

    def run(self, seconds: float, age: float = DAY, every: float = 600.0) -> None:
        """Time passes; the owner's heartbeats go on."""
        for _ in range(round(seconds / every)):
            self.host.pass_time(every)
            self.heartbeat(age)

    def heartbeat(self, age: float = DAY) -> None:
        self.removed += self.file.expire(self.host.wall, age).total()

    @property
    def numbers(self) -> list[int]:
        return [number for (number,) in read_rows(self.file.uri, "SELECT number FROM things_events ORDER BY seq")]


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def store(tmp_path: Path, host: Host) -> Iterator[Store]:
    store = Store(tmp_path / "events.db", host)
    yield store
    store.file.close(host.wall, clean=True)


@STEPS
def test_rows_stay_for_their_age_by_boot_time_whatever_the_clock_says(store: Store, step: float) -> None:
    store.record()
    store.heartbeat()
    store.run(DAY / 2)
    store.host.wall += step
    store.record()
    store.run(DAY / 2 - 600)
    assert store.numbers == [1, 2], "no row is a day old"
    store.run(1_200)
    assert store.numbers == [2], "the first row is older than a day"
    store.run(DAY / 2 + 600)
    assert store.numbers == []


@STEPS
def test_rows_that_waited_for_the_disk_during_a_step_stay_as_well(store: Store, step: float) -> None:
    before = store.host.wall
    store.host.wall += step
    store.record(before)
    store.record()
    store.heartbeat()
    store.run(DAY - 1_200)
    assert store.numbers == [1, 2]
    store.run(1_800)
    assert store.numbers == []


@STEPS
@pytest.mark.parametrize("restart", [Store.restart, lambda store: (store.host.reboot(), store.restart(clean=False))])
def test_a_restart_after_a_step_removes_no_younger_row(
    store: Store, step: float, restart: Callable[[Store], object]
) -> None:
    store.record()
    store.heartbeat()
    store.run(DAY / 2)
    store.record()
    store.host.wall += step
    restart(store)
    store.heartbeat()
    store.record()
    store.run(DAY / 2 - 1_200)
    assert store.numbers == [1, 2, 3]
    store.run(1_800)
    assert store.numbers == [2, 3]
    store.run(DAY / 2 + 600)
    assert store.numbers == []


@STEPS
def test_the_time_for_which_the_host_is_off_does_not_count(store: Store, step: float) -> None:
    store.record()
    store.heartbeat()
    store.host.reboot(off_seconds=5 * DAY)
    store.host.wall += step
    store.restart()
    store.run(DAY - 1_200)
    assert store.numbers == [1]
    store.run(1_800)
    assert store.numbers == []


def test_without_a_step_the_time_of_the_event_counts(store: Store) -> None:
    store.record(store.host.wall - 2 * DAY)
    store.record(store.host.wall - DAY + 60)
    store.record()
    store.heartbeat()
    assert store.numbers == [2, 3]
    store.restart()
    store.host.pass_time(120)
    store.heartbeat()
    assert store.numbers == [3]


def test_one_row_with_a_time_to_come_does_not_stop_retention(store: Store) -> None:
    store.record(store.host.wall + 10 * YEAR)
    store.record()
    store.heartbeat()
    store.run(DAY + 600)
    assert store.numbers == []


@STEPS
def test_delivery_states_stay_for_their_month(store: Store, step: float) -> None:
    def saved(key: str) -> None:
        store.file.write(WriteBatch(delivered={key: Delivered({"things_events": 1})}), store.host.wall)

    saved("before")
    store.host.wall += step
    saved("after")
    store.run(29 * DAY, every=DAY)
    assert store.file.states == 2
    store.run(2 * DAY, every=DAY)
    assert store.file.states == 0


@STEPS
def test_gaps_stay_for_their_age(store: Store, step: float) -> None:
    gap = Gap("processes", store.host.wall - 5, store.host.wall, "overrun")
    store.file.write(WriteBatch(gaps=[gap]), store.host.wall)
    store.host.wall += step
    store.heartbeat()
    store.run(DAY - 1_200)
    assert store.file.gaps == [gap]
    store.run(1_800)
    assert store.file.gaps == []


@STEPS
def test_evicted_rows_leave_a_gap_after_a_step(tmp_path: Path, host: Host, step: float) -> None:
    store = Store(tmp_path / "small.db", host, bytes_max=400_000)
    before = host.wall
    rows = [(before, number) for number in range(20_000)]
    store.file.write(WriteBatch(rows={"things_events": rows}), host.wall)
    store.heartbeat()
    host.wall += step
    store.file.write(WriteBatch(rows={"things_events": [(host.wall, 0)]}), host.wall)
    assert store.file.evict(host.wall, DAY).total() > 0
    (gap,) = store.file.gaps
    assert (gap.source, gap.begin) == ("things", before)
    assert gap.cause.startswith("retention: the store is full")
    store.file.close(host.wall, clean=True)


@STEPS
def test_rows_that_move_to_another_file_keep_their_age(store: Store, tmp_path: Path, step: float) -> None:
    """As when the disk is full for a while: into memory and back."""
    store.record()
    store.heartbeat()
    store.run(DAY / 2)
    store.host.wall += step
    store.record()
    store.heartbeat()
    clock = AgeClock(store.host.boot_time)
    clock.resume(store.file._ages.stored_clock(), store.host.wall)
    for path in (None, tmp_path / "again.db"):
        old = store.file
        store.file = EventFile(path, [THINGS], 2**28, store.host.wall, age_clock=clock, resumed=True)
        store.file.adopt(old.uri, old.last_seq, 1_000)
        store.file.continue_from(old.last_seq)
        old.close(store.host.wall, clean=False)
        store.run(3_600)
    assert store.numbers == [1, 2]
    store.run(DAY / 2 - 3_600)
    assert store.numbers == [2]
    store.run(DAY / 2)
    assert store.numbers == []


@pytest.mark.parametrize(("down", "step"), [(0, 10 * YEAR), (30, DAY), (300, 100)])
def test_a_clock_that_was_set_back_leaves_gaps_in_its_old_and_its_new_time(
    store: Store, down: float, step: float
) -> None:
    store.run(3_600)
    store.record()
    ended = store.host.wall
    store.file.close(ended, clean=True)
    store.host.pass_time(down)
    store.host.wall -= step
    store.open()
    now, cause = store.host.wall, "stopped; the clock was set back"
    assert sorted(store.file.gaps) == [Gap("agent", now - down, now, cause), Gap("agent", ended, ended + down, cause)]
    assert store.file.last_recorded == now - down


def test_a_clock_that_was_set_forward_makes_the_gap_longer_and_not_the_time_without_recording(store: Store) -> None:
    store.run(3_600)
    ended = store.host.wall
    store.file.close(ended, clean=True)
    store.host.pass_time(30)
    store.host.wall += DAY
    store.open()
    assert store.file.gaps == [Gap("agent", ended, store.host.wall, "stopped")]
    assert store.file.last_recorded == store.host.wall - 30


def test_after_a_boot_with_an_earlier_time_the_gap_begins_with_the_boot(store: Store) -> None:
    store.run(3_600)
    store.file.close(store.host.wall, clean=True)
    store.host.reboot()
    store.host.wall -= YEAR
    store.open()
    (gap,) = store.file.gaps
    now = store.host.wall
    assert gap == Gap("agent", now - 10.0, now, "stopped; the clock was set back")
    assert store.file.last_recorded == now - 10.0


def test_what_is_known_of_ages_stays_small(store: Store) -> None:
    for _ in range(300):
        store.record()
        store.run(1_200, every=1_200)
    (known,) = read_rows(store.file.uri, "SELECT count(*) FROM _ages")
    assert known <= (80,)
    assert len(store.numbers) <= 74


@STEPS
def test_the_store_says_that_the_clock_was_set_and_counts_nothing_as_expired(
    tmp_path: Path, host: Host, step: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("zeek_agent.events.store._HEARTBEAT_SECONDS", 0.02)
    caplog.set_level(logging.WARNING)
    store = EventStore(
        tmp_path / "events.db", [THINGS], EventSettings(retention_age=DAY), lambda: host.wall, boot_time=host.boot_time
    )
    store.append("things_events", [(host.wall, 1)])
    assert store.flush()
    until_sync(lambda: read_rows(store.uri, "SELECT count(*) FROM _ages") == [(1,)])
    host.wall += step
    until_sync(lambda: "the clock was set" in caplog.text)
    store.append("things_events", [(host.wall, 2)])
    assert store.flush()
    store.close()
    assert store.counters["things_events"].expired == 0
    assert f"the clock was set {'forward' if step > 0 else 'back'} by {abs(step):.0f} s" in caplog.text
    again = EventStore(
        tmp_path / "events.db", [THINGS], EventSettings(retention_age=DAY), lambda: host.wall, boot_time=host.boot_time
    )
    assert read_rows(again.uri, "SELECT number FROM things_events ORDER BY seq") == [(1,), (2,)]
    again.close()
    assert again.counters["things_events"].expired == 0


def test_a_writer_that_is_held_up_between_two_clocks_finds_no_step(host: Host) -> None:
    held_up = [5.0, 0.0, 3.0]

    def wall() -> float:
        now = host.wall
        host.pass_time(held_up.pop() if held_up else 0.001)
        return now

    clock = AgeClock(host.boot_time, wall)
    clock.resume(None, host.wall)
    assert [round(clock.ahead(), 2) for _ in range(4)] == [0.0] * 4
    stored = clock.stored()
    held_up.append(5.0)
    assert clock.step_since(stored) == 0.0
    host.wall += 3600
    held_up.append(5.0)
    assert round(clock.step_since(stored)) == 3600
