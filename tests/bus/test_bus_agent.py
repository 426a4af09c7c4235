"""The real program on a bus: events arrive exactly once, whatever dies, and each cluster has its own cursor."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from nats_server import nats_server
from running_agent import AGENT_ID, RunningAgent, running, started
from scripted_gateway import BusClient, scripted_gateway
from waiting import until, until_sync

from zeek_agent.queries.subscriptions import Query, Subscription
from zeek_agent.zeek import protocol
from zeek_agent.zeek.protocol import AgentHello, AgentShutdown, ResultBatch

pytestmark = pytest.mark.root

MARK = f"onbus-{secrets.token_hex(4)}"
"""Of the processes of this run: the agent also sees those of other tests."""
EVENTS = Query(
    f"SELECT cmdline, seq FROM processes_events WHERE cmdline LIKE '{MARK}%' AND state = 'started'",
    protocol.ROWS,
    schedule=0.1,
    subscription=Subscription.EVENTS,
)
SETTINGS = {"zeek.script_timeout": 2, "sources.logins": "off", "sources.system_logs": "off"}


class Script:
    """Our package at a Zeek: acknowledges each batch once, and logs the rows of those that it has not seen."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, int, str]] = []
        """Store, seq and command line."""
        self._seen: set[tuple[str, str, int, int]] = set()

    async def attend(self, client: BusClient, query_id: str = "events") -> None:
        await client.hello(features=frozenset({protocol.BATCHES}))
        await client.install(query_id, EVENTS)
        done = 0
        while not client.closed.is_set():
            batches = client.of(ResultBatch)
            for event in batches[done:]:
                self._log(event)
                await client.acknowledge(event)
            done = len(batches)
            await asyncio.sleep(0.01)

    def _log(self, event: ResultBatch) -> None:
        batch = event.batch
        key = (batch.store, batch.stream, batch.high, batch.index)
        if key not in self._seen:
            self._seen.add(key)
            self.rows += [(batch.store, row["seq"], row["cmdline"]) for row in json.loads(event.rows)]

    def commands(self) -> Counter[str]:
        return Counter(command for _, _, command in self.rows)


def start_processes(names: Iterable[str]) -> None:
    for name in names:
        subprocess.run([name], executable="/bin/true", check=True)


async def installed(agent: RunningAgent, number: int = 1) -> None:
    sql = "SELECT count(*) AS number FROM zeek_agent_queries WHERE runs > 0 AND recipient LIKE 'nats:%'"

    async def run() -> bool:
        return bool((await agent.ask(sql))[0]["number"] >= number)

    await until(run)


async def test_events_arrive_exactly_once_over_killed_servers(tmp_path: Path) -> None:
    with nats_server(tmp_path / "hub") as server:
        async with running(tmp_path, f"--zeek={server.url}", settings=SETTINGS) as agent:
            script = Script()
            expected: list[str] = []
            for life in range(3):
                async with scripted_gateway(server.url) as gateway:
                    client = await gateway.client()
                    attending = asyncio.create_task(script.attend(client, f"events{life}"))
                    await installed(agent)
                    names = [f"{MARK}-{life}-{number}" for number in range(40)]
                    expected += names
                    working = asyncio.create_task(asyncio.to_thread(start_processes, names))
                    await until(lambda life=life: f"{MARK}-{life}-5" in script.commands())  # type: ignore[misc]
                    server.kill()
                    await working
                    attending.cancel()
                    server.start_again()
            async with scripted_gateway(server.url) as gateway:
                attending = asyncio.create_task(script.attend(await gateway.client(), "events3"))
                await until(lambda: script.commands().keys() >= set(expected))
                attending.cancel()
    assert script.commands() == Counter(expected)
    assert len({(store, seq) for store, seq, _ in script.rows}) == len(expected)


@pytest.mark.long
async def test_each_cluster_has_its_own_cursor(tmp_path: Path) -> None:
    with nats_server(tmp_path / "hub") as server:
        async with (
            scripted_gateway(server.url, "a", "gw1") as first,
            scripted_gateway(server.url, "b", "gw2") as second,
            running(tmp_path, f"--zeek={server.url}", settings=SETTINGS) as agent,
        ):
            clients = {"a": await first.client(), "b": await second.client()}
            scripts = {"a": Script(), "b": Script()}
            tasks = [asyncio.create_task(scripts[name].attend(clients[name], f"events-{name}")) for name in clients]
            await installed(agent, 2)
            both = [f"{MARK}-both-{number}" for number in range(10)]
            await asyncio.to_thread(start_processes, both)
            await until(lambda: all(script.commands().keys() >= set(both) for script in scripts.values()))
            await clients["b"].gone()
            tasks.pop().cancel()
            later = [f"{MARK}-later-{number}" for number in range(10)]
            await asyncio.to_thread(start_processes, later)
            await until(lambda: scripts["a"].commands().keys() >= {*both, *later})
            assert scripts["b"].commands() == Counter(both)
            rows = {row["destination"]: row for row in await agent.ask("SELECT * FROM zeek_agent_connections")}
            assert {name: row["state"] for name, row in rows.items()} == {"nats:a": "connected", "nats:b": "waiting"}
            await clients["b"].back()
            tasks.append(asyncio.create_task(scripts["b"].attend(clients["b"], "events-again")))
            await until(lambda: scripts["b"].commands().keys() >= {*both, *later})
            for task in tasks:
                task.cancel()
    assert scripts["a"].commands() == scripts["b"].commands() == Counter([*both, *later])


@pytest.mark.long
async def test_a_running_agent_reloads_and_stops_in_order(tmp_path: Path) -> None:
    configuration = tmp_path / "zeek-agent.toml"
    with nats_server(tmp_path / "hub") as server:
        configuration.write_text(f'[zeek]\ndestinations = ["{server.url}"]\n')
        async with scripted_gateway(server.url) as gateway:
            async with running(tmp_path, f"--config={configuration}", settings=SETTINGS) as agent:
                client = await gateway.client()
                hello = await client.expect(AgentHello)
                assert hello.context.agent_id == AGENT_ID
                configuration.write_text(f'[zeek]\ndestinations = ["{server.url}"]\n[bus]\nclusters = ["other"]\n')
                told = await asyncio.to_thread(
                    subprocess.run,
                    [sys.executable, "-m", "zeek_agent", "reload", "--state-dir", str(agent.state)],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                assert "bus.clusters" in told.stdout
                await client.expect(AgentShutdown)
                configuration.write_text(f'[zeek]\ndestinations = ["{server.url}"]\n')
                await asyncio.to_thread(agent.process.send_signal, 1)
                again = await gateway.client()
                await again.expect(AgentHello)
                assert (await agent.connection())["destination"] == "nats:main"
                code = await asyncio.to_thread(agent.stop)
                await again.expect(AgentShutdown)
                await until(lambda: again.byes == 1)
            assert code == 0


def test_an_agent_without_the_packages_for_the_bus_says_what_to_install(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "def find_others(name, path=None, target=None):\n"
        "    return None if name in ('nats', 'nkeys') else find(name, path, target)\n"
        "PathFinder.find_spec = staticmethod(find_others)\n"
    )
    environment = {"PYTHONPATH": str(hidden)}
    with started(tmp_path, "--zeek=nats://127.0.0.1:1", settings=SETTINGS, environment=environment) as agent:
        assert until_sync(lambda: str(agent.process.poll()) if agent.process.poll() is not None else None) == "2"
    assert "pip install 'zeek-agent[fleet]'" in agent.output.read_text()
