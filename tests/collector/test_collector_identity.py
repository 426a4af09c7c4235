"""Two connections with one agent id: the same agent again, a clone, a quick restart, somebody else."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from scripted_agent import PACK, THING, Agent, agent_of, collecting, read
from waiting import until
from websockets.exceptions import ConnectionClosed
from websockets.frames import Opcode

from zeek_agent.collector import clients
from zeek_agent.collector.server import Collector
from zeek_agent.zeek import broker_json, protocol
from zeek_agent.zeek.protocol import Context, InstallQuery, ZeekHello


def instance(name: str) -> str:
    return broker_json.string(name)


async def closed(agent: Agent) -> int:
    """The code of the close frame, after whatever else was sent."""
    try:
        while True:
            await agent.connection.recv()
    except ConnectionClosed as ended:
        return ended.rcvd.code if ended.rcvd is not None else 1006


def does_not_answer(agent: Agent) -> None:
    """Leave pings unanswered, as a host does that has lost its power."""
    protocol_ = agent.connection.protocol
    receive = protocol_.recv_frame

    def ignore_pings(frame: object) -> None:
        if getattr(frame, "opcode", None) is not Opcode.PING:
            receive(frame)  # type: ignore[arg-type]

    protocol_.recv_frame = ignore_pings  # type: ignore[method-assign]


def hosts(collector: Collector) -> dict[str, object]:
    return {host.id: host for host in collector._intake.hosts}


async def test_the_newest_connection_of_an_agent_replaces_the_older(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as old, agent_of(collector) as new:
        await old.join()
        new.hello_id = "agent_hello_other"
        events = await new.join()
        assert isinstance(events[0], ZeekHello)
        assert [type(event) for event in events[1:]] == [InstallQuery] * len(PACK.queries)
        assert await closed(old) == 1001
        await new.result(*THING)
        await until(lambda: collector.stats.rows == 1)
        assert collector.stats.connected == {"HAbc"}
        assert collector.stats.conflicts == 0
        assert [host.connects for host in hosts(collector).values()] == [2]
    assert [line["type_"] for line in read(tmp_path, "zeek-agent")] == ["join", "reconnect"]
    assert not (tmp_path / "reporter.log").exists()


async def test_a_clone_of_a_connected_host_is_refused_and_both_are_logged(tmp_path: Path) -> None:
    agent_id = "HAbc".ljust(128, "x")  # as long as an id can be
    async with (
        collecting(tmp_path) as collector,
        agent_of(collector, agent_id) as first,
        agent_of(collector, agent_id) as clone,
    ):
        await first.join()
        await clone.subscribe()
        await clone.hello(hostname="clone", instance_id=instance("I2"))
        refused = await clone.error()
        assert refused.code == "agent_id_in_use"
        assert "cloned host" in refused.context
        assert await closed(clone) == 1008
        await first.result(*THING)
        await until(lambda: collector.stats.rows == 1)
        assert collector.stats.connected == {agent_id}
        assert collector.stats.conflicts == 1
        [host] = hosts(collector).values()
        assert (host.hostname, host.instance, host.conflicts, host.connects) == ("vm", "I1", 1, 1)
        addresses = [client.peer for client in collector._clients]
    assert [line["type_"] for line in read(tmp_path, "zeek-agent")] == ["join"], "the clone has not joined"
    line, *_ = read(tmp_path, "reporter")
    assert line["level"] == "Reporter::ERROR"
    assert "I1 at " + addresses[0] in line["message"]
    assert "I2 at 127.0.0.1:" in line["message"]
    assert "(clone)" in line["message"]


async def test_an_agent_that_does_not_answer_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "ANSWER_SECONDS", 0.2)
    async with collecting(tmp_path) as collector, agent_of(collector) as lost, agent_of(collector) as restarted:
        await lost.join()
        does_not_answer(lost)
        await restarted.subscribe()
        restarted.hello_id = "agent_hello_other"
        await restarted.hello(instance_id=instance("I2"))
        assert isinstance(await restarted.event(), ZeekHello)
        assert await closed(lost) == 1001
        [host] = hosts(collector).values()
        assert (host.instance, host.state, host.conflicts) == ("I2", "connected", 1)
    [line] = read(tmp_path, "reporter")
    assert line["level"] == "Reporter::WARNING"
    assert "I1" in line["message"]
    assert "I2" in line["message"]
    assert "does not answer" in line["message"]


async def test_an_agent_restarted_after_its_connection_has_ended_causes_no_conflict(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector:
        async with agent_of(collector) as agent:
            await agent.join()
        await until(lambda: not collector.stats.connected)
        async with agent_of(collector) as again:
            await again.subscribe()
            again.hello_id = "agent_hello_other"
            await again.hello(instance_id=instance("I2"))
            assert isinstance(await again.event(), ZeekHello)
        assert collector.stats.conflicts == 0
    assert [line["type_"] for line in read(tmp_path, "zeek-agent")] == ["join", "reconnect"]


async def test_agents_without_an_instance_are_never_taken_for_one(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as first, agent_of(collector) as second:
        await first.subscribe()
        await first.hello(instance_id=broker_json.NONE)
        assert isinstance(await first.event(), ZeekHello)
        await second.subscribe()
        await second.hello(instance_id=broker_json.NONE)
        assert (await second.error()).code == "agent_id_in_use"


@pytest.mark.parametrize("what", ["row", "error", "shutdown"])
async def test_another_connection_cannot_speak_for_a_connected_agent(tmp_path: Path, what: str) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector) as agent, agent_of(collector) as other:
        await agent.join()
        await other.subscribe()
        context = Context("HAbc", time.time())
        if what == "row":
            await other.result(*THING)
        elif what == "error":
            await other.send(protocol.agent_error(collector.instance, context, "no such table"))
        else:
            await other.send(protocol.agent_shutdown(context))
        assert (await other.error()).code == "deserialization_failed"
        assert collector.stats.rows == 0
        assert collector.stats.agent_errors == 0
        [host] = hosts(collector).values()
        assert (host.state, host.errors) == ("connected", 0), "the agent is not to blame"
    assert [line["type_"] for line in read(tmp_path, "zeek-agent")] == ["join"]
    assert "has another connection" in read(tmp_path, "reporter")[0]["message"]


async def test_a_connection_with_several_agents_loses_only_the_one_that_is_refused(tmp_path: Path) -> None:
    async with collecting(tmp_path) as collector, agent_of(collector, "HOne") as one, agent_of(collector) as gateway:
        await one.join()
        await gateway.join()
        gateway.id = "HOne"
        await gateway.hello(instance_id=instance("I2"))
        assert (await gateway.error()).code == "agent_id_in_use"
        gateway.id = "HAbc"
        await gateway.result(*THING)
        await until(lambda: collector.stats.rows == 1)
        assert collector.stats.connected == {"HOne", "HAbc"}


async def test_one_of_two_rivals_gets_the_id_of_an_agent_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "ANSWER_SECONDS", 0.3)
    async with collecting(tmp_path) as collector, agent_of(collector) as lost:
        await lost.join()
        does_not_answer(lost)
        async with agent_of(collector) as one, agent_of(collector) as two:
            for number, rival in enumerate((one, two)):
                await rival.subscribe()
                await rival.hello(instance_id=instance(f"rival{number}"))
            refused = {asyncio.create_task(closed(rival)) for rival in (one, two)}
            done, admitted = await asyncio.wait(refused, return_when=asyncio.FIRST_COMPLETED)
            assert [task.result() for task in done] == [1008]
            assert collector.stats.connected == {"HAbc"}
            assert collector.stats.conflicts == 2, "one replaced the lost agent, the other one was refused"
            for task in admitted:
                task.cancel()
            await asyncio.wait(admitted)
