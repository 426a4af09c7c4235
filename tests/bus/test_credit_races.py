"""Wants and grants that cross each other, between the agent's sender and the gateway's credits."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from waiting import until

from zeek_agent.bus import sender as sender_module
from zeek_agent.bus.messages import SMALL_BATCH_BYTES, Ack, Grant, Want
from zeek_agent.bus.sender import BusSender
from zeek_agent.gateway.credits import Credits

SMALL, LARGE, LARGER = b"s" * 100, b"l" * 10_000, b"L" * 50_000


@dataclass
class Bus:
    """What a sender has published."""

    batches: list[bytes] = field(default_factory=list)
    wants: list[Want] = field(default_factory=list)

    async def batch(self, number: int, payload: bytes) -> None:
        assert number == len(self.batches) + 1
        self.batches.append(payload)

    async def want(self, want: Want) -> None:
        self.wants.append(want)


@asynccontextmanager
async def sender() -> AsyncIterator[tuple[BusSender, Bus]]:
    bus = Bus()
    one = BusSender(bus.batch, bus.want, list)  # type: ignore[arg-type] - every frame fits
    running = asyncio.create_task(one.run())
    try:
        yield one, bus
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        one.close("the test ends")


class Network(Bus):
    """A bus to a gateway: each side's messages arrive in their order, when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.up: deque[tuple[int, bytes] | Want] = deque()
        self.down: deque[Ack | Grant] = deque()
        self.unread: deque[tuple[int, bool]] = deque()
        """Batches that Zeek has not acknowledged, and whether they used credit."""
        self.credits: Credits[str] = Credits(1, 8)
        self._small = self._want = 0

    async def batch(self, number: int, payload: bytes) -> None:
        await super().batch(number, payload)
        self.up.append((number, payload))

    async def want(self, want: Want) -> None:
        self.up.append(want)

    def receive(self) -> None:
        """The gateway handles a message, as `gateway.uplink` does."""
        match self.up.popleft():
            case Want(0):
                self.credits.forget("agent")
            case Want(size, number):
                self._want = number
                self.credits.want("agent", size, 0.0)
            case (number, payload):
                is_unasked = len(payload) <= SMALL_BATCH_BYTES and not self._small
                assert is_unasked or self.credits.use("agent", len(payload), 0.0), "a batch without credit"
                self._small = number if is_unasked else self._small
                self.unread.append((number, not is_unasked))
        self._grant()

    def acknowledge(self) -> None:
        number, used_credit = self.unread.popleft()
        if used_credit:
            self.credits.acknowledged("agent")
        if self._small <= number:
            self._small = 0
        self.down.append(Ack(number))
        self._grant()

    def _grant(self) -> None:
        self.down.extend(Grant(number=self._want) for _ in self.credits.grants(0.0))


