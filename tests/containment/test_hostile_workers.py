"""A worker process that an attacker controls: it harms its own statement, and neither the agent nor anybody else's."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_worker import ScriptedWorker, batch, finished, head, open_descriptors, scripted_worker
from waiting import until
from workers import resident

from zeek_agent.config.sections import LimitSettings
from zeek_agent.containment import channel, messages
from zeek_agent.containment.encoded_result import EncodedResult
from zeek_agent.containment.messages import CompiledStatement, LogLine, Need, Ready, StatementFailed
from zeek_agent.containment.protections import Protections, WorkerClass
from zeek_agent.containment.worker_process import MESSAGES_PER_TURN, KillCause, WorkerState
from zeek_agent.database.encodings import FRAME_BYTES_MAX, OMISSIONS_BYTES_MAX, FrameBatch
from zeek_agent.errors import SqlError

READY = Ready(Protections(WorkerClass.SNAPSHOTS, 1, 1, (), (), (), True, 2, 0))
NESTED = b"i\x82\xa4type\xa3log\xa1x" + b"\x91" * 100_000 + b"\xc0"
"""A message with a field that is nested a hundred thousand times."""
CONTENT = b"0123456789"


async def read_back(result: EncodedResult) -> list[FrameBatch]:
    return [part async for part in result.batches()]


async def _fails(scripted: ScriptedWorker, *sent: Any) -> None:
    """The statement that runs fails, and the worker is killed for what it sent."""
    running = scripted.run()
    await scripted.receive()
    os.write(scripted.spool, CONTENT)
    scripted.send_while_it_lives(*sent)
    with pytest.raises(SqlError):
        await read_back(await running)
    assert scripted.worker.cause is KillCause.PROTOCOL
    assert scripted.faults == [scripted.worker]
    await until(scripted.is_ended)


@pytest.mark.long(kept=4)
@pytest.mark.parametrize(
    "sent",
    [
        [b"i\xc1"],
        [b"x"],
        [b"f"],
        [NESTED],
        [b"i" + b"\0" * (channel.INLINE_BYTES + 5)],
        [head(2)],
        [head(rows=-1)],
        [head(rows=1_000_001)],
        [head(size_bytes=-(1 << 40))],
        [head(columns=[("a", "no type")])],
        [head(files=(0, 11))],
        [head(files=(0, OMISSIONS_BYTES_MAX + 1))],
        [head(files=(-1, 5))],
        [head(files=(0, 10))],
        [head(), head()],
        [batch()],
        [finished()],
        [CompiledStatement(1, [], [])],
        [head(), batch(2)],
        [head(), batch(lengths=[])],
        [head(), batch(lengths=[0])],
        [head(), batch(lengths=[11])],
        [head(), batch(offset=10)],
        [head(), batch(offset=1 << 63)],
        [head(), batch(offset=-1)],
        [head(), batch(lengths=[1, 1])],
        [head(), batch(rows=0)],
        [head(), batch(rows=2)],
        [head(), batch(), batch(offset=1)],
        [head(rows=0), batch(rows=0), batch(offset=1, rows=0)],
        [head(rows=2), batch(lengths=[5]), batch(offset=4)],
        [head(), messages.SpoolBatch(1, 0, b"\1\0\0", 1)],
        [head(rows=2), batch(), finished()],
        [head(), batch(), messages.Finished(1, float("nan"), 1)],
        [head(), batch(), messages.Finished(1, -1.0, 1)],
        [StatementFailed(2, "SqlError", "")],
    ],
    ids=lambda sent: " ".join(one.hex()[:8] if isinstance(one, bytes) else type(one).__name__ for one in sent),
)
async def test_a_worker_that_breaks_the_protocol_is_killed(sent: Sequence[Any]) -> None:
    async with scripted_worker() as scripted:
        scripted.send(READY)
        await scripted.worker.ready()
        scripted.worker.state = WorkerState.IDLE
        await _fails(scripted, *sent)


@pytest.mark.parametrize(
    "late", [finished(), head(), batch(), StatementFailed(1, "SqlError", "late"), READY, Need(1, "drain")]
)
async def test_a_statement_ends_once(late: Any) -> None:
    async with scripted_worker() as scripted:
        scripted.send(READY)
        await scripted.worker.ready()
        running = scripted.run()
        await scripted.receive()
        os.write(scripted.spool, CONTENT)
        scripted.send(head(), batch(), finished(), late)
        result = await running
        assert [one async for one in result.batches()] == [([b"0"], 1)]
        await until(scripted.is_ended)
        assert scripted.worker.cause is KillCause.PROTOCOL
        result.close()


async def test_descriptors_of_a_worker_are_not_accepted() -> None:
    before = open_descriptors()
    async with scripted_worker() as scripted:
        held = [os.open("/dev/null", os.O_RDONLY) for _ in range(100)]
        opened = open_descriptors()
        socket.send_fds(scripted.socket, [b"i" + messages.encode(READY)], held)
        await until(scripted.is_ended)
        assert open_descriptors() <= opened
        assert scripted.worker.cause is KillCause.PROTOCOL
        channel.close_all(held)
    assert open_descriptors() <= before


@pytest.mark.parametrize("end", [lambda scripted: scripted.send(b""), lambda scripted: scripted.socket.close()])
async def test_a_worker_that_closes_its_connection_and_goes_on_is_killed(end: Callable[[ScriptedWorker], None]) -> None:
    async with scripted_worker() as scripted:
        scripted.send(READY)
        await scripted.worker.ready()
        running = scripted.run()
        await scripted.receive()
        os.write(scripted.spool, CONTENT)
        scripted.send(head(rows=2), batch())
        result = await running
        end(scripted)
        parts = result.batches()
        assert await anext(parts) == ([b"0"], 1)
        with pytest.raises(SqlError, match="was lost"):
            await anext(parts)
        await until(scripted.is_ended)
        assert scripted.faults == [scripted.worker]


@pytest.mark.long
async def test_a_flood_of_messages_does_not_stop_the_agent() -> None:
    async with scripted_worker() as scripted:
        scripted.send(READY)
        await scripted.worker.ready()

        def flood() -> None:
            with suppress(OSError):
                for _ in range(20_000):
                    scripted.send(LogLine("zeek_agent.tables", logging.INFO, "x"))

        flooding = asyncio.create_task(asyncio.to_thread(flood))
        turns = 0
        while not flooding.done():
            await asyncio.sleep(0)
            turns += 1
        await until(scripted.is_ended)
        assert scripted.worker.cause is KillCause.PROTOCOL
    assert turns > 1_000 / MESSAGES_PER_TURN / 2


@pytest.mark.long
def test_batches_of_one_row_take_little_memory() -> None:
    """A worker decides how many there are, up to the number of rows."""
    file = os.memfd_create("spool")
    os.ftruncate(file, 1 << 20)
    before = resident(os.getpid())
    result = EncodedResult(file, head(rows=300_000), LimitSettings(), lambda: None)
    for number in range(300_000):
        result.add(batch(offset=number))
    assert resident(os.getpid()) - before < 16 << 20
    result.close()


@pytest.mark.long(kept=1)
async def test_frames_that_are_gone_or_too_long_are_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async with scripted_worker() as scripted:
        scripted.send(READY)
        await scripted.worker.ready()
        running = scripted.run()
        await scripted.receive()
        os.ftruncate(scripted.spool, 2 * FRAME_BYTES_MAX)
        scripted.send(head(rows=3), batch(lengths=[FRAME_BYTES_MAX]))
        result = await running
        parts = result.batches()
        assert [len(frame) for frame in (await anext(parts)).frames] == [FRAME_BYTES_MAX]
        scripted.send(batch(offset=FRAME_BYTES_MAX, lengths=[5, 5], rows=2), finished())
        await until(lambda: scripted.worker.state is WorkerState.IDLE)
        os.ftruncate(scripted.spool, FRAME_BYTES_MAX + 7)
        with pytest.raises(SqlError, match="cannot be read back"):
            await anext(parts)
        await until(scripted.is_ended)
        result.close()
        with pytest.raises(SqlError, match="has been closed"):
            await anext(result.batches())
    assert "cannot be read back" in caplog.text


async def test_a_result_can_be_closed_while_it_is_written() -> None:
    async with scripted_worker() as scripted:
        scripted.send(READY)
        await scripted.worker.ready()
        running = scripted.run()
        await scripted.receive()
        os.write(scripted.spool, CONTENT)
        scripted.send(head(rows=2), batch())
        (await running).close()
        scripted.send(batch(offset=1), finished())
        await until(lambda: scripted.worker.state is WorkerState.IDLE)
        assert scripted.worker.cause is None


async def test_a_worker_cannot_write_the_log_of_others(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    known = set(logging.Logger.manager.loggerDict)
    async with scripted_worker() as scripted:
        scripted.send(READY, LogLine("zeek_agent.audit", 50, "forged"), LogLine("invented", 999, "x" * 100_000))
        for number in range(100):
            scripted.send(LogLine("zeek_agent.containment.worker_process", -5, f"line {number}"))
        await until(lambda: "are dropped" in caplog.text)
    lines = [record for record in caplog.records if record.name != "asyncio"]
    assert not [record for record in lines if record.name == "zeek_agent.audit"]
    assert max(record.levelno for record in lines) == logging.ERROR
    assert max(len(record.getMessage()) for record in lines) < 2_100
    assert sum("line " in record.getMessage() for record in lines) <= 2 * 10
    assert set(logging.Logger.manager.loggerDict) == known


async def test_an_unexpected_failure_to_answer_is_an_error_of_the_statement(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(need: Need) -> tuple[bytes, Sequence[int]]:
        raise RuntimeError("dictionary changed size during iteration")

    async with scripted_worker(need=fail) as scripted:
        scripted.send(READY)
        await scripted.worker.ready()
        running = scripted.run()
        await scripted.receive()
        scripted.send(Need(1, "agent", "queries"))
        answer = await scripted.receive()
        assert "dictionary changed size" in answer.error
        scripted.send(StatementFailed(1, "SqlError", answer.error + "x" * 100_000))
        with pytest.raises(SqlError, match="dictionary changed") as caught:
            await running
    assert len(str(caught.value)) < 10_200
    assert "request for agent queries failed" in caplog.text


@pytest.mark.long
async def test_a_finished_statement_does_not_make_a_killed_worker_unkillable() -> None:
    """Its last message may arrive after the kill; the process is still watched."""
    async with scripted_worker() as scripted:
        scripted.send(READY)
        await scripted.worker.ready()
        running = scripted.run()
        await scripted.receive()
        os.write(scripted.spool, CONTENT)
        scripted.send(head(), batch(), finished())
        signal_of = scripted.worker._signal
        scripted.worker._signal = lambda: None  # type: ignore[method-assign]
        scripted.worker.kill(KillCause.TIME)
        (await running).close()
        scripted.worker._signal = signal_of  # type: ignore[method-assign]
        scripted.worker.kill(KillCause.TIME)
        await until(scripted.is_ended)
        assert scripted.worker.cause is KillCause.TIME


@st.composite
def message(draw: st.DrawFn) -> Any:
    """Anything that a worker could send while its first statement runs, near to what it should."""
    number = draw(st.sampled_from([1, 1, 1, 1, 0, 2, -1, 1 << 40]))
    small = st.integers(-1, 12)
    kind = draw(st.integers(0, 7))
    if kind == 0:
        return head(number, rows=draw(small), size_bytes=draw(small), files=draw(st.none() | st.tuples(small, small)))
    if kind in (1, 2):
        lengths = draw(st.lists(st.integers(0, 12), max_size=4))
        return batch(number, draw(st.integers(0, 12)), lengths, draw(small))
    if kind == 3:
        return finished(number)
    if kind == 4:
        return StatementFailed(
            number, draw(st.sampled_from(["LimitError", "SystemExit", ""])), draw(st.text()), draw(st.booleans())
        )
    if kind == 5:
        return Need(number, draw(st.sampled_from(["agent", "drain", "osquery"])), draw(st.text(max_size=5)))
    if kind == 6:
        return draw(st.sampled_from([READY, CompiledStatement(number, [], []), LogLine("a", 1, "b")]))
    return b"i" + draw(st.binary(min_size=1, max_size=50))


@pytest.mark.long
@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(st.lists(message(), max_size=12))
def test_whatever_a_worker_sends_its_statement_ends_and_nothing_leaks(sent: list[Any]) -> None:
    before = open_descriptors()

    async def play() -> None:
        async with scripted_worker(LimitSettings(rows=10, result_bytes=10)) as scripted:
            scripted.send(READY)
            await scripted.worker.ready()
            running = scripted.run()
            await scripted.receive()
            os.write(scripted.spool, CONTENT)
            scripted.send_while_it_lives(*sent)
            scripted.socket.close()
            try:
                result = await running
            except SqlError:
                return
            frames, rows = 0, 0
            with suppress(SqlError):
                async for part in result.batches():
                    assert all(0 < len(frame) <= len(CONTENT) for frame in part.frames)
                    rows += part.rows
                    frames += len(part.frames)
                assert rows == result.row_count
            assert rows <= result.row_count <= 10
            assert frames <= max(rows, 1)
            result.close()

    asyncio.run(play())
    assert open_descriptors() <= before + 1  # asyncio.run keeps none; hypothesis may open its own
