"""The window of bytes under way: it grows while pongs are quick, holds, and shuts when one is late."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence

import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.protocol import State

from zeek_agent.config.sections import ZeekSettings
from zeek_agent.errors import RevokedError
from zeek_agent.zeek.back_pressure import QUICK_PONGS_TO_REOPEN, Sender, Window

SETTINGS = ZeekSettings(window_bytes=1000, window_bytes_max=3000, slow_pong=0.2)
QUICK, MIDDLING, LATE = 0.01, 0.1, 0.3


def run(window: Window, seconds: float, times: int = 1, size_bytes: int = 100) -> None:
    for _ in range(times):
        window.add_sent(size_bytes)
        window.acknowledged(size_bytes, seconds)


def test_grows_with_quick_pongs_up_to_its_bound() -> None:
    window = Window(SETTINGS)
    run(window, QUICK, 5)
    assert window.limit_bytes == 1500
    run(window, QUICK, 100)
    assert window.limit_bytes == 3000


def test_holds_while_pongs_take_longer() -> None:
    window = Window(SETTINGS)
    run(window, MIDDLING, 50)
    assert window.limit_bytes == 1000


def test_shrinks_to_one_batch_at_a_time_when_a_pong_is_late() -> None:
    window = Window(SETTINGS)
    run(window, LATE)
    assert window.has_room(5000)
    window.add_sent(5000)
    assert not window.has_room(1)


def test_opens_again_after_many_quick_pongs_in_a_row() -> None:
    window = Window(SETTINGS)
    run(window, LATE)
    run(window, QUICK, QUICK_PONGS_TO_REOPEN - 1)
    assert window.limit_bytes == 0
    run(window, LATE)
    run(window, QUICK, QUICK_PONGS_TO_REOPEN - 1)
    assert window.limit_bytes == 0
    run(window, QUICK)
    assert window.limit_bytes == 1000


def test_a_batch_larger_than_the_window_is_sent_alone() -> None:
    window = Window(SETTINGS)
    assert window.has_room(10_000)
    window.add_sent(10)
    assert not window.has_room(10_000)


class Wire:
    """A WebSocket whose pongs a test gives."""

    def __init__(self) -> None:
        self.state = State.OPEN
        self.sent: list[bytes] = []
        self.pongs: list[asyncio.Future[float]] = []

    async def send(self, frame: bytes, text: bool) -> None:
        assert text
        if self.state is not State.OPEN:
            raise ConnectionClosedError(None, None)
        self.sent.append(frame)

    async def ping(self) -> Awaitable[float]:
        self.pongs.append(asyncio.get_running_loop().create_future())
        return self.pongs[-1]

    def close(self) -> None:
        self.state = State.CLOSED
        for pong in self.pongs:
            if not pong.done():
                pong.set_exception(ConnectionClosedError(None, None))
                pong.cancel()


def sender(wire: Wire) -> Sender:
    return Sender(wire, ZeekSettings(window_bytes=1000, window_bytes_max=1000))  # type: ignore[arg-type]


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_waits_for_the_window_and_continues_with_a_pong() -> None:
    wire = Wire()
    one = sender(wire)
    tasks = [asyncio.create_task(one.send([bytes([48 + number]) * 600])) for number in range(3)]
    await settle()
    assert len(wire.sent) == 1
    assert one.window.in_flight_bytes == 600
    wire.pongs[0].set_result(0.0)
    await settle()
    assert len(wire.sent) == 2
    wire.pongs[1].set_result(0.0)
    await asyncio.gather(*tasks)
    assert [frame[:1] for frame in wire.sent] == [b"0", b"1", b"2"]


async def test_senders_take_turns() -> None:
    wire = Wire()
    one = sender(wire)

    async def deliver(name: bytes) -> None:
        for _ in range(3):
            await one.send([name * 900])
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(deliver(name)) for name in (b"a", b"b")]
    for number in range(6):
        await settle()
        wire.pongs[number].set_result(0.0)
    await asyncio.gather(*tasks)
    assert [frame[:1] for frame in wire.sent] == [b"a", b"b", b"a", b"b", b"a", b"b"]


async def test_rows_that_were_revoked_while_they_waited_are_not_sent() -> None:
    wire = Wire()
    one = sender(wire)

    def refuse() -> None:
        raise RevokedError

    tasks = [asyncio.create_task(one.send([b"first" * 120]))]
    tasks.append(asyncio.create_task(one.send([b"forbidden" * 60], refuse)))
    tasks.append(asyncio.create_task(one.send([b"third"])))
    await settle()
    wire.pongs[0].set_result(0.0)
    await settle()
    assert wire.sent == [b"first" * 120, b"third"]
    with pytest.raises(RevokedError):
        await tasks[1]


async def test_a_lost_connection_releases_waiting_senders() -> None:
    wire = Wire()
    one = sender(wire)
    await one.send([b"x" * 900])
    waiting: Sequence[asyncio.Task[object]] = [asyncio.create_task(one.send([b"y" * 900])) for _ in range(3)]
    await settle()
    wire.close()
    for result in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(result, ConnectionError)
    assert one.window.in_flight_bytes == 0
    assert one.waiting_since is None


async def test_short_frames_are_padded_if_the_server_needs_it() -> None:
    wire = Wire()
    one = Sender(wire, SETTINGS, frame_bytes_min=8)  # type: ignore[arg-type]
    await one.send([b"[1]", b"[1,2,3,4,5]"])
    assert wire.sent == [b"[1]     ", b"[1,2,3,4,5]"]
    assert one.window.in_flight_bytes == one.sent_bytes == 8 + 11


async def test_a_cancelled_sender_leaves_its_turn_to_the_next() -> None:
    wire = Wire()
    one = sender(wire)
    await one.send([b"x" * 900])
    first, second = (asyncio.create_task(one.send([name * 900])) for name in (b"1", b"2"))
    await settle()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    wire.pongs[0].set_result(0.0)
    await second
    assert wire.sent[-1][:1] == b"2"
