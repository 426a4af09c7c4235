"""The embedded collector's process as a program: `collector_child.py DESCRIPTOR PARENT TRACES VARIANT [ARGUMENT …]`.

It inherits nothing from the tests but the socket DESCRIPTOR, as the agent's zygote does not either. If it has not ended
after a while, its stack goes to the file TRACES.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lockdown import outcome

from zeek_agent.collector import process
from zeek_agent.collector.server import Collector
from zeek_agent.containment.protections import Protections

STUCK_SECONDS = 15
log = logging.getLogger("zeek_agent.collector")


def run() -> None:
    """The process as it is."""


def attempt(logs_directory: str, other_directory: str) -> None:
    """Log what code in the process can do once it is ready for connections."""
    logs, outside = Path(logs_directory), Path(other_directory)
    attempts: dict[str, Callable[[], object]] = {
        "log": lambda: (logs / "new.log").write_text("line"),
        "rotate": lambda: (logs / "new.log").rename(logs / "old.log"),
        "read outside": (outside / "file").read_text,
        "write outside": lambda: (outside / "file").write_text("changed"),
        "create outside": (outside / "new").touch,
        "move outside": lambda: (logs / "old.log").rename(outside / "old.log"),
        "link": lambda: (logs / "link").symlink_to("/etc/shadow"),
        "read the accounts": lambda: Path("/etc/passwd").read_text(),
        "run a program": lambda: os.execv("/bin/true", ["true"]),
        "start a process": lambda: os.posix_spawn("/bin/true", ["true"], {}),
        "connect": lambda: socket.create_connection(("127.0.0.1", 1), 1),
        "kill": lambda: os.kill(os.getppid(), 0),
        "become root": lambda: os.setresuid(0, 0, 0),
        "run a program in a process": lambda: subprocess.run(["/bin/true"], check=True),
    }
    start = Collector.start_embedded

    async def try_all(self: Collector) -> None:
        found = {name: outcome(work) for name, work in attempts.items()}
        log.warning("outcomes: %s", json.dumps(found))
        await start(self)

    Collector.start_embedded = try_all  # type: ignore[method-assign]


def loaded() -> None:
    """Log the modules that are loaded after the lockdown."""
    before: set[str] = set()
    lock_down, stop = process.lock_down, Collector.stop

    def note(*arguments: Any, **options: Any) -> Protections:
        protections = lock_down(*arguments, **options)
        before.update(sys.modules)
        return protections

    async def report(self: Collector) -> None:
        await stop(self)
        log.warning("loaded: %s", sorted(set(sys.modules) - before))

    process.lock_down = note
    Collector.stop = report  # type: ignore[method-assign]


def trace(path: str) -> None:
    """Write the stack to the file at SIGALRM, also after the process has let go of its descriptors."""

    def register() -> None:
        faulthandler.register(signal.SIGALRM, file=os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC))

    def let_go_and_register(kept: int) -> None:
        let_go(kept)
        register()

    let_go = process._let_go_of_descriptors
    process._let_go_of_descriptors = let_go_and_register
    register()


if __name__ == "__main__":
    descriptor, parent, traces, variant, *arguments = sys.argv[1:]
    trace(traces)
    signal.setitimer(signal.ITIMER_REAL, STUCK_SECONDS)
    {"run": run, "attempt": attempt, "loaded": loaded}[variant](*arguments)
    process.run(socket.socket(fileno=int(descriptor)), int(parent))
