"""The hosts that a collector remembers on disk, across its restarts and ends."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace
from scripted_agent import SETTINGS, THING, agent_of, collecting, read
from waiting import until
from zeek_log import Clock

from zeek_agent.collector import host_records, hosts, hosts_file, pack, server
from zeek_agent.collector.agents import KnownAgent
from zeek_agent.collector.hosts import Host, Hosts, Peer
from zeek_agent.collector.hosts_file import HostsError, HostsFile
from zeek_agent.queries.subscriptions import Change
from zeek_agent.terminal import host_list
from zeek_agent.zeek import broker_json, protocol
from zeek_agent.zeek.protocol import Context


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FLUSH_INTERVAL_SECONDS", 0.02)
    monkeypatch.setattr(hosts, "FIGURES_INTERVAL_SECONDS", 0.0)


def stored(logs: Path) -> dict[str, Host]:
    return hosts_file.read(logs).hosts


def state_of(logs: Path, agent_id: str) -> str | None:
    host = stored(logs).get(agent_id)
    return None if host is None else host.state


async def test_a_host_is_recorded_with_its_identity_and_figures(tmp_path: Path) -> None:
    clock = Clock()
    async with collecting(tmp_path, clock=clock) as collector, agent_of(collector) as agent:
        await agent.join()
        clock.now += 5
        await agent.result(*THING)
        await agent.send(protocol.agent_error(collector.instance, Context("HAbc", time.time()), "no such table"))
        await agent.result(broker_json.count(1))
        await until(lambda: "HAbc" in stored(tmp_path) and stored(tmp_path)["HAbc"].errors == 2)
        host = stored(tmp_path)["HAbc"]
        assert (host.state, host.hostname, host.instance) == ("connected", "vm", "I1")
        assert (host.addresses, host.peer) == (("192.0.2.2", "fd00::2"), "127.0.0.1")
        assert (host.version, host.platform) == (300_000_000, "Linux")
        assert (host.first_seen, host.last_seen) == (1_800_000_000.25, 1_800_000_005.25)
        assert (host.rows, host.connects) == (1, 1)
        assert host.last_error is not None
        assert "row has 1 values" in host.last_error
    assert stored(tmp_path)["HAbc"].state == "away"


@pytest.mark.parametrize(("setgid", "mode"), [(False, 0o600), (True, 0o640)])
async def test_the_file_has_the_mode_of_the_logs(tmp_path: Path, setgid: bool, mode: int) -> None:
    if setgid:
        tmp_path.chmod(0o2755)
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.join()
        await until(lambda: "HAbc" in stored(tmp_path))
    assert stat.S_IMODE((tmp_path / hosts_file.NAME).stat().st_mode) == mode


async def test_a_host_is_counted_once_however_often_it_and_the_collector_start(tmp_path: Path) -> None:
    for number in range(3):
        async with collecting(tmp_path) as collector, agent_of(collector) as agent:
            agent.hello_id = f"agent_hello_{number}"
            await agent.join()
            await agent.result(*THING)
            await until(lambda collector=collector: collector.stats.rows == 1)
            assert collector.stats.hosts["connected"] == 1
    assert list(stored(tmp_path)) == ["HAbc"]
    host = stored(tmp_path)["HAbc"]
    assert (host.connects, host.rows) == (3, 3)


async def test_a_host_that_does_not_return_after_a_restart_is_offline(tmp_path: Path) -> None:
    clock = Clock()
    async with collecting(tmp_path, clock=clock) as collector:
        async with agent_of(collector, "HOne") as one, agent_of(collector, "HTwo") as two:
            await one.join()
            await two.join()
        async with agent_of(collector, "HOff") as off:
            await off.join()
            await off.send(protocol.agent_shutdown(Context("HOff", time.time())))
            await until(lambda: state_of(tmp_path, "HOff") == "shutdown")
    clock.now += 3600
    async with collecting(tmp_path, clock=clock) as collector, agent_of(collector, "HTwo") as two:
        await two.join()
        clock.now += SETTINGS.agent_timeout - 1
        await two.hello()
        await asyncio.sleep(0.1)
        assert state_of(tmp_path, "HOne") == "away", "it gets the time to return"
        clock.now += 1
        await until(lambda: state_of(tmp_path, "HOne") == state_of(tmp_path, "HOff") == "offline")
        assert state_of(tmp_path, "HTwo") == "connected"
    lines = read(tmp_path, "zeek-agent")
    assert [(line["type_"], line["hid"]) for line in lines] == [
        ("join", "HTwo"),
        ("update", "HTwo"),
        ("offline", "HOff"),
        ("offline", "HOne"),
    ] or [(line["type_"], line["hid"]) for line in lines][2:] == [("offline", "HOne"), ("offline", "HOff")]
    assert lines[-1]["hostname"] == "vm"
    assert lines[-1]["instance"] == "I1"


async def test_hosts_are_offline_after_three_missed_hellos(tmp_path: Path) -> None:
    assert SETTINGS.agent_timeout == 3 * 60.0
    clock = Clock()
    async with collecting(tmp_path, clock=clock) as collector:
        async with agent_of(collector) as agent:
            await agent.join()
        await until(lambda: state_of(tmp_path, "HAbc") == "away")
        clock.now += 180
        await until(lambda: state_of(tmp_path, "HAbc") == "offline")
    assert [line["type_"] for line in read(tmp_path, "zeek-agent")] == ["join", "offline"]


LOSSES = """
[logs.zeek-agent-gaps]
fields = [
  { name = "source", type = "string" },
  { name = "from", type = "time" },
  { name = "until", type = "time" },
  { name = "cause", type = "string" },
]

