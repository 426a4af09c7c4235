"""The embedded collector's process in a real agent: what it may do, and what happens when it ends."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from acting import reachable_directory
from running_agent import RunningAgent, running
from waiting import until
from zeek_log import parse_header, parse_log

from zeek_agent.control import messages

EVENTS = "zeek-agent-process-events"
ORDINARY_UID = 12_345
SETTINGS = {"collector.schedule": 1}


def facts(agent: RunningAgent) -> dict[str, Any]:
    client = messages.ControlClient(agent.state / "zeek-agent.sock")
    try:
        (answer,) = [one for one in client.responses(messages.StatusRequest()) if isinstance(one, messages.Facts)]
        return answer.facts
    finally:
        client.close()


async def collector_of(agent: RunningAgent, other_than: int | None = None) -> int:
    """The pid of the collector's process, once there is one."""

    def pid() -> int | None:
        found: int | None = facts(agent)["collector_pid"]
        return None if found == other_than else found

    return await until(lambda: asyncio.to_thread(pid), 30, "the collector's process does not start")


async def asked_for_events(agent: RunningAgent) -> None:
    sql = "SELECT id FROM zeek_agent_queries WHERE event LIKE '%process_events' AND runs > 0"
    await until(lambda: agent.ask(sql), 30, "nobody asks for events of processes")


def status_of(pid: int) -> dict[str, list[str]]:
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: value.split() for name, _, value in lines}


def parent_of(pid: int) -> int:
    return int(status_of(pid)["PPid"][0])


def logged_numbers(agent: RunningAgent, name: str) -> list[int]:
    """`seq` of the events of programs with that name, in all logs, rotated ones included; lines that are complete."""
    numbers = []
    for file in agent.logs.glob(f"{EVENTS}*.log"):
        content = file.read_bytes()
        content = content[: content.rfind(b"\n") + 1]
        names = parse_header(content)["#fields"]
        records = [dict(zip(names, record, strict=True)) for record in parse_log(content)]
        numbers += [record["seq"] for record in records if record["name"] == name]
    return sorted(numbers)


def program_in(directory: Path) -> Path:
    program = directory / f"zz{secrets.token_hex(4)}"
    shutil.copy2(shutil.which("true") or "/bin/true", program)
    return program


async def recorded(agent: RunningAgent, program: Path, events: int) -> set[int]:
    """`seq` of that many events of a program."""
    sql = f"SELECT seq FROM processes_events_history WHERE name = '{program.name}'"

    async def found() -> set[int] | None:
        rows = await agent.ask(sql)
        return {row["seq"] for row in rows} if len(rows) == events else None

    return await until(found, 30, f"not all events of {program.name} are recorded")


async def arrive(agent: RunningAgent, program: Path, wanted: set[int]) -> None:
    def missing() -> set[int]:
        return wanted - set(logged_numbers(agent, program.name))

    async def complete() -> bool:
        return not await asyncio.to_thread(missing)

    await until(complete, 30, lambda: f"missing in the log: {sorted(missing())}")


@pytest.mark.long
@pytest.mark.root
@pytest.mark.parametrize("owner", [0, ORDINARY_UID])
async def test_it_has_no_privileges_and_belongs_to_the_owner_of_the_logs(tmp_path: Path, owner: int) -> None:
    with reachable_directory() as place:
        (place / "logs").mkdir(mode=0o755)
        os.chown(place / "logs", owner, owner)
        async with running(place, settings=SETTINGS) as agent:
            pid = await collector_of(agent)
            await agent.logged("zeek-agent", {"type_": "join"})
            status = status_of(pid)
            none = ["0" * 16]
            assert [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")] == [none] * 5
            assert (status["NoNewPrivs"], status["Seccomp"], status["Groups"]) == (["1"], ["2"], [])
            assert status["Uid"] == status["Gid"] == [str(owner)] * 4
            assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "700\n"
            assert status_of(agent.pid)["CapEff"] != none
            (row,) = await agent.ask("SELECT * FROM zeek_agent_workers WHERE class = 'collector'")
            shown = tuple(row[name] for name in ("recipient", "pid", "state", "uid", "capabilities", "missing"))
            assert shown == ("embedded", pid, "busy", owner, (), ())
            for file in agent.logs.glob("*.log"):
                assert (file.stat().st_uid, file.stat().st_mode & 0o777) == (owner, 0o600)
            opened = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
            kinds = ("socket:[", "anon_inode:[eventpoll]", "/dev/null", str(agent.logs))
            assert [name for name in opened if not name.startswith(kinds)] == []
            assert (agent.logs / ".lock").read_text().split()[0] == str(agent.pid), "the process to stop"


@pytest.mark.long
@pytest.mark.root
async def test_a_killed_process_is_replaced_and_no_event_is_missing(tmp_path: Path) -> None:
    async with running(tmp_path, settings=SETTINGS) as agent:
        await asked_for_events(agent)
        program, pid = program_in(tmp_path), await collector_of(agent)
        for number in range(60):
            subprocess.run([program], check=True)
            if number == 30:
                os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.05)
        assert await collector_of(agent, other_than=pid) != pid
        await arrive(agent, program, await recorded(agent, program, 120))
        shown = await asyncio.to_thread(facts, agent)
        assert (shown["collector_lost"], shown["collector_error"]) == (1, None)
        reported = f" error zeek_agent.collector: process {pid} of the embedded collector was killed by SIGKILL; "
        assert agent.output.read_text().count(reported) == 1


