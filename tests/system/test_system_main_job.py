"""The main job: what comes and goes on this host is in Zeek logs, by the program as it is started."""

from __future__ import annotations

import pwd
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from running_agent import RunningAgent, running
from waiting import until
from zeek_log import parse_header, parse_log

SNAPSHOT_LOGS = ("processes", "sockets", "users", "files", "ssh-configs", "ssh-authorized-keys", "listening-ports")
ZEEK_TYPE = re.compile(r"(?:set|vector)\[\w+\]|time|interval|string|count|int|double|bool|addr|port|enum")


async def compared_once(agent: RunningAgent) -> None:
    """Wait until every query that reports differences has something to compare with.

    Those for agents of version 2 wait for ever, since they are for agents that lack a table.
    """
    sql = (
        "SELECT count(*) AS n, min(runs) AS runs FROM zeek_agent_queries "
        "WHERE subscription <> 'Events' AND state <> 'waiting'"
    )

    async def ran() -> bool:
        (row,) = await agent.ask(sql)
        return bool(row["n"] >= 25 and row["runs"] >= 1)

    await until(ran, 30, "the pack's queries do not run")


@contextmanager
def sleeper(name: str, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of that name."""
    program = directory / name
    shutil.copy2(shutil.which("sleep") or "/bin/sleep", program)
    with subprocess.Popen([str(program), "300"]) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.root
async def test_starts_and_ends_are_in_the_logs(tmp_path: Path) -> None:
    mark = f"zz{secrets.token_hex(4)}"
    settings = {"collector.schedule": 1}
    async with running(tmp_path, settings=settings, private_files=True) as agent:
        await compared_once(agent)
        sshd_config = agent.root / "etc/ssh/sshd_config"
        sshd_config.parent.mkdir(exist_ok=True)
        with sshd_config.open("a") as file:
            file.write(f"\nBanner {mark}\n")
        keys = agent.root / "home" / mark / ".ssh" / "authorized_keys"
        keys.parent.mkdir(parents=True)
        keys.write_text(f"ssh-ed25519 AAAA {mark}\n")
        created = agent.root / "etc" / f"{mark}.conf"
        created.write_text("a file\n")
        agent.run_beside("useradd", "--no-create-home", "--comment", "Zoë Zett", mark)
        with sleeper(mark, tmp_path) as process, listener() as port:
            await agent.logged("zeek-agent-processes", {"name": mark, "pid": process.pid, "change": "new"})
            await agent.logged(
                "zeek-agent-sockets", {"local_port": port, "state": "LISTEN", "protocol": 6, "change": "new"}
            )
            await agent.logged("zeek-agent-listening-ports", {"port": port, "address": "127.0.0.1", "change": "new"})
            user = await agent.logged("zeek-agent-users", {"name": mark, "change": "new"})
            assert (user["full_name"], user["is_admin"]) == ("Zoë Zett", False)
            file_record = await agent.logged("zeek-agent-files", {"path": f"/etc/{mark}.conf", "change": "new"})
            assert (file_record["size"], file_record["type_"], file_record["uid"]) == (7, "file", 0)
            assert file_record["mtime"] == pytest.approx(created.stat().st_mtime, abs=1e-3)
            option = {"columns.option_.key": "Banner", "columns.option_.value": mark}
            await agent.logged("zeek-agent-ssh-configs", {**option, "change": "new"})
            await agent.logged(
                "zeek-agent-ssh-authorized-keys", {"path": f"/home/{mark}/.ssh/authorized_keys", "change": "new"}
            )
        created.unlink()
        keys.unlink()
        agent.run_beside("userdel", mark)
        await agent.logged("zeek-agent-processes", {"name": mark, "change": "gone"})
        await agent.logged("zeek-agent-sockets", {"local_port": port, "state": "LISTEN", "change": "gone"})
        await agent.logged("zeek-agent-users", {"name": mark, "change": "gone"})
        await agent.logged("zeek-agent-files", {"path": f"/etc/{mark}.conf", "change": "gone"})
        await agent.logged("zeek-agent-ssh-authorized-keys", {"content": f"ssh-ed25519 AAAA {mark}", "change": "gone"})
        started = await agent.logged("zeek-agent-process-events", {"name": mark, "state": "started"})
        assert started["exe"] == str(tmp_path / mark)
        ended = {"name": mark, "state": "stopped", "pid": started["pid"]}
        assert (await agent.logged("zeek-agent-process-events", ended))["seq"] > started["seq"]
    for name in SNAPSHOT_LOGS:
        assert agent.log(f"zeek-agent-{name}"), f"{name} is empty"
    check_every_log(agent.logs)
    assert {one["type_"] for one in agent.log("zeek-agent")} == {"join", "shutdown"}
    complaints = [line for line in agent.output.read_text().splitlines() if " error " in line or "Traceback" in line]
    assert not complaints


def check_every_log(directory: Path) -> None:
    """Each header is one that Zeek would write, each line has a value of its type for each field."""
    for file in directory.glob("*.log"):
        header = parse_header(file.read_bytes())
        assert header["#set_separator"] == [","], file
        assert header["#empty_field"] == ["(empty)"], file
        assert header["#unset_field"] == ["-"], file
        assert header["#path"] == [file.stem], file
        assert len(header["#fields"]) == len(header["#types"]) == len(set(header["#fields"])), file
        assert all(ZEEK_TYPE.fullmatch(kind) for kind in header["#types"]), file
        assert {"#open", "#close"} <= header.keys(), file
        for record in parse_log(file.read_bytes()):
            assert len(record) == len(header["#fields"]), file
            assert abs(record[0] - time.time()) < 120, "the first field is the time of the record"


@pytest.mark.long
@pytest.mark.zeek
async def test_zeek_cut_reads_the_logs(tmp_path: Path) -> None:
    async with running(tmp_path, settings={"collector.schedule": 1}) as agent:
        await compared_once(agent)
        with listener() as port:
            await agent.logged("zeek-agent-sockets", {"local_port": port, "change": "new"})
    cut = subprocess.run(
        ["zeek-cut", "change", "local_addr", "local_port", "state"],
        input=(agent.logs / "zeek-agent-sockets.log").read_bytes(),
        capture_output=True,
        check=True,
    )
    assert f"new\t127.0.0.1\t{port}\tLISTEN" in cut.stdout.decode().splitlines()


@pytest.mark.long
async def test_without_privileges_the_agent_shows_accessible_rows(tmp_path: Path) -> None:
    """Run as whoever runs the tests: the account itself, a process and a socket are there."""
    async with running(tmp_path, settings={"collector.schedule": 1}) as agent:
        await compared_once(agent)
        (user,) = await agent.ask(f"SELECT name FROM users WHERE uid = '{pwd.getpwnam('root').pw_uid}'")
        assert user["name"] == "root"
        with listener() as port:
            found = await agent.logged("zeek-agent-sockets", {"local_port": port, "state": "LISTEN", "change": "new"})
        assert found["local_addr"] == "127.0.0.1"
