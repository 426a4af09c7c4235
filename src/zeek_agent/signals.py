"""Graceful shutdown on SIGTERM and SIGINT, and what SIGHUP does."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TypeVar

from zeek_agent import platforms

log = logging.getLogger(__name__)

_T = TypeVar("_T")


@contextmanager
def stop_signals() -> Iterator[asyncio.Future[str]]:
    """Within this context, SIGTERM and SIGINT only complete the future, with the signal's name."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[str] = loop.create_future()

    def stop(name: str) -> None:
        if not stopped.done():
            stopped.set_result(name)

    restore = platforms.HERE.catch_stop_signals(loop, stop)
    try:
        yield stopped
    finally:
        restore()


class HangupSignal:
    """SIGHUP for the whole life of a program: an early one is kept until it can be served, a late one is ignored.

    If the program's terminal was closed, it stops, as by SIGTERM, unless it was started with SIGHUP ignored, as by
    nohup(1). On systems without the signal, it never comes.
    """

    def __init__(self) -> None:
        self._has_come = False
        self._serve: Callable[[], None] | None = None
        self._number = number = platforms.HERE.hangup_signal
        self._had_terminal = False
        if number is not None:
            is_ignored = signal.getsignal(number) is signal.SIG_IGN
            self._had_terminal = not is_ignored and platforms.HERE.has_terminal()
            signal.signal(number, self._receive)

    def _receive(self, *_: object) -> None:
        if self._had_terminal and not platforms.HERE.has_terminal():
            os.kill(os.getpid(), signal.SIGTERM)
        elif self._serve is None:
            self._has_come = True
        else:
            self._serve()

    def ignore(self) -> None:
        """Ignore it from now on, when the program ends: Python restores the default, which would kill it."""
        if self._number is not None:
            signal.signal(self._number, signal.SIG_IGN)

    def serve_by(self, serve: Callable[[], None] | None) -> None:
        """Call the function in the main thread for each SIGHUP, also for one that has come already."""
        self._serve = serve
        if serve is not None and self._has_come:
            serve()


@contextmanager
def on_hangup(
    work: Callable[[], Coroutine[object, object, object]], hangup: HangupSignal | None = None
) -> Iterator[None]:
    """Within this context, SIGHUP starts the work in the event loop; once more if it comes while the work goes on.

    An error of the work is logged. `hangup` is given by programs that handle the signal before the context, too.
    """
    loop = asyncio.get_running_loop()
    wanted = asyncio.Event()
    hangup = hangup or HangupSignal()

    async def serve() -> None:
        while True:
            await wanted.wait()
            wanted.clear()
            try:
                await work()
            except Exception:
                log.exception("SIGHUP was not handled")

    def wake() -> None:
        loop.call_soon_threadsafe(wanted.set)

    serving = loop.create_task(serve(), name="SIGHUP")
    hangup.serve_by(wake)
    try:
        yield
    finally:
        hangup.serve_by(None)
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
