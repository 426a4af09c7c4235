"""The logs of the default pack that show how programs start and who gets in: cron, units, SSH keys, setuid files."""

from __future__ import annotations

import os
import secrets
import signal
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from running_agent import RunningAgent, running, started
from waiting import until

pytestmark = pytest.mark.root

FILES = "zeek-agent-files"
SETUID = "zeek-agent-setuid-files"
OVERLAY = "mkdir -p {at} && mount -t tmpfs scratch {at} && mkdir {at}/upper {at}/work && "
OVERLAY += "mount -t overlay overlay -o lowerdir=/root,upperdir={at}/upper,workdir={at}/work /root"


async def all_ran(agent: RunningAgent) -> None:
    """Wait until every query has run that is for this agent."""
    sql = "SELECT count(*) AS n, min(runs) AS runs FROM zeek_agent_queries WHERE state <> 'waiting' AND schedule >= 1"

    async def ran() -> bool:
        (row,) = await agent.ask(sql)
        return bool(row["n"] >= 20 and row["runs"] >= 1)

    await until(ran, 30, "the pack's queries do not run")


@contextmanager
def setuid_file() -> Iterator[Path]:
    descriptor, name = tempfile.mkstemp(dir="/tmp")
    os.fchmod(descriptor, 0o4755)
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        Path(name).unlink()


@pytest.mark.long
async def test_what_starts_programs_is_watched_by_name_and_not_read(tmp_path: Path) -> None:
    mark, secret = f"zz{secrets.token_hex(4)}", f"secret-{secrets.token_hex(8)}"
    async with running(tmp_path, settings={"collector.schedule": 1}, private_files=True) as agent:
        agent.run_beside("sh", "-c", OVERLAY.format(at=tmp_path / "of-root"))
        await all_ran(agent)
        made = {
            f"/root/.ssh/{mark}": 0o600,
            "/root/.ssh/id_ed25519": 0o600,
            f"/home/{mark}/.ssh/id_rsa": 0o600,
            f"/etc/cron.d/{mark}": 0o644,
            f"/etc/cron.daily/{mark}": 0o755,
            f"/etc/systemd/system/{mark}.service": 0o644,
            f"/etc/systemd/system/{mark}.service.d/override.conf": 0o644,
            f"/root/.config/systemd/user/{mark}.service": 0o644,
        }
        for path, mode in made.items():
            file = agent.root / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{secret}\n")
            file.chmod(mode)
        for path, mode in made.items():
            found = await agent.logged(FILES, {"path": path, "change": "new"})
            assert (found["type_"], found["mode"], found["size"]) == ("file", f"{mode:o}", len(secret) + 1)
        with setuid_file() as program:
            found = await agent.logged(SETUID, {"path": str(program), "change": "new"})
            assert (found["mode"], found["uid"]) == ("4755", os.getuid())
        await agent.logged(SETUID, {"path": str(program), "change": "gone"})
        queries = await agent.ask("SELECT sql, last_error, files_refused FROM zeek_agent_queries")
    assert not [row for row in queries if row["last_error"] or row["files_refused"]]
    assert not [file.name for file in agent.logs.iterdir() if secret.encode() in file.read_bytes()]


@pytest.mark.long
async def test_the_first_lines_are_the_inventory_and_a_restart_repeats_it(tmp_path: Path) -> None:
    wanted = {
        "zeek-agent-users": {"name": "root", "change": None},
        "zeek-agent-sources": {"source": "processes", "active": True, "change": None},
        FILES: {"path": "/etc/passwd", "change": None},
    }
    programs = [path for path in (Path("/usr/bin/passwd"), Path("/usr/bin/su")) if path.exists()]
    for program in programs:
        mode = f"{stat.S_IMODE(program.stat().st_mode):o}"
        wanted[SETUID] = {"path": str(program), "mode": mode, "change": None}
    for _ in range(2):
        with started(tmp_path, settings={"collector.schedule": 1}) as agent:
            await agent.ready()
            for log, line in wanted.items():
                await agent.logged(log, line)
            await all_ran(agent)
            agent.process.send_signal(signal.SIGKILL)
            agent.process.wait()
    # What was missed while no agent ran is reported, and without an inventory.
    async with running(tmp_path, settings={"collector.schedule": 1}) as agent:
        gap = await agent.logged("zeek-agent-gaps", {"source": "agent", "change": "new"})
        assert gap["from"] < gap["until"]
        assert {line["change"] for line in agent.log("zeek-agent-gaps")} == {"new"}
        assert not agent.log("reporter")
