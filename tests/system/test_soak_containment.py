"""Ten minutes each against the real program (`SOAK_MINUTES` for less): it stays up, bounded, and loses no event."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hostile_statements import Grammar
from hung_mount import OWN_MOUNTS, hung_mount
from mounting import needs_fuse
from recording import load_generator
from running_agent import STOP, RunningAgent, running
from test_system_statements import LIKES, memory_of
from waiting import until
from websockets.exceptions import ConnectionClosed
from workers import descendants
from zeek_server import Client, zeek_server

from zeek_agent.errors import ZeekAgentError
from zeek_agent.queries.subscriptions import Query, Subscription
from zeek_agent.zeek import broker_json, protocol
from zeek_agent.zeek.protocol import AgentError, AgentHello, ResultRow, RowsAck, ZeekHello

pytestmark = [pytest.mark.root, pytest.mark.soak, pytest.mark.timeout(3_600)]

SNAPSHOTS = Subscription.SNAPSHOTS
MINUTES = float(os.environ.get("SOAK_MINUTES", "10"))
ASKERS = 4
SLOPE_BYTES_PER_STATEMENT = 200
"""Of the second half, by which what is remembered of statements is full."""
Figures = Callable[[str, object], None]


def slope(samples: list[tuple[float, float]]) -> float:
    """How much the second number grows with the first, over the second half."""
    later = samples[len(samples) // 2 :]
    return statistics.linear_regression([at for at, _ in later], [value for _, value in later]).slope


class Marks:
    """Processes with a mark each, and the rows of them that came to Zeek."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.made: list[str] = []

    async def install(self, agent: RunningAgent) -> None:
        sql = "SELECT time, cmdline FROM processes_events WHERE state = 'started' AND cmdline LIKE 'mark-%'"
        query = Query(sql, "Test::marks", schedule=0.2, subscription=Subscription.EVENTS)
        await self._client.install("marks", query)
        await until(lambda: agent.ask("SELECT 1 FROM zeek_agent_queries WHERE id = 'marks' AND runs > 0"), 30)

    def make(self) -> None:
        mark = f"mark-{len(self.made)}-{random.getrandbits(32):08x}"
        os.waitpid(os.posix_spawn("/bin/true", [mark], {}), 0)
        self.made.append(mark)

    def arrived(self) -> list[str]:
        rows = self._client.of(ResultRow, lambda row: row.event == "Test::marks")
        return [str(list(broker_json.cells(row.columns))[-1]) for row in rows]

    async def check(self) -> None:
        """Each has come, and once."""
        await until(
            lambda: len(self.arrived()) >= len(self.made), 60, lambda: f"{len(self.arrived())} of {len(self.made)}"
        )
        assert sorted(self.arrived()) == sorted(self.made)


@asynccontextmanager
async def alive(*clients: Client) -> AsyncIterator[None]:
    """Zeeks that greet again and again, as the agent would otherwise take them for dead after a while."""

    async def greet() -> None:
        while True:
            for client in clients:
                await client.hello()
            await asyncio.sleep(10)

    greeting = asyncio.create_task(greet())
    try:
        yield
    finally:
        greeting.cancel()


def surroundings(directory: Path) -> list[str]:
    """Files that are hard to read; patterns that match them."""
    place = directory / "files"
    (place / "deep" / "er").mkdir(parents=True)
    os.mkfifo(place / "fifo")
    with (place / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 40)
    (place / "loop").symlink_to("loop")
    (place / "line").write_bytes(b"a" * 3_000_000)
    (place / "lines").write_text("a b c\n" * 50_000)
    for number in range(300):
        (place / "deep" / "er" / f"{number}\n\x1b").touch()
    (place / "hung").mkdir()
    patterns = ["*", "fifo", "sparse", "loop/x", "line", "lines", "deep/*/*", "hung", "hung/*", "?"]
    return [
        *(f"{place}/{pattern}" for pattern in patterns),
        "/proc/*/status",
        "/etc/*",
        "/dev/*",
        "/proc/self/root/*",
        "\0",
    ]


