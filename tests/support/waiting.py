"""Waiting for what happens soon: `until` in coroutines, `until_sync` elsewhere."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from zeek_agent import platforms

T = TypeVar("T")
Complaint = str | Callable[[], str]

PATIENCE = 6.0 if platforms.HERE.key == "win32" else 1.0
"""A factor: programs start slowly under Wine."""
SECONDS = 30.0
"""How long to wait by default: far longer than it takes, so that a busy machine fails no test."""
_SHORTEST_PAUSE = 0.005
_LONGEST_PAUSE = 0.1


async def until(
    find: Callable[[], T | Awaitable[T | None] | None], seconds: float = SECONDS, complaint: Complaint = ""
) -> T:
    """Wait until `find` returns, or its awaitable gives, something true; that. Fails with the complaint otherwise.

    `find` runs in the event loop: what asks an agent has to be awaitable, as `RunningAgent.ask` is.
    """
    for pause in _pauses(find, seconds, complaint):
        found = find()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        await asyncio.sleep(pause)
    raise AssertionError("unreachable")


def until_sync(find: Callable[[], T | None], seconds: float = SECONDS, complaint: Complaint = "") -> T:
    """The same outside of coroutines."""
    for pause in _pauses(find, seconds, complaint):
        if found := find():
            return found
        time.sleep(pause)
    raise AssertionError("unreachable")


def _pauses(find: Callable[[], object], seconds: float, complaint: Complaint) -> Iterator[float]:
    """How long to sleep after each try, longer and longer; the last try is one after the deadline."""
    seconds *= PATIENCE
    deadline, pause, late = time.monotonic() + seconds, _SHORTEST_PAUSE, False
    while not late:
        late = time.monotonic() > deadline
        yield pause
        pause = min(2 * pause, _LONGEST_PAUSE)
    code = getattr(find, "__code__", None)
    what = complaint() if callable(complaint) else complaint
    raise AssertionError(
        f"not within {seconds:g} s: {what or (f'{code.co_filename}:{code.co_firstlineno}' if code else find)}"
    )
