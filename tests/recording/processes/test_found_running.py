"""Processes that began while nobody recorded are found when a source starts, each once."""

from __future__ import annotations

import multiprocessing
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from waiting import until_sync

from zeek_agent.config.sections import SourceSettings
from zeek_agent.host.entity_id import entity_id
from zeek_agent.host.linux.procfs import Procfs, ProcfsProcess
from zeek_agent.host.linux.stamps import boot_id
from zeek_agent.recording.bpf_monitor import BpfMonitor
from zeek_agent.recording.processes.ebpf_processes import EbpfProcesses
from zeek_agent.recording.processes.proc_connector import ProcConnector
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.recording.processes.process_event import ProcessEvent
from zeek_agent.recording.snapshots import ProcessSnapshots
from zeek_agent.recording.source import MissedTime, Source

pytestmark = pytest.mark.root
SETTINGS = SourceSettings(snapshot_interval=0.1)
SOURCES: dict[str, Callable[[], Source]] = {
    "ebpf": lambda: EbpfProcesses(BpfMonitor(ProcessCache()), SETTINGS),
    "proc_connector": lambda: ProcConnector(ProcessCache(), SETTINGS),
    "snapshots": lambda: ProcessSnapshots(ProcessCache(), SETTINGS),
}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> Iterator[Source]:
    source = SOURCES[request.param]()
    assert source.probe() is None
    yield source
    source.stop()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        yield process
        process.kill()


def entity(pid: int) -> str:
    with ProcfsProcess(Procfs("/proc"), pid) as process:
        return entity_id(boot_id(), pid, process.start_ticks)


def started(source: Source, missed: MissedTime | None) -> list[ProcessEvent]:
    """The source's rows; it has started, and everything from before was passed on."""
    rows: list[Any] = []

    def sink(_: str, events: Sequence[Any]) -> None:
        rows.extend(events)

    source.missed = missed
    source.start(sink)
    source.drain()
    return rows


def of(rows: list[ProcessEvent], pid: int) -> list[tuple[str, bool]]:
    return [(row.state, row.found_running) for row in rows if row.pid == pid]


def test_a_process_that_began_in_the_gap_has_one_row(source: Source, sleeper: subprocess.Popen[bytes]) -> None:
    begun = time.time()
    time.sleep(0.05)  # two ticks of the clock by which /proc tells when a process began
    asked: list[tuple[str, float]] = []

    def entities_since(table: str, since: float) -> frozenset[str]:
        asked.append((table, since))
        return frozenset()

    rows = started(source, MissedTime(begun - 0.5, entities_since))
    until_sync(lambda: bool(of(rows, sleeper.pid)))
    assert of(rows, sleeper.pid) == [("started", True)]
    (row,) = [row for row in rows if row.pid == sleeper.pid]
    assert (row.exe, row.cmdline) == ("/usr/bin/sleep", "/bin/sleep 60")
    assert row.entity_id == entity(sleeper.pid)
    assert begun - 0.5 < row.time <= begun
    assert not of(rows, 1)
    assert asked == [("processes_events", begun - 0.5)]
    sleeper.kill()
    sleeper.wait()
    until_sync(lambda: source.drain() or len(of(rows, sleeper.pid)) > 1)
    assert of(rows, sleeper.pid) == [("started", True), ("stopped", False)]


def test_a_process_that_was_recorded_before_the_gap_is_not_found(
    source: Source, sleeper: subprocess.Popen[bytes]
) -> None:
    recorded = frozenset({entity(sleeper.pid)})
    time.sleep(0.05)
    rows = started(source, MissedTime(time.time() - 5.0, lambda *_: recorded))
    time.sleep(0.3)
    source.drain()
    assert not of(rows, sleeper.pid)


def test_without_an_earlier_run_nothing_is_found(source: Source, sleeper: subprocess.Popen[bytes]) -> None:
    time.sleep(0.05)
    rows = started(source, None)
    time.sleep(0.3)
    source.drain()
    assert not of(rows, sleeper.pid)


def test_what_begins_during_the_start_is_there_once(source: Source) -> None:
    """Some is in /proc and in the kernel's records; whichever comes first."""
    with subprocess.Popen(
        [
            "/bin/sh",
            "-c",
            "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do /bin/sleep 20 & sleep 0.02; done; wait",
        ]
    ) as shell:
        try:
            time.sleep(0.1)
            rows = started(source, MissedTime(time.time() - 5.0, lambda *_: frozenset()))
            time.sleep(1.5)
            source.drain()
        finally:
            shell.kill()
            shell.wait()
    pids = {row.pid for row in rows if row.cmdline == "/bin/sleep 20" and row.state == "started"}
    subprocess.run(["kill", *map(str, pids)], check=False, capture_output=True)
    for pid in pids:
        executed = [row for row in rows if row.pid == pid and row.state == "started" and row.cmdline == "/bin/sleep 20"]
        assert len(executed) == 1, executed
    if source.backend == "ebpf":
        assert len(pids) == 20


def test_processes_that_began_while_the_ring_was_full_are_found_once() -> None:
    monitor = BpfMonitor(ProcessCache(), ring_bytes=16_384)
    source = EbpfProcesses(monitor, SETTINGS)
    rows = started(source, None)
    with subprocess.Popen(["/bin/sleep", "60"]) as recorded:
        until_sync(lambda: source.drain() or bool(of(rows, recorded.pid)))
        since = time.time()
        with monitor.lock:
            for _ in range(50):
                subprocess.run(["/bin/true"], check=True)
            lost = subprocess.Popen(["/bin/sleep", "60"])
            time.sleep(0.05)
        source.drain()
        overrun = source.counters.lost["overrun"]
        assert overrun > 0
        assert not of(rows, lost.pid)
        with monitor.lock:
            after = subprocess.Popen(["/bin/sleep", "60"])  # its records wait in the ring
            copy = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
            copy.start()
            source.find_lost(since)
            source.find_lost(since)
        until_sync(lambda: source.drain() or all(of(rows, one.pid or 0) for one in (after, copy)))
        source.find_lost(since)
        copy.kill()
        copy.join()
        for process in (recorded, lost, after):
            process.kill()
            process.wait()
        until_sync(lambda: source.drain() or all(len(of(rows, one.pid)) > 1 for one in (recorded, lost, after)))
    source.stop()
    assert of(rows, recorded.pid) == [("started", False), ("stopped", False)]
    assert of(rows, lost.pid) == [("started", True), ("stopped", False)]
    for process in (after, copy):
        assert [state for state, _ in of(rows, process.pid or 0)] == ["started", "stopped"]
        assert source.counters.lost["overrun"] > overrun or not any(found for _, found in of(rows, process.pid or 0))
    (row,) = [row for row in rows if row.pid == lost.pid and row.state == "started"]
    assert (row.exe, row.entity_id is not None, since <= row.time + 0.02) == ("/usr/bin/sleep", True, True)
