"""The processes of a running agent under the privileges of its systemd unit, as /proc shows them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from lockdown import MACHINE
from running_agent import RunningAgent, running
from unit import unit_settings, with_units_privileges
from waiting import until

from zeek_agent.containment import accounts, kernel, landlock

pytestmark = pytest.mark.root
READS_OTHERS = kernel.capability_mask(("CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE"))
UNITS = kernel.capability_mask(tuple(unit_settings()["CapabilityBoundingSet"])) & kernel.bounding_set()
CONFINED = {"events": 0, "snapshots": READS_OTHERS}
"""Capabilities by class."""


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def capabilities(pid: int) -> dict[str, int]:
    return {name: int(value, 16) for name, value in status(pid).items() if name.startswith("Cap")}


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def limit(pid: int, name: str) -> str:
    (line,) = [line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if line.startswith(name)]
    return line.removeprefix(name).split()[1]


def landlock_version() -> int:
    try:
        return landlock.version()
    except landlock.Unavailable:
        return 0


def zygote_of(agent: RunningAgent) -> int:
    """Its only child that is Python, of its own main thread or another."""
    for task in Path(f"/proc/{agent.pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"zeek_agent.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    raise AssertionError("the agent has no zygote")


async def workers_of_all_kinds(agent: RunningAgent) -> list[dict[str, Any]]:
    """Workers after event, snapshot and control queries: of the embedded collector and of this user."""

    async def complete() -> list[dict[str, Any]]:
        await agent.ask("SELECT count(*) FROM processes_events")
        workers = await agent.ask("SELECT * FROM zeek_agent_workers WHERE uid IS NOT NULL AND class <> 'collector'")
        found = {(worker["recipient"], worker["class"]) for worker in workers}
        wanted = {(recipient, kind) for recipient in ("embedded", "control uid=0") for kind in CONFINED}
        return workers if wanted <= found else []

    return await until(complete, 30, "not all kinds of workers have been started")


@pytest.mark.long
async def test_each_process_has_the_privileges_of_its_kind(tmp_path: Path) -> None:
    prefix = with_units_privileges()
    async with running(tmp_path, prefix=prefix, settings={"collector.schedule": 1}) as agent:
        workers = await workers_of_all_kinds(agent)
        zygote = zygote_of(agent)
        for pid in (agent.pid, zygote):
            assert status(pid)["Uid"].split() == ["0"] * 4
            assert status(pid)["NoNewPrivs"] == "1"
            assert {name: mask for name, mask in capabilities(pid).items() if mask & ~UNITS} == {}
            assert capabilities(pid)["CapEff"] == capabilities(pid)["CapBnd"] == UNITS
        expected = accounts.worker_account()
        for worker in workers:
            pid, mask, shown = worker["pid"], CONFINED[worker["class"]], status(worker["pid"])
            assert worker["missing"] == ()
            assert shown["Uid"].split() == [str(expected.uid)] * 4 == [str(worker["uid"])] * 4
            assert shown["Gid"].split() == [str(expected.gid)] * 4
            assert shown["Groups"] == ""
            assert capabilities(pid) == {"CapInh": 0, "CapPrm": mask, "CapEff": mask, "CapBnd": mask, "CapAmb": 0}
            assert list(worker["capabilities"]) == list(kernel.capability_names(mask))
            assert shown["NoNewPrivs"] == "1"
            assert (int(shown["Seccomp"]), worker["seccomp"]) == ((2, 2) if MACHINE is not None else (0, 0))
            assert worker["landlock_abi"] == (landlock_version() if worker["class"] == "events" else 0)
            assert int(shown["PPid"]) == zygote
            assert shown["Name"] == accounts.WORKER_NAME
            assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "700\n"
            assert limit(pid, "Max core file size") == "0"
            assert int(limit(pid, "Max data size")) == 167_772_160
            assert children(pid) == []


@pytest.mark.long
async def test_the_zygote_and_snapshot_workers_hold_no_file_of_the_state_and_event_workers_only_read(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, settings={"collector.schedule": 1}) as agent:
        workers = await workers_of_all_kinds(agent)
        held = {pid: _open_files(pid) for pid in (zygote_of(agent), *(worker["pid"] for worker in workers))}
        assert not [path for path, _ in held[zygote_of(agent)] if path.startswith(str(agent.state))]
        for worker in workers:
            streams = [str(Path(f"/proc/{worker['pid']}/fd/{number}").readlink()) for number in range(3)]
            assert streams == ["/dev/null"] * 3
            files = [(path, flags) for path, flags in held[worker["pid"]] if path.startswith(str(agent.state))]
            state = [(path, flags) for path, flags in files if not path.endswith(" (deleted)")]  # that is a spool
            assert [file for file in state if file[1] & os.O_ACCMODE != os.O_RDONLY] == []
            assert {Path(path).name.partition("-")[0] for path, _ in state} <= {"events.db", "results.db"}
            if worker["class"] == "events":
                assert state


def _open_files(pid: int) -> list[tuple[str, int]]:
    """Paths, and the flags with which they were opened."""
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            lines = Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text().splitlines()
            flags = next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))
            found.append((str(descriptor.readlink()), flags))
    return found


@pytest.mark.long
async def test_protections_that_the_agent_may_not_apply_are_named(tmp_path: Path) -> None:
    prefix = with_units_privileges("CAP_SETUID", "CAP_SETPCAP")
    async with running(tmp_path, prefix=prefix) as agent:
        sql = "SELECT uid, seccomp, missing FROM zeek_agent_workers WHERE recipient = 'control uid=0'"
        (worker,) = await agent.ask(sql)
        assert worker["uid"] == 0
        assert worker["seccomp"] == (2 if MACHINE is not None else 0)
        missing = "\n".join(worker["missing"])
        assert "own user: the agent lacks CAP_SETUID or CAP_SETGID" in missing
        assert "bounding set: the agent lacks CAP_SETPCAP" in missing


@pytest.mark.long
async def test_the_status_shows_workers_and_their_totals(tmp_path: Path) -> None:
    async with running(tmp_path) as agent:
        from zeek_agent.control.messages import ControlClient, Facts, StatusRequest

        await agent.ask("SELECT 1")
        client = ControlClient(agent.state / "zeek-agent.sock")
        (frame,) = client.responses(StatusRequest())
        client.close()
        assert isinstance(frame, Facts)
        totals = frame.facts["workers"]
        assert totals["running"] >= 1
        assert (totals["zygote_starts"], totals["abandoned"], totals["abandoned_in_all"]) == (1, 0, 0)
        assert frame.facts["workers_killed"] == {}
