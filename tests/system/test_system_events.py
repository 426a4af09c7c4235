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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from children import fork
from recording import generate, load_generator
from running_agent import RunningAgent, running
from waiting import until

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


@pytest.mark.long
async def test_events_beyond_the_buffers_are_counted_and_the_agent_still_answers(tmp_path: Path) -> None:
    """Of the load's own events each is there once or was counted as lost; that the count is exact, the sources show."""
    exe = load_generator()
    small = {**QUIET, "sources.ring_bytes": 16384, "sources.ignore_self": "false"}
    async with running(tmp_path, settings=small) as agent:
        with accepting() as port:
            answers = 0
            making = asyncio.create_task(asyncio.to_thread(generate, "exec", 1000, 0, exe, "tcp", "127.0.0.1", port))
            while not making.done():
                await agent.ask("SELECT count(*) FROM processes_events")
                answers += 1
            made = await making
            with stopped(agent):  # now there is too much for the buffers, however fast the agent is
                made += await asyncio.to_thread(generate, "exec", 200, 0, exe, "tcp", "127.0.0.1", port)
        kinds = {
            "processes": ("state", f"processes_events WHERE exe = '{exe}'", ("started", "stopped")),
            "sockets": ("direction || state", f"sockets_events WHERE remote_port = {port}", ("outboundestablished",)),
        }

        async def missing() -> dict[str, int]:
            """Of each kind, how many events are not there; none is there twice."""
            found = {}
            for kind, (what, rows, wanted) in kinds.items():
                sql = f"SELECT {what} AS what, entity_id FROM {rows}"
                there = Counter(
                    (row["what"], row["entity_id"]) for row in await agent.ask(sql) if row["what"] in wanted
                )
                assert set(there.values()) <= {1}
                found[kind] = len(wanted) * len(made) - len(there)
            return found

        async def all_are_there_or_counted() -> bool:
            counters = await asyncio.to_thread(counted, agent)
            return all(number <= counters[kind]["lost_overrun"] for kind, number in (await missing()).items())

        await until(all_are_there_or_counted, complaint="events are neither there nor counted as lost")
        assert answers > 1
        assert all((await missing()).values())
        # a gap ends after three seconds without a loss, which other load can delay, and after a minute
        gaps = "SELECT * FROM zeek_agent_gaps WHERE source = 'processes' AND cause = 'overrun'"
        await until(lambda: agent.ask(gaps), 75, "the time of losses is no gap")


@contextmanager
def stopped(agent: RunningAgent) -> Iterator[None]:
    """It gets no turn within the block."""
    agent.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        agent.process.send_signal(signal.SIGCONT)


@pytest.mark.long
@pytest.mark.parametrize("executions", [4_000, pytest.param(60_000, marks=pytest.mark.soak)])
async def test_two_thousand_executions_a_second_are_there_or_counted(tmp_path: Path, executions: int) -> None:
    exe = load_generator()
    rows = (
        "SELECT state, count(*) AS n, count(DISTINCT entity_id) AS processes FROM processes_events "
        f"WHERE exe = '{exe}' AND cmdline = '{exe} nothing' GROUP BY state"
    )
    async with running(tmp_path, settings=QUIET) as agent:
        made = await asyncio.to_thread(generate, "exec", executions, 2000, exe, "nothing", seconds=100)
        pids = [pid for (pid,) in made]
        assert len(pids) == executions

        async def complete() -> bool:
            missing = 2 * len(pids) - sum(row["n"] for row in await agent.ask(rows))
            return missing <= (await asyncio.to_thread(counted, agent))["processes"]["lost_overrun"]

        await until(complete, complaint="events are neither there nor counted as lost")
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


