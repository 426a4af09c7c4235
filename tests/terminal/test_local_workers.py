"""Statements without a running agent: root's run in worker processes, which a hung one does not outlive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_program import cpu_seconds
from waiting import until_sync
from workers import quick_kills, resident

from zeek_agent.config import loading
from zeek_agent.config.declarations import Config
from zeek_agent.containment.worker_process import WorkerState
from zeek_agent.database.database import Database
from zeek_agent.errors import LimitError
from zeek_agent.events.store import EventStore
from zeek_agent.tables import builtin_tables
from zeek_agent.terminal import responders
from zeek_agent.terminal.local_responder import LocalResponder

pytestmark = pytest.mark.root
SLOW = f"SELECT {' + '.join(['(a LIKE b)'] * 25)} FROM (SELECT {{a}} AS a, {{b}} AS b)".format(
    a="printf('%.*c', 4000000, 'a')", b="'%' || printf('%.*c', 250, 'a') || 'b'"
)


def settings(state: Path, **limits: object) -> tuple[Config, dict[str, str]]:
    flags = {"state_dir": str(state), **{f"limits.{name}": value for name, value in limits.items()}}
    return loading.load(None, {}, flags)


@pytest.fixture
def responder(tmp_path: Path) -> Iterator[LocalResponder]:
    opened = LocalResponder(*settings(tmp_path))
    yield opened
    opened.close()


def rows(responder: LocalResponder, sql: str) -> list[tuple[object, ...]]:
    return [tuple(row) for row in responders.query(responder, sql)[1]]


def test_roots_statements_run_in_a_worker(responder: LocalResponder) -> None:
    ((pid, uid, kind),) = rows(responder, "SELECT pid, uid, class FROM zeek_agent_workers")
    assert pid != os.getpid()
    assert uid != 0
    assert kind == "snapshots"
    assert rows(responder, f"SELECT pid FROM processes WHERE pid = {os.getpid()}") == [(os.getpid(),)]


def test_an_ordinary_users_statements_run_in_the_process_of_the_command(
    responder: LocalResponder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert rows(responder, "SELECT pid FROM zeek_agent_workers") == []
    assert isinstance(responder._opened(), Database)


def test_stored_events_are_read_by_a_worker_that_reads_nothing_else(tmp_path: Path) -> None:
    store = EventStore(tmp_path / "events.db", builtin_tables(), Config().events)
    store.close()
    opened = LocalResponder(*settings(tmp_path))
    try:
        assert rows(opened, "SELECT count(*) FROM processes_events") == [(0,)]
        assert {kind for (kind,) in rows(opened, "SELECT class FROM zeek_agent_workers")} == {"events", "snapshots"}
    finally:
        opened.close()


def test_workers_end_with_the_command(tmp_path: Path) -> None:
    opened = LocalResponder(*settings(tmp_path))
    ((pid,),) = rows(opened, "SELECT pid FROM zeek_agent_workers")
    opened.close()
    assert resident(int(str(pid))) == 0


@pytest.mark.long
def test_the_shell_goes_on_after_a_statement_that_had_to_be_killed(tmp_path: Path) -> None:
    command = [*(sys.executable, "-m", "zeek_agent", "shell", "--format", "csv", "--state-dir", str(tmp_path))]
    done = subprocess.run(
        [*command, "--set", "limits.time=1.0"],
        input=f"SELECT 1 AS a;\n{SLOW};\n{SLOW};\nSELECT 7 AS b;\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["a", "1", "b", "7"]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors[0] == "error: the statement took longer than limits.time; its process was killed"
    assert errors[1].startswith("error: not run before 2")
    assert len(errors) == 2
    assert done.returncode == 1


@pytest.mark.long
def test_a_killed_statement_leaves_a_responder_that_answers(tmp_path: Path) -> None:
    opened = LocalResponder(*settings(tmp_path, time=1.0))
    try:
        with quick_kills(), pytest.raises(LimitError, match="its process was killed"):
            rows(opened, SLOW)
        assert rows(opened, "SELECT 7") == [(7,)]
    finally:
        opened.close()


def test_an_interrupt_ends_the_statements_process_at_once(responder: LocalResponder) -> None:
    rows(responder, "SELECT 1")
    assert responder._agent is not None
    pool = responder._agent.pool
    assert pool is not None
    (worker,) = pool.processes
    used = cpu_seconds(worker.pid)

    def interrupt() -> None:
        """Not between the worker's two tasks, which are to compile the statement and to run it."""
        until_sync(lambda: worker.state is WorkerState.BUSY and cpu_seconds(worker.pid) > used + 0.2)
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        rows(responder, SLOW)
    interrupting.join()
    until_sync(lambda: resident(worker.pid) == 0)
    assert rows(responder, "SELECT 7") == [(7,)]


@pytest.mark.long
def test_a_worker_that_ended_while_nothing_was_asked_is_replaced(responder: LocalResponder) -> None:
    ((pid,),) = rows(responder, "SELECT pid FROM zeek_agent_workers")
    os.kill(int(str(pid)), signal.SIGKILL)
    until_sync(lambda: not Path(f"/proc/{pid}").exists())
    ((other,),) = rows(responder, "SELECT pid FROM zeek_agent_workers")
    assert other != pid
