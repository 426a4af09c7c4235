"""The agent under the settings of its systemd unit, as near as possible without systemd as process 1.

What is not emulated: control groups (MemoryMax, CPUWeight, TasksMax) and the life of the service.
"""

from __future__ import annotations

import asyncio
import ctypes.util
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from own_table_files import declared, roots_directory, script
from places import ROOT
from running_agent import running
from waiting import until

from zeek_agent.access_defaults import LOCAL_FILE_SYSTEMS
from zeek_agent.recording.files import watch_messages

SANDBOX = [sys.executable, str(ROOT / "tests" / "support" / "unit_sandbox.py")]
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        shutil.which("systemd-analyze") is None or ctypes.util.find_library("seccomp") is None,
        reason="needs systemd-analyze and libseccomp2",
    ),
]


def sandboxed(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SANDBOX, *command], capture_output=True, text=True, check=False)


def test_the_sandbox_kills_for_a_call_outside_of_the_filter_and_refuses_the_rest(tmp_path: Path) -> None:
    """The tests below can fail."""
    mount = "import ctypes; ctypes.CDLL(None).mount(None, None, None, 0, None)"
    assert sandboxed(sys.executable, "-c", mount).returncode == -signal.SIGSYS
    namespace = "import ctypes; print(ctypes.CDLL(None).unshare(0x10000000))"
    assert sandboxed(sys.executable, "-c", namespace).stdout == "-1\n"
    refused = sandboxed("sh", "-c", f"echo x > {tmp_path}/x; echo x > /proc/sys/kernel/hostname; cat /proc/kallsyms")
    assert refused.stdout == ""
    assert refused.stderr.count("Read-only file system") == 2
    writable = "import mmap; mmap.mmap(-1, 4096, prot=7)"
    assert "PermissionError" in sandboxed(sys.executable, "-c", writable).stderr


@pytest.mark.long
async def test_the_agent_records_and_answers_in_the_units_sandbox(tmp_path: Path) -> None:
    prefix = [*SANDBOX, "--writable", str(tmp_path)]
    (tmp_path / "state").mkdir(mode=0o700)
    async with running(tmp_path, prefix=prefix, settings={"collector.schedule": 1}) as agent:
        workers = await agent.ask("SELECT class, seccomp, missing FROM zeek_agent_workers WHERE uid IS NOT NULL")
        assert workers
        for worker in workers:
            assert not worker["missing"], worker
            assert worker["seccomp"] == 2
        sources = await agent.ask("SELECT source, backend FROM zeek_agent_sources WHERE active")
        active = {row["source"]: row["backend"] for row in sources}
        outside = await running_backends(tmp_path / "outside")
        assert active == outside, "the sandbox takes a backend away"
        subprocess.run(["/bin/true", "in-the-sandbox"], check=True)
        found = "SELECT exe FROM processes_events WHERE cmdline LIKE '%in-the-sandbox'"
        rows = await until(lambda: agent.ask(found), 30, "the process was not recorded")
        assert rows[0]["exe"].endswith("/true")
        (others,) = await agent.ask("SELECT count(*) AS n FROM processes WHERE exe IS NOT NULL AND pid <> 1")
        assert others["n"] > 0
        hashes = await agent.ask("SELECT sha256 FROM file_hashes('/etc/hostname')")
        assert len(hashes) == 1
        lines = await agent.ask("SELECT content FROM files_lines('/proc/sys/kernel/ostype')")
        assert [row["content"] for row in lines] in (["Linux"], [b"Linux"])
        assert await agent.ask("SELECT name FROM users WHERE uid = 0")
        assert await asyncio.to_thread(agent.stop) == 0


@pytest.mark.long
async def test_own_tables_work_in_the_units_sandbox(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "jobs.jsonl").touch()
    with roots_directory() as place:
        program = script(place, "command", 'echo \'{"value": "a"}\'')
        column = 'columns = [{name = "value", type = "text", summary = "a value"}]\n'
        path = declared(
            place,
            f'[tables.made]\nsummary = "made"\ncommand = ["{program}"]\n{column}'
            f'[tables.lines]\nsummary = "lines"\nfiles = "/etc/nsswitch.conf"\n{column}'
            f'[tables.jobs_events]\nsummary = "jobs"\nfollow = "{tmp_path}/jobs.jsonl"\n{column}',
        )
        prefix = [*SANDBOX, "--writable", str(tmp_path)]
        async with running(tmp_path, prefix=prefix, settings={"tables.files": path}) as agent:
            assert await agent.ask("SELECT value FROM made") == [{"value": "a"}]
            assert await agent.ask("SELECT value FROM lines")
            sql = "SELECT active FROM zeek_agent_sources WHERE source = 'jobs'"
            assert await agent.ask(sql) == [{"active": True}]
            (tmp_path / "jobs.jsonl").write_text('{"value": "b"}\n')
            assert await until(lambda: agent.ask("SELECT value FROM jobs_events")) == [{"value": "b"}]


async def running_backends(directory: Path) -> dict[str, str]:
    directory.mkdir()
    async with running(directory) as agent:
        sources = await agent.ask("SELECT source, backend FROM zeek_agent_sources WHERE active")
        return {row["source"]: row["backend"] for row in sources}


@pytest.mark.long
def test_the_process_that_watches_files_watches_in_its_units_sandbox(tmp_path: Path) -> None:
    """As systemd starts it, with the connection as its standard input."""
    kinds = [kind.encode() for kind in LOCAL_FILE_SYSTEMS]
    watch = watch_messages.Watch([bytes(tmp_path)], [], [], kinds, 0.1, 100, 0, 0)
    own, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    own.settimeout(60)
    own.send(watch_messages.encode_watch(watch))
    command = [*SANDBOX, "--files-unit", sys.executable, "-m", "zeek_agent.files_helper.__main__"]
    process = subprocess.Popen(command, stdin=theirs, stderr=subprocess.PIPE, text=True)
    theirs.close()
    with own:
        while isinstance(message := watch_messages.decode(own.recv(watch_messages.PACKET_BYTES_MAX)), list) or (
            not message.ready
        ):
            pass
        assert (message.directories, message.unwatched, message.message) == (1, 0, "")
        (tmp_path / "created").touch()
        while not isinstance(changes := watch_messages.decode(own.recv(watch_messages.PACKET_BYTES_MAX)), list):
            pass
    assert changes[0].path == bytes(tmp_path / "created")
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
