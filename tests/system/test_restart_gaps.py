"""Restarts under load: each event that is missing lies within a declared gap, and what still runs is found."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from running_agent import RunningAgent, started
from stepped_clock import SteppedClock

pytestmark = pytest.mark.root

log = logging.getLogger(__name__)
MARK: Final = "restart-gaps"
SETTINGS: Final = {"sources.system_logs": "off", "osquery.socket": "off"}
LOAD: Final = """
import json, os, socket, sys, time
mark, rate, runs_on = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
server = socket.create_server(("127.0.0.1", 0))
begun, n = time.monotonic(), 0
while os.getppid() > 1:
    first = time.time()
    if n % 10 or not runs_on:
        pid = os.posix_spawn("/bin/true", [f"{mark}-{n}"], {})
    else:
        pid = os.posix_spawn("/bin/sleep", [f"{mark}-{n}", str(runs_on)], {}, file_actions=[(os.POSIX_SPAWN_CLOSE, 1)])
    spawned = time.time()
    if n % 10 or not runs_on:
        os.waitpid(pid, 0)
    ended = time.time()
    client = socket.create_connection(server.getsockname())
    port = client.getsockname()[1]
    connected = time.time()
    server.accept()[0].close()
    client.close()
    print(json.dumps([n, pid, first, spawned, ended, port, server.getsockname()[1], connected]), flush=True)
    n += 1
    time.sleep(max(0, begun + n / rate - time.monotonic()))
