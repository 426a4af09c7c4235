"""Agents with sessions at two gateways that did not know each other: one session stays, by the rule for clones."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from bus_agents import BusAgents, bus_agents
from faulty_proxy import FaultyProxy, faulty_proxy
from gateways import CLUSTER, gateway
from nats_server import NatsServer, nats_server
from waiting import until
from zeek_server import ZeekServer

from zeek_agent.bus import messages
from zeek_agent.bus.messages import HeldSession, PeerBeat
from zeek_agent.gateway import doubles
from zeek_agent.gateway.agent_tokens import Proof
from zeek_agent.gateway.causes import Cause
from zeek_agent.gateway.gateway import Gateway


@dataclass
class Halves:
    """Two NATS servers with a link between them, each with a gateway and agents; the link is cut."""

    first: Gateway
    second: Gateway
    at_first: BusAgents
    at_second: BusAgents
    link: FaultyProxy

    async def heal(self) -> None:
        self.link.mend()
        await until(lambda: self.first.core.peers.known and self.second.core.peers.known)

    def sessions(self, agent_id: str) -> list[str]:
        """The gateways that have a session with the agent."""
        return [one.core.name for one in (self.first, self.second) if one.core.sessions.get(agent_id)]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "hub", leaves=True) as server:
        yield server


@pytest.fixture
async def halves(tmp_path: Path, hub: NatsServer, zeek: ZeekServer) -> AsyncIterator[Halves]:
    async with cut_in_two(tmp_path, hub, zeek) as both:
        yield both


@asynccontextmanager
async def cut_in_two(tmp_path: Path, hub: NatsServer, zeek: ZeekServer) -> AsyncIterator[Halves]:
    async with faulty_proxy(hub.leaf_port) as link:
        link.cut()
        remotes = f'leafnodes {{ reconnect: "100ms", remotes: [ {{ url: "nats-leaf://127.0.0.1:{link.port}" }} ] }}'
        with nats_server(tmp_path / "leaf", remotes) as leaf:
            async with (
                gateway(hub.url, zeek.url(), "gw1") as first,
                gateway(leaf.url, zeek.url(), "gw2") as second,
                bus_agents(hub.url, CLUSTER) as at_first,
                bus_agents(leaf.url, CLUSTER) as at_second,
            ):
                yield Halves(first, second, at_first, at_second, link)


@pytest.mark.parametrize("gap", [5.0, 0.0])
async def test_of_two_sessions_of_one_instance_the_newer_stays_after_a_partition(
    halves: Halves, gap: float, caplog: pytest.LogCaptureFixture
) -> None:
    old = await halves.at_second.agent("HAbc", "I1")
    new = await halves.at_first.agent("HAbc", "I1")
    old.answers_pings = False
    session = halves.second.core.sessions.get("HAbc")
    assert session is not None
    session.began -= gap
    await halves.heal()
    await until(lambda: halves.sessions("HAbc") == ["gw1"])
    await until(lambda: old.again)
    assert new.again is None
    assert "agent HAbc has a newer session at gateway gw1, the one here ends" in caplog.text
    assert halves.second.core.counters.ended["double"] == 1


async def test_of_two_clones_the_first_stays_after_a_partition_if_it_answers(
    halves: Halves, caplog: pytest.LogCaptureFixture
) -> None:
    first = await halves.at_second.agent("HAbc", "I1")
    clone = await halves.at_first.agent("HAbc", "I2")
    halves.second.core.sessions.get("HAbc").began -= 60.0  # type: ignore[union-attr]
    await halves.heal()
    await until(lambda: halves.sessions("HAbc") == ["gw2"])
    await until(lambda: clone.again)
    assert clone.again is not None
    assert "cloned host" in clone.again.reason
    assert first.again is None
    assert "instance I1 answers here, so instance I2 at gateway gw1 is refused" in caplog.text
    assert "instance I1 at gateway gw2 answers, so instance I2 is refused" in caplog.text
    assert halves.first.core.counters.refused[Cause.CLONE] == halves.second.core.counters.refused[Cause.CLONE] == 1


async def test_of_two_clones_the_second_stays_after_a_partition_if_the_first_does_not_answer(
    halves: Halves, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("zeek_agent.gateway.admission.CLONE_SECONDS", 0.3)
    first = await halves.at_second.agent("HAbc", "I1")
    second = await halves.at_first.agent("HAbc", "I2")
    first.answers_pings = False
    halves.second.core.sessions.get("HAbc").began -= 60.0  # type: ignore[union-attr]
    await halves.heal()
    await until(lambda: halves.sessions("HAbc") == ["gw1"])
    assert second.again is None
    assert "instance I1 does not answer here and is replaced by instance I2 at gateway gw1" in caplog.text


async def test_a_session_whose_token_is_void_ends_after_a_partition_though_it_is_the_first_and_answers(
    halves: Halves, caplog: pytest.LogCaptureFixture
) -> None:
    first = await halves.at_second.agent("HAbc", "I1")
    second = await halves.at_first.agent("HAbc", "I2")
    old, new = halves.second.core.sessions.get("HAbc"), halves.first.core.sessions.get("HAbc")
    assert old is not None
    assert new is not None
    old.began -= 60.0
    old.proof, new.proof = Proof("roaming", "KEY1", 1_000), Proof("roaming", "KEY2", 2_000)
    await halves.heal()
    await until(lambda: halves.sessions("HAbc") == ["gw1"])
    await until(lambda: first.again)
    assert first.again is not None
    assert "newer credentials" in first.again.reason
    assert second.again is None
    assert "instance I2 at gateway gw1 has a newer token, so that of instance I1 at site roaming is void" in caplog.text
    assert halves.second.core.counters.refused[Cause.IDENTITY] == 1


async def test_clones_that_are_as_old_as_each_other_do_not_both_go(halves: Halves) -> None:
    await halves.at_second.agent("HAbc", "I1")
    await halves.at_first.agent("HAbc", "I2")
    await halves.heal()
    await until(lambda: halves.sessions("HAbc") == ["gw1"])


async def test_a_double_whose_announcement_was_lost_is_found_in_a_later_round(
    gw: Gateway, nats: NatsServer, zeek: ZeekServer, bus: BusAgents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doubles, "ROUND_SECONDS", 0.2)
    async with gateway(nats.url, zeek.url(), "gw2") as second:
        await until(lambda: gw.core.peers.known and second.core.peers.known)
        one = gw if (await bus.agent("HAbc", "I1")).welcome.gateway == "gw1" else second  # type: ignore[union-attr]
        other = second if one is gw else gw
        session = one.core.sessions.get("HAbc")
        assert session is not None
        session.began -= 60.0
        double = other._admission._open(session.address, session.proof, messages.Hello("I1", "3.0.0"))
        await until(lambda: not one.core.sessions.get("HAbc"))
        assert other.core.sessions.get("HAbc") is double


def test_many_sessions_are_announced_in_messages_of_a_bounded_size() -> None:
    held = [HeldSession("x" * 200, "\x01" * 1024, 1.0) for _ in range(5)] + [HeldSession("a", "b", 1.0)] * 1000
    parts = list(doubles._parts(held))
    assert [one for part in parts for one in part] == held
    for part in parts:
        messages.read(messages.encode(PeerBeat("g" * 64, 10_000, life="l" * 16, holds=tuple(part))), PeerBeat)