@pytest.mark.long
@pytest.mark.root
async def test_it_ends_with_the_zygote_and_starts_again(tmp_path: Path) -> None:
    async with running(tmp_path, settings=SETTINGS) as agent:
        await asked_for_events(agent)
        pid = await collector_of(agent)
        os.kill(parent_of(pid), signal.SIGKILL)
        assert parent_of(await collector_of(agent, other_than=pid)) != parent_of(agent.pid)
        await asked_for_events(agent)
        program = program_in(tmp_path)
        subprocess.run([program], check=True)
        await arrive(agent, program, await recorded(agent, program, 2))
        assert facts(agent)["collector_lost"] == 1


@pytest.mark.long
@pytest.mark.root
async def test_a_removed_log_directory_is_created_again_and_no_event_is_missing(tmp_path: Path) -> None:
    """The lockdown permits the directory that was there, not a new one of the same name."""
    async with running(tmp_path, settings=SETTINGS) as agent:
        await asked_for_events(agent)
        await agent.logged("zeek-agent", {"type_": "join"})
        pid = await collector_of(agent)
        shutil.rmtree(agent.logs)
        program = program_in(tmp_path)
        subprocess.run([program], check=True)
        await arrive(agent, program, await recorded(agent, program, 2))
        assert await collector_of(agent, other_than=pid) != pid


@pytest.mark.long
@pytest.mark.root
async def test_a_full_disk_is_shown_and_lines_wait_for_it(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "logs", logs], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a file system: {mounted.stderr.decode()}")
    try:
        async with running(tmp_path, settings=SETTINGS) as agent:
            await asked_for_events(agent)
            await agent.logged("zeek-agent", {"type_": "join"})
            pid = await collector_of(agent)
            program = program_in(tmp_path)
            for _ in range(60):
                subprocess.run([program, "x" * 2000], check=True)

            def shown() -> bool:
                return "No space left on device" in str(facts(agent)["collector_error"])

            await until(lambda: asyncio.to_thread(shown), 30, "the error is not shown")
            subprocess.run(["mount", "-o", "remount,size=64m", logs], check=True)
            await arrive(agent, program, await recorded(agent, program, 120))
            await until(lambda: asyncio.to_thread(lambda: facts(agent)["collector_error"] is None), 30, "it stays")
            assert await collector_of(agent) == pid
    finally:
        subprocess.run(["umount", logs], check=True)


@pytest.mark.long
@pytest.mark.root
async def test_a_signal_to_all_processes_ends_the_agent_in_order(tmp_path: Path) -> None:
    """As by a service manager or a terminal: the processes of the agent leave it to the agent."""
    async with running(tmp_path, settings=SETTINGS) as agent:
        await agent.logged("zeek-agent", {"type_": "join"})
        pid = await collector_of(agent)
        for number in (signal.SIGTERM, signal.SIGINT):
            for each in (pid, parent_of(pid)):
                os.kill(each, number)
        assert await asyncio.to_thread(agent.stop) == 0
        assert not Path(f"/proc/{pid}").exists()
    assert [one["type_"] for one in agent.log("zeek-agent")] == ["join", "shutdown"]
    for file in agent.logs.glob("*.log"):
        assert "#close" in parse_header(file.read_bytes()), file
    assert "of the embedded collector" not in agent.output.read_text()


@pytest.mark.long
@pytest.mark.root
async def test_a_process_that_does_not_answer_does_not_keep_the_agent(tmp_path: Path) -> None:
    async with running(tmp_path, settings=SETTINGS) as agent:
        await agent.logged("zeek-agent", {"type_": "join"})
        pid = await collector_of(agent)
        os.kill(pid, signal.SIGSTOP)
        assert await asyncio.to_thread(agent.stop) == 0
        assert not Path(f"/proc/{pid}").exists()
    assert "the embedded collector does not end (after 4 s): killed" in agent.output.read_text()