"""
"""Processes that end at once and, if asked for, one in ten that runs on; after each a TCP connection."""


@dataclass(frozen=True)
class Made:
    """A process and a connection of the load, with the time before and after each of their events."""

    number: int
    pid: int
    begun: float
    spawned: float
    ended: float
    port: int
    server_port: int
    connected: float

    @property
    def cmdline(self) -> str:
        return f"{MARK}-{self.number}"


@contextmanager
def load(rate: float, runs_on: int = 0) -> Iterator[list[Made]]:
    """The load in the background; gives what it has made."""
    script = subprocess.Popen(
        [sys.executable, "-c", LOAD, MARK, str(rate), str(runs_on)], stdout=subprocess.PIPE, text=True
    )
    made: list[Made] = []

    def read() -> None:
        assert script.stdout is not None
        made.extend(Made(*json.loads(line)) for line in script.stdout if line.endswith("]\n"))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield made
    finally:
        script.kill()
        script.wait()
        reader.join()
        assert script.stdout is not None
        script.stdout.close()


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    file = sqlite3.connect(f"file:{path / 'state' / 'events.db'}?mode=ro", uri=True)
    try:
        return file.execute(sql).fetchall()
    finally:
        file.close()


KINDS: Final = {"started": "processes", "stopped": "processes", "established": "sockets"}


def is_covered(what: str, first: float, last: float, gaps: list[tuple[float, float, str]]) -> bool:
    """Whether an event between these times can have been in a gap."""
    return any(begin <= last and first <= end for begin, end, source in gaps if source in {"agent", KINDS[what]})


async def one_life(path: Path, seconds: float, how: signal.Signals) -> float:
    """Run the agent, without waiting for more than its first answer; when that came, at which time all sources run."""
    with ExitStack() as lives:
        agent: RunningAgent = lives.enter_context(started(path, "--zeek=ws://127.0.0.1:9", settings=SETTINGS))
        await agent.ready()
        answered = time.time()
        await asyncio.sleep(seconds)
        if how == signal.SIGKILL:
            agent.kill()
        else:
            await asyncio.to_thread(agent.stop)
    return answered


@pytest.mark.long
@pytest.mark.parametrize("restarts", [1, pytest.param(10, marks=[pytest.mark.soak, pytest.mark.timeout(300)])])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
async def test_whatever_a_restart_misses_is_within_a_declared_gap(
    tmp_path: Path, how: signal.Signals, restarts: int
) -> None:
    with load(200) as made:
        first, *_, last = [await one_life(tmp_path, 1.0, how) for _ in range(restarts + 1)]
    started_rows = rows(
        tmp_path, f"SELECT pid FROM processes_events WHERE cmdline LIKE '{MARK}-%' AND state = 'started'"
    )
    sockets_rows = rows(
        tmp_path,
        "SELECT local_port, time FROM sockets_events WHERE state = 'established' AND direction = 'outbound' "
        f"AND remote_port = {made[0].server_port}",
    )
    connected = {(port, round(at)) for port, at in sockets_rows}  # a port may be used again, but not at once
    there = {
        "started": {pid for (pid,) in started_rows},
        "stopped": {pid for (pid,) in rows(tmp_path, "SELECT pid FROM processes_events WHERE state = 'stopped'")},
        "established": {
            one.number for one in made if connected & {(one.port, round(one.connected) + shift) for shift in (-1, 0, 1)}
        },
    }
    gaps = rows(tmp_path, 'SELECT "from", until, source FROM _gaps')
    restart_gaps = [gap for gap in gaps if gap[2] == "agent"]
    assert len(restart_gaps) == restarts
    # What came later is of no restart, and what is established waits a while in memory for its process.
    missing: list[tuple[str, float, float]] = []
    total = 0
    for one in made:
        events = [
            ("started", one.pid, one.begun, one.spawned),
            ("stopped", one.pid, one.spawned, one.ended),
            ("established", one.number, one.ended, one.connected),
        ]
        for what, key, begun, ended in events:
            if first < begun < last:
                total += 1
                if key not in there[what]:
                    missing.append((what, begun, ended))
    log.info("%d of %d events are missing; gaps in s: %s", len(missing), total, [round(b - a, 2) for a, b, _ in gaps])
    uncovered = [each for each in missing if not is_covered(*each, gaps)]
    assert missing
    assert not uncovered, f"{len(uncovered)} of {len(missing)} missing events are in no gap: {uncovered[:5]} {gaps}"


@pytest.mark.long
@pytest.mark.parametrize("restarts", [1, pytest.param(2, marks=pytest.mark.soak)])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
async def test_processes_that_began_while_nobody_recorded_and_still_run_are_found(
    tmp_path: Path, how: signal.Signals, restarts: int
) -> None:
    with load(100, runs_on=60) as made:
        for _ in range(restarts + 1):
            await one_life(tmp_path, 1.0, how)
    running = [one for one in made if one.number % 10 == 0]
    for one in running:
        os.kill(one.pid, signal.SIGKILL)
    started_rows = rows(
        tmp_path,
        "SELECT pid, time, found_running, entity_id FROM processes_events "
        f"WHERE state = 'started' AND cmdline LIKE '{MARK}-%'",
    )
    ((alive,),) = rows(tmp_path, "SELECT alive FROM _store")
    first = min(at for _, at, *_ in started_rows)
    expected = [one for one in running if first < one.begun and one.spawned < alive - 1]
    rows_of = {one.pid: [row for row in started_rows if row[0] == one.pid] for one in expected}
    assert not {pid: found for pid, found in rows_of.items() if len(found) != 1}
    found = [(one, row) for one in expected for row in rows_of[one.pid] if row[2]]
    assert found, "none began while nobody recorded"
    gaps = rows(tmp_path, 'SELECT "from", until, source FROM _gaps')
    for one, (_, at, _, entity_id) in found:
        assert one.begun - 0.02 <= at <= one.spawned
        assert entity_id
        assert is_covered("started", one.begun, one.spawned, gaps)
    assert len(found) < len(expected)


@pytest.mark.long
@pytest.mark.parametrize("step", [-3_600, pytest.param(3_600, marks=pytest.mark.soak)])
async def test_what_began_in_a_gap_is_found_although_the_clock_was_set_meanwhile(tmp_path: Path, step: int) -> None:
    clock = SteppedClock(tmp_path)

    async def run() -> None:
        with started(tmp_path, "--zeek=ws://127.0.0.1:9", settings=SETTINGS, environment=clock.environment) as agent:
            await agent.ready()

    with ExitStack() as sleepers:

        def sleeper() -> int:
            process = sleepers.enter_context(subprocess.Popen(["/bin/sleep", "60"]))
            sleepers.callback(process.kill)
            return process.pid

        before = sleeper()
        await run()
        ended = time.time()
        during = sleeper()
        await asyncio.sleep(0.1)
        clock.set_ahead(step)
        await run()
    found = rows(tmp_path, "SELECT pid, time FROM processes_events WHERE found_running")
    times = {pid: at for pid, at in found if pid in {before, during}}
    assert times.keys() == {during}
    gaps = rows(tmp_path, "SELECT \"from\", until FROM _gaps WHERE source = 'agent'")
    for at in (times[during], times[during] - step):
        assert any(begin <= at <= end for begin, end in gaps), (at, ended, gaps)
