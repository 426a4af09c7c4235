"""Events of the real program: overload, a crash under load, each backend, and memory over hundreds of thousands."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from recording import Recording, generate, load_generator
from running_agent import RunningAgent, running, until

from zeek_agent.config import SourceSettings
from zeek_agent.recording.bpf_monitor import Monitor
from zeek_agent.recording.processes.ebpf_processes import EbpfProcesses
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.recording.sockets.ebpf_sockets import EbpfSockets

pytestmark = pytest.mark.root
QUIET = {"sources.translations": "off", "sources.system_logs": "off", "osquery.socket": "off"}
ACTIVE = "SELECT source, backend, received, lost_overrun FROM zeek_agent_sources WHERE active"


def counted(agent: RunningAgent) -> dict[str, dict[str, Any]]:
    """The active backend of each kind of event, and its counters."""
    return {row["source"]: row for row in agent.query(ACTIVE)}


@contextmanager
def load(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """The generator in the background; killed at the end."""
    command = [load_generator(), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@contextmanager
def witness() -> Iterator[Callable[[], dict[str, int]]]:
    """The same sources in this process, with room for everything; gives how many records there were, of each kind."""
    settings = SourceSettings(ring_bytes=32 << 20)
    monitor = Monitor(ProcessCache(), settings.ring_bytes)
    with Recording([EbpfProcesses(monitor, settings), EbpfSockets(monitor, settings)]) as recording:

        def seen() -> dict[str, int]:
            for source in recording.sources:
                source.drain()
                assert source.counters.lost["overrun"] == 0
            return {source.kind: source.counters.received for source in recording.sources}

        yield seen


async def test_what_the_buffers_have_no_room_for_is_counted_exactly_and_the_agent_answers_meanwhile(
    tmp_path: Path,
) -> None:
    exe = load_generator()
    small = {**QUIET, "sources.ring_bytes": 16384, "sources.ignore_self": "false"}
    async with running(tmp_path, settings=small) as agent:
        with accepting() as port, witness() as seen:

            async def both() -> tuple[dict[str, int], dict[str, int]]:
                """What the agent received or lost, and what there was, at a moment at which nothing happens.

                The agent brings its counters up to date each second.
                """
                while True:
                    before, theirs = seen(), await asyncio.to_thread(counted, agent)
                    await asyncio.sleep(1.5)
                    if before == seen() and theirs == await asyncio.to_thread(counted, agent) and before == seen():
                        return {kind: row["received"] + row["lost_overrun"] for kind, row in theirs.items()}, before

            ours_before, all_before = await both()
            slowest = 0.0
            making = asyncio.create_task(asyncio.to_thread(generate, "exec", 3000, 0, exe, "tcp", "127.0.0.1", port))
            while not making.done():
                begun = time.monotonic()
                await agent.ask("SELECT count(*) FROM processes_events")
                slowest = max(slowest, time.monotonic() - begun)
            made = len(await making)
            ours, everything = await both()
        lost = {kind: row["lost_overrun"] for kind, row in counted(agent).items()}
        happened = {kind: everything[kind] - all_before[kind] for kind in everything}
        assert {kind: ours[kind] - ours_before[kind] for kind in ours} == happened
        assert happened["processes"] >= 3 * made
        assert happened["sockets"] >= 4 * made
        assert all(lost.values()), lost
        assert slowest < 2.0
        gaps = "SELECT * FROM zeek_agent_gaps WHERE source = 'processes' AND cause = 'overrun'"
        await until(lambda: agent.query(gaps), 15, "the time of losses is no gap")


async def test_two_thousand_executions_a_second_are_there_or_counted(tmp_path: Path) -> None:
    exe = load_generator()
    rows = (
        "SELECT state, count(*) AS n, count(DISTINCT entity_id) AS processes FROM processes_events "
        f"WHERE exe = '{exe}' AND cmdline = '{exe} nothing' GROUP BY state"
    )
    async with running(tmp_path, settings=QUIET) as agent:
        made = await asyncio.to_thread(generate, "exec", 60_000, 2000, exe, "nothing", seconds=90)
        pids = [pid for (pid,) in made]
        assert len(pids) == 60_000

        def complete() -> bool:
            missing = 2 * len(pids) - sum(row["n"] for row in agent.query(rows))
            return missing <= counted(agent)["processes"]["lost_overrun"]

        await until(complete, 15, "events are neither there nor counted as lost")
        found = {row["state"]: row for row in agent.query(rows)}
        sql = (
            f"SELECT pid FROM processes_events WHERE exe = '{exe}' AND cmdline = '{exe} nothing' AND state = 'started'"
        )
        started = Counter(row["pid"] for row in await agent.ask(sql))
        lost = counted(agent)["processes"]["lost_overrun"]
    assert started <= Counter(pids)
    assert len(pids) - started.total() <= lost
    for state in ("started", "stopped"):
        assert found[state]["processes"] == found[state]["n"]


async def test_an_agent_that_is_killed_under_load_keeps_all_it_had_and_shows_the_gap(tmp_path: Path) -> None:
    exe = load_generator()
    seen = f"SELECT seq, pid, state FROM processes_events WHERE exe = '{exe}'"
    with load("exec", 100_000, 500, exe, "nothing"):
        async with running(tmp_path, settings=QUIET) as agent:
            await until(lambda: len(agent.query(seen)) > 1000, 20, "no events")
            before = {(row["seq"], row["pid"], row["state"]) for row in agent.query(seen)}
            killed = time.time()
            agent.process.send_signal(signal.SIGKILL)
            agent.process.wait()
        file = sqlite3.connect(next(agent.state.glob("*.db")))
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        file.close()
        await asyncio.sleep(1)
        async with running(tmp_path, settings=QUIET) as agent:
            await until(lambda: len(agent.query(seen)) > len(before) + 1000, 20, "no events after the crash")
            after = {(row["seq"], row["pid"], row["state"]) for row in agent.query(seen)}
            (gap,) = agent.query("SELECT * FROM zeek_agent_gaps WHERE source = 'agent'")
    assert before <= after
    assert len({seq for seq, _, _ in after}) == len(after)
    assert gap["cause"] == "crashed"
    assert killed - 2.0 < gap["from"] < killed + 1.0 <= gap["until"]


BACKENDS = [
    ("ebpf", "ebpf", {}),
    ("proc_connector", "inet_diag", {}),
    ("audit", "audit", {"sources.audit_rules": "true"}),
    ("snapshots", "snapshots", {"sources.snapshot_interval": 0.5}),
]

CLIENT = """
import socket, sys, time
time.sleep(1.2)
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
    print(connection.getsockname()[1], flush=True)
    time.sleep(1.2)