@needs_fuse
async def test_hostile_statements(tmp_path: Path, record_property: Figures) -> None:
    patterns = surroundings(tmp_path)
    settings = {
        "limits.time": 0.2,
        "limits.cpu": 100,
        "access.files_allow": f'["{tmp_path}/files/**"]',
    }
    outcomes = {"rows": 0, "errors": 0}
    samples: list[tuple[float, float]] = []
    whole: list[int] = []
    async with (
        zeek_server() as zeek,
        running(tmp_path, f"--zeek={zeek.url()}", settings=settings, prefix=OWN_MOUNTS) as agent,
        AsyncExitStack() as stack,
    ):
        client = await zeek.client()
        await client.expect(AgentHello)
        await stack.enter_async_context(alive(client))
        marks = Marks(client)
        await marks.install(agent)
        with hung_mount(agent.pid, tmp_path / "files" / "hung"):
            deadline = time.monotonic() + 60 * MINUTES

            def ask(seed: int) -> None:
                grammar = Grammar(seed, patterns)
                while time.monotonic() < deadline:
                    try:
                        agent.query(grammar.statement())
                    except ZeekAgentError:
                        outcomes["errors"] += 1
                    except UnicodeError:
                        continue
                    else:
                        outcomes["rows"] += 1

            askers = [asyncio.create_task(asyncio.to_thread(ask, seed)) for seed in range(ASKERS)]
            while not all(asker.done() for asker in askers):
                samples.append((sum(outcomes.values()), agent.resident()))
                whole.append(memory_of(agent))
                await asyncio.to_thread(marks.make)
                await asyncio.sleep(0.5)
            await asyncio.gather(*askers)
            assert agent.process.poll() is None
            await marks.check()
        lost = await agent.ask("SELECT source, lost_overrun, lost_store FROM zeek_agent_sources WHERE active")
        assert not [row for row in lost if row["lost_overrun"] or row["lost_store"]]
        assert "Traceback" not in agent.output.read_text(errors="replace")
    growth = slope(samples)
    record_property("statements", sum(outcomes.values()))
    record_property("of them errors", outcomes["errors"])
    record_property("main, bytes per statement", round(growth, 1))
    record_property("main, MiB at the end", round(samples[-1][1] / 2**20, 1))
    record_property("all processes at most, MiB", max(whole) >> 20)
    record_property("events", len(marks.made))
    assert min(outcomes.values()) > 0
    assert growth < SLOPE_BYTES_PER_STATEMENT