[logs.zeek-agent-sources]
fields = [
  { name = "source", type = "string" },
  { name = "backend", type = "string" },
  { name = "lost_overrun", type = "count" },
  { name = "lost_store", type = "count" },
]

[[queries]]
log = "zeek-agent-gaps"
sql = 'SELECT source, "from", until, cause FROM zeek_agent_gaps'
requires_tables = ["zeek_agent_gaps"]

[[queries]]
log = "zeek-agent-sources"
sql = "SELECT source, backend, lost_overrun, lost_store FROM zeek_agent_sources"
requires_tables = ["zeek_agent_sources"]
"""
GAPS, SOURCES = "Collector::zeek_agent_gaps", "Collector::zeek_agent_sources"


def gap(source: str, start: float, end: float) -> tuple[str, ...]:
    return (
        broker_json.string(source),
        broker_json.timestamp(start),
        broker_json.timestamp(end),
        broker_json.string("stopped"),
    )


def source(name: str, overrun: int, store: int) -> tuple[str, ...]:
    return broker_json.string(name), broker_json.string("ebpf"), broker_json.count(overrun), broker_json.count(store)


async def test_gaps_and_losses_of_a_host_are_counted_once(tmp_path: Path) -> None:
    given = pack.parse(LOSSES, "test")
    for run in range(2):
        async with collecting(tmp_path, given=given) as collector, agent_of(collector) as agent:
            await agent.subscribe()
            await agent.hello()
            for change, row in (
                (Change.ADD, gap("agent", 100.0, 110.0)),
                (Change.ADD, gap("processes", 200.0, 210.0)),
                (Change.DELETE, gap("processes", 200.0, 210.0)),
                (Change.ADD, gap("processes", 200.0, 230.0)),
            ):
                await agent.result(*row, event=GAPS, change=change)
            for change, row in (
                (Change.ADD, source("processes", 3, 0)),
                (Change.DELETE, source("processes", 3, 0)),
                (Change.ADD, source("processes", 5, 1)),
                (Change.ADD, source("sockets", 0, 2)),
            ):
                await agent.result(*row, event=SOURCES, change=change)
            await until(lambda collector=collector: collector.stats.rows == 8)
        host = stored(tmp_path)["HAbc"]
        assert (host.gaps, host.last_gap) == (2, 230.0), run
        assert host.lost == 5 + 1 + 2, "the second run reports nothing new"


async def test_counters_of_a_restarted_agent_add_up(tmp_path: Path) -> None:
    given = pack.parse(LOSSES, "test")
    async with collecting(tmp_path, given=given) as collector:
        for number in range(2):
            async with agent_of(collector) as agent:
                await agent.subscribe()
                agent.hello_id = f"hello {number}"
                await agent.hello(instance_id=broker_json.string(f"I{number}"))
                await agent.result(*source("processes", 4, 0), event=SOURCES)
                await until(lambda number=number: collector.stats.rows == number + 1)
            await until(lambda: not collector.stats.connected)
    assert stored(tmp_path)["HAbc"].lost == 8


def known(agent_id: str) -> KnownAgent:
    return KnownAgent(agent_id, "hello", hostname=agent_id)


def test_made_up_ids_push_out_one_another_and_are_counted() -> None:
    some = Hosts(limit=100)
    for number in range(50):
        some.hello(known(f"old{number}"), Peer(), 1_000.0)
        some.row(f"old{number}", 100_000.0 + number)
        some.enter(f"old{number}", "offline", 100_180.0)
    some.hello(known("present"), Peer(), 200_000.0)
    for number in range(10_000):
        some.hello(known(f"made-up{number}"), Peer(), 200_000.0 + number)
        some.enter(f"made-up{number}", "away", 200_001.0 + number)
    assert len(some) == 100
    assert {f"old{number}" for number in range(50)} <= {host.id for host in some}
    assert some.get("present") is not None
    assert some.evicted == 10_051 - 100
    assert len(some.due(0.0, everything=True)) == 100, "nothing is kept of evicted hosts"


@pytest.mark.parametrize("count", [2**64 - 1, 2**63, 0])
def test_figures_that_a_host_makes_up_can_be_stored(tmp_path: Path, count: int) -> None:
    some = Hosts(limit=10)
    some.hello(KnownAgent("HAbc", "hello", version=count), Peer(), 1.0)
    [host] = some
    for number in range(200):
        hosts.count_losses(host, {"source": f"s{number}", "lost_store": count}, Change.ADD)
        hosts.count_gap(host, {"source": "s", "from": float(number), "until": float("inf")}, Change.ADD)
        hosts.count_gap(host, {"source": "s", "from": float("nan"), "until": 1.0}, Change.ADD)
    file = HostsFile(tmp_path)
    file.load()
    file.replace(some, 0)
    content = hosts_file.read(tmp_path)
    assert content.damaged == 0
    assert content.hosts["HAbc"].lost == (2**53 if count else 0)
    assert content.hosts["HAbc"].gaps == 200
    assert content.bytes < 10_000


def test_connected_hosts_are_never_evicted() -> None:
    some = Hosts(limit=10)
    for number in range(15):
        some.hello(known(f"H{number}"), Peer(), 1.0)
    assert len(some) == 10
    assert (some.evicted, some.unremembered) == (0, 5)


def test_writes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "FIGURES_INTERVAL_SECONDS", 10.0)
    some = Hosts(limit=20_000)
    for number in range(10_000):
        some.hello(known(f"H{number}"), Peer(), 1.0)
    seconds = 0
    while taken := some.due(float(seconds)):
        assert len(taken) <= hosts.URGENT_MAX
        seconds += 1
    assert seconds == 10_000 / hosts.URGENT_MAX
    for second in range(100, 200):
        for number in range(10_000):
            some.row(f"H{number}", float(second))
        taken = some.due(float(second))
        assert len(taken) == (hosts.FIGURES_MAX if second % 10 == 0 else 0)


def test_writes_while_the_disk_is_full_are_made_later(tmp_path: Path) -> None:
    some = Hosts(limit=10)
    some.hello(known("HAbc"), Peer(), 1.0)
    due = some.due(0.0)
    some.postpone(due)
    assert [host.id for host in some.due(1.0)] == ["HAbc"]


async def test_an_error_is_counted_and_the_hosts_are_written_when_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_records, "REPLACE_INTERVAL_SECONDS", 0.0)
    (tmp_path / f"{hosts_file.NAME}.new").mkdir()
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.join()
        await until(lambda: collector.stats.hosts_errors > 1)
        assert collector.stats.hosts_error is not None
        assert hosts_file.NAME in collector.stats.hosts_error
        (tmp_path / f"{hosts_file.NAME}.new").rmdir()
        await until(lambda: collector.stats.hosts_error is None)
        assert state_of(tmp_path, "HAbc") == "connected"


def host(agent_id: str, **changed: object) -> Host:
    return Host(id=agent_id, state="offline", since=1.0, first_seen=1.0, last_seen=2.0, **changed)  # type: ignore[arg-type]


def test_a_line_that_was_not_completed_costs_only_itself(tmp_path: Path) -> None:
    file = HostsFile(tmp_path)
    file.load()
    file.replace([host("HOne")], 3)
    file.append([host("HOne", rows=5), host("HTwo")], 4)
    path = tmp_path / hosts_file.NAME
    whole = path.read_bytes()
    for length in range(whole.index(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:length])
        content = hosts_file.read(tmp_path)
        complete = whole[:length].count(b"\n")
        assert content.damaged == 0
        assert list(content.hosts) == ["HOne", "HTwo"][: (0, 0, 1, 1, 2)[complete]]
        assert content.evicted == (0, 3, 3, 3, 3)[complete]
        again = HostsFile(tmp_path)
        again.load()
        assert again.is_due or whole[:length].endswith(b"\n"), "the next line must not be appended to half a line"
    path.write_bytes(whole)
    content = hosts_file.read(tmp_path)
    assert (content.hosts["HOne"].rows, content.evicted, len(content.hosts)) == (5, 4, 2)


def test_lines_that_are_not_hosts_are_counted(tmp_path: Path) -> None:
    (tmp_path / hosts_file.NAME).write_bytes(
        b'{"format":1}\n{"host":{"id":7}}\n\xff\n[]\n{"host":' + json.dumps({"id": "x"}).encode() + b"}\n"
    )
    content = hosts_file.read(tmp_path)
    assert (content.damaged, content.hosts) == (4, {})


def test_the_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / hosts_file.NAME).write_bytes(b'{"format":2}\n')
    with pytest.raises(HostsError, match="newer version"):
        HostsFile(tmp_path).load()


async def test_a_collector_runs_without_the_hosts_of_a_newer_version(tmp_path: Path) -> None:
    (tmp_path / hosts_file.NAME).write_bytes(b'{"format":2}\n')
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.join()
        await until(lambda: collector.stats.hosts_errors > 0)
    assert (tmp_path / hosts_file.NAME).read_bytes() == b'{"format":2}\n'


def test_the_file_is_not_read_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b'{"format":1}\n')
    (tmp_path / hosts_file.NAME).symlink_to("elsewhere")
    with pytest.raises(HostsError, match=r"hosts\.jsonl was not written by a collector: move it away"):
        hosts_file.read(tmp_path)


def a_directory(path: Path) -> None:
    path.mkdir()


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


FOREIGN: list[Callable[[Path], object]] = [
    lambda path: path.write_bytes(b'{"name": "db-1"}\n'),
    lambda path: path.write_bytes(b"# my hosts\ndb-1\n"),
    lambda path: path.write_bytes(b'{"host":{"id":"HOne"}}'),
    lambda path: path.write_bytes(os.urandom(100_000)),
    lambda path: path.symlink_to("/etc/passwd"),
    lambda path: os.mkfifo(path),  # noqa: PLW0108 - which Windows lacks
    a_directory,
    a_socket,
]


@pytest.mark.parametrize("make", FOREIGN)
def test_a_file_of_somebody_else_is_named_and_left_alone(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / hosts_file.NAME)
    for use in (HostsFile(tmp_path).load, lambda: host_list.read(tmp_path)):
        with pytest.raises(HostsError) as refused:
            use()
        assert str(refused.value) == f"{tmp_path / hosts_file.NAME} was not written by a collector: move it away"


async def test_a_collector_does_not_write_over_a_file_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / hosts_file.NAME).write_bytes(b"# my hosts\ndb-1\n")
    async with collecting(tmp_path) as collector, agent_of(collector) as agent:
        await agent.join()
        await until(lambda: collector.stats.hosts_errors > 0)
    assert (tmp_path / hosts_file.NAME).read_bytes() == b"# my hosts\ndb-1\n"


def test_a_pipe_that_replaces_the_file_does_not_hold_up_the_collector(tmp_path: Path) -> None:
    file = HostsFile(tmp_path)
    file.load()
    file.replace([host("HOne")], 0)
    (tmp_path / hosts_file.NAME).unlink()
    os.mkfifo(tmp_path / hosts_file.NAME)
    with pytest.raises(OSError, match="No such device"):
        file.append([host("HOne")], 0)


def test_the_file_is_written_again_when_it_has_grown(tmp_path: Path) -> None:
    file = HostsFile(tmp_path)
    file.load()
    some = [host(f"H{number}") for number in range(100)]
    file.replace(some, 0)
    size = (tmp_path / hosts_file.NAME).stat().st_size
    while not file.is_due:
        file.append(some, 0)
    grown = (tmp_path / hosts_file.NAME).stat().st_size
    assert hosts_file.GROWTH_BYTES < grown < hosts_file.GROWTH_BYTES + 4 * size
    file.replace(some, 0)
    assert (tmp_path / hosts_file.NAME).stat().st_size == size
    assert not list(tmp_path.glob("*.new"))


@pytest.mark.parametrize("name", ["a\ud800b", "\x1b[2J", "\uef80", "x" * 1000])
def test_any_name_can_be_stored(tmp_path: Path, name: str) -> None:
    some = Hosts(limit=10)
    some.hello(KnownAgent("HAbc", "hello", hostname=name), Peer(), 1.0)
    file = HostsFile(tmp_path)
    file.load()
    file.replace(some, 0)
    [read_back] = stored(tmp_path).values()
    assert read_back.hostname == name[:255].replace("\ud800", "?")


def test_a_host_that_came_back_before_the_file_could_be_read_keeps_its_history() -> None:
    some = Hosts(limit=10)
    some.hello(known("HAbc"), Peer(), 100.0)
    left: Callable[[], list[Host]] = lambda: some.restore([host("HAbc", rows=7, connects=2)], 5)  # noqa: E731
    assert left() == []
    [merged] = some
    assert (merged.state, merged.first_seen, merged.rows, merged.connects) == ("connected", 1.0, 7, 3)
    assert some.evicted == 5


async def test_the_limit_can_be_lowered(tmp_path: Path) -> None:
    settings = replace(SETTINGS, hosts_max=1)
    async with collecting(tmp_path, settings=settings) as collector:
        for agent_id in ("HOne", "HTwo"):
            async with agent_of(collector, agent_id) as agent:
                await agent.join()
            await until(lambda: not collector.stats.connected)
        assert collector.stats.hosts_evicted == 1
    content = hosts_file.read(tmp_path)
    assert content.evicted == 1
