"""Waiting in tests: what was found is given, and what did not come is named."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from waiting import until, until_sync


def third_time() -> Iterator[str]:
    yield from ("", "", "found")


async def test_a_true_result_is_returned() -> None:
    tries = third_time()
    assert until_sync(lambda: next(tries)) == "found"
    tries = third_time()
    assert await until(lambda: next(tries)) == "found"


async def test_an_awaitable_is_awaited() -> None:
    tries = third_time()
    assert await until(lambda: asyncio.to_thread(next, tries)) == "found"


async def test_a_timeout_names_the_condition() -> None:
    with pytest.raises(AssertionError, match=r"not within 0 s: no rows come"):
        until_sync(lambda: None, 0, "no rows come")
    with pytest.raises(AssertionError, match=r"not within 0\.01 s: 3 of 4"):
        await until(lambda: None, 0.01, lambda: "3 of 4")
    with pytest.raises(AssertionError, match=r"not within 0 s: .*test_waiting\.py:\d+"):
        until_sync(lambda: None, 0)


def test_there_is_a_try_after_the_time_is_over() -> None:
    """A busy machine may have let nothing else run meanwhile."""
    tries = []

    def slow() -> bool:
        tries.append(time.sleep(0.05))
        return len(tries) > 1

    assert until_sync(slow, 0.01)