def mutated(chance: random.Random, frames: list[bytes]) -> bytes:
    """A frame that Zeek could send, with a few of its bytes changed."""
    frame = bytearray(chance.choice(frames))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(frame) + 1)
        match chance.randint(0, 4):
            case 0:
                frame[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del frame[at : at + chance.randint(1, 30)]
            case 2:
                frame[at:at] = frame[at : at + chance.randint(1, 60)]
            case 3:
                frame[at:at] = chance.choice([b"[" * 100, b'"', b"{", b"\xff", b"1e999", b"null", b"-9", b'"\\ud800"'])
            case 4:
                other = chance.choice(frames)
                frame[at:] = other[chance.randrange(len(other)) :]
    return bytes(frame)


async def test_mutated_frames(tmp_path: Path, record_property: Figures) -> None:
    chance = random.Random(11)
    samples: list[tuple[float, float]] = []
    async with zeek_server() as zeek, running(tmp_path, f"--zeek={zeek.url()}", settings={"limits.cpu": 100}) as agent:
        client = await zeek.client()
        await client.expect(AgentHello)
        topic, instance = client.topic, client.instance
        frames = [
            protocol.zeek_hello(topic, ZeekHello(instance, "9.1.0-dev", 90100, "1.0", frozenset())),
            protocol.install_query(topic, instance, "q", Query("SELECT 1", "Test::row", schedule=1.0)),
            protocol.install_query(
                topic, instance, "e", Query("SELECT time FROM processes_events", "Test::row", schedule=1.0)
            ),
            protocol.cancel_query(topic, instance, "q"),
            protocol.rows_ack(topic, RowsAck(instance, "e", "stream", 7, 0)),
            protocol.zeek_shutdown(protocol.group_topic("all"), instance),
        ]
        encoded = [frame if isinstance(frame, bytes) else frame.encode() for frame in frames]
        sent, connections = 0, 1
        deadline = time.monotonic() + 60 * MINUTES
        while time.monotonic() < deadline and sent < 1_000_000:
            try:
                for _ in range(200):
                    await client.send(mutated(chance, encoded))
                    sent += 1
            except ConnectionClosed:
                client = await zeek.client()
                connections += 1
            client.events.clear()
            samples.append((sent, agent.resident()))
            assert agent.process.poll() is None
        client.abort()
        client = await zeek.client()
        await client.expect(AgentHello)
        await client.hello("1.0")
        await client.install("after", Query("SELECT 42 AS answer", "Test::after", schedule=0.0))
        await client.expect(ResultRow, lambda row: row.event == "Test::after")
        assert "Traceback" not in agent.output.read_text(errors="replace")
    record_property("frames", sent)
    record_property("connections", connections)
    record_property("main, bytes per frame", round(slope(samples), 2))
    record_property("main, MiB at the end", round(samples[-1][1] / 2**20, 1))
    assert slope(samples) < 20


DELIVERY = "SELECT id, runs, rows, lost, errors, last_error FROM zeek_agent_queries WHERE id = 'events'"


async def lost_in_the_kernel(agent: RunningAgent) -> int:
    """Events that the kernel's buffer did not take, which the agent counts and reports as a gap."""
    sources = await agent.ask("SELECT lost_overrun FROM zeek_agent_sources WHERE source = 'processes' AND active")
    return int(sources[0]["lost_overrun"])


class TimedEvents(list[Any]):
    """Events, and when they came."""

    def __init__(self) -> None:
        super().__init__()
        self.delays: list[float] = []

    def append(self, event: Any) -> None:
        super().append(event)
        if isinstance(event, ResultRow) and event.event == "Test::events":
            at = float(next(iter(broker_json.cells(event.columns))))
            self.delays.append(time.time() - at)


async def test_events_with_a_hostile_zeek(tmp_path: Path, record_property: Figures) -> None:
    """First alone, then with another Zeek whose statements cannot be ended politely."""
    per_second = int(os.environ.get("SOAK_EVENTS_PER_SECOND", "1000"))
    seconds = int(30 * MINUTES)
    async with (
        zeek_server() as hostile,
        zeek_server() as honest,
        running(tmp_path, f"--zeek={honest.url()}", f"--zeek={hostile.url()}", settings={"limits.time": 1}) as agent,
        AsyncExitStack() as stack,
    ):
        attacker, victim = await hostile.client(), await honest.client()
        await attacker.expect(AgentHello)
        await victim.expect(AgentHello)
        await stack.enter_async_context(alive(attacker, victim))
        timed = TimedEvents()
        victim.events = timed
        sql = "SELECT time, cmdline FROM processes_events WHERE state = 'started' AND cmdline = '/bin/true soak-x'"
        query = Query(sql, "Test::events", schedule=0.1, subscription=Subscription.EVENTS)
        await victim.install("events", query)
        await until(lambda: agent.ask("SELECT 1 FROM zeek_agent_queries WHERE id = 'events' AND runs > 0"), 30)
        p99 = []
        made, lost = per_second * seconds, 0
        for attacked in (False, True):
            if attacked:
                for number in range(50):
                    query = Query(f"{LIKES} -- {number}", "Test::hostile", schedule=0.1, subscription=SNAPSHOTS)
                    await attacker.install(f"h{number}", query)
            timed.delays.clear()
            command = (load_generator(), "exec", str(made), str(per_second), "/bin/true")
            process = await asyncio.create_subprocess_exec(*command, "soak-x", stdout=asyncio.subprocess.DEVNULL)
            await process.wait()
            before = lost
            with suppress(AssertionError):
                await until(lambda: len(timed.delays) >= made)
            lost = await lost_in_the_kernel(agent)
            assert made - (lost - before) <= len(timed.delays) <= made, await agent.ask(DELIVERY)
            p99.append(statistics.quantiles(timed.delays, n=100)[98])
            record_property(f"p99 {'attacked' if attacked else 'alone'}, s", round(p99[-1], 3))
        assert attacker.of(AgentError)
        record_property("lost in the kernel, and counted", lost)
    assert p99[1] <= 2 * p99[0]


@needs_fuse
async def test_a_hung_mount(tmp_path: Path, record_property: Figures) -> None:
    place = tmp_path / "hung"
    place.mkdir()
    settings = {"limits.time": 0.2, "access.filesystems_allow": '["fuse"]'}
    async with (
        zeek_server() as zeek,
        running(tmp_path, f"--zeek={zeek.url()}", settings=settings, prefix=OWN_MOUNTS) as agent,
        AsyncExitStack() as stack,
    ):
        client = await zeek.client()
        await client.expect(AgentHello)
        await stack.enter_async_context(alive(client))
        marks = Marks(client)
        await marks.install(agent)
        with hung_mount(agent.pid, place):
            hung = Query(f"SELECT * FROM files_list('{place}/*')", "Test::hung", schedule=1.0, subscription=SNAPSHOTS)
            honest = Query(
                "SELECT pid FROM processes WHERE pid = 1", "Test::honest", schedule=0.5, subscription=SNAPSHOTS
            )
            await client.install("hung", hung)
            await client.install("honest", honest)
            deadline = time.monotonic() + 60 * MINUTES
            while time.monotonic() < deadline:
                await asyncio.to_thread(marks.make)
                await asyncio.sleep(0.5)
            await marks.check()
            rows = await agent.ask("SELECT id, runs, errors, rows FROM zeek_agent_queries")
            found = {row["id"]: row for row in rows}
            assert found["honest"]["errors"] == 0
            assert found["honest"]["runs"] > 30 * MINUTES
            assert found["hung"]["errors"] == found["hung"]["runs"] > 0
            assert found["hung"]["rows"] == 0
            stuck = len(descendants(agent.pid))
            begun = time.monotonic()
            agent.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(agent.process.wait, STOP) == 0
            ended = time.monotonic() - begun
    record_property("runs of the hung query", found["hung"]["runs"])
    record_property("runs of the other", found["honest"]["runs"])
    record_property("processes at the end", stuck)
    record_property("SIGTERM to exit, s", round(ended, 2))
    assert ended < 5
