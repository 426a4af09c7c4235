"""What a stand-alone Zeek with the package opens besides the agents' port, and who can use it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from waiting import until
from zeek_program import PACKAGE, free_port, needs_zeek, tool

NOBODY = 65534

RECEIVER = """
@load {package}
redef ZeekAgent::listen_port = {port}/tcp;
redef Log::default_rotation_interval = 0secs;
global probe_inject: event(sender: string);
event probe_inject(sender: string) {{ Reporter::info("injected by " + sender); }}
event zeek_init() {{ Cluster::subscribe("/probe/"); }}
"""

INJECTOR = """
@load frameworks/cluster/backend/zeromq
redef Cluster::Backend::ZeroMQ::run_proxy_thread = F;
redef Cluster::Backend::ZeroMQ::connect_xsub_endpoint = "{xpub}";
redef Cluster::Backend::ZeroMQ::connect_xpub_endpoint = "{xsub}";
global probe_inject: event(sender: string) &is_used;
global left = 20;
event again()
    {{
    Cluster::publish("/probe/", probe_inject, "{sender}");
    if ( --left == 0 )
        terminate();
    else
        schedule 0.2sec {{ again() }};
    }}
event zeek_init() {{ schedule 0.5sec {{ again() }}; }}
"""
"""Publishes an event to whoever relays at these places, four seconds long."""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that other users can enter, unlike those of pytest."""
    directory = Path(tempfile.mkdtemp(prefix="zeek-agent-shared-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@contextmanager
def stand_alone(directory: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A Zeek as `zeek zeek-agent` starts it, with the backend that it chooses itself."""
    directory.mkdir()
    (directory / "site.zeek").write_text(RECEIVER.format(package=PACKAGE, port=port))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ZEEK_WEBSOCKET")}
    with (directory / "output").open("wb") as output:
        process = subprocess.Popen(
            ["zeek", "site.zeek"], cwd=directory, env=environment, stdout=output, stderr=output, umask=0o022
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        finally:
            process.kill()
            process.wait()


async def listens(directory: Path) -> None:
    output = directory / "output"
    await until(lambda: "listening for agents" in output.read_text(), 30, output.read_text)


def tcp_ports(process: subprocess.Popen[bytes]) -> set[int]:
    """The TCP ports that a process listens on."""
    lines = subprocess.run(["ss", "-H", "-l", "-t", "-n", "-p"], check=True, capture_output=True, text=True).stdout
    mine = [line.split() for line in lines.splitlines() if f"pid={process.pid}," in line]
    return {int(fields[3].rpartition(":")[2]) for fields in mine}


async def inject(directory: Path, sender: str, user: int, xpub: str, xsub: str) -> None:
    """Try to have a Zeek handle an event."""
    own = directory / sender
    own.mkdir()
    os.chown(own, user, user)
    (own / "inject.zeek").write_text(INJECTOR.format(sender=sender, xpub=xpub, xsub=xsub))
    process = await asyncio.create_subprocess_exec(
        tool("zeek"), "inject.zeek", cwd=own, user=user, group=user, extra_groups=[], stdout=-3, stderr=-3
    )
    try:
        await asyncio.wait_for(process.wait(), 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@needs_zeek
@pytest.mark.root
async def test_another_local_user_cannot_inject_events_past_the_agents_port(shared: Path) -> None:
    port, logs = free_port(), shared / "zeek"
    with stand_alone(logs, port) as process:
        await listens(logs)
        assert tcp_ports(process) == {port}
        await inject(shared, "nobody-by-tcp", NOBODY, "tcp://127.0.0.1:5555", "tcp://127.0.0.1:5556")
        sockets = [*logs.glob(".zeek-agent-*.xpub"), *logs.glob(".zeek-agent-*.xsub")]
        if sockets:  # Broker, the backend of a Zeek 8.0, opens nothing
            xpub, xsub = (f"ipc://{path}" for path in sockets)
            await inject(shared, "nobody-by-socket", NOBODY, xpub, xsub)
            await inject(shared, "owner", os.getuid(), xpub, xsub)
            await until(
                lambda: "injected by owner" in (logs / "output").read_text(), complaint="the probe does not work"
            )
        assert "nobody" not in (logs / "output").read_text()
    assert not list(logs.glob(".zeek-agent-*")), "sockets are left behind"


@needs_zeek
async def test_two_zeeks_with_the_package_start_on_one_host(tmp_path: Path) -> None:
    first, second, third = tmp_path / "first", tmp_path / "second", tmp_path / "third"
    port = free_port()
    with stand_alone(first, port), stand_alone(second, free_port()):
        await listens(first)
        await listens(second)
        with stand_alone(third, port) as process:
            output = third / "output"
            await until(lambda: "cannot listen" in output.read_text(), 30, output.read_text)
            assert process.poll() is None
            assert "Set ZeekAgent::listen_port or ZEEK_WEBSOCKET_LISTEN_PORT" in output.read_text()
