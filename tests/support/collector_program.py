"""`zeek-agent collector` as a process, and light agents that connect to it over TCP or TLS."""

from __future__ import annotations

import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from waiting import PATIENCE, until_sync
from websockets.asyncio.client import ClientConnection, connect

from zeek_agent.destination import PATH
from zeek_agent.queries.subscriptions import Change
from zeek_agent.zeek import broker_json, protocol
from zeek_agent.zeek.protocol import Context, InstallQuery, Message

PROGRAM = (sys.executable, "-m", "zeek_agent")


class Program:
    """A running collector."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    @property
    def port(self) -> int:
        found = re.search(r"listening on 127.0.0.1 port (\d+)", self.text)
        assert found is not None, self.text
        return int(found[1])

    @property
    def text(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str, times: int = 1) -> None:
        until_sync(lambda: self.text.count(text) >= times or self.process.poll() is not None, 30, lambda: self.text)
        assert self.text.count(text) >= times, self.text

    def hang_up(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20 * PATIENCE)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(20 * PATIENCE)


@contextmanager
def collector(directory: Path, *arguments: str, port: int = 0) -> Iterator[Program]:
    """A collector with its logs in `directory`/logs; it is killed at the end if it still runs."""
    log = directory / f"collector-{time.monotonic_ns()}.log"
    command = [*PROGRAM, "collector", "--listen", f"127.0.0.1:{port}", "--logs", str(directory / "logs"), *arguments]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=out)
    program = Program(process, log)
    try:
        program.wait_for("listening on")
        yield program
    finally:
        if process.poll() is None:
            program.kill()


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Another command of the program."""
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, timeout=60 * PATIENCE, check=False)


class LightAgent:
    """An agent's side of the protocol, without tables."""

    def __init__(self, agent_id: str, instance: str = "I1", hostname: str | None = None) -> None:
        self.id = agent_id
        self.hostname = f"host-{agent_id}" if hostname is None else hostname
        self.instance = instance
        self.queries: dict[str, InstallQuery] = {}
        self.zeek: str | None = None
        self._connection: ClientConnection | None = None

    @property
    def connection(self) -> ClientConnection:
        assert self._connection is not None
        return self._connection

    async def connect(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Connect and say hello. Raises OSError and WebSocketException."""
        url = f"{'ws' if tls is None else 'wss'}://127.0.0.1:{port}{PATH}"
        self._connection = await connect(url, ssl=tls, compression=None, ping_interval=None)
        self.queries.clear()
        self.zeek = None
        await self.send(protocol.subscription_message(protocol.subscriptions(self.id, (), "linux")))
        await self.hello()

    async def hello(self) -> None:
        fields = {
            "agent_id": broker_json.string(self.id),
            "instance_id": broker_json.string(self.instance),
            "hostname": broker_json.string(self.hostname),
            "addresses": broker_json.set_of([broker_json.address("192.0.2.2")]),
            "platform": broker_json.string("Linux"),
            "os_name": broker_json.string("Debian"),
            "kernel_name": broker_json.string("Linux"),
            "kernel_version": broker_json.string("6.1"),
            "kernel_arch": broker_json.string("x86_64"),
            "agent_version": broker_json.count(300_000_000),
            "uptime": broker_json.timespan(1.5),
            "tables": broker_json.set_of([]),
        }
        context = Context(self.id, time.time(), f"agent_hello_{id(self._connection)}")
        await self.send(protocol.agent_hello(context, broker_json.vector(fields.values())))

    async def send(self, frame: str) -> None:
        await self.connection.send(frame)

    async def read(self) -> None:
        """Handle one message."""
        message = protocol.read_message(await self.connection.recv(decode=False))
        if not isinstance(message, Message):
            return
        match protocol.zeek_event(message):
            case InstallQuery() as installed:
                self.queries[installed.query_id] = installed
            case protocol.CancelQuery() as cancelled:
                self.queries.pop(cancelled.query_id, None)
            case protocol.ZeekHello() as hello:
                self.zeek = hello.instance

    async def row(self, event: str, *columns: str, change: Change | None = None) -> None:
        context = protocol.context_record(Context(self.id, time.time(), "za_x", change))
        topic = protocol.response_topic(self.id)
        await self.send(protocol.event_message(topic, event, context, broker_json.vector(columns)))

    async def acknowledged(self) -> None:
        """Wait until the collector has read what was sent, as an agent does before it forgets rows."""
        await (await self.connection.ping())

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()