@pytest.mark.parametrize("seed", range(40))
async def test_every_batch_has_credit_and_no_grant_remains_however_messages_cross(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    often, paces = chance.random(), [chance.random() for _ in range(3)]
    monkeypatch.setattr(sender_module, "PATIENCE_SECONDS", 0.0)
    bus = Network()
    one = BusSender(bus.batch, bus.want, list, monotonic=lambda: 0.0)  # type: ignore[arg-type] - every frame fits
    running = asyncio.create_task(one.run())
    sending: list[asyncio.Task[asyncio.Future[float]]] = []

    def hear() -> None:
        answer = bus.down.popleft()
        one.acknowledge(answer) if isinstance(answer, Ack) else one.grant(answer)

    steps = [(bus.up, bus.receive), (bus.unread, bus.acknowledge), (bus.down, hear)]
    for _ in range(300):
        if chance.random() < often:
            frame = SMALL if chance.random() < 0.9 else LARGE
            sending.append(asyncio.create_task(one.send([frame])))
        ((waiting, step),) = chance.choices(steps, paces)
        if waiting:
            step()
        await asyncio.sleep(0)
    while any(waiting for waiting, _ in steps) or one.waiting_since is not None:
        for waiting, step in steps:
            if waiting:
                step()
        for _ in range(5):
            await asyncio.sleep(0)
    running.cancel()
    assert await asyncio.gather(*await asyncio.gather(*sending)) == [0.0] * len(sending)
    assert bus.credits.used == bus.credits.waiting == 0


async def test_a_grant_for_less_than_is_wanted_by_now_is_not_used() -> None:
    async with sender() as (one, bus):
        await one.send([SMALL])
        waiting = [asyncio.create_task(one.send([SMALL]))]
        await until(lambda: bus.wants)
        waiting.append(asyncio.create_task(one.send([LARGE])))
        await until(lambda: len(bus.wants) == 2)
        assert bus.wants[0].bytes == SMALL_BATCH_BYTES < len(LARGE) <= bus.wants[1].bytes
        one.grant(Grant(number=bus.wants[0].number))
        await asyncio.sleep(0.05)
        assert len(bus.batches) == 1
        one.grant(Grant(number=bus.wants[1].number))
        await asyncio.gather(*waiting)
        assert bus.batches[1] == SMALL + b"\n" + LARGE


async def test_a_small_batch_that_needs_no_credit_wastes_none() -> None:
    async with sender() as (one, bus):
        lanes: Credits[str] = Credits(1, 8)
        large = asyncio.create_task(one.send([LARGE]))
        await until(lambda: bus.wants)
        lanes.want("agent", bus.wants[0].bytes, 0.0)
        assert list(lanes.grants(0.0)) == ["agent"]
        one.grant(Grant(number=bus.wants[0].number))
        await large
        assert lanes.use("agent", len(bus.batches[0]), 0.0)
        await one.send([SMALL])
        assert bus.batches == [LARGE, SMALL], "at once, while the large one is unacknowledged"
        second = asyncio.create_task(one.send([SMALL]))
        await until(lambda: len(bus.wants) == 2)
        assert len(bus.batches) == 2, "not while a small one is"
        one.acknowledge(Ack(1))
        await asyncio.sleep(0.01)
        assert len(bus.batches) == 2
        one.acknowledge(Ack(2))
        await second
        assert len(bus.batches) == 3


async def test_a_small_batch_that_used_a_grant_is_acknowledged_before_the_next_goes_unasked() -> None:
    async with sender() as (one, bus):
        await one.send([SMALL])
        second = asyncio.create_task(one.send([SMALL]))
        await until(lambda: bus.wants)
        one.grant(Grant(number=bus.wants[0].number))
        await second
        third = asyncio.create_task(one.send([SMALL]))
        await asyncio.sleep(0)
        one.acknowledge(Ack(1))
        await until(lambda: len(bus.wants) == 2)
        assert len(bus.batches) == 2, "the gateway may have taken the second one for the one without credit"
        one.acknowledge(Ack(2))
        await third
        assert len(bus.batches) == 3


async def test_a_grant_in_an_acknowledgement_is_for_the_want_that_it_names() -> None:
    async with sender() as (one, bus):
        await one.send([SMALL])
        waiting = asyncio.create_task(one.send([LARGE]))
        await until(lambda: bus.wants)
        one.acknowledge(Ack(1, bus.wants[0].number + 1))
        await asyncio.sleep(0.05)
        assert len(bus.batches) == 1
        one.acknowledge(Ack(1, bus.wants[0].number))
        await waiting
        assert len(bus.batches) == 2


async def test_a_want_is_withdrawn_when_an_acknowledgement_makes_it_unnecessary() -> None:
    async with sender() as (one, bus):
        await one.send([SMALL])
        waiting = asyncio.create_task(one.send([SMALL]))
        await until(lambda: bus.wants)
        one.acknowledge(Ack(1))
        await waiting
        await until(lambda: len(bus.wants) == 2)
        assert bus.wants[1].bytes == 0
        one.grant(Grant(number=bus.wants[0].number))
        later = asyncio.create_task(one.send([LARGER]))
        await until(lambda: len(bus.wants) == 3)
        assert len(bus.batches) == 2, "a grant that was withdrawn is not used"
        one.grant(Grant(number=bus.wants[2].number))
        await later
        assert len(bus.batches) == 3


async def test_a_want_is_withdrawn_when_what_waited_is_cancelled() -> None:
    async with sender() as (one, bus):
        waiting = asyncio.create_task(one.send([LARGE]))
        await until(lambda: bus.wants)
        waiting.cancel()
        await until(lambda: len(bus.wants) == 2)
        assert bus.wants[1].bytes == 0


async def test_a_grant_for_a_cancelled_batch_is_not_used_for_a_larger_one() -> None:
    async with sender() as (one, bus):
        cancelled = asyncio.create_task(one.send([LARGE]))
        await until(lambda: bus.wants)
        larger = asyncio.create_task(one.send([LARGER]))
        await asyncio.sleep(0)
        cancelled.cancel()
        one.grant(Grant(number=bus.wants[0].number))
        await until(lambda: bus.wants[-1].bytes >= len(LARGER))
        assert bus.batches == []
        one.grant(Grant(number=bus.wants[-1].number))
        await larger
        assert bus.batches == [LARGER]


async def test_a_closed_sender_withdraws_nothing() -> None:
    async with sender() as (one, bus):
        waiting = asyncio.create_task(one.send([LARGE]))
        await until(lambda: bus.wants)
        another = asyncio.create_task(one.send([LARGE]))
        await asyncio.sleep(0)
        one.close("Zeek is away")
        await asyncio.gather(waiting, another, return_exceptions=True)
        await asyncio.sleep(0.05)
        assert [want.bytes for want in bus.wants] == [SMALL_BATCH_BYTES + len(LARGE) + 1]
