"""Reading a log of Windows: bookmarks, batches, errors, slow consumers, and logs that wrap around or are cleared."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_wevtapi import FakeWindows
from waiting import until_sync
from windows_events import event_xml

from zeek_agent.host.windows.event_fields import SECURITY
from zeek_agent.platforms.winapi import channel_reader
from zeek_agent.platforms.winapi.bookmarks import Bookmark, Position
from zeek_agent.platforms.winapi.channel_reader import Batch, ChannelReader
from zeek_agent.platforms.winapi.event_log import Code, EventLogError

CHANNEL = "Security"


class Scene:
    """A log, its reader, and what that has passed on."""

    def __init__(self, directory: Path) -> None:
        self.windows = FakeWindows()
        self.directory = directory
        self.failures: list[str] = []
        self.batches: queue.Queue[Batch] = queue.Queue(channel_reader.QUEUE_BATCHES)
        self.reader = self.new_reader()
        self.seen: list[int] = []

    def new_reader(self) -> ChannelReader:
        self.batches = queue.Queue(channel_reader.QUEUE_BATCHES)
        return ChannelReader(
            self.windows.api(),
            CHANNEL,
            "*",
            Bookmark(self.directory, "test"),
            self.batches,
            failed=self.failures.append,
            pause_seconds=0.001,
            check_seconds=0.01,
            wait_seconds=0.02,
        )

    def write(self, count: int = 1) -> None:
        for _ in range(count):
            self.windows.write(CHANNEL, lambda number: event_xml(SECURITY, 4634, record=number))

    def take(self) -> None:
        """Pass on what is queued."""
        while True:
            try:
                batch = self.batches.get_nowait()
            except queue.Empty:
                return
            self.seen += [int(re.findall(r"<EventRecordID>(\d+)", event.xml or "")[0]) for event in batch.events]
            self.reader.passed(batch.position)

    def sees(self, *numbers: int) -> bool:
        self.take()
        return self.seen == list(numbers)

    @contextmanager
    def reading(self) -> Iterator[ChannelReader]:
        self.reader = self.new_reader()
        self.reader.start()
        try:
            yield self.reader
        finally:
            self.reader.stop()
            self.take()
            self.reader.finish()
            assert self.windows.open_handles == []


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "bookmarks")


def test_the_first_run_begins_with_the_next_event(scene: Scene) -> None:
    scene.write(3)
    with scene.reading():
        scene.write(2)
        until_sync(lambda: scene.sees(4, 5))
    assert scene.windows.subscribed == [(CHANNEL, "*", 3)]
    assert (scene.reader.losses, scene.failures) == (0, [])


def test_the_next_run_continues_after_the_last_event_that_was_passed_on(scene: Scene) -> None:
    with scene.reading():
        scene.write(2)
        until_sync(lambda: scene.sees(1, 2))
    scene.write(3)
    with scene.reading():
        until_sync(lambda: scene.sees(1, 2, 3, 4, 5))
    assert scene.reader.losses == 0


def test_what_was_read_but_not_passed_on_is_read_again(scene: Scene) -> None:
    with scene.reading() as reader:
        scene.write(2)
        until_sync(lambda: scene.sees(1, 2))
        reader.stop()
        reader.finish()
        crashed = Bookmark(scene.directory, "test").load(CHANNEL)
    scene.write(2)
    with scene.reading():
        until_sync(lambda: not scene.batches.empty())
    Bookmark(scene.directory, "test").save(Position(CHANNEL, 2, 5.0))
    scene.seen.clear()
    with scene.reading():
        until_sync(lambda: scene.sees(3, 4))
    assert crashed is not None
    assert crashed.record == 2


def test_a_thousand_events_come_in_their_order_in_bounded_batches(scene: Scene) -> None:
    with scene.reading():
        scene.write(1_000)
        until_sync(lambda: scene.sees(*range(1, 1_001)))
    assert scene.windows.largest_batch <= channel_reader.BATCH_EVENTS


def test_batches_of_large_events_are_smaller(scene: Scene) -> None:
    large = {"TargetUserName": "x" * 100_000}
    with scene.reading():
        for _ in range(600):
            scene.windows.write(CHANNEL, lambda number: event_xml(SECURITY, 4634, large, record=number))
        until_sync(scene.batches.full)
        sizes = [sum(len(event.xml or "") for event in batch.events) for batch in list(scene.batches.queue)]
        until_sync(lambda: scene.sees(*range(1, 601)))
    assert sum(sizes) < channel_reader.QUEUE_BATCHES * 2 * channel_reader.BATCH_CHARACTERS + 64 * 100_000


def test_events_wait_in_the_log_while_the_consumer_is_slow(scene: Scene) -> None:
    most = channel_reader.QUEUE_BATCHES * channel_reader.BATCH_EVENTS
    with scene.reading() as reader:
        scene.write(most + 500)
        until_sync(scene.batches.full)
        assert scene.batches.qsize() == channel_reader.QUEUE_BATCHES
        until_sync(lambda: (scene.take(), len(scene.seen) == most + 500)[1])
        assert reader.losses == 0
    assert scene.seen == list(range(1, most + 501))


def test_a_log_that_wraps_around_before_it_is_read_again_is_a_loss(scene: Scene) -> None:
    with scene.reading():
        scene.write(2)
        until_sync(lambda: scene.sees(1, 2))
    scene.windows.logs[CHANNEL].room = 3
    scene.write(10)
    with scene.reading() as reader:
        until_sync(lambda: scene.sees(1, 2, 10, 11, 12))
        assert reader.losses == 1
        since = reader.take_lost_since()
        assert since is not None
        assert reader.take_lost_since() is None
    assert scene.windows.subscribed[-1] == (CHANNEL, "*", None)


def test_a_log_that_wraps_around_while_the_consumer_is_stuck_is_a_loss(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_reader, "_BLOCKED_SECONDS", 0.0)
    monkeypatch.setattr(channel_reader, "QUEUE_BATCHES", 1)
    monkeypatch.setattr(channel_reader, "BATCH_EVENTS", 1)
    scene.windows.logs[CHANNEL].room = 5
    with scene.reading() as reader:
        scene.write(3)
        until_sync(scene.batches.full)
        scene.write(50)
        until_sync(lambda: (scene.take(), 53 in scene.seen)[1])
        until_sync(lambda: reader.losses > 0)
    assert scene.seen == sorted(set(scene.seen))


@pytest.mark.parametrize("restarts", [False, True])
def test_a_cleared_log_is_read_on(scene: Scene, restarts: bool) -> None:
    with scene.reading() as reader:
        scene.write(5)
        until_sync(lambda: scene.sees(1, 2, 3, 4, 5))
        scene.windows.errors["EvtNext"] = [Code.RESULT_STALE]
        scene.windows.logs[CHANNEL].clear(restarts=restarts)
        until_sync(lambda: len(scene.windows.subscribed) >= 2)
        scene.write(2)
        first = 1 if restarts else 6
        until_sync(lambda: scene.sees(1, 2, 3, 4, 5, first, first + 1))
        assert reader.losses >= 1
    assert scene.failures == []


def test_a_cleared_log_is_noticed_without_an_error_of_the_subscription(scene: Scene) -> None:
    with scene.reading() as reader:
        scene.write(5)
        until_sync(lambda: scene.sees(1, 2, 3, 4, 5))
        scene.windows.logs[CHANNEL].clear(restarts=True)
        scene.windows.logs[CHANNEL].next = 2
        scene.write(1)
        until_sync(lambda: scene.sees(1, 2, 3, 4, 5, 2))
        assert reader.losses == 1


@pytest.mark.parametrize(
    "code", [Code.RESULT_STALE, Code.INVALID_POSITION, Code.INVALID_HANDLE, Code.SERVER_UNAVAILABLE, Code.CALL_FAILED]
)
def test_a_subscription_that_no_longer_works_is_replaced_without_loss(scene: Scene, code: Code) -> None:
    with scene.reading() as reader:
        scene.write(2)
        until_sync(lambda: scene.sees(1, 2))
        scene.windows.errors["EvtNext"] = [code]
        scene.write(2)
        until_sync(lambda: scene.sees(1, 2, 3, 4))
        assert reader.losses == 0
    assert scene.failures == []
    assert scene.windows.subscribed[-1][2] == 2


def test_batches_that_are_too_large_for_windows_become_smaller(scene: Scene) -> None:
    scene.windows.batch_max = 3
    with scene.reading():
        scene.write(20)
        until_sync(lambda: scene.sees(*range(1, 21)))
    assert scene.windows.largest_batch <= 3
    assert scene.failures == []


def test_an_operation_that_is_invalid_for_a_moment_does_not_end_the_subscription(scene: Scene) -> None:
    with scene.reading():
        scene.windows.errors["EvtNext"] = [Code.INVALID_OPERATION] * 3
        for _ in range(4):
            scene.write(1)
        until_sync(lambda: scene.sees(1, 2, 3, 4))
    assert len(scene.windows.subscribed) == 1


def test_a_bookmark_that_windows_does_not_find_is_a_loss(scene: Scene) -> None:
    with scene.reading():
        scene.write(2)
        until_sync(lambda: scene.sees(1, 2))
    scene.windows.errors["EvtSubscribe"] = [Code.NOT_FOUND]
    scene.write(1)
    with scene.reading() as reader:
        until_sync(lambda: scene.sees(1, 2, 3))
        assert reader.losses == 1


def test_a_log_that_cannot_be_opened_again_ends_the_reader(scene: Scene) -> None:
    with scene.reading():
        scene.write(1)
        until_sync(lambda: scene.sees(1))
        scene.windows.errors["EvtNext"] = [Code.SERVER_UNAVAILABLE]
        scene.windows.errors["EvtSubscribe"] = [Code.ACCESS_DENIED] * 20
        scene.write(1)
        until_sync(lambda: bool(scene.failures))
    assert "EvtSubscribe: access is denied" in scene.failures[0]


def test_a_log_that_cannot_be_opened_at_all_is_an_error_of_the_start(scene: Scene) -> None:
    scene.windows.missing.add(CHANNEL)
    with pytest.raises(EventLogError, match="there is no such log"):
        scene.reader.start()
    scene.reader.stop()
    assert scene.windows.open_handles == []


def test_an_event_that_cannot_be_rendered_is_counted(scene: Scene) -> None:
    with scene.reading() as reader:
        scene.windows.errors["EvtRender"] = [13]
        scene.write(3)
        until_sync(lambda: (scene.take(), 3 in scene.seen)[1])
        assert reader.unrendered == 1


def test_an_idle_reader_moves_on_with_the_log(scene: Scene) -> None:
    """The log wraps around with events that are not wanted: nothing is lost."""
    reader = scene.new_reader()
    reader._query = "*[System[(EventID=1)]]"
    scene.windows.logs[CHANNEL].room = 5
    reader.start()
    scene.reader = reader
    try:
        for number in range(1, 40):
            scene.write(1)
            until_sync(lambda number=number: (scene.take(), reader._position.record >= number)[1])
    finally:
        reader.stop()
    assert (reader.losses, scene.seen) == (0, [])
    assert scene.windows.open_handles == []


def test_reading_now_waits_for_what_the_log_has(scene: Scene) -> None:
    with scene.reading() as reader:
        for number in range(1, 20):
            scene.write(1)
            reader.read_now(30)
            assert scene.sees(*range(1, number + 1))


def test_a_reader_stops_while_its_queue_is_full(scene: Scene) -> None:
    with scene.reading():
        scene.write(channel_reader.QUEUE_BATCHES * channel_reader.BATCH_EVENTS + 100)
        until_sync(scene.batches.full)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("event-log")]


def test_positions_survive_a_file_that_is_damaged(tmp_path: Path) -> None:
    bookmark = Bookmark(tmp_path, "logins-Microsoft-Windows-Sysmon/Operational")
    assert bookmark.load(CHANNEL) is None
    bookmark.save(Position(CHANNEL, 7, 1.5))
    (file,) = tmp_path.iterdir()
    assert file.name == "logins-Microsoft-Windows-Sysmon-Operational.json"
    assert Bookmark(tmp_path, "logins-Microsoft-Windows-Sysmon/Operational").load(CHANNEL) == Position(CHANNEL, 7, 1.5)
    assert bookmark.load("System") is None
    for damaged in (b"", b"{", b'{"channel":"Security","record":-1,"time":0}', b"\xff" * 100):
        file.write_bytes(damaged)
        assert bookmark.load(CHANNEL) is None


@pytest.mark.parametrize("clock_steps", [0, -3_600])
def test_the_position_of_a_crash_is_that_of_the_last_but_one_second(scene: Scene, clock_steps: int) -> None:
    bookmark = Bookmark(scene.directory, "test")
    with scene.reading() as reader:
        reader._saved = float("-inf")
        reader.passed(Position(CHANNEL, 1, 10.0))
        reader._saved = float("-inf")
        reader.passed(Position(CHANNEL, 2, 11.0 + clock_steps))
        saved = bookmark.load(CHANNEL)
        assert saved is not None
        assert saved.record == 1
