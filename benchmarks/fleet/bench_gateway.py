"""What a gateway costs: processor time per batch and per hello, and memory per session.

The gateway is a process of its own between a NATS server and a scripted Zeek, which reads and acknowledges. Hellos go
to a gateway that verifies tokens, with some that it has not seen and some that it has, and to one that does not.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from bus_agents import BusAgent, bus_agents
from gateway_program import cpu_seconds, gateway_program, memory_bytes
from nats_server import nats_server
from waiting import until
from zeek_server import zeek_server

from zeek_agent.bus import link as bus_link
from zeek_agent.bus import messages, subjects
from zeek_agent.bus.link import Link, Received
from zeek_agent.bus.messages import Hello, Welcome
from zeek_agent.bus.subjects import Address
from zeek_agent.fleet import jwt, nkey, roles
from zeek_agent.fleet.nkey import Key
from zeek_agent.queries.subscriptions import Query
from zeek_agent.zeek import protocol

SIZES = {"small (2 rows)": (2, 40), "50 KB (190 rows)": (190, 240)}


async def measure(directory: Path, sessions: int, batches: int, rounds: int) -> None:
    with nats_server(directory / "nats") as nats:
        async with zeek_server() as zeek, bus_agents(nats.url, "zeeks") as bus:
            with gateway_program(nats.url, zeek.url(), "gw1", directory) as process:
                client = await zeek.client()
                first = await bus.agent("H0")
                await first.say_hello()
                base = memory_bytes(process.pid)
                agents = [first, *(bus.new(f"H{number}") for number in range(1, sessions))]
                for begin in range(1, sessions, 100):
                    await asyncio.gather(*(agent.open() for agent in agents[begin : begin + 100]))
                    await asyncio.gather(*(agent.say_hello() for agent in agents[begin : begin + 100]))
                with_sessions = memory_bytes(process.pid)
                for number in range(20):
                    query = Query(f"SELECT {number}", event=protocol.ROWS)
                    topic = protocol.group_topic("all")
                    await client.send(protocol.install_query(topic, "zeek_1", f"q{number}", query))
                await until(lambda: all(len(agent.queries) == 20 for agent in agents), 120)
                with_queries = memory_bytes(process.pid)
                print(f"memory with one agent               {base / 2**20:8.1f} MB")
                print(f"per session with its hello          {(with_sessions - base) / sessions / 1024:8.1f} KB")
                print(f"per session with 20 queries as well {(with_queries - base) / sessions / 1024:8.1f} KB")
                costs: dict[str, list[float]] = {name: [] for name in SIZES}
                for _ in range(rounds):
                    for name, (rows, width) in SIZES.items():
                        costs[name].append(await cost(process.pid, agents[:50], batches, rows, width))
                        client.events.clear()
                for name, (rows, width) in SIZES.items():
                    size = len(first.rows("q0", number=rows, text="x" * width))
                    low, middle, high = min(costs[name]), statistics.median(costs[name]), max(costs[name])
                    print(f"{name:18} {size:7,} bytes: {middle:6.0f} us CPU a batch ({low:.0f}-{high:.0f})")
                print(f"maximum memory                      {memory_bytes(process.pid, 'VmHWM') / 2**20:8.1f} MB")


async def cost(pid: int, agents: list[BusAgent], batches: int, rows: int, width: int) -> float:
    """Microseconds of the gateway's processor time per batch."""
    frames = [agent.rows("q0", number=rows, text="x" * width) for agent in agents]

    async def send(agent: BusAgent, frame: bytes) -> None:
        for _ in range(batches // len(agents)):
            await agent.send(frame, seconds=120)

    before, began = cpu_seconds(pid), time.monotonic()
    await asyncio.gather(*(send(agent, frame) for agent, frame in zip(agents, frames, strict=True)))
    used = cpu_seconds(pid) - before
    print(f"  {batches / (time.monotonic() - began):,.0f} batches/s in this round", file=sys.stderr)
    return used / batches * 1e6


class Askers:
    """Agents that say hello over one connection, many at a time."""

    AT_ONCE = 100

    def __init__(self, link: Link, number: int) -> None:
        self._link = link
        self._signer, self._account = Key.generate(nkey.ACCOUNT), Key.generate(nkey.ACCOUNT).public
        self._keys = [Key.generate(nkey.USER) for _ in range(number)]
        self._answers = 0
        self._issued = int(time.time()) - 3_600

    @classmethod
    async def on(cls, link: Link, number: int) -> Askers:
        found = cls(link, number)
        await link.subscribe("za.v1.dn.*.*.r.>", found._hear)
        return found

    def credentials(self, name: str) -> str:
        """Those of a gateway that trusts these agents."""
        key, tags = Key.generate(nkey.USER), (f"agents:{self._signer.public}",)
        return jwt.credentials(jwt.user(name, key.public, self._signer, 0, account=self._account, tags=tags), key)

    def tokens(self) -> list[str]:
        """New tokens of all agents."""
        self._issued += 1
        return [
            jwt.user(
                f"H{number}", key.public, self._signer, self._issued, account=self._account,
                expires=time.time() + 3_600, tags=roles.agent_tags("fra", ("linux",)),
            )
            for number, key in enumerate(self._keys)
        ]  # fmt: skip

    async def say_hello(self, pid: int, cluster: str, tokens: list[str]) -> float:
        """Microseconds of the gateway's processor time per hello."""
        before = cpu_seconds(pid)
        for begin in range(0, len(tokens), self.AT_ONCE):
            part = tokens[begin : begin + self.AT_ONCE]
            expected = self._answers + len(part)
            for number, token in enumerate(part, begin):
                agent = Address("fra", f"H{number}")
                payload = messages.encode(Hello(f"I{number}", "3.0.0", ("linux",), token=token))
                await self._link.publish(subjects.hello(cluster, agent), payload, f"{subjects.inbox(agent)}.x")
            await until(lambda expected=expected: self._answers == expected, 60)
        return (cpu_seconds(pid) - before) / len(tokens) * 1e6

    async def _hear(self, received: Received) -> None:
        assert isinstance(messages.read_welcome(received.payload), Welcome), received.payload
        self._answers += 1


async def measure_hellos(directory: Path, number: int, rounds: int) -> None:
    """In each round all say hello to each gateway, in turn; each hello replaces the session before."""
    with nats_server(directory / "nats") as nats:
        link = await bus_link.connect([nats.url], name="agents", inbox="za.v1.dn.fra.test.r")
        askers = await Askers.on(link, number)
        file = directory / "gateway.creds"
        file.write_text(askers.credentials("verifies"))
        file.chmod(0o600)
        own = (f"gateway.credentials={file}",)
        async with zeek_server() as zeek:
            with (
                gateway_program(nats.url, zeek.url(), "trusts", directory, cluster="a") as trusts,
                gateway_program(nats.url, zeek.url(), "verifies", directory, cluster="b", settings=own) as verifies,
            ):
                for _ in range(2):
                    await zeek.client()
                await asyncio.sleep(1)
                costs: dict[str, list[float]] = {"not verified": [], "new token": [], "known token": []}
                for _ in range(rounds):
                    tokens = askers.tokens()
                    costs["not verified"].append(await askers.say_hello(trusts.pid, "a", tokens))
                    costs["new token"].append(await askers.say_hello(verifies.pid, "b", tokens))
                    costs["known token"].append(await askers.say_hello(verifies.pid, "b", tokens))
                memory = {name: memory_bytes(one.pid) for name, one in (("trusts", trusts), ("verifies", verifies))}
        await link.close()
    print(f"a token has {len(tokens[0])} characters")
    for name, found in costs.items():
        print(f"hello, {name:12}: {statistics.median(found):6.0f} us CPU ({min(found):.0f}-{max(found):.0f})")
    added = [new - old for new, old in zip(costs["new token"], costs["not verified"], strict=True)]
    print(f"verification, paired: {statistics.median(added):6.0f} us CPU ({min(added):.0f}-{max(added):.0f})")
    print(f"memory per session, more than without: {(memory['verifies'] - memory['trusts']) / number / 1024:.2f} KB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=2_000)
    parser.add_argument("--batches", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hellos", action="store_true", help="measure hellos only")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        if not given.hellos:
            asyncio.run(measure(Path(directory), given.sessions, given.batches, given.rounds))
        asyncio.run(measure_hellos(Path(directory) / "hellos", given.sessions, given.rounds))


if __name__ == "__main__":
    main()
