"""Process and socket events by psutil, from what really happens on this host."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from recording import Recording
from waiting import until_sync

from zeek_agent import platforms
from zeek_agent.config.sections import EventSettings, SourceSettings
from zeek_agent.events.store import EventStore
from zeek_agent.host.internet_sockets import TCP, InternetSocket, TcpState
from zeek_agent.host.portable.processes import no_start
from zeek_agent.host.portable.sockets import HeldSocket, Withheld
from zeek_agent.host.portable.system import PosixSystem, WindowsSystem, portable_system
from zeek_agent.masking.masker import Masker
from zeek_agent.recording import registry
from zeek_agent.recording.portable_snapshots import (
    PortableProcessSnapshots,
    PortableSocketSnapshots,
    one_per_socket,
    socket_key,
)
from zeek_agent.recording.processes.portable_reader import PortableReader
from zeek_agent.recording.processes.process import Process
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.recording.source import MissedTime
from zeek_agent.recording.supervisor import Supervisor
from zeek_agent.tables import builtin_tables

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="uses the readers for POSIX systems")

BOOT = "a1b2c3d4-0000-0000-0000-000000000000"
PROCESSES, SOCKETS = "processes_events", "sockets_events"
SYSTEM = PosixSystem(lambda: BOOT, no_start)


def settings() -> SourceSettings:
    return SourceSettings(ignore_self=False, snapshot_interval=0.1)


def cache() -> ProcessCache:
    return ProcessCache(masker=Masker(), living=PortableReader(SYSTEM.processes))


@pytest.fixture(scope="module")
def recording() -> Iterator[Recording]:
    shared = cache()
    with Recording(
        [
            PortableProcessSnapshots(shared, settings(), SYSTEM),
            PortableSocketSnapshots(shared, settings(), SYSTEM),
        ]
    ) as recording:
        yield recording


@contextmanager
def program(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program whose standard input ends with the block."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def test_a_process_has_a_start_and_a_stop(recording: Recording) -> None:
    before = time.time()
    with program("/bin/cat", "--", "-") as process:
        (started,) = recording.expect(PROCESSES, 1, 30.0, pid=process.pid, state="started")
    (stopped,) = recording.expect(PROCESSES, 1, 30.0, pid=process.pid, state="stopped")
    assert (started["name"], started["cmdline"], started["ppid"]) == ("cat", "/bin/cat -- -", os.getpid())
    assert (started["uid"], started["gid"]) == (os.geteuid(), os.getegid())
    assert started["parent_entity_id"] is not None
    assert started["entity_id"] == stopped["entity_id"]
    assert started["entity_id"].startswith(f"a1b2c3d40000-{process.pid}-")
    assert before - 1.5 <= started["time"] <= stopped["time"]  # psutil rounds the time of the boot
    assert stopped["duration"] == pytest.approx(stopped["time"] - started["time"], abs=0.01)
    assert (stopped["exit_code"], stopped["utime"], stopped["stime"]) == (None, None, None)
    assert (started["user"], started["sid"]) == (None, None)


def test_a_program_that_replaces_another_has_a_start_of_its_own(recording: Recording) -> None:
    with program("/bin/sh", "-c", "read line; exec cat") as process:
        recording.expect(PROCESSES, 1, 30.0, pid=process.pid, state="started")
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
        (later,) = recording.expect(PROCESSES, 1, 30.0, pid=process.pid, state="started", cmdline="cat")
    (first, *_) = recording.expect(PROCESSES, 2, 30.0, pid=process.pid, state="started")
    assert later["entity_id"] == first["entity_id"]
    assert later["exe"] != first["exe"]
    recording.expect(PROCESSES, 1, 30.0, pid=process.pid, state="stopped")


def test_a_connection_has_both_its_ends_and_their_process(recording: Recording) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client, server.accept()[0]:
            mine = client.getsockname()[1]
            (outbound,) = recording.expect(SOCKETS, 1, 30.0, local_port=mine, state="established")
            (inbound,) = recording.expect(SOCKETS, 1, 30.0, remote_port=mine, state="established")
            (listening,) = recording.expect(SOCKETS, 1, 30.0, local_port=port, state="listen")
    recording.expect(SOCKETS, 1, 30.0, local_port=mine, state="closed")
    assert (outbound["direction"], inbound["direction"]) == ("outbound", "inbound")
    assert outbound["community_id"] == inbound["community_id"] is not None
    for event in (outbound, inbound, listening):
        assert (event["pid"], event["uid"], event["protocol"]) == (os.getpid(), os.geteuid(), TCP)
        assert event["entity_id"] is not None
        assert (event["cookie"], event["netns"]) == (None, None)


def test_both_sources_can_work_here() -> None:
    shared = cache()
    assert PortableProcessSnapshots(shared, settings(), SYSTEM).probe() is None
    assert PortableSocketSnapshots(shared, settings(), SYSTEM).probe() is None


def test_sockets_that_are_not_visible_are_reported() -> None:
    class Hidden(PosixSystem):
        def sockets(self, withheld, pids=None, check=lambda: None):  # type: ignore[no-untyped-def]
            withheld(Withheld(7))
            return iter(())

    source = PortableSocketSnapshots(cache(), settings(), Hidden(lambda: BOOT, no_start))
    assert source.probe() is None
    assert source.counters.last_error == "the sockets of 7 processes are not visible to this user"


def test_a_system_that_cannot_be_listed_has_no_source() -> None:
    class Broken(PosixSystem):
        def processes(self):  # type: ignore[no-untyped-def]
            raise psutil.AccessDenied(1)

        def sockets(self, withheld, pids=None, check=lambda: None):  # type: ignore[no-untyped-def]
            raise OSError("no table of sockets")

    broken = Broken(lambda: BOOT, no_start)
    assert "cannot list processes" in (PortableProcessSnapshots(cache(), settings(), broken).probe() or "")
    assert PortableSocketSnapshots(cache(), settings(), broken).probe() == "cannot list sockets: no table of sockets"


def test_processes_that_began_unrecorded_are_found_at_the_start() -> None:
    begun = time.time()
    with program("/bin/cat", "unrecorded", "-") as process:
        until_sync(lambda: psutil.Process(process.pid).name() == "cat")
        source = PortableProcessSnapshots(cache(), settings(), SYSTEM)
        source.missed = MissedTime(begun - 2.0, lambda *_: frozenset())
        with Recording([source]) as recording:
            (found,) = recording.expect(PROCESSES, 1, 30.0, pid=process.pid, state="started")
            assert found["found_running"] is True
        source = PortableProcessSnapshots(cache(), settings(), SYSTEM)
        source.missed = MissedTime(begun - 2.0, lambda *_: frozenset({found["entity_id"]}))
        with Recording([source]) as recording:
            recording.sources[0].drain()
            assert [event for event in recording.events(PROCESSES) if event["pid"] == process.pid] == []


def test_a_failed_source_leaves_a_gap(tmp_path: Path) -> None:
    """The supervisor and the store treat these sources like those of Linux."""
    store = EventStore(tmp_path / "events.db", [t for t in builtin_tables() if t.kind == "events"], EventSettings())
    source = PortableProcessSnapshots(cache(), settings(), SYSTEM)
    source.retry_seconds = 0.0
    supervisor = Supervisor(settings(), store, choose=lambda *_: {"processes": [source]}, interval_seconds=0.05)
    try:
        supervisor.start()
        (status,) = supervisor.status()
        assert (status.source, status.backend, status.active) == ("processes", "snapshots", True)
        source.failed("the list of processes ended")
        until_sync(lambda: [gap for gap in store.gaps() if gap.source == "processes"])
        assert supervisor.status()[0].last_error == "the list of processes ended"
    finally:
        supervisor.stop()
        store.close()


# Which backends there are


@pytest.mark.parametrize("key", ["darwin", "win32"])
def test_other_systems_have_snapshots(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WindowsSystem, "processes", SYSTEM.processes)
    chosen = registry.candidates(SourceSettings(), platform=platforms.of(key))
    assert chosen.keys() == registry.KINDS.keys()
    assert "snapshots" in {source.backend for source in chosen["processes"]}
    assert "snapshots" in {source.backend for source in chosen["sockets"]}


def test_the_system_of_a_group_has_its_dialect() -> None:
    assert portable_system("windows").has_datagram_peers is False
    assert portable_system("darwin").has_datagram_peers is True
    assert 50_000 in portable_system("darwin").ephemeral_ports


# Sockets that several processes have open

LISTENER = InternetSocket(TCP, TcpState.LISTEN, bytes(4), 80, bytes(4), 0, 0, None, None)
CONNECTION = InternetSocket(TCP, TcpState.ESTABLISHED, bytes(4), 80, b"\xc0\x00\x02\x01", 999, 0, None, None)


def processes(**parents: int) -> dict[int, Process]:
    """Processes by pid with their parents, each younger than the one before."""
    return {
        int(name[1:]): Process(int(name[1:]), number, number, number, name, name, ppid)
        for number, (name, ppid) in enumerate(parents.items())
    }


def held(socket: InternetSocket, *pids: int) -> list[HeldSocket]:
    return [HeldSocket(socket._replace(inode=pid), pid, 3) for pid in pids]


def test_an_inherited_listener_is_the_parents() -> None:
    found = list(one_per_socket(held(LISTENER, 12, 11, 10), processes(p10=1, p11=10, p12=10).get))
    assert [one.inode for one in found] == [10]


def test_processes_that_share_a_port_have_a_listener_each() -> None:
    found = list(one_per_socket(held(LISTENER, 10, 11), processes(p10=1, p11=1).get))
    assert [one.inode for one in found] == [10, 11]
    assert len({socket_key(None, one) for one in found}) == 2


def test_a_connection_is_the_oldest_processs() -> None:
    found = list(one_per_socket(held(CONNECTION, 12, 11), processes(p11=1, p12=11).get))
    assert [one.inode for one in found] == [11]


def test_a_connection_that_is_passed_on_stays_the_same() -> None:
    assert socket_key(None, replace_holder(CONNECTION, 11)) == socket_key(None, replace_holder(CONNECTION, 12))


def replace_holder(socket: InternetSocket, pid: int) -> InternetSocket:
    return socket._replace(inode=pid)


def test_a_process_that_has_ended_holds_nothing_first() -> None:
    found = list(one_per_socket(held(CONNECTION, 13, 11), processes(p11=1).get))
    assert [one.inode for one in found] == [11]


def test_versions_of_a_process_are_compared_by_their_start() -> None:
    """The cache returns no other process that had the pid before."""
    known = cache()
    shown = known.read(os.getpid())
    assert shown is not None
    known.begin(replace(shown, start_ticks=1, entity_id="old"))
    assert known.exit(os.getpid(), 2, shown.start_ticks) is None
