"""Graceful shutdown on SIGTERM and SIGINT, and what SIGHUP does."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TypeVar

_T = TypeVar("_T")


@contextmanager
def stop_signals() -> Iterator[asyncio.Future[str]]:
    """Within this context, SIGTERM and SIGINT only complete the future, with the signal's name."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[str] = loop.create_future()

    def stop(name: str) -> None:
        if not stopped.done():
            stopped.set_result(name)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number.name)
    try:
        yield stopped
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@contextmanager
def on_hangup(work: Callable[[], Coroutine[object, object, object]]) -> Iterator[None]:
    """Within this context, SIGHUP starts the work in the event loop; once more if it comes while the work goes on."""
    loop = asyncio.get_running_loop()
    wanted = asyncio.Event()

    async def serve() -> None:
        while True:
            await wanted.wait()
            wanted.clear()
            await work()

    serving = loop.create_task(serve())
    loop.add_signal_handler(signal.SIGHUP, wanted.set)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        serving.cancel()


def run_until_done(loop: asyncio.AbstractEventLoop, work: Awaitable[_T]) -> _T:
    """Run the loop until the work is done. SIGINT cancels the work, and then raises KeyboardInterrupt here.

    `asyncio.Runner` raises it within the loop if the work is done at that moment, and leaves a loop that stops
    immediately when it is run again.
    """
    task = loop.create_task(_result(work))
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        loop.call_soon_threadsafe(task.cancel)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        result = loop.run_until_complete(task)
    except asyncio.CancelledError:
        if not interrupted:
            raise
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupted:
        raise KeyboardInterrupt
    return result


async def _result(work: Awaitable[_T]) -> _T:
    return await work
