"""Being told to stop, at any moment."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from zeek_agent.signals import HangupSignal, on_hangup, run_until_done, stop_signals


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with asyncio.Runner() as runner:
        yield runner.get_loop()


async def answer() -> int:
    await asyncio.sleep(0)
    return 42


async def interrupted_at_its_end() -> int:
    os.kill(os.getpid(), signal.SIGINT)
    return 1


async def interrupted_and_endless() -> int:
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(60)
    return 1


def test_work_is_run_until_it_is_done(loop: asyncio.AbstractEventLoop) -> None:
    assert run_until_done(loop, answer()) == 42


@pytest.mark.parametrize("work", [interrupted_at_its_end, interrupted_and_endless])
def test_an_interrupt_ends_the_work_and_leaves_the_loop_usable(loop: asyncio.AbstractEventLoop, work: type) -> None:
    for _ in range(20):
        with pytest.raises(KeyboardInterrupt):
            run_until_done(loop, work())
        assert run_until_done(loop, answer()) == 42
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.fixture
def hangup() -> Iterator[HangupSignal]:
    before = signal.getsignal(signal.SIGHUP)
    yield HangupSignal()
    signal.signal(signal.SIGHUP, before)


async def test_a_hangup_before_it_can_be_served_is_served_later(hangup: HangupSignal) -> None:
    served = asyncio.Event()

    async def serve() -> None:
        served.set()

    os.kill(os.getpid(), signal.SIGHUP)
    with on_hangup(serve, hangup):
        await asyncio.wait_for(served.wait(), 10)
    os.kill(os.getpid(), signal.SIGHUP)  # which must not end this process


async def test_an_error_does_not_end_the_service_of_hangups(hangup: HangupSignal) -> None:
    calls: list[int] = []
    done = asyncio.Event()

    async def serve() -> None:
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGHUP)
            raise OSError("a bug")
        done.set()

    with on_hangup(serve, hangup):
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.wait_for(done.wait(), 10)


async def test_a_storm_of_hangups_writes_nothing(hangup: HangupSignal, capfd: pytest.CaptureFixture[str]) -> None:
    calls = 0

    async def serve() -> None:
        nonlocal calls
        calls += 1

    with stop_signals(), on_hangup(serve, hangup):
        for _ in range(20_000):
            os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.1)
    assert calls >= 1
    assert capfd.readouterr().err == ""
