"""What the tables and the status show of workers, and of statements that ended theirs."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from waiting import until
from workers import contained, quick_kills, resident

from zeek_agent.config.sections import LimitSettings
from zeek_agent.containment import usage
from zeek_agent.containment.cpu_share import BURST_SECONDS
from zeek_agent.containment.usage import Accounts, statement_key
from zeek_agent.errors import LimitError, SqlError

ZEEK = "ws://zeek:27759"
LOCAL = "uid=0 pid=1"
SLOW = f"SELECT {' + '.join(['(a LIKE b)'] * 25)} FROM (SELECT {{a}} AS a, {{b}} AS b)".format(
    a="printf('%.*c', 4000000, 'a')", b="'%' || printf('%.*c', 250, 'a') || 'b'"
)
COUNT = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000000) SELECT count(*) FROM n"


@pytest.mark.long
async def test_a_statement_that_ended_its_worker_is_shown_as_killed_and_resting(tmp_path: Path) -> None:
    async with contained(tmp_path, limits=LimitSettings(time=1.0, cpu=0.001)) as database:
        with pytest.raises(LimitError, match="killed"):
            await database.query(SLOW, origin=ZEEK)
        pool = database.pool
        await until(lambda: pool.usage(ZEEK, SLOW).killed)
        await until(lambda: pool.usage(ZEEK, SLOW).cpu > 0.1)
        assert BURST_SECONDS - pool._shares[ZEEK]._saved > 0.09
        assert pool.usage(ZEEK, SLOW).killed == 1
        until_when = pool.resting_until(ZEEK, SLOW)
        assert until_when is not None
        assert until_when > time.time()
        assert until_when == pool.resting_until(ZEEK, SLOW)
        assert (pool.usage("uid=0", SLOW).killed, pool.resting_until("uid=0", SLOW)) == (0, None)
        await database.query("SELECT 1", origin=ZEEK)
        assert (pool.usage(ZEEK, "SELECT 1").killed, pool.resting_until(ZEEK, "SELECT 1")) == (0, None)
        assert pool.totals() == {"running": 1, "abandoned": 0, "abandoned_in_all": 0, "zygote_starts": 1}


async def test_processor_time_is_charged_to_the_statement_that_used_it(tmp_path: Path) -> None:
    async with contained(tmp_path) as database:
        for sql in (COUNT, "SELECT 1", "SELECT 1"):
            await database.query(sql, origin=LOCAL)
        counting, small = (database.pool.usage("uid=0", sql) for sql in (COUNT, "SELECT 1"))
        (worker,) = database.pool.status()
        assert counting.cpu > 10 * small.cpu > 0
        assert counting.cpu + small.cpu <= worker.cpu
        assert 0 < counting.peak <= small.peak <= worker.peak_bytes


async def test_a_failed_statement_is_charged_too(tmp_path: Path) -> None:
    failing = f"{COUNT} UNION ALL SELECT regex('(', 'x')"
    async with contained(tmp_path) as database:
        with pytest.raises(SqlError):
            await database.query(failing, origin=LOCAL)
        assert database.pool.usage("uid=0", failing).cpu > 0
        assert database.pool.usage("uid=0", failing).killed == 0


@pytest.mark.long
async def test_an_abandoned_worker_is_counted_once_and_shown_until_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *_: None)
    monkeypatch.setattr("zeek_agent.containment.worker_process.ABANDON_SECONDS", 0.01)
    async with contained(tmp_path, limits=LimitSettings(time=1.0)) as database:
        pool = database.pool
        with quick_kills(), pytest.raises(LimitError, match="killed"):
            await database.query(SLOW, origin=ZEEK)
        (shown,) = pool.status()
        assert shown.state == "abandoned"
        assert pool.usage(ZEEK, SLOW).killed == 1
        assert (pool.killed, pool.abandoned, pool.totals()["abandoned"]) == ({"time": 1}, 1, 1)
        os.kill(shown.pid, signal.SIGKILL)
        await until(lambda: not pool.status())
        assert (pool.killed, pool.abandoned, pool.totals()["abandoned"]) == ({"time": 1}, 1, 0)
        assert pool.usage(ZEEK, SLOW).killed == 1
        monkeypatch.undo()


@pytest.mark.root
async def test_a_worker_is_shown_with_its_protections(tmp_path: Path) -> None:
    async with contained(tmp_path) as database:
        await database.query("SELECT 1", origin=LOCAL)
        (worker,) = database.pool.status()
        assert (worker.recipient, worker.worker_class, worker.state, worker.statements) == (
            *("uid=0", "snapshots", "idle"),
            2,
        )
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines()
            if ":\t" in line
        )
        assert worker.uid == int(status["Uid"].split()[0]) != 0
        assert worker.seccomp == int(status["Seccomp"])
        assert worker.capabilities == ["CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE"]
        assert int(status["CapPrm"], 16) == 1 << 2 | 1 << 19
        assert worker.resident_bytes > 0
        assert worker.peak_bytes >= worker.resident_bytes


def test_memory_and_processor_time_are_those_of_the_process() -> None:
    own, first = os.getpid(), usage.cpu_seconds(os.getpid())
    assert first is not None
    assert abs(first - sum(os.times()[:2])) < 1
    assert usage.memory(own).peak == resident(own, "VmHWM")
    assert usage.cpu_seconds(2**22 + 1) is None
    assert usage.memory(2**22 + 1) == (0, 0)


def test_statements_that_ran_long_ago_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "STATEMENTS_MAX", 2)
    accounts, keys = Accounts(), [statement_key("z", str(number)) for number in range(3)]
    for key in (keys[0], keys[1], keys[0], keys[2]):
        accounts.charge(key, 0.5, 10)
    assert [accounts.of(key).cpu for key in keys] == [1.0, 0.0, 0.5]


def test_a_recipient_displaces_no_accounts_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "STATEMENTS_MAX", 2)
    monkeypatch.setattr(usage, "RECIPIENTS_MAX", 2)
    accounts, honest = Accounts(), statement_key("honest", "SELECT 1")
    accounts.charge(honest, 1.0, 0)
    for number in range(10):
        accounts.charge(statement_key("hostile", str(number)), 1.0, 0)
    assert accounts.of(honest).cpu == 1.0
    for number in range(2):
        accounts.charge(statement_key(f"uid={number}", ""), 1.0, 0)
    assert accounts.of(honest).cpu == 0.0
