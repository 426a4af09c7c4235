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

OWN_OPTIONS = """
redef ZeekAgent::listen_port = {port}/tcp;
redef ZeekAgent_Files::enabled = F;
"""
"""What a stock package does not have."""

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

    def __init__(
        self,
        site: str = "",
        *arguments: str,
        prefix: Sequence[str] = (),
        package: Path = PACKAGE,
        before: str = "",
    ) -> None:
        """`site` comes after the package in the site's script; `before`, where `{port}` is the agents', before it."""
        self.port = free_port()
        self.url = f"ws://127.0.0.1:{self.port}"
        self._command = [*prefix, "zeek", "-C", *arguments, "site.zeek"]
        own = "" if package != PACKAGE else OWN_OPTIONS.format(port=self.port)
        self._site = f"""
        {before.format(port=self.port)}
        @load {package}
        {ZEROMQ_PORTS.format(xpub=free_port(), xsub=free_port())}
        redef Log::default_rotation_interval = 0secs;
        {own}
        {site}
        """
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("ZEEK_WEBSOCKET")}
        if package != PACKAGE:
            self._environment["ZEEK_WEBSOCKET_LISTEN_PORT"] = str(self.port)
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
                env=self._environment,
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
