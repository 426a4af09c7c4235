"""A worker process whose messages a test writes: a real process and socket, with no worker's code in it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from zeek_agent.config.sections import LimitSettings
from zeek_agent.containment import channel, messages, spool
from zeek_agent.containment.encoded_result import EncodedResult
from zeek_agent.containment.messages import Finished, Head, Imports, Need, RunStatement, Spawn, SpoolBatch
from zeek_agent.containment.protections import WorkerClass
from zeek_agent.containment.worker_process import WorkerProcess
from zeek_agent.containment.zygote import Started
from zeek_agent.database.encodings import RowsEncoding
from zeek_agent.errors import SqlError

SPAWN = Spawn(1, WorkerClass.SNAPSHOTS, None, 1, False, Imports())
RUN = RunStatement(0, "SELECT 1", "full", RowsEncoding(), None, None, 0.0)


class ScriptedWorker:
    """The agent's side of a worker (`worker`), and the worker's end of the socket (`socket`)."""

    def __init__(
        self, worker: WorkerProcess, end: socket.socket, process: subprocess.Popen[bytes], faults: list[WorkerProcess]
    ) -> None:
        self.worker = worker
        self.socket = end
        self.process = process
        self.spool = -1
        self.faults = faults

    def send(self, *sent: Any, descriptors: Sequence[int] = ()) -> None:
        """Send messages, or packets as they are."""
        for one in sent:
            if isinstance(one, bytes):
                socket.send_fds(self.socket, [one], descriptors)
            else:
                channel.send(self.socket, messages.encode(one), descriptors)

    def send_while_it_lives(self, *sent: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            self.send(*sent)

    def run(self, statement: RunStatement = RUN) -> asyncio.Task[EncodedResult]:
        """A statement that the agent runs; `spool` is the descriptor that the worker got."""
        self.worker.take("statement")
        return asyncio.create_task(self.worker.run(statement, [spool.create(None)], 30.0))

    async def receive(self) -> Any:
        """The agent's next message."""
        self.socket.setblocking(False)
        while True:
            try:
                received = channel.receive(self.socket)
            except BlockingIOError:
                await asyncio.sleep(0.002)
                continue
            assert received is not None
            body, descriptors = received
            if descriptors:
                self.spool = descriptors[0]
            self.socket.setblocking(True)
            return messages.decode_to_worker(body)

    async def is_ended(self) -> bool:
        """Whether the agent has killed it."""
        return self.process.poll() == -signal.SIGKILL


def head(number: int = 1, **changed: Any) -> Head:
    fields: dict[str, Any] = {
        "id": number,
        "columns": [("a", "int")],
        "rows": 1,
        "size_bytes": 1,
        "errors": [],
        "files": None,
    }
    return Head(**{**fields, **changed})


def batch(number: int = 1, offset: int = 0, lengths: Sequence[int] = (1,), rows: int = 1) -> SpoolBatch:
    return SpoolBatch(number, offset, array("I", lengths).tobytes(), rows)


def finished(number: int = 1) -> Finished:
    return Finished(number, 0.1, 1)


def open_descriptors() -> int:
    """How many descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def give_nothing(need: Need) -> tuple[bytes, Sequence[int]]:
    raise SqlError(f"no {need.what} here")


@asynccontextmanager
async def scripted_worker(
    limits: LimitSettings | None = None, need: Any = give_nothing
) -> AsyncIterator[ScriptedWorker]:
    """A worker that is ready; no error may reach the event loop, and nothing may be left open."""
    errors: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context))
    process = subprocess.Popen(["sleep", "1000"])
    own, theirs = channel.pair()
    own.setblocking(False)
    faults: list[WorkerProcess] = []
    worker = WorkerProcess(
        SPAWN,
        "ws://zeek",
        Started(process.pid, os.pidfd_open(process.pid), own),
        limits=limits or LimitSettings(),
        need=need,
        on_free=lambda _: None,
        on_fault=faults.append,
    )
    scripted = ScriptedWorker(worker, theirs, process, faults)
    try:
        yield scripted
    finally:
        process.kill()
        process.wait()
        theirs.close()
        while worker.is_alive:
            await asyncio.sleep(0.002)
        if scripted.spool >= 0:
            os.close(scripted.spool)
        await asyncio.sleep(0)
    assert not errors, errors
