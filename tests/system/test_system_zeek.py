"""The real program with a real Zeek: joining, changes in Zeek's own logs, restarts of either side.

The stock package is taken from where the environment variable `ZEEK_AGENT_STOCK_PACKAGE` says (its scripts directory),
one up to 2.3, with which Zeek 8.0 opens Broker's own server, from `ZEEK_AGENT_OLD_STOCK_PACKAGE`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from running_agent import AGENT_ID, RunningAgent, running
from waiting import until
from zeek_log import parse_header, parse_log
from zeek_program import PACKAGE, ZEROMQ_PORTS, free_port

STOCK_NEEDS = "frameworks/cluster/websocket/server"  # since Zeek 8.1
STOCK_PACKAGE = "ZEEK_AGENT_STOCK_PACKAGE"
OLD_STOCK_PACKAGE = "ZEEK_AGENT_OLD_STOCK_PACKAGE"
BROKER_SERVER = """
redef Broker::disable_ssl = T;
redef Broker::default_listen_address_websocket = "127.0.0.1";
redef Broker::default_port_websocket = {port}/tcp;
"""
SITE = """
redef Log::default_rotation_interval = 0secs;
redef ZeekAgent_Processes::query_interval = 1sec;
redef ZeekAgent_Sockets::query_interval = 1sec;
redef ZeekAgent_Users::query_interval = 1sec;
redef ZeekAgent_Files::query_interval = 1sec;
"""


@dataclass(eq=False)
class Zeek:
    """A Zeek that runs the package, in a directory of its own."""

    package: Path
    directory: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    is_old: bool = False
    """Whether Zeek serves agents by Broker's own server."""
    errors: list[str] = field(default_factory=list)
    """Messages of level error in the reporter.log of each life."""

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    async def start(self) -> None:
        ports = ZEROMQ_PORTS.format(xpub=free_port(), xsub=free_port())
        server = BROKER_SERVER.format(port=self.port) if self.is_old else ""
        (self.directory / "site.zeek").write_text(ports + server + SITE)
        environment = {**os.environ, "ZEEK_WEBSOCKET_LISTEN_PORT": str(self.port), "ZEEK_DNS_FAKE": "1"}
        with (self.directory / "output").open("ab") as output:
            self.process = subprocess.Popen(
                ["zeek", str(self.package), "site.zeek"],
                cwd=self.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        await until(self._listens, complaint="Zeek does not listen")

    def _listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.directory / "output").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(20)
            self.process = None
            self.errors += [str(one["message"]) for one in self.log("reporter") if "ERROR" in str(one["level"])]

    def log(self, path: str) -> list[dict[str, Any]]:
        """The records of a log that Zeek writes."""
        file = self.directory / f"{path}.log"
        content = file.read_bytes() if file.exists() else b""
        content = content[: content.rfind(b"\n") + 1]
        if not content:
            return []
        names = parse_header(content)["#fields"]
        return [dict(zip(names, record, strict=True)) for record in parse_log(content)]

    async def logged(self, path: str, wanted: dict[str, Any]) -> dict[str, Any]:
        def find() -> dict[str, Any] | None:
            return next((one for one in self.log(path) if wanted.items() <= one.items()), None)

        return await until(find, complaint=f"{path}.log has no record with {wanted}")


@pytest.fixture(params=["stock", "old stock", "ours"])
def zeek(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Zeek]:
    package = PACKAGE
    is_old = request.param == "old stock"
    if request.param != "ours":
        variable = OLD_STOCK_PACKAGE if is_old else STOCK_PACKAGE
        if variable not in os.environ:
            pytest.skip(f"needs the {request.param} package: {variable} names its scripts directory")
        is_before_8_1 = subprocess.run(["zeek", "-a", STOCK_NEEDS], check=False, capture_output=True).returncode != 0
        if is_before_8_1 != is_old:
            pytest.skip(f"the {request.param} package needs Zeek {'before ' if is_old else ''}8.1")
        package = Path(os.environ[variable])
    directory = tmp_path / "zeek"
    directory.mkdir()
    zeek = Zeek(package, directory, free_port(), is_old=is_old)
    try:
        yield zeek
    finally:
        zeek.stop(signal.SIGKILL)


@contextmanager
def changes(agent: RunningAgent, directory: Path) -> Iterator[tuple[str, int]]:
    """A process of a name, a listening port; both are gone in the end."""
    mark = f"zz{secrets.token_hex(4)}"
    program = directory / mark
    shutil.copy2(shutil.which("sleep") or "/bin/sleep", program)
    with socket.create_server(("127.0.0.1", 0)) as server, subprocess.Popen([str(program), "300"]) as process:
        try:
            yield mark, server.getsockname()[1]
        finally:
            process.kill()


async def compared(agent: RunningAgent) -> None:
    """Wait until the queries on processes and sockets have something to compare with."""
    sql = (
        "SELECT 1 FROM zeek_agent_queries WHERE subscription = 'Differences' AND runs > 0"
        " AND (sql LIKE '% FROM processes%' OR sql LIKE '% FROM sockets%') GROUP BY 1 HAVING count(*) >= 2"
    )
    await until(lambda: agent.ask(sql), complaint="Zeek's queries do not run")


@pytest.mark.long
@pytest.mark.zeek
async def test_zeek_logs_events_even_after_restarts_of_either_side(zeek: Zeek, tmp_path: Path) -> None:
    await zeek.start()
    async with running(tmp_path, f"--zeek={zeek.url}") as agent:
        await zeek.logged("zeek-agent", {"type_": "join", "hid": AGENT_ID})
        await compared(agent)
        with changes(agent, tmp_path) as (name, port):
            await zeek.logged("zeek-agent-processes", {"hid": AGENT_ID, "name": name, "change": "new"})
            found = await zeek.logged("zeek-agent-sockets", {"local_port": port, "state": "LISTEN", "change": "new"})
            assert str(found["local_addr"]) == "127.0.0.1"
        await zeek.logged("zeek-agent-processes", {"name": name, "change": "gone"})

        zeek.stop()
        with changes(agent, tmp_path) as (name, port):
            await zeek.start()
            await zeek.logged("zeek-agent-processes", {"name": name, "change": "new"})
        assert (await agent.connection())["reconnects"] >= 1

        zeek.stop(signal.SIGKILL)
        await zeek.start()
        with changes(agent, tmp_path) as (name, port):
            await zeek.logged("zeek-agent-processes", {"name": name, "change": "new"})
            await zeek.logged("zeek-agent-sockets", {"local_port": port, "change": "new"})
    await zeek.logged("zeek-agent", {"type_": "shutdown", "hid": AGENT_ID})

    with changes(agent, tmp_path) as (name, port):
        async with running(tmp_path, f"--zeek={zeek.url}") as again:
            await zeek.logged("zeek-agent-processes", {"name": name, "change": "new"})
            assert "Traceback" not in again.output.read_text()
    zeek.stop()
    assert not zeek.errors
