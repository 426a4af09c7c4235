"""Renews an enrolled agent's credentials in time. A process of its own does it, which imports what that needs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from zeek_agent.containment import own_code
from zeek_agent.fleet.enrolled import EnrolledFiles
from zeek_agent.text import clipped, from_bytes, visible

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 3600.0
"""Interval of looking at the clock, which may be set or have stood still, and for an agent that was enrolled since."""
RETRY_SECONDS: Final = (60.0, 4 * 3600.0)
"""Shortest and longest time between attempts."""
PROCESS_SECONDS: Final = 120.0


def command(state: str, agent_id: str) -> list[str]:
    """The command that renews the credentials of the agent with this state directory."""
    own = ("--state-dir", state, "--set", f"agent.id={agent_id}")
    return own_code.command("zeek_agent.__main__", "enroll", "--renew", *own)


class Renewal:
    """Runs the command when two thirds of the credentials' life are over, until it succeeds."""

    def __init__(self, files: EnrolledFiles, command: Sequence[str], clock: Callable[[], float] = time.time) -> None:
        self._files = files
        self._command = command
        self._clock = clock
        self._retry = RETRY_SECONDS[0]
        self.renewed = 0

    async def run(self) -> None:
        """Wait and renew, until cancelled."""
        while True:
            await asyncio.sleep(await self.step())

    async def step(self) -> float:
        """Renew if it is time. Returns the seconds until the next step."""
        try:
            enrolled = self._files.read()
        except ValueError as error:
            return self._failed(f"{error}")
        if enrolled is None:
            return LOOK_SECONDS
        due = enrolled.renew_at - self._clock()
        if due > 0:
            return min(due, LOOK_SECONDS)
        if (fault := await self._run()) is not None:
            left = (enrolled.expires - self._clock()) / 3600
            return self._failed(f"{fault} ({f'they expire in {left:.0f} h' if left > 0 else 'they have expired'})")
        self._retry = RETRY_SECONDS[0]
        self.renewed += 1
        log.info("the agent's credentials were renewed")
        return RETRY_SECONDS[0]

    def _failed(self, fault: str) -> float:
        wait, self._retry = self._retry, min(2 * self._retry, RETRY_SECONDS[1])
        log.warning("the agent's credentials cannot be renewed: %s; the next attempt is in %d min", fault, wait / 60)
        return wait

    async def _run(self) -> str | None:
        """Run the command. Returns why it failed."""
        pipe = asyncio.subprocess.PIPE
        null = asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(*self._command, stdin=null, stdout=null, stderr=pipe)
        try:
            async with asyncio.timeout(PROCESS_SECONDS):
                _, output = await process.communicate()
        except TimeoutError:
            return f"the command did not end within {PROCESS_SECONDS:.0f} s"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode == 0:
            return None
        lines = from_bytes(output).strip().splitlines()
        return visible(clipped(lines[-1].removeprefix("zeek-agent: "))) if lines else f"exit code {process.returncode}"
