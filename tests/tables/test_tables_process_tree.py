"""The table process_tree, of processes that really ran: who lives, who has ended, who had the same pid before."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from asking import Agent, ask

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import AccessSettings, SourceSettings
from zeek_agent.database.database import Database
from zeek_agent.errors import LimitError, SqlError
from zeek_agent.events.store import EventStore
from zeek_agent.host.linux.procfs import Procfs, ProcfsProcess
from zeek_agent.recording.bpf_monitor import BpfMonitor
from zeek_agent.recording.processes.ebpf_processes import EbpfProcesses
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.table import Constraints, TableContext
from zeek_agent.tables import events
from zeek_agent.tables.process_tree import PROCESSES_MAX, process_tree

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

Tree = Callable[..., list[dict[str, Any]]]

SPAWN_WITH_PID = """
import ctypes, os, signal, struct, sys
CLONE3, pid = 435, int(sys.argv[1])
set_tid = ctypes.c_int(pid)
arguments = struct.pack("=11Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(set_tid), 1, 0)
if ctypes.PyDLL(None, use_errno=True).syscall(CLONE3, arguments, len(arguments)) == 0:
    os.execv("/bin/sh", ["sh", "-c", *sys.argv[2:]])
os.waitpid(pid, 0)
"""
"""Runs a shell command in a process with that pid (clone3(2))."""


@pytest.fixture(scope="module")
def tree() -> Iterator[Tree]:
    """Asks for a tree while process events are recorded."""
    store = EventStore(None, events.TABLES)
    source = EbpfProcesses(BpfMonitor(ProcessCache()), SourceSettings(ignore_self=False))
    if (reason := source.probe()) is not None:
        pytest.skip(reason)
    source.start(store.append)

    def asked(*parameters: Any, **options: Any) -> list[dict[str, Any]]:
        source.drain()
        assert store.flush()
        return ask(process_tree, *parameters, store=store, **options)

    yield asked
    source.stop()
    store.close()


def entity_of(pid: int) -> str:
    with ProcfsProcess(Procfs(), pid) as process:
        return process.entity_id


def by_relation(rows: list[dict[str, Any]], relation: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["relation"] == relation]


@pytest.mark.root
def test_the_tree_continues_through_processes_that_have_ended(tree: Tree) -> None:
    script = '/bin/sh -c "/bin/sleep 60 >/dev/null 2>&1 & echo \\$\\$ \\$!"; true'
    with subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        inner, sleeper = map(int, shell.stdout.readline().split())
    try:
        while _command_line(sleeper) != b"/bin/sleep\x0060\0":
            time.sleep(0.001)
        with ProcfsProcess(Procfs(), sleeper) as orphan:
            assert orphan.ppid not in {inner, shell.pid}
        down = tree(shell.pid)
        up = tree(sleeper)
    finally:
        os.kill(sleeper, 9)
    assert [(row["relation"], row["depth"], row["pid"]) for row in down if row["relation"] != "ancestor"] == [
        ("self", 0, shell.pid),
        ("descendant", 1, inner),
        ("descendant", 2, sleeper),
    ]
    me, first, second, third = down[-4:]
    assert (me["pid"], me["running"], me["exit_time"], me["entity_id"]) == (
        os.getpid(),
        True,
        None,
        entity_of(os.getpid()),
    )
    assert (first["running"], second["running"], third["running"]) == (False, False, True)
    assert first["start_time"] <= second["start_time"] <= second["exit_time"] <= first["exit_time"] <= time.time()
    assert third["cmdline"] == "/bin/sleep 60"
    assert (third["exit_time"], third["ppid"], third["parent_entity_id"]) == (None, inner, second["entity_id"])
    assert [(row["relation"], row["depth"], row["entity_id"]) for row in up[-4:]] == [
        ("ancestor", 3, me["entity_id"]),
        ("ancestor", 2, first["entity_id"]),
        ("ancestor", 1, second["entity_id"]),
        ("self", 0, third["entity_id"]),
    ]


@pytest.mark.root
def test_an_ended_process_is_found_with_its_last_attributes(tree: Tree) -> None:
    begun = time.monotonic()
    gone = subprocess.Popen(["/bin/sh", "-c", "exec /bin/sh -c 'exit 3'"], user=65534, group=65534, extra_groups=[])
    gone.wait()
    lived = time.monotonic() - begun
    (row,) = by_relation(tree(gone.pid), "self")
    assert (row["name"], row["exe"], row["uid"]) == ("sh", os.path.realpath("/bin/sh"), 65534)
    assert row["cmdline"] == "/bin/sh -c exit 3"
    assert (row["running"], row["ppid"]) == (False, os.getpid())
    assert 0 < row["exit_time"] - row["start_time"] < lived + 0.05
    assert by_relation(tree(None, row["entity_id"]), "self") == [row]


@pytest.mark.root
def test_a_pid_that_is_used_again_does_not_mix_two_processes(tree: Tree) -> None:
    first = subprocess.Popen(["/bin/sh", "-c", "/bin/echo first; true"], stdout=subprocess.DEVNULL)
    first.wait()
    (old,) = by_relation(tree(first.pid), "self")
    time.sleep(0.02)  # ticks of 10 ms tell them apart
    spawn = subprocess.Popen(
        [sys.executable, "-c", SPAWN_WITH_PID, str(first.pid), "/bin/echo second; true"], stdout=subprocess.DEVNULL
    )
    assert spawn.wait() == 0
    rows = tree(first.pid)
    (new,) = by_relation(rows, "self")
    assert (new["pid"], new["ppid"]) == (first.pid, spawn.pid)
    assert new["entity_id"] != old["entity_id"]
    assert [row["cmdline"] for row in by_relation(rows, "descendant")] == ["/bin/echo second"]
    before = tree(None, old["entity_id"])
    assert by_relation(before, "self") == [old]
    assert [row["cmdline"] for row in by_relation(before, "descendant")] == ["/bin/echo first"]
    assert tree(first.pid + 1, old["entity_id"]) == []


def test_without_recorded_events_the_living_relatives_are_there() -> None:
    with subprocess.Popen(["/bin/sleep", "60"]) as child:
        rows = ask(process_tree, os.getpid())
        child.kill()
    ancestors = by_relation(rows, "ancestor")
    assert [row["depth"] for row in ancestors] == list(range(len(ancestors), 0, -1))
    assert ancestors[-1]["pid"] == os.getppid()
    assert child.pid in [row["pid"] for row in by_relation(rows, "descendant") if row["depth"] == 1]
    assert all(row["running"] for row in by_relation(rows, "self") + ancestors)


def test_an_unrecorded_parent_is_described_by_its_child() -> None:
    store = EventStore(None, events.TABLES)
    try:
        store.append("processes_events", [_started("b-5000022-200", "b-5000021-100", pid=5000022, ppid=5000021)])
        store.flush()
        rows = ask(process_tree, 5000022, store=store)
        assert ask(process_tree, None, "b-5000021-100", store=store)[-2:] == [
            {**rows[0], "relation": "self", "depth": 0},
            {**rows[1], "relation": "descendant", "depth": 1},
        ]
    finally:
        store.close()
    assert [(row["relation"], row["pid"], row["name"], row["exe"]) for row in rows] == [
        ("ancestor", 5000021, "parent", "/bin/parent"),
        ("self", 5000022, "child", "/bin/child"),
    ]


def recorded(store: EventStore, links: Iterable[tuple[str, str | None]], states: Iterable[str] = ("started",)) -> None:
    """Append starts, or ends, of processes with these parents."""
    names = [column.name for column in events.processes_events.recorded]
    rows = []
    for number, (entity, parent) in enumerate(links):
        for state in states:
            cells = {"time": time.time(), "pid": 9_000_000 + number, "state": state, "name": entity}
            cells |= {"entity_id": entity, "parent_entity_id": parent}
            rows.append(tuple(cells.get(name) for name in names))
    store.append("processes_events", rows)
    assert store.flush(30)


CHAIN: list[tuple[str, str | None]] = [(f"X-{n}", f"X-{n - 1}" if n else None) for n in range(30)]
SCATTERED = [CHAIN[n * 7 % 30] for n in range(30)]


@pytest.mark.parametrize("links", [CHAIN, CHAIN[::-1], SCATTERED], ids=["in order", "reversed", "scattered"])
@pytest.mark.parametrize("states", [("started",), ("stopped",), ("started", "stopped")], ids="-".join)
def test_all_generations_are_found_in_whatever_order_they_are_recorded(
    links: list[tuple[str, str | None]], states: tuple[str, ...]
) -> None:
    store = EventStore(None, events.TABLES)
    recorded(store, links, states)
    recorded(store, [("Y-1", "Y-0"), ("Y-2", "X-99")], states)
    rows = ask(process_tree, None, "X-10", store=store)
    found = [(row["relation"], row["depth"], row["entity_id"]) for row in rows]
    assert found == [
        *[("ancestor", 10 - n, f"X-{n}") for n in range(10)],
        ("self", 0, "X-10"),
        *[("descendant", n - 10, f"X-{n}") for n in range(11, 30)],
    ]
    assert [row["entity_id"] for row in ask(process_tree, None, "X-29", store=store)] == [f"X-{n}" for n in range(30)]
    store.close()


def test_the_number_of_passes_over_the_store_does_not_grow_with_the_generations() -> None:
    store = EventStore(None, events.TABLES)
    recorded(store, CHAIN)
    passes = []

    class CountingAgent(Agent):
        def recorded(self, sql: str, *rest: Any, **more: Any) -> Any:
            passes.append(sql)
            return super().recorded(sql, *rest, **more)

    for root in ("X-0", "X-29"):
        passes.clear()
        wanted = Constraints(TableContext(CountingAgent(store)), {"pid": None, "entity_id": root})
        assert len(list(process_tree.rows(wanted))) == 30
        assert len(passes) <= 6
    store.close()


def test_a_process_may_have_fifty_thousand_children() -> None:
    store = EventStore(None, events.TABLES)
    recorded(store, [("X-0", None), *((f"C-{n}", "X-0") for n in range(50_000))], ("started", "stopped"))
    rows = ask(process_tree, None, "X-0", store=store)
    assert len(rows) == 50_001
    assert len({row["entity_id"] for row in rows}) == 50_001
    assert {row["depth"] for row in rows} == {0, 1}
    recorded(store, [(f"D-{n}", "C-7") for n in range(PROCESSES_MAX - 50_001)])
    assert len(ask(process_tree, None, "X-0", store=store)) == PROCESSES_MAX
    recorded(store, [("E-1", "D-1")])
    with pytest.raises(LimitError, match=f"more than {PROCESSES_MAX} processes"):
        ask(process_tree, None, "X-0", store=store)
    store.close()


def test_empty_arguments_are_kept_of_living_and_of_ended_processes(tree: Tree) -> None:
    arguments = ["sh", "-c", "read line; exit 3", "-", "", "a b", "", ""]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE) as child:
        (living,) = by_relation(tree(child.pid), "self")
    (ended,) = by_relation(tree(child.pid), "self")
    for row in (living, ended):
        assert (row["argv"], row["cmdline"]) == (arguments, " ".join(arguments))
    assert ended["exit_time"] is not None
    with subprocess.Popen(["sh", "-c", "exec -a '' true"], executable="/bin/bash") as child:
        pass
    (ended,) = by_relation(tree(child.pid), "self")
    assert (ended["argv"], ended["cmdline"]) == ([""], "")


def test_command_lines_are_masked() -> None:
    access = AccessPolicy(AccessSettings(redact=("input",)))
    with subprocess.Popen([sys.executable, "-c", "input()", "--password=secret"], stdin=subprocess.PIPE) as child:
        while "secret" not in str(_command_line(child.pid)):
            time.sleep(0.001)
        (row,) = by_relation(ask(process_tree, child.pid, access=access), "self")
        child.kill()
    assert row["argv"] == [sys.executable, "-c", "***()", "--password=***"]
    assert row["cmdline"] == " ".join(row["argv"])


async def test_a_process_must_be_named() -> None:
    database = Database([process_tree], TableContext(Agent()))
    try:
        with pytest.raises(SqlError, match="parameter _pid or _entity_id is required"):
            await database.query("SELECT * FROM process_tree")
        assert (await database.query("SELECT * FROM process_tree(4194305)")).rows == []
    finally:
        await database.aclose()


def _command_line(pid: int) -> bytes | None:
    with ProcfsProcess(Procfs(), pid) as process:
        return process.arguments


def _started(entity: str, parent: str, *, pid: int, ppid: int) -> list[Any]:
    values = {
        "time": 10.0,
        "state": "started",
        "name": "child",
        "exe": "/bin/child",
        "pid": pid,
        "ppid": ppid,
        "entity_id": entity,
        "parent_entity_id": parent,
        "parent_name": "parent",
        "parent_exe": "/bin/parent",
    }
    return [values.get(column.name) for column in events.processes_events.recorded]
