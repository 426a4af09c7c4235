"""Lines of a syslog daemon as a source of logins: processes that are not known yet, and a large backlog."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from zeek_agent.config.sections import SourceSettings
from zeek_agent.host.linux.stamps import TICKS
from zeek_agent.masking.masker import Masker
from zeek_agent.recording.logins.logins import Logins
from zeek_agent.recording.logins.merging import REMEMBERED_MAX, SETTLE_SECONDS
from zeek_agent.recording.processes.process import Process
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.recording.system_log.syslog import Syslog

FAILED = "Failed password for root from 192.0.2.7 port 4711 ssh2"


class Recorder:
    """The source with a log file of its own, and its rows."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.log.touch()
        self.cache = ProcessCache()
        self.cache.has_all_starts = True
        settings = SourceSettings()
        readers = {name: Syslog(settings, [[str(log)]]) for name in ("journal", "syslog")}
        self.clock = time.time()
        self.source = Logins("syslog", self.cache, settings, Masker(), readers=readers, files=(), clock=self.now)
        self.rows: list[Any] = []

    def now(self) -> float:
        return self.clock

    def write(self, *messages: str) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 1))
        with self.log.open("a") as stream:
            stream.writelines(f"{stamp} host {message}\n" for message in messages)

    def settled(self) -> list[Any]:
        self.source.drain()
        self.clock += SETTLE_SECONDS + 1
        self.source.drain()
        return self.rows


@contextmanager
def recorder(log: Path) -> Iterator[Recorder]:
    one = Recorder(log)

    def sink(_: str, rows: Sequence[Any]) -> None:
        one.rows += rows

    one.source.start(sink)
    try:
        yield one
    finally:
        one.source.stop()


def process(pid: int, name: str) -> Process:
    started = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    exe = f"/usr/sbin/{name}"
    return Process(pid, started * TICKS // 10**9, started, started, f"e{pid}", name, ppid=1, uid=0, exe=exe)


@pytest.fixture
def ended() -> int:
    """The id of a process that is no longer there."""
    with subprocess.Popen(["true"]) as process:
        return process.pid


def test_a_program_that_logs_and_ends_before_its_start_was_read_is_not_taken_for_a_forger(
    tmp_path: Path, ended: int
) -> None:
    with recorder(tmp_path / "auth.log") as one:
        one.write(f"sshd[{ended}]: {FAILED}")
        assert one.settled() == []
        one.cache.begin(process(ended, "sshd"))
        (row,) = one.settled()
        assert (row.user, row.pid, row.entity_id) == ("root", ended, f"e{ended}")


def test_a_program_whose_exec_was_not_read_yet_is_not_taken_for_another_one(tmp_path: Path, ended: int) -> None:
    with recorder(tmp_path / "auth.log") as one:
        one.cache.begin(process(ended, "sh"))
        one.write(f"sshd[{ended}]: {FAILED}")
        assert one.settled() == []
        one.cache.exec(process(ended, "sshd"))
        assert [row.pid for row in one.settled()] == [ended]


@pytest.mark.parametrize("seen_as", [None, "sh"])
def test_a_short_process_is_not_taken_for_a_forger_if_the_backend_misses_such_processes(
    tmp_path: Path, ended: int, seen_as: str | None
) -> None:
    with recorder(tmp_path / "auth.log") as one:
        one.cache.has_all_starts = False
        if seen_as is not None:
            one.cache.begin(process(ended, seen_as))
        one.write(f"sshd[{ended}]: {FAILED}")
        (row,) = one.settled()
        assert (row.user, row.verified, row.entity_id) == ("root", False, None)


def test_a_line_of_a_process_that_never_was_is_refused_in_the_end(tmp_path: Path, ended: int) -> None:
    with recorder(tmp_path / "auth.log") as one:
        one.write(f"sshd[{ended}]: {FAILED}", "sudo: alice : PWD=/ ; USER=root ; COMMAND=/usr/bin/id")
        while not one.settled():
            time.sleep(0.05)
        one.source.update_counters()
        assert [row.action for row in one.rows] == ["sudo"]
        assert "1 log messages" in (one.source.counters.last_error or "")


def test_a_backlog_is_read_within_the_bound_of_events_that_wait_and_without_loss(tmp_path: Path) -> None:
    count = 2 * REMEMBERED_MAX + 2_000
    with recorder(tmp_path / "auth.log") as one:
        one.cache.begin(process(os.getppid(), "sshd"))
        one.write(*(f"sshd[{os.getppid()}]: {FAILED.replace('4711', str(n + 1))}" for n in range(count)))
        one.source.drain()
        assert len(one.rows) >= count - REMEMBERED_MAX - 1_000
        assert sorted(row.remote_port for row in one.settled()) == list(range(1, count + 1))
