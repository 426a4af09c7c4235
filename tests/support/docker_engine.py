"""A Docker engine of the test, in mount and network namespaces of its own, with one container; and a pretended one."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from waiting import until_sync

AVAILABLE = os.geteuid() == 0 and None not in map(shutil.which, ("docker", "dockerd", "containerd", "runc", "unshare"))
_START = """
ip link set lo up; mount -t tmpfs none /run/docker 2>/dev/null
exec dockerd --data-root {place}/data --exec-root {place}/exec --pidfile {place}/pid -H unix://{place}/docker.sock \
  --storage-driver=vfs --iptables=false --ip6tables=false
"""


class DockerEngine:
    def __init__(self, place: Path) -> None:
        self.socket = str(place / "docker.sock")

    def docker(self, *arguments: str, fails: bool = False) -> str:
        command = ["docker", "-H", f"unix://{self.socket}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert fails or done.returncode == 0, done.stderr
        return done.stdout.strip()

    def inspect(self, *arguments: str) -> dict[str, Any]:
        (found,) = json.loads(self.docker(*arguments))
        return dict(found)

    def get(self, path: str) -> dict[str, Any]:
        """A document of the API: newer versions of docker(1) do not show all of it."""
        connection = HTTPConnection("docker")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(self.socket)
        connection.request("GET", path)
        found = json.load(connection.getresponse())
        connection.close()
        return dict(found)

    def add_image(self, place: Path, *changes: str) -> str:
        """An image that has the host's programs once /usr is mounted."""
        root = place / "image"
        for name in ("usr", "etc", "proc", "sys", "dev", "tmp"):
            (root / name).mkdir(parents=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            (root / name).symlink_to(f"usr/{name}")
        subprocess.run(["tar", "-C", root, "-cf", place / "image.tar", "."], check=True)
        options = [word for change in changes for word in ("--change", change)]
        return self.docker("import", *options, str(place / "image.tar"), "tests/tiny:1").removeprefix("sha256:")


@contextmanager
def docker_engine(place: Path) -> Iterator[DockerEngine]:
    """Its socket's path must not be long."""
    place.mkdir(parents=True, exist_ok=True)
    engine = DockerEngine(place)
    with (place / "output").open("wb") as output:
        command = ["unshare", "--mount", "--net", "sh", "-c", _START.format(place=place)]
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        until_sync(lambda: engine.docker("version", fails=True).count("Version") >= 2, 60, "dockerd has not started")
        yield engine
    finally:
        for container in engine.docker("ps", "-aq", fails=True).split():
            engine.docker("rm", "-f", container, fails=True)
        process.terminate()
        process.wait(60)


@contextmanager
def pretended_engine(path: Path, answer: Callable[[str], bytes]) -> Iterator[list[str]]:
    """An engine that answers to each request as the function says; yields the targets of the requests."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    asked: list[str] = []

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                request = b""
                while b"\r\n\r\n" not in request:
                    request += client.recv(4096)
                asked.append(request.split(b" ")[1].decode())
                client.sendall(answer(asked[-1]))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield asked
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


def http(document: Any, status: str = "200 OK", head: str = "") -> bytes:
    """An answer as of the engine."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return f"HTTP/1.0 {status}\r\nContent-Type: application/json\r\n{head}\r\n".encode() + body
