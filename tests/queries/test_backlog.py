"""How much may wait for a recipient who is slower than the queries."""

from __future__ import annotations

import asyncio

from zeek_agent.queries.result_backlog import CONCURRENT_QUERIES, Backlog


async def occupy(backlog: Backlog, size_bytes: int, ran: list[int], delivered: asyncio.Event) -> None:
    async with backlog.slot() as slot:
        ran.append(size_bytes)
        slot.hold_result(size_bytes)
        await delivered.wait()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_no_query_runs_while_too_much_waits() -> None:
    backlog, ran, delivered = Backlog(limit_bytes=100), list[int](), asyncio.Event()
    tasks = [asyncio.create_task(occupy(backlog, 60, ran, delivered)) for _ in range(6)]
    await settle()
    assert ran == [60, 60]
    assert backlog.size_bytes == 120
    delivered.set()
    await asyncio.gather(*tasks)
    assert len(ran) == 6
    assert backlog.size_bytes == 0


async def test_concurrent_queries_are_limited_before_their_size_is_known() -> None:
    backlog, running, finish = Backlog(), list[int](), asyncio.Event()

    async def run(number: int) -> None:
        async with backlog.slot() as slot:
            running.append(number)
            await finish.wait()
            slot.hold_result(0)

    tasks = [asyncio.create_task(run(number)) for number in range(5)]
    await settle()
    assert running == list(range(CONCURRENT_QUERIES))
    finish.set()
    await asyncio.gather(*tasks)
    assert running == list(range(5))


async def test_a_query_that_fails_or_is_cancelled_gives_its_place_to_the_next() -> None:
    backlog, ran, never = Backlog(limit_bytes=1), list[int](), asyncio.Event()
    for _ in range(3):
        try:
            async with backlog.slot():
                raise LookupError
        except LookupError:
            pass
    waiting = [asyncio.create_task(occupy(backlog, 1, ran, never)) for _ in range(5)]
    await settle()
    for number in range(5):
        assert len(ran) == number + 1
        waiting[number].cancel()
        await settle()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert backlog.size_bytes == 0