"""


@pytest.mark.parametrize(("processes", "sockets", "more"), BACKENDS, ids=[f"{one}-{two}" for one, two, _ in BACKENDS])
async def test_each_backend_can_be_chosen_and_tells_of_a_process_and_its_connection(
    tmp_path: Path, processes: str, sockets: str, more: dict[str, object]
) -> None:
    settings = {**QUIET, "sources.processes": processes, "sources.sockets": sockets, **more}
    exe = str(Path(sys.executable).resolve())
    async with running(tmp_path, settings=settings) as agent:
        assert {kind: row["backend"] for kind, row in counted(agent).items()} == {
            "processes": processes,
            "sockets": sockets,
        }
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            with subprocess.Popen([sys.executable, "-c", CLIENT, str(port)], stdout=subprocess.PIPE) as client:
                assert client.stdout is not None
                local = int(await asyncio.to_thread(client.stdout.readline))
                (shown,) = await agent.ask(f"SELECT entity_id FROM processes WHERE pid = {client.pid}")
                await asyncio.to_thread(client.wait)
        happened = f"SELECT * FROM processes_events WHERE pid = {client.pid} AND state = "
        connection = f"SELECT * FROM sockets_events WHERE local_port = {local} AND state = 'established'"
        for sql in (f"{happened}'started' AND exe = '{exe}'", f"{happened}'stopped'", connection):
            row = (await until(lambda sql=sql: agent.query(sql), 10, sql))[-1]  # type: ignore[misc]
            assert (row["entity_id"], row["uid"], row["exe"]) == (shown["entity_id"], 0, exe)
        assert (row["pid"], row["remote_port"], row["direction"]) == (client.pid, port, "outbound")
        assert row["community_id"].startswith("1:")


EVENTS = 200_000
SMALL = {"sources.process_cache": 2000, "events.retention_bytes": 16 << 20, "events.queue_rows": 20_000}
"""What is kept at most is little, so that the agent has it all soon: after that nothing may grow."""


@contextmanager
def accepting() -> Iterator[int]:
    """A port at which a process accepts and closes connections."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as server:
        port = server.getsockname()[1]
        pid = os.fork()
        if pid == 0:
            while True:
                server.accept()[0].close()
    try:
        yield port
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def busy_round() -> None:
    """About 48,000 records of the kernel: processes with a connection each, and one with many."""
    with accepting() as port:
        generate("exec", 1000, 0, load_generator(), "tcp", "127.0.0.1", port)
        generate("connections", "127.0.0.1", port, 8000, 4000)


async def test_memory_descriptors_and_threads_stay_over_two_hundred_thousand_events(tmp_path: Path) -> None:
    """Less than 1 KB for 1,000 events. How long warming up takes depends on the machine, so it may take a while."""
    seen: list[tuple[int, int, tuple[int, int]]] = []

    def steady() -> bool:
        events, memory, held = seen[-1]
        return any(
            events - events_before >= EVENTS and memory - memory_before < events - events_before and held == held_before
            for events_before, memory_before, held_before in seen
        )

    async with running(tmp_path, "--zeek=ws://127.0.0.1:9", settings={**QUIET, **SMALL}) as agent:
        while not seen or not steady():
            await asyncio.to_thread(busy_round)
            received = sum(row["received"] for row in counted(agent).values())
            seen.append((received, agent.resident(), (agent.descriptors(), agent.threads())))
            assert received < 5 * EVENTS, f"events, bytes, descriptors and threads: {seen}"
