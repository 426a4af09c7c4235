"""File events of a running agent that root started by hand."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from running_agent import running
from waiting import until, until_sync
from watching import children, status_of

pytestmark = pytest.mark.root
SYS_ADMIN = 1 << 21
GAPS = """SELECT "from" AS since, until FROM zeek_agent_gaps WHERE source IN ('agent', 'files')"""


def launchers(pid: int) -> list[int]:
    return [child for child in children(pid) if b"files_helper" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.long
async def test_only_the_helper_has_cap_sys_admin_and_rows_reach_query_and_log(tmp_path: Path) -> None:
    place = tmp_path / "watched"
    place.mkdir()
    settings = {"sources.files": "auto", "sources.files_watch": f'["{place}"]', "sources.files_window": 0.2}
    async with running(tmp_path, settings=settings) as agent:
        assert not int(status_of(agent.pid)["CapPrm"], 16) & SYS_ADMIN
        (launcher,) = launchers(agent.pid)
        assert int(status_of(launcher)["CapPrm"], 16) & SYS_ADMIN
        (watcher,) = children(launcher)
        assert not int(status_of(watcher)["CapPrm"], 16) & SYS_ADMIN
        done = subprocess.Popen(["touch", place / "first"])
        done.wait()
        (row,) = await until(
            lambda: agent.ask(
                f"SELECT pid, process, entity_id FROM files_events WHERE path = '{place}/first' AND action = 'created'"
            )
        )
        assert (row["pid"], row["process"]) == (done.pid, "touch")
        assert f"-{done.pid}-" in row["entity_id"]
        log = agent.logs / "zeek-agent-file-events.log"

        def logged() -> bool:
            (place / "logged").touch()  # again, as long as the collector's query is not installed
            return log.exists() and f"{place}/logged" in log.read_text()

        await until(logged)
        os.kill(watcher, signal.SIGKILL)
        await until(lambda: agent.ask("SELECT * FROM zeek_agent_gaps WHERE source = 'files'"))
        (place / "second").touch()
        await until(lambda: agent.ask(f"SELECT * FROM files_events WHERE path = '{place}/second'"))
    until_sync(lambda: not Path(f"/proc/{launcher}").exists())


@pytest.mark.long
async def test_no_helper_runs_where_files_are_switched_off(tmp_path: Path) -> None:
    async with running(tmp_path) as agent:
        assert launchers(agent.pid) == []
        sources = await agent.ask("SELECT source, active FROM zeek_agent_sources")
        assert not [each for each in sources if each["source"] == "files" and each["active"]]


@pytest.mark.long
async def test_nothing_is_recorded_twice_or_left_out_of_gaps_when_the_agent_is_killed(tmp_path: Path) -> None:
    place = tmp_path / "watched"
    place.mkdir()
    settings = {"sources.files": "auto", "sources.files_watch": f'["{place}"]', "sources.files_window": 0.2}
    made: dict[str, float] = {}
    ended = threading.Event()

    def write() -> None:
        number = 0
        while not ended.is_set():
            path = place / f"{number}"
            made[str(path)] = time.time()
            path.write_text("x")
            number += 1
            time.sleep(0.01)

    writer = threading.Thread(target=write)
    try:
        async with running(tmp_path, settings=settings) as agent:
            writer.start()
            (launcher,) = launchers(agent.pid)
            await until(lambda: agent.ask("SELECT * FROM files_events LIMIT 1"))
            os.kill(agent.pid, signal.SIGKILL)
            agent.process.wait()
            await until(lambda: not Path(f"/proc/{launcher}").exists())
        async with running(tmp_path, settings=settings) as agent:
            begun = time.time()
            await until(lambda: agent.ask(f"SELECT * FROM files_events WHERE time > {begun} AND NOT found LIMIT 1"))
            ended.set()
            await asyncio.to_thread(writer.join)
            last = list(made)[-1]
            await until(lambda: agent.ask(f"SELECT * FROM files_events WHERE path = '{last}' AND action = 'written'"))
            rows = await agent.ask("SELECT path, found FROM files_events WHERE action = 'written'")
            gaps = await agent.ask(GAPS)
    finally:
        ended.set()
        writer.join()
    events = [row["path"] for row in rows if not row["found"]]
    assert len(events) == len(set(events))
    missing = {path: at for path, at in made.items() if path not in events}
    assert missing
    outside = [at for at in missing.values() if not any(gap["since"] <= at <= gap["until"] for gap in gaps)]
    assert outside == [], gaps
    found = {row["path"] for row in rows if row["found"]}
    assert missing.keys() <= found
