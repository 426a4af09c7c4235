"""Programs that stand in for those of macOS: Python scripts that write prepared lines as a script directs."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

_PROGRAM: Final = """#!{python}
import json, os, signal, sys, time
log = open({log!r}, "a")
log.write(json.dumps([os.getpid(), os.getsid(0), sys.argv[1:]]) + "\\n")
log.close()
{behaviour}
"""

_ESLOGGER: Final = """
if sys.argv[1:] == ["--list-events"]:
    print({events!r})
    sys.exit({list_status})
"""

_PLAY: Final = """
with open({steps!r}) as file:
    steps = [json.loads(step) for step in file]
for step in steps:
    if "write" in step:
        left = memoryview(bytes.fromhex(step["write"]))
        while left:
            left = left[os.write(1, left):]
    elif "complain" in step:
        sys.stderr.write(step["complain"])
        sys.stderr.flush()
    elif "wait_for" in step:
        while not os.path.exists(step["wait_for"]):
            time.sleep(0.005)
    elif "exit" in step:
        os._exit(step["exit"])
    elif "kill" in step:
        os.kill(os.getpid(), step["kill"])
    elif "ignore" in step:
        signal.signal(step["ignore"], signal.SIG_IGN)
    elif "orphan" in step:
        if os.fork() == 0:
            time.sleep(step["orphan"])
            os._exit(0)
while True:
    time.sleep(60)
"""

Step = dict[str, Any]


def write(*lines: bytes) -> Step:
    """Write lines, each with its newline."""
    return {"write": b"".join(line + b"\n" for line in lines).hex()}


def write_raw(piece: bytes) -> Step:
    """Write a piece of a line."""
    return {"write": piece.hex()}


class FakeProgram:
    """A program in `directory` that runs `steps`, then waits to be ended. `runs` has its process ids and arguments."""

    def __init__(self, directory: Path, name: str, steps: Sequence[Step], prologue: str = "") -> None:
        self.path = directory / name
        self._log = directory / f"{name}.runs"
        self._steps = directory / f"{name}.steps"
        self.plan(steps)
        behaviour = prologue + _PLAY.format(steps=str(self._steps))
        self.path.write_text(_PROGRAM.format(python=sys.executable, log=str(self._log), behaviour=behaviour))
        self.path.chmod(self.path.stat().st_mode | stat.S_IXUSR)

    def plan(self, steps: Sequence[Step]) -> None:
        """The steps of the next run."""
        self._steps.write_text("".join(f"{json.dumps(step)}\n" for step in steps))

    def runs(self) -> list[tuple[int, int, list[str]]]:
        """Process id, session id and arguments of each run until now."""
        if not self._log.exists():
            return []
        return [
            (pid, session, arguments) for pid, session, arguments in map(json.loads, self._log.read_text().splitlines())
        ]


def fake_eslogger(
    directory: Path, steps: Sequence[Step], *, events: str = "access exec exit fork signal", list_status: int = 0
) -> FakeProgram:
    """An `eslogger` that lists these events."""
    return FakeProgram(directory, "eslogger", steps, _ESLOGGER.format(events=events, list_status=list_status))


def fake_log(directory: Path, steps: Sequence[Step]) -> FakeProgram:
    """A `log`."""
    return FakeProgram(directory, "log", steps)