@pytest.mark.long
async def test_an_agent_that_is_killed_under_load_keeps_all_it_had_and_shows_the_gap(tmp_path: Path) -> None:
    exe = load_generator()
    seen = f"SELECT seq, pid, state FROM processes_events WHERE exe = '{exe}'"

    async def more_than(number: int) -> bool:
        return len(await agent.ask(seen)) > number

    begun = time.time()
    with load("exec", 100_000, 500, exe, "nothing"):
        async with running(tmp_path, settings=QUIET) as agent:
            await until(lambda: more_than(1000), complaint="no events")
            before = {(row["seq"], row["pid"], row["state"]) for row in agent.query(seen)}
            killed = time.time()
            agent.process.send_signal(signal.SIGKILL)
            agent.process.wait()
        file = sqlite3.connect(next(agent.state.glob("*.db")))
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        file.close()
        await asyncio.sleep(1)
        async with running(tmp_path, settings=QUIET) as agent:
            await until(lambda: more_than(len(before) + 1000), complaint="no events after the crash")
            after = {(row["seq"], row["pid"], row["state"]) for row in agent.query(seen)}
            (gap,) = agent.query("SELECT * FROM zeek_agent_gaps WHERE source = 'agent'")
    assert before <= after
    assert len({seq for seq, _, _ in after}) == len(after)
    assert gap["cause"] == "crashed"
    assert begun < gap["from"] < killed + 1.0 <= gap["until"]


BACKENDS = [
    ("ebpf", "ebpf", {}),
    ("proc_connector", "inet_diag", {}),
    ("audit", "audit", {"sources.audit_rules": "true"}),
    ("snapshots", "snapshots", {"sources.snapshot_interval": 0.5}),
]

CLIENT = """
import socket, sys
sys.stdin.readline()
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
    print(connection.getsockname()[1], flush=True)
    sys.stdin.readline()
"""


@pytest.mark.long(kept=1)
@pytest.mark.parametrize(("processes", "sockets", "more"), BACKENDS, ids=[f"{one}-{two}" for one, two, _ in BACKENDS])
async def test_each_backend_can_be_chosen_and_records_a_process_and_its_connection(
    tmp_path: Path, processes: str, sockets: str, more: dict[str, object]
) -> None:
    settings = {**QUIET, "sources.processes": processes, "sources.sockets": sockets, **more}
    exe = str(Path(sys.executable).resolve())
    async with running(tmp_path, settings=settings) as agent:
        backends = {kind: row["backend"] for kind, row in counted(agent).items()}
        assert (backends["processes"], backends["sockets"]) == (processes, sockets)
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            subprocess.Popen(
                [sys.executable, "-c", CLIENT, str(port := server.getsockname()[1])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
            ) as client,
        ):
            assert client.stdin is not None
            assert client.stdout is not None
            happened = f"SELECT * FROM processes_events WHERE pid = {client.pid} AND state = "
            rows = [await one_row(agent, f"{happened}'started' AND exe = '{exe}'")]
            (shown,) = await agent.ask(f"SELECT entity_id FROM processes WHERE pid = {client.pid}")
            client.stdin.write(b"connect\n")
            local = int(await asyncio.to_thread(client.stdout.readline))
            rows.append(
                row := await one_row(
                    agent, f"SELECT * FROM sockets_events WHERE local_port = {local} AND state = 'established'"
                )
            )
            client.stdin.write(b"end\n")
            await asyncio.to_thread(client.wait)
            rows.append(await one_row(agent, f"{happened}'stopped'"))
        for one in rows:
            assert (one["entity_id"], one["uid"], one["exe"]) == (shown["entity_id"], 0, exe)
        assert (row["pid"], row["remote_port"], row["direction"]) == (client.pid, port, "outbound")
        assert row["community_id"].startswith("1:")


async def one_row(agent: RunningAgent, sql: str) -> dict[str, Any]:
    """The last row, once there is one."""
    return (await until(lambda: agent.ask(sql), complaint=sql))[-1]


EVENTS = 200_000
SMALL = {"sources.process_cache": 2000, "events.retention_bytes": 16 << 20, "events.queue_rows": 20_000}
"""What is kept at most is little, so that the agent has it all soon: after that nothing may grow."""


@contextmanager
def accepting() -> Iterator[int]:
    """A port at which a process accepts and closes connections."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as server:
        port = server.getsockname()[1]

        def serve() -> None:
            while True:
                server.accept()[0].close()

        pid = fork(serve)
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


@pytest.mark.soak
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
