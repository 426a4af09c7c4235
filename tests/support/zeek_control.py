"""ZeekControl with a deployment of its own: configuration, spool and logs in a directory, on loopback alone.

The installed program runs on a directory that has links to what is installed, and whatever it writes in it.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from zeek_program import PACKAGE, ZEROMQ_PORTS, tool

STANDALONE: Final = {"zeek": "standalone"}
CLUSTER: Final = {
    "logger": "logger",
    "manager": "manager",
    "proxy": "proxy",
    "worker-1": "worker",
    "worker-2": "worker",
}
_PORTS: Final = 8
_LAUNCHER: Final = """
import functools, runpy, sys
program, base, *words = sys.argv[1:]
installed = runpy.run_path(program)
here = functools.partial(installed["ZeekCtl"], basedir=base, cfgfile=f"{base}/etc/zeekctl.cfg")
loop = installed["ZeekCtlCmdLoop"](here, False, words[0])
done = loop.onecmd(" ".join(words))
loop.finish()
sys.exit(not done)
"""


def free_ports(number: int) -> int:
    """The first of so many free ports in a row."""
    for _ in range(100):
        first = random.randrange(20000, 30000)
        with ExitStack() as held:
            try:
                for port in range(first, first + number):
                    held.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return first
    raise AssertionError(f"no {number} free ports in a row")


class ZeekControl:
    """A deployment; `nodes` are kinds of nodes by name."""

    def __init__(self, base: Path, nodes: dict[str, str], site: str, **options: object) -> None:
        self.base = base
        self.nodes = nodes
        self._program = Path(tool("zeekctl")).resolve()
        first = free_ports(_PORTS + 3)
        self.port = first + _PORTS
        self.url = f"ws://127.0.0.1:{self.port}"
        self.writer = "logger" if "logger" in nodes else next(iter(nodes))
        """The node that writes logs."""

        prefix = self._program.parent.parent
        (base / "share").mkdir(parents=True)
        (base / "bin").symlink_to(prefix / "bin")
        shutil.copytree(
            prefix / "share" / "zeekctl",
            base / "share" / "zeekctl",
            ignore=shutil.ignore_patterns("zeekctl-config.sh"),
        )
        for name in ("etc", "logs", "spool"):
            (base / name).mkdir()
        (base / "spool" / "tmp").mkdir()

        values: dict[str, object] = {
            "SitePolicyPath": base / "site",
            "LogDir": base / "logs",
            "SpoolDir": base / "spool",
            "CfgDir": base / "etc",
            "ZeekPort": first,
            "MetricsPort": 0,
            "WebSocketPort": self.port,
            "ZeekArgs": "ports",  # which come last, where the backend is known
            "LogRotationInterval": 0,
            "CompressLogs": 0,
            "StopWait": 1,
            "SendMail": "",
            "TraceSummary": "",
            "env_vars": "ZEEK_DEFAULT_LISTEN_ADDRESS=127.0.0.1",
            **options,
        }
        (base / "etc" / "zeekctl.cfg").write_text("".join(f"{name} = {value}\n" for name, value in values.items()))
        (base / "etc" / "networks.cfg").touch()
        (base / "etc" / "node.cfg").write_text("".join(map(self._node, nodes.items())))
        shutil.copytree(PACKAGE, base / "site" / "zeek-agent")
        (base / "site" / "local.zeek").write_text(
            f"@load zeek-agent\nredef ZeekAgent::listen_port = {self.port}/tcp;\n{site}"
        )
        ports = ZEROMQ_PORTS.format(xpub=self.port + 1, xsub=self.port + 2)
        (base / "site" / "ports.zeek").write_text(ports)

    @staticmethod
    def _node(node: tuple[str, str]) -> str:
        name, kind = node
        interface = "interface=lo\n" if kind in ("standalone", "worker") else ""
        return f"[{name}]\ntype={kind}\nhost=127.0.0.1\n{interface}"

    def run(self, *words: str) -> str:
        """What a command of zeekctl prints; fails with that when the command fails."""
        interpreter = self._program.read_text().partition("\n")[0].removeprefix("#!").split()
        command = [*interpreter, "-c", _LAUNCHER, str(self._program), str(self.base), *words]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ZEEK")}
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, check=False, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.diagnosis()
        return done.stdout

    def log(self, path: str) -> Path:
        """A log while it is written."""
        return self.base / "spool" / self.writer / f"{path}.log"

    def logs(self, node: str) -> set[str]:
        """The logs in a node's directory."""
        return {file.stem for file in (self.base / "spool" / node).glob("*.log")}

    def archived(self, path: str) -> list[Path]:
        """A log of nodes that have ended."""
        return sorted((self.base / "logs").glob(f"*-*-*/{path}.*"))

    def diagnosis(self) -> str:
        """What nodes wrote to their standard error."""
        return "".join(f"{file.parent.name}: {file.read_text()}" for file in self.base.glob("spool/*/stderr.log"))


@contextmanager
def deployed(base: Path, nodes: dict[str, str], site: str, **options: object) -> Iterator[ZeekControl]:
    """A deployment that runs; its nodes are stopped at the end."""
    control = ZeekControl(base, nodes, site, **options)
    try:
        control.run("deploy")
        yield control
    finally:
        control.run("stop")
