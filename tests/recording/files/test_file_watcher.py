"""The watcher in a thread of the tests, with what the running kernel cannot show."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from waiting import until_sync

from zeek_agent.recording.files import fanotify, watch_messages
from zeek_agent.recording.files.file_watcher import FileWatcher
from zeek_agent.recording.files.watch_messages import Action, Change, Watch

pytestmark = pytest.mark.root


@contextmanager
def watched(place: Path, *, joins_renames: bool) -> Iterator[list[Change]]:
    """The changes that a watcher sends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    watch = Watch([os.fsencode(place)], [], [], [b"ext4", b"tmpfs", b"xfs", b"btrfs", b"overlay"], 0.1, 100, 0, 0.0)
    group, _ = fanotify.open_group()
    mountinfo = os.open("/proc/self/mountinfo", os.O_RDONLY)
    watcher = FileWatcher(theirs, watch, group, joins_renames=joins_renames, mountinfo=mountinfo)
    changes: list[Change] = []
    ready = threading.Event()

    def receive() -> None:
        while packet := ours.recv(watch_messages.PACKET_BYTES_MAX):
            message = watch_messages.decode(packet)
            if isinstance(message, list):
                changes.extend(message)
            else:
                ready.set()

    threads = [threading.Thread(target=watcher.run), threading.Thread(target=receive)]
    for thread in threads:
        thread.start()
    try:
        assert ready.wait(10)
        yield changes
    finally:
        ours.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in threads)
        for end in (ours, theirs):
            end.close()
        for descriptor in (group, mountinfo):
            os.close(descriptor)


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
