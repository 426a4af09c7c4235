"""A Zeek cluster over ZeroMQ or Broker: manager, logger, proxy and two workers, each in a directory of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from zeek_program import BROKER, PACKAGE, ZEROMQ, ZEROMQ_PORTS, free_port

NODES: Final = ("manager", "logger", "proxy", "worker-1", "worker-2")
_LAYOUT: Final = """
redef Cluster::manager_is_logger = F;
redef Cluster::nodes = {{
    ["manager"] = [$node_type=Cluster::MANAGER, $ip=127.0.0.1{manager}],
    ["logger"] = [$node_type=Cluster::LOGGER, $ip=127.0.0.1, $p={log}/tcp],
    ["proxy"] = [$node_type=Cluster::PROXY, $ip=127.0.0.1, $manager="manager"{proxy}],
    ["worker-1"] = [$node_type=Cluster::WORKER, $ip=127.0.0.1, $manager="manager"],
    ["worker-2"] = [$node_type=Cluster::WORKER, $ip=127.0.0.1, $manager="manager"],
}};
"""
_SITE: Final = """
@load {package}
redef Log::default_rotation_interval = 0secs;
redef ZeekAgent::listen_port = {port}/tcp;
redef ZeekAgent_Files::enabled = F;
"""


def search_path() -> str:
    """Where Zeek looks for scripts by default, which its usage text tells."""
    usage = subprocess.run(["zeek", "--help"], check=False, capture_output=True, text=True)
    found = re.search(r"\$ZEEKPATH\s*\|[^(]*\(([^)]*)\)", usage.stderr + usage.stdout)
    assert found, usage
    return found[1]


class Cluster:
    """Nodes by name. Workers see what their filter lets through, so that no packet is seen twice."""

    def __init__(self, directory: Path, site: str, filters: dict[str, str], backend: str) -> None:
        self.directory = directory
        self.filters = filters
        self.backend = backend
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        ports = {name: free_port() for name in ("log", "xpub", "xsub", "port")}
        self.url = f"ws://127.0.0.1:{ports['port']}"
        directory.mkdir(exist_ok=True)
        # Over Broker, nodes connect to each other: all but the workers listen.
        listens = {name: f", $p={free_port()}/tcp" if backend == "broker" else "" for name in ("manager", "proxy")}
        (directory / "cluster-layout.zeek").write_text(_LAYOUT.format(**ports, **listens))
        loaded = BROKER if backend == "broker" else ZEROMQ
        (directory / "site.zeek").write_text(
            loaded + _SITE.format(package=PACKAGE, **ports) + ZEROMQ_PORTS.format(**ports) + site
        )
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ZEEK_WEBSOCKET")},
            "ZEEKPATH": f"{directory}:{search_path()}",
        }

    def log(self, path: str) -> Path:
        """A log, which the logger writes."""
        return self.directory / "logger" / f"{path}.log"

    def start(self, name: str) -> None:
        here = self.directory / name
        here.mkdir(exist_ok=True)
        is_relay = name == "manager" and self.backend == "zeromq"
        more = ["Cluster::Backend::ZeroMQ::run_proxy_thread=T"] if is_relay else []
        if name.startswith("worker"):
            more = ["-C", "-i", "lo", "-f", self.filters[name]]
        with (here / "output").open("ab") as output:
            self._nodes[name] = subprocess.Popen(
                ["zeek", *more, str(self.directory / "site.zeek")],
                cwd=here,
                env={**self._environment, "CLUSTER_NODE": name},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        node = self._nodes.pop(name)
        node.send_signal(how)
        try:
            node.wait(15)
        except subprocess.TimeoutExpired:
            node.kill()
            node.wait()


@contextmanager
def cluster(directory: Path, site: str, filters: dict[str, str], backend: str = "zeromq") -> Iterator[Cluster]:
    """A running cluster; workers end first and the logger last, so that it has all they say."""
    nodes = Cluster(directory, site, filters, backend)
    started: list[str] = []
    try:
        for name in NODES:
            nodes.start(name)
            started.append(name)
        yield nodes
    finally:
        for name in ("worker-1", "worker-2", "proxy", "manager", "logger"):
            if name in started:
                nodes.stop(name)
