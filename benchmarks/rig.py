"""What the benchmarks of the whole program share: loads, the agent as it is started and as it is asked, a Zeek's end.

The server only notes when frames came and answers what keeps an agent going; frames are looked at afterwards.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from zeek_agent.control.messages import ControlClient, Rows
from zeek_agent.control.messages import QueryRequest as Statement
from zeek_agent.queries.subscriptions import Query
from zeek_agent.zeek import protocol
from zeek_agent.zeek.protocol import RowsAck, ZeekHello

AGENT_ID = "Hbenchmark"
INSTANCE = "zeek_benchmark"
QUIET = 0.7
"""Seconds without a frame after which an answer is complete."""


@contextmanager
def crowd(processes: int, sockets_each: int = 0, files_each: int = 0) -> Iterator[None]:
    """Processes that sleep, each with some sockets of its own, half TCP listeners, half UDP, and with open files."""
    ready, told = os.pipe()
    pids = []
    for _ in range(processes):
        pid = os.fork()
        if pid == 0:
            held = [socket.socket(type=socket.SOCK_STREAM if n % 2 else socket.SOCK_DGRAM) for n in range(sockets_each)]
            for n, one in enumerate(held):
                one.bind(("127.0.0.1", 0))
                if n % 2:
                    one.listen(1)
            for _ in range(files_each):
                os.open(__file__, os.O_RDONLY)
            os.write(told, b".")
            signal.pause()
        pids.append(pid)
    waiting = processes
    while waiting:
        waiting -= len(os.read(ready, waiting))
    os.close(ready)
    os.close(told)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def load_generator(directory: Path) -> str:
    """`load.c`, compiled into a directory."""
    program = str(directory / "load")
    subprocess.run(["cc", "-O2", "-o", program, Path(__file__).parent / "load.c"], check=True)
    return program


@contextmanager
def accepting() -> Iterator[int]:
    """A port of loopback at which connections are accepted and closed, by a process of its own."""
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


def ask(directory: Path, sql: str) -> list[tuple[Any, ...]]:
    """Rows of a statement, from the agent that has its state there."""
    client = ControlClient(directory / "state" / "zeek-agent.sock")
    rows = [tuple(row) for frame in client.responses(Statement(sql)) if isinstance(frame, Rows) for row in frame.rows]
    client.close()
    return rows


@dataclass(eq=False)
class Zeek:
    """One agent's Zeek: `features` empty is a stock package, else ours, which acknowledges batches."""

    features: frozenset[str] = frozenset()
    frames: list[tuple[float, bytes]] = field(default_factory=list)
    port: int = 0
    _websocket: ServerConnection | None = None
    _joined: asyncio.Event = field(default_factory=asyncio.Event)
    _server: Server | None = None

    async def start(self) -> None:
        self._server = await serve(self._handle, "127.0.0.1", 0, compression=None, ping_interval=None)
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def joined(self) -> None:
        """Wait for the agent's hello."""
        async with asyncio.timeout(20):
            await self._joined.wait()

    async def send(self, frame: str) -> None:
        assert self._websocket is not None
        await self._websocket.send(frame)

    async def install(self, query_id: str, query: Query) -> float:
        """Send a query; when that was."""
        begun = time.perf_counter()
        await self.send(protocol.install_query(protocol.host_topic(AGENT_ID), INSTANCE, query_id, query))
        return begun

    def frames_of(self, query_id: str) -> list[tuple[float, bytes]]:
        """What came for a query, and when."""
        mark = f'"{query_id}"'.encode()
        return [(when, frame) for when, frame in self.frames if mark in frame]

    async def answered(self, query_id: str) -> None:
        """Wait until a query's answer has begun and nothing more comes."""
        async with asyncio.timeout(20):
            while not self.frames_of(query_id):
                await asyncio.sleep(0.1)
        await self.quiet()

    async def quiet(self, seconds: float = QUIET) -> None:
        """Wait until nothing has come for so long."""
        number = -1
        while number != len(self.frames):
            number = len(self.frames)
            await asyncio.sleep(seconds)

    async def _handle(self, websocket: ServerConnection) -> None:
        await websocket.recv()
        self._websocket = websocket
        await websocket.send(protocol.ack("benchmark-websocket-0", "9.1.0"))
        hello = ZeekHello(INSTANCE, "9.1.0", 90100, features=self.features)
        await websocket.send(protocol.zeek_hello(protocol.host_topic(AGENT_ID), hello))
        with suppress(ConnectionClosed):
            while True:
                frame = await websocket.recv(decode=False)
                self.frames.append((time.perf_counter(), frame))
                self._joined.set()
                if self.features and b"rows_v1" in frame[:400]:
                    await self._acknowledge(frame)

    async def _acknowledge(self, frame: bytes) -> None:
        message = protocol.read_message(frame)
        assert isinstance(message, protocol.Message)
        event = protocol.agent_event(message)
        assert isinstance(event, protocol.ResultBatch)
        batch = event.batch
        ack = RowsAck(INSTANCE, event.context.query_id or "", batch.stream, batch.high, batch.index)
        await self.send(protocol.rows_ack(protocol.host_topic(AGENT_ID), ack))


@dataclass(frozen=True)
class Agent:
    """The program while it runs."""

    process: subprocess.Popen[bytes]

    @property
    def resident(self) -> float:
        """Megabytes of resident memory."""
        return self.memory("VmRSS")

    def memory(self, field: str) -> float:
        """A field of /proc/PID/status in megabytes: VmRSS, VmHWM, RssAnon, RssShmem, …"""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith(f"{field}:"))
        return int(line.split()[1]) / 1024

    @property
    def cpu_seconds(self) -> float:
        """Processor time of all its threads so far, exactly: its own clock, clock_getcpuclockid(3)."""
        return time.clock_gettime(~self.process.pid << 3 | 2)

    @property
    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    @property
    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))


@asynccontextmanager
async def agent(directory: Path, *arguments: str) -> AsyncIterator[Agent]:
    """`zeek-agent run` with its state and logs in a directory, from when it can be asked."""
    command = [sys.executable, "-m", "zeek_agent", "run", "--state-dir", str(directory / "state")]
    command += ["--logs", str(directory / "logs"), "--set", f"agent.id={AGENT_ID}", "--set", "log.level=warning"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ZEEK_AGENT_")}
    with (directory / "output").open("ab") as output:
        process = subprocess.Popen(
            [*command, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=kept
        )
    try:
        async with asyncio.timeout(30):
            while not (directory / "state" / "zeek-agent.sock").exists():
                await asyncio.sleep(0.05)
        yield Agent(process)
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)
