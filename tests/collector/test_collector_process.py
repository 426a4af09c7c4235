"""The embedded collector's process and the agent's side of it, with processes that behave and such that do not."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import collector_child
import pytest
from children import exit_code, fork
from lockdown import MACHINE
from msgspec.structs import replace
from scripted_agent import PACK, SETTINGS, THING, Agent, read
from waiting import until
from websockets.asyncio.client import connect

from zeek_agent.collector import process, process_messages
from zeek_agent.collector.embedded import EmbeddedCollector
from zeek_agent.collector.process_messages import Begin, StartFailed, State, Stop
from zeek_agent.collector.server import Collector
from zeek_agent.collector.stats import CollectorStats
from zeek_agent.containment import channel, landlock
from zeek_agent.containment.agent_log import AgentLog
from zeek_agent.containment.messages import Exited, LogLine, Ready
from zeek_agent.containment.protections import Protections, WorkerClass
from zeek_agent.containment.zygote import Started
from zeek_agent.destination import PATH
from zeek_agent.errors import ZeekAgentError
from zeek_agent.zeek.protocol import ZeekHello

PROGRAM = collector_child.__file__
URL = f"ws://localhost{PATH}"
READY = Ready(Protections(WorkerClass.COLLECTOR, 1, 1, (), (), (), no_new_privileges=True, seccomp=2, landlock_abi=7))


class Starter:
    """Starts processes that do `work` with their end of the socket, as the zygote does."""

    def __init__(self, work: Callable[[socket.socket, int], None]) -> None:
        self.work = work
        self.pids: list[int] = []

    async def __call__(self, on_exit: Callable[[Exited], None]) -> Started:
        own, theirs = channel.pair()
        pid = self.start(own, theirs)
        theirs.close()
        own.setblocking(False)
        self.pids.append(pid)
        task = asyncio.create_task(self._reap(pid, on_exit))
        task.add_done_callback(lambda done: done.exception())
        return Started(pid, os.pidfd_open(pid), own)

    def start(self, own: socket.socket, theirs: socket.socket) -> int:
        parent = os.getpid()

        def become() -> None:
            own.close()
            self.work(theirs, parent)

        return fork(become)

    async def _reap(self, pid: int, on_exit: Callable[[Exited], None]) -> None:
        while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
            await asyncio.sleep(0.02)
        on_exit(Exited(1, ended[1], 0.0, 0))


class Program(Starter):
    """Starts processes of the collector, in one of the variants of `collector_child`."""

    def __init__(self, traces: Path, *arguments: str) -> None:
        super().__init__(lambda *_: None)
        self.arguments = (str(traces), *arguments)
        self.traces = traces

    def start(self, own: socket.socket, theirs: socket.socket) -> int:
        command = [sys.executable, PROGRAM, str(theirs.fileno()), str(os.getpid()), *self.arguments]
        theirs.set_inheritable(True)
        return os.posix_spawn(sys.executable, command, os.environ)


@asynccontextmanager
async def embedded(
    logs: Path, work: Callable[[socket.socket, int], None] | Program
) -> AsyncIterator[EmbeddedCollector]:
    starter = work if isinstance(work, Program) else Starter(work)
    collector = EmbeddedCollector(replace(SETTINGS, logs=str(logs)), PACK, starter)
    try:
        yield collector
    except ZeekAgentError as error:
        if isinstance(starter, Program) and starter.traces.exists():
            error.add_note(starter.traces.read_text())
        raise
    finally:
        await collector.stop()
        for pid in starter.pids:
            await until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), complaint="a process is left")  # type: ignore[misc]


def sends(*messages: Any, then: Callable[[socket.socket], None] = lambda _: None) -> Callable[..., None]:
    """A process that reads the first message, sends these, and waits for the message that ends it."""

    def work(connection: socket.socket, _: int) -> None:
        channel.receive(connection)
        for message in messages:
            body = message if isinstance(message, bytes) else process_messages.encode(message)
            channel.send(connection, body)
        then(connection)
        while (received := channel.receive(connection)) is not None:
            if isinstance(process_messages.decode_to_collector(received[0]), Stop):
                return

    return work


@pytest.mark.skipif(MACHINE is None, reason="no seccomp filter for this architecture")
async def test_rows_arrive_in_the_logs_and_figures_at_the_agent(tmp_path: Path) -> None:
    async with embedded(tmp_path / "logs", Program(tmp_path / "traces", "run")) as collector:
        async with connect(URL, sock=await collector.dial(), compression=None) as connection:
            agent = Agent(connection, Collector(SETTINGS, PACK), "HAbc")
            hello, *_ = await agent.join()
            assert isinstance(hello, ZeekHello)
            agent.collector.instance = hello.instance
            await agent.result(*THING)
            await until(lambda: collector.stats.rows == 1, complaint="no figures")
        assert collector.protections is not None
        assert collector.protections.capabilities == ()
        assert [agent.id for agent in collector.stats.agents] == ["HAbc"]
        assert collector.stats.started > 0
    (thing,) = read(tmp_path / "logs", "things")
    assert thing["name"] == "a thing"


@pytest.mark.skipif(MACHINE is None, reason="no seccomp filter for this architecture")
async def test_it_can_write_logs_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What code in the process itself can do, once it is ready for connections."""
    logs, outside = tmp_path / "logs", tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("content")
    for path in (tmp_path, outside):
        path.chmod(0o777)
    async with embedded(logs, Program(tmp_path / "traces", "attempt", str(logs), str(outside))) as collector:
        (await collector.dial()).close()
        (line,) = [line for line in caplog.messages if line.startswith("outcomes: ")]
    found = json.loads(line.removeprefix("outcomes: "))
    allowed = {"log", "rotate"}
    if not _has_landlock():
        allowed |= {"read outside", "write outside", "create outside", "move outside", "read the accounts"}
    assert {name for name in found if found[name] == "ok"} == allowed, found
    if _has_landlock():
        assert (outside / "file").read_text() == "content"


