"""The watcher in a thread of the tests, with what the running kernel cannot show."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from waiting import until_sync

from zeek_agent.recording.files import watch_messages
from zeek_agent.recording.files.fanotify_groups import FanotifyGroups
from zeek_agent.recording.files.file_watcher import FileWatcher
from zeek_agent.recording.files.watch_messages import Action, Change, Status, Watch

pytestmark = pytest.mark.root


@contextmanager
def watched(place: Path, *, joins_renames: bool) -> Iterator[list[Change]]:
    """The changes that a watcher sends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    watch = Watch([os.fsencode(place)], [], [], [b"ext4", b"tmpfs", b"xfs", b"btrfs", b"overlay"], 0.1, 100, 0, 0.0)
    groups = FanotifyGroups.opened()
    groups.joins_renames = joins_renames
    mountinfo = os.open("/proc/self/mountinfo", os.O_RDONLY)
    watcher = FileWatcher(theirs, watch, groups, mountinfo)
    changes: list[Change] = []
    ready = threading.Event()

    def receive() -> None:
        while packet := ours.recv(watch_messages.PACKET_BYTES_MAX):
            message = watch_messages.decode(packet)
            if isinstance(message, list):
                changes.extend(message)
            elif message.ready:
                ready.set()

    threads = [threading.Thread(target=watcher.run), threading.Thread(target=receive)]
    for thread in threads:
        thread.start()
    try:
        assert ready.wait(10)
        yield changes
    finally:
        ours.shutdown(socket.SHUT_WR)
        threads[0].join(10)
        theirs.close()
        threads[1].join(10)
        assert not any(thread.is_alive() for thread in threads)
        ours.close()
        groups.close()
        os.close(mountinfo)


def test_before_linux_5_17_a_rename_is_two_rows_that_have_the_old_path(tmp_path: Path) -> None:
    place = tmp_path / "watched"
    place.mkdir()
    old, new, outside, other = place / "old", place / "new", tmp_path / "outside", tmp_path / "other"
    old.touch()
    other.touch()
    with watched(place, joins_renames=False) as changes:
        old.rename(new)
        new.rename(outside)
        other.rename(old)
        until_sync(lambda: len(changes) >= 4)
        renames = [
            tuple(None if path is None else Path(os.fsdecode(path)) for path in (each.old_path, each.path))
            for each in changes
            if each.action is Action.RENAMED
        ]
        assert renames == [(old, None), (old, new), (new, None), (None, old)]
        assert {each.pid for each in changes} == {os.getpid()}


@pytest.mark.parametrize("joins_renames", [True, False])
def test_files_in_a_renamed_directory_have_their_new_path(tmp_path: Path, joins_renames: bool) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    (first / "below").mkdir(parents=True)
    with watched(tmp_path, joins_renames=joins_renames) as changes:
        first.rename(second)
        (second / "below" / "file").touch()
        wanted = os.fsencode(second / "below" / "file")
        until_sync(lambda: [each for each in changes if (each.action, each.path) == (Action.CREATED, wanted)])


def test_the_process_reports_while_it_marks_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        (tmp_path / str(number)).mkdir()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    groups = FanotifyGroups.opened()
    mark = groups.mark

    def slowly(flags: int, mask: int, directory: int, file_system: bytes) -> None:
        time.sleep(0.02)  # 0.6 s for all
        mark(flags, mask, directory, file_system)

    monkeypatch.setattr(groups, "mark", slowly)
    mountinfo = os.open("/proc/self/mountinfo", os.O_RDONLY)
    watch = Watch([os.fsencode(tmp_path)], [], [], [b"ext4", b"tmpfs", b"xfs", b"btrfs"], 0.1, 100, 0, 0.0)
    thread = threading.Thread(target=FileWatcher(theirs, watch, groups, mountinfo).run)
    thread.start()
    statuses = []
    while not statuses or not statuses[-1].ready:
        message = watch_messages.decode(ours.recv(watch_messages.PACKET_BYTES_MAX))
        assert isinstance(message, Status)
        statuses.append(message)
    ours.shutdown(socket.SHUT_WR)
    thread.join(10)
    for descriptor in (ours, theirs):
        descriptor.close()
    groups.close()
    os.close(mountinfo)
    assert [status.ready for status in statuses][:2] == [False, False]
