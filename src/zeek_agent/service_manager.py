"""Notifications to the service manager, by the protocol of sd_notify(3): readiness, status text, watchdog."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Final

log = logging.getLogger(__name__)

_STATUS_SECONDS: Final = 5.0
"""Interval of status texts; the watchdog may need a shorter one."""
_RETRY_SECONDS: Final = 0.1
_PINGS_PER_TIMEOUT: Final = 3
"""Pings within the watchdog's timeout, so that a late one is not the last one."""
_TEXT_CHARACTERS_MAX: Final = 400


class ServiceManager:
    """The service manager that started this process, if any; without one, nothing is sent."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        """Takes its variables out of the environment, so that programs that the agent starts do not inherit them."""
        self._address = environment.pop("NOTIFY_SOCKET", "")
        timeout = environment.pop("WATCHDOG_USEC", "")
        watched = environment.pop("WATCHDOG_PID", "")
        self.watchdog_seconds: float | None = None
        """The time without a ping after which the process is killed; None if there is no watchdog."""
        if timeout.isdigit() and int(timeout) and watched in ("", str(os.getpid())):
            self.watchdog_seconds = int(timeout) / 1_000_000
        self._socket: socket.socket | None = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    @property
    def is_present(self) -> bool:
        return self._socket is not None

    def notify(self, **assignments: str) -> bool:
        """Send these assignments. Returns False if they have to be sent again, because the queue is full."""
        if self._socket is None:
            return True
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        message = "\n".join(f"{name}={_line(value)}" for name, value in assignments.items())
        try:
            self._socket.sendto(message.encode(), address)
        except BlockingIOError:
            return False
        except OSError as error:
            log.warning("the service manager cannot be notified at %s: %s", self._address, error.strerror)
            self.close()
        return True

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _line(text: str) -> str:
    """The text without line breaks, which would begin another assignment."""
    return " ".join(text.split())[:_TEXT_CHARACTERS_MAX]


@asynccontextmanager
async def informed(
    manager: ServiceManager, describe: Callable[[], str], problem: Callable[[], str | None]
) -> AsyncIterator[None]:
    """Report that the service is ready, and at the end that it is stopping; in between its status and its health.

    `describe` returns the status text. `problem` returns why the service is not healthy, or None: only then is the
    watchdog fed. It is fed by this event loop, so a loop that hangs is not healthy either.
    """
    if not manager.is_present:
        yield
        return
    text = describe()
    await _notify(manager, READY="1", STATUS=text)
    task = asyncio.create_task(_report(manager, describe, problem, text), name="service manager")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await _notify(manager, STOPPING="1", STATUS="stopping")
        manager.close()


async def _report(
    manager: ServiceManager, describe: Callable[[], str], problem: Callable[[], str | None], sent: str
) -> None:
    interval = _STATUS_SECONDS
    if manager.watchdog_seconds is not None:
        interval = min(interval, manager.watchdog_seconds / _PINGS_PER_TIMEOUT)
    logged = ""
    while True:
        wrong = problem()
        assignments = {"WATCHDOG": "1"} if wrong is None and manager.watchdog_seconds is not None else {}
        if wrong is not None and wrong != logged:
            log.error("not healthy: %s", wrong)
        logged = wrong or ""
        text = describe() if wrong is None else f"not healthy: {wrong}"
        if text != sent:
            assignments["STATUS"] = sent = text
        if assignments:
            await _notify(manager, **assignments)
        await asyncio.sleep(interval)


async def _notify(manager: ServiceManager, **assignments: str) -> None:
    while not manager.notify(**assignments):
        await asyncio.sleep(_RETRY_SECONDS)