def _has_landlock() -> bool:
    try:
        return landlock.version() > 0
    except landlock.Unavailable:
        return False


@pytest.mark.skipif(MACHINE is None, reason="no seccomp filter for this architecture")
async def test_a_process_loads_no_code_after_its_lockdown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its user may not be able to read Python's files."""
    program = Program(tmp_path / "traces", "loaded")
    async with embedded(tmp_path / "logs", program) as collector:  # noqa: SIM117 - the process ends last
        async with connect(URL, sock=await collector.dial(), compression=None) as connection:
            agent = Agent(connection, Collector(SETTINGS, PACK), "HAbc")
            await agent.join()
            await agent.send("nonsense")
            assert (await agent.error()).code == "deserialization_failed"
    assert [line for line in caplog.messages if line.startswith("loaded: ")] == ["loaded: []"]


async def test_the_reason_why_it_cannot_start_is_shown_and_it_is_tried_again(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.write_text("in the way")
    async with embedded(logs, Program(tmp_path / "traces", "run")) as collector:
        for attempt in (1, 2):
            with pytest.raises(ZeekAgentError, match=f"cannot write {logs}: "):
                await collector.dial()
            assert collector.stats.disk_errors == attempt
            assert str(collector.stats.disk_error).startswith(f"cannot write {logs}: ")
        logs.unlink()
        (await collector.dial()).close()
        await until(lambda: collector.stats.disk_error is None, complaint="the error stays")
        assert collector.lost == 0, "a process that says why it cannot start is not lost"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\xc1", "invalid message: "),
        (b"\x81\xa4type\xa7unknown", "invalid message: "),
        (READY, "invalid message: Ready was not expected"),
        (StartFailed("late"), "invalid message: StartFailed was not expected"),
    ],
)
async def test_an_invalid_message_ends_the_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, message: Any, reason: str
) -> None:
    async with embedded(tmp_path, sends(READY, message)) as collector:
        with suppress(ZeekAgentError):  # it may have ended by now
            (await collector.dial()).close()
        await until(lambda: collector.lost == 1, complaint="it is not killed")
        assert collector.pid is None
        await until(lambda: reason in caplog.text, complaint="the reason is not logged")
        assert "another one is started" in caplog.text
        with suppress(ZeekAgentError):
            (await collector.dial()).close()
        await until(lambda: collector.lost == 2, complaint="no other process is started")


