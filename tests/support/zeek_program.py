"""A real Zeek with the package, for tests."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from places import ROOT
from waiting import until
from zeek_log import parse_header, parse_log

PACKAGE = ROOT / "zeek" / "scripts"

ZEROMQ = """
@load base/misc/version
@if ( Version::number < 80100 )
@load frameworks/cluster/backend/zeromq/connect
@else
@load frameworks/cluster/backend/zeromq
@endif
"""
"""Makes ZeroMQ the backend: until 8.1 that takes a script of its own."""

BROKER = """
@load base/misc/version
@if ( Version::number >= 80100 )
@load frameworks/cluster/backend/broker
@endif
"""
"""Makes Broker the backend, which it is by default until 8.1."""

ZEROMQ_PORTS = """
@ifdef ( Cluster::Backend::ZeroMQ::listen_xpub_endpoint )
redef Cluster::Backend::ZeroMQ::listen_xpub_endpoint = "tcp://127.0.0.1:{xpub}";
redef Cluster::Backend::ZeroMQ::connect_xsub_endpoint = "tcp://127.0.0.1:{xpub}";
redef Cluster::Backend::ZeroMQ::listen_xsub_endpoint = "tcp://127.0.0.1:{xsub}";
redef Cluster::Backend::ZeroMQ::connect_xpub_endpoint = "tcp://127.0.0.1:{xsub}";
@endif
"""
"""Where ZeroMQ is the backend, ports of one's own."""

needs_zeek = pytest.mark.zeek


def tool(name: str) -> str:
    """A program's path; skips the test where it is not found."""
    return shutil.which(name) or pytest.skip(f"needs {name} on PATH")


def free_port() -> int:
    """A port that nothing uses, and below those that the kernel gives to other programs until it is used."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(max(first // 2, 1024), max(first, 2048))
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def records(log: Path) -> list[dict[str, Any]]:
    """The records of a TSV log, as far as it is written."""
    content = log.read_bytes() if log.exists() else b""
    content = content[: content.rfind(b"\n") + 1]
    if not content:
        return []
    names = parse_header(content)["#fields"]
    return [dict(zip(names, record, strict=True)) for record in parse_log(content)]


class Zeek:
    """A Zeek with the package, the same ports in each of its lives, and a directory for each."""

    def __init__(self, site: str = "", *arguments: str, prefix: Sequence[str] = ()) -> None:
        self.port = free_port()
        self.url = f"ws://127.0.0.1:{self.port}"
        self._command = [*prefix, "zeek", "-C", *arguments, "site.zeek"]
        self._site = f"""
        @load {PACKAGE}
        {ZEROMQ_PORTS.format(xpub=free_port(), xsub=free_port())}
        redef ZeekAgent::listen_port = {self.port}/tcp;
        redef Log::default_rotation_interval = 0secs;
        redef ZeekAgent_Files::enabled = F;
        {site}
        """
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        (directory / "site.zeek").write_text(self._site)
        with (directory / "output").open("wb") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={name: value for name, value in os.environ.items() if not name.startswith("ZEEK_WEBSOCKET")},
            )

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, in order unless told otherwise: its logs are whole then."""
        assert self._process is not None
        self._process.send_signal(how)
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            self._process.wait()


@contextmanager
def zeek(directory: Path, *arguments: str, site: str = "", prefix: Sequence[str] = ()) -> Iterator[str]:
    """A Zeek that runs, by a command before its own if one is given; the URL for agents."""
    one = Zeek(site, *arguments, prefix=prefix)
    one.start(directory)
    try:
        yield one.url
    finally:
        one.stop()


async def joined(directory: Path) -> None:
    await until(
        lambda: any(one["type_"] == "join" for one in records(directory / "zeek-agent.log")), 30, "no agent joins"
    )
    await asyncio.sleep(1.0)  # its first queries are under way
