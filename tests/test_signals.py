"""Being told to stop, at any moment."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from zeek_agent.signals import run_until_done


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