async def test_a_flood_of_messages_ends_the_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def flood(connection: socket.socket) -> None:
        while True:
            channel.send(connection, process_messages.encode(LogLine("zeek_agent.collector", logging.INFO, "x")))

    async with embedded(tmp_path, sends(READY, then=flood)) as collector:
        with suppress(ZeekAgentError):
            (await collector.dial()).close()
        await until(lambda: collector.lost >= 1, complaint="it is not killed")
        await until(lambda: "more than 200 messages in a second" in caplog.text, complaint="the reason is not logged")


async def test_texts_of_the_process_are_bounded_and_come_from_known_loggers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [LogLine("zeek_agent.audit", logging.WARNING, "forged"), LogLine("asyncio", logging.WARNING, "its own")]
    state = State(CollectorStats(rows=5, disk_error="x" * 50_000))
    async with embedded(tmp_path, sends(READY, *lines, state)) as collector:
        (await collector.dial()).close()
        await until(lambda: collector.stats.rows == 5, complaint="no figures")
        assert len(str(collector.stats.disk_error)) < 2_000
    loggers = {record.getMessage(): record.name for record in caplog.records}
    assert (loggers["forged"], loggers["its own"]) == ("zeek_agent.collector", "asyncio")


async def test_descriptors_that_the_process_sends_are_closed(tmp_path: Path) -> None:
    def pass_one(connection: socket.socket) -> None:
        for _ in range(50):
            channel.send(connection, process_messages.encode(State(CollectorStats(rows=1))), [0])
        channel.send(connection, process_messages.encode(State(CollectorStats(rows=2))))

    async with embedded(tmp_path, sends(READY, then=pass_one)) as collector:
        (await collector.dial()).close()
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        await until(lambda: collector.stats.rows == 2, complaint="no figures")
        assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208


async def test_a_process_that_ends_at_once_is_no_endless_wait(tmp_path: Path) -> None:
    async with embedded(tmp_path, lambda *_: os._exit(7)) as collector:
        with pytest.raises(ZeekAgentError, match="its process has ended"):
            await collector.dial()
        assert "its process has ended" in str(collector.stats.disk_error)


async def test_a_cancelled_start_leaves_no_process(tmp_path: Path) -> None:
    async with embedded(tmp_path, sends()) as collector:
        dialling = asyncio.create_task(collector.dial())
        await until(lambda: bool(collector._start.pids), complaint="no process is started")  # type: ignore[attr-defined]
        dialling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dialling
        assert collector.pid is None


def test_log_lines_beyond_the_limit_are_counted() -> None:
    ours, theirs = channel.pair()
    handler = AgentLog(process.AgentChannel(theirs).send, process.LOG_LINES_PER_SECOND)
    logger = logging.Logger("zeek_agent.collector")
    logger.addHandler(handler)
    while time.monotonic() % 1 > 0.5:
        time.sleep(0.01)
    for number in range(process.LOG_LINES_PER_SECOND + 3):
        logger.info("line %d", number)
    second = int(time.monotonic())
    while int(time.monotonic()) == second:
        time.sleep(0.01)
    logger.info("after")
    ours.setblocking(False)
    texts = []
    for _ in range(process.LOG_LINES_PER_SECOND + 1):
        received = channel.receive(ours)
        assert received is not None
        texts.append(process_messages.decode_from_collector(received[0]).text)  # type: ignore[union-attr]
    assert texts[-1] == "after (and 3 more lines before this one)"
    with pytest.raises(BlockingIOError):
        channel.receive(ours)
    ours.close()
    theirs.close()


def test_a_process_without_an_agent_ends() -> None:
    ours, theirs = channel.pair()
    pid = fork(lambda: (ours.close(), process.run(theirs, os.getppid()))[1])  # type: ignore[func-returns-value]
    theirs.close()
    ours.close()
    assert exit_code(pid) == 0


def test_messages_keep_the_pack() -> None:
    begin = Begin(SETTINGS, PACK, 1, logging.INFO)
    assert process_messages.decode_to_collector(process_messages.encode(begin)) == begin
