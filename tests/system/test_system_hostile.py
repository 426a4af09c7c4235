"""A host and a Zeek that mean harm, and the real program between them: it goes on, and no other row is lost."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path

import pytest
from running_agent import RunningAgent, running
from test_system_main_job import check_every_log, compared_once
from waiting import until
from zeek_server import Client, zeek_server

from zeek_agent.queries.subscriptions import Query, Subscription
from zeek_agent.text import escaped, from_bytes
from zeek_agent.zeek import broker_json, protocol
from zeek_agent.zeek.protocol import AgentError, AgentHello, ResultRow

MEGABYTE = 1024 * 1024
NASTY = bytes(byte for byte in range(1, 256) if byte != ord("/"))
"""Every byte that a file name may have."""
ESCAPES = b"\x1b]0;owned\x07\x1b[2J\r\n#fields\tts\t\xff\xfe\\x00\xe2\x80\xae"

RENAME = """
import ctypes, sys, time
ctypes.CDLL(None).prctl(15, sys.argv[1].encode(errors="surrogateescape"), 0, 0, 0)
time.sleep(300)
"""
EVENTS = Query(
    "SELECT name, cmdline FROM processes_events WHERE state = 'started'",
    "Test::processes",
    schedule=0.25,
    subscription=Subscription.EVENTS,
)


def sent(raw: bytes) -> str:
    """What Zeek is told of bytes of the host."""
    return escaped(from_bytes(raw))


@contextmanager
def process(*arguments: bytes | str, executable: bytes | str | None = None) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(arguments, executable=executable, stdout=subprocess.DEVNULL) as started:
        try:
            yield started
        finally:
            started.kill()


@contextmanager
def hostile_processes(directory: Path) -> Iterator[dict[str, int]]:
    """Processes with such names and command lines, by what is wrong with them: their pids."""
    sleep = shutil.which("sleep") or "/bin/sleep"
    nasty = os.fsencode(directory) + b"/" + NASTY[:200]
    shutil.copy2(sleep, os.fsdecode(nasty))
    long = ["x" * 100_000] * 10
    wait = ("-c", "import time; time.sleep(300)")
    with (
        process(nasty, "300") as file_name,
        process(sys.executable, "-c", RENAME, ESCAPES[:15]) as name,
        process(b"\x1b[2J\n" + NASTY, "300", executable=sleep) as command_line,
        process(sys.executable, *wait, *long) as megabyte,
    ):
        yield {"file name": file_name.pid, "name": name.pid, "command line": command_line.pid, "1 MB": megabyte.pid}


@pytest.mark.long
@pytest.mark.root
async def test_names_and_lines_of_any_bytes_reach_the_logs_and_nothing_else_is_lost(tmp_path: Path) -> None:
    mark = f"zz{secrets.token_hex(4)}"
    key_lines = [b"first", NASTY, ESCAPES, b"\x00" * 100, b"y" * MEGABYTE, b"\xff" * 1000, b"last"]
    settings = {"collector.schedule": 1}
    async with running(tmp_path, settings=settings, private_files=True) as agent:
        await compared_once(agent)
        keys = agent.root / "home" / mark / ".ssh" / "authorized_keys"
        keys.parent.mkdir(parents=True)
        lines = [line.replace(b"\n", b"") for line in key_lines]
        keys.write_bytes(b"\n".join(lines) + b"\n")
        with (agent.root / "etc/passwd").open("ab") as passwd:
            passwd.write(mark.encode() + b":x:4242:4242:\x1b[31m\xff\xfe\tname,:/nowhere:/bin/\xc3\x28\n")
        (Path(os.fsdecode(os.fsencode(agent.root) + b"/etc/" + NASTY[:100]))).write_bytes(b"")
        with hostile_processes(tmp_path) as pids:
            for what, pid in pids.items():
                await agent.logged("zeek-agent-processes", {"pid": pid, "change": "new"})
                event = await agent.logged("zeek-agent-process-events", {"pid": pid, "state": "started"})
                assert event["cmdline"], what
            found = await agent.logged("zeek-agent-processes", {"pid": pids["name"], "name": sent(ESCAPES[:15])})
            assert found["change"] == "new"
            event = await agent.logged("zeek-agent-process-events", {"pid": pids["1 MB"], "state": "started"})
            assert "x" * 1000 in event["cmdline"]
        user = await agent.logged("zeek-agent-users", {"name": mark})
        assert user["full_name"] == sent(b"\x1b[31m\xff\xfe\tname")
        await agent.logged("zeek-agent-files", {"path": sent(b"/etc/" + NASTY[:100])})
        await agent.logged("zeek-agent-ssh-authorized-keys", {"content": "last", "change": "new"})
        logged = [one["content"] for one in agent.log("zeek-agent-ssh-authorized-keys")]
        for line in lines:
            assert sent(line) in logged, line[:100]
        with process(shutil.which("sleep") or "sleep", "299.5") as afterwards:
            await agent.logged("zeek-agent-processes", {"pid": afterwards.pid, "change": "new"})
    check_every_log(agent.logs)
    assert "Traceback" not in agent.output.read_text(errors="replace")


@pytest.mark.long
@pytest.mark.root
async def test_towards_zeek_bytes_are_written_as_zeek_writes_them(tmp_path: Path) -> None:
    async with zeek_server() as zeek, running(tmp_path, f"--zeek={zeek.url()}") as agent:
        client = await zeek.client()
        await client.expect(AgentHello)
        await client.install("events", EVENTS)
        await until(lambda: agent.ask("SELECT 1 FROM zeek_agent_queries WHERE runs > 0"), complaint="no run")
        with hostile_processes(tmp_path) as pids:
            assert len(pids) == 4
            wanted = sent(b"\x1b[2J\n" + NASTY)
            await client.expect(ResultRow, lambda row: str(_cells(row)[1]).startswith(wanted[:100]))
            await client.expect(ResultRow, lambda row: "x" * 1000 in str(_cells(row)[1]))
        assert not client.closed.is_set()


def _cells(row: ResultRow) -> list[object]:
    return list(broker_json.cells(row.columns))


MALFORMED = (
    b"",
    b"{",
    b"null",
    b"[]",
    b"\xff\xfe\x00",
    b'{"type":"data-message"}',
    b'{"type":"data-message","topic":"/zeek-agent/query/group/all","@data-type":"vector","data":[]}',
    b"[" * 200_000,
    b'{"data":' * 100_000,
    b'{"type":"error","code":"\x1b[31m","context":"\x00"}',
)


def _wrong_types() -> Iterator[bytes]:
    """A valid query message, each of its values once of another type."""
    whole = protocol.install_query(protocol.group_topic("all"), "zeek_1", "q", Query("SELECT 1", "Test::x", 1.0))
    for kind in ("string", "count", "timespan", "vector", "set", "none"):
        name = f'"@data-type":"{kind}"'
        for index in range(whole.count(name)):
            parts = whole.split(name)
            yield (name.join(parts[: index + 1]) + '"@data-type":"port"' + name.join(parts[index + 1 :])).encode()


async def test_invalid_messages_are_skipped(tmp_path: Path) -> None:
    async with zeek_server() as zeek, running(tmp_path, f"--zeek={zeek.url()}") as agent:
        client = await zeek.client()
        await client.expect(AgentHello)
        before = agent.resident()
        for frame in (*MALFORMED, *_wrong_types()):
            await client.send(frame)
        for number in range(300):
            await client.install(f"junk_{number}", Query("SELECT " + "(" * 300 + "1" + ")" * 300, "Test::junk"))
        await client.install("after", Query("SELECT 42", "Test::row"))
        row = await client.expect(ResultRow, lambda row: row.event == "Test::row")
        assert _cells(row) == [42]
        assert zeek.connections == 1, "it is the connection that it was"
        assert agent.resident() - before < 32 * MEGABYTE


@pytest.mark.long
async def test_a_message_that_is_too_large_ends_the_connection_and_the_next_one_works(tmp_path: Path) -> None:
    async with zeek_server() as zeek, running(tmp_path, f"--zeek={zeek.url()}") as agent:
        client = await zeek.client()
        await client.expect(AgentHello)
        before = agent.resident()
        await client.send(b'"' + b"x" * (8 * MEGABYTE) + b'"')
        again = await zeek.client()
        await again.expect(AgentHello)
        assert agent.resident() - before < 32 * MEGABYTE
        assert "1009" in (await agent.connection())["last_error"]


GREEDY = {
    "endless": "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n",
    "blob": "SELECT length(replace(hex(zeroblob(100000000)), '0', 'xxxxxxxxxxxxxxxx'))",
    "replace": "WITH RECURSIVE n(s) AS (SELECT 'x' UNION ALL SELECT replace(s, 'x', 'xx') FROM n) SELECT max(s) FROM n",
    "concat": "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 9000000)"
    " SELECT length(group_concat(hex(x), 'xxxxxxxxxxxxxxxxxxxxxxxx')) FROM n",
    "regex": "SELECT 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab' REGEXP '(a+)+$'",
    "joins": "SELECT count(*) FROM processes a, processes b, processes c, processes d",
    "sort": "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 5000000)"
    " SELECT hex(x) || hex(x) || hex(x) AS h FROM n ORDER BY h DESC",
    "rows": "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 5000000) SELECT x, x, x, x FROM n",
    "glob": "SELECT count(*) FROM files_list('/usr/**/*') a, files_list('/usr/**/*') b, files_list('/usr/**/*') c",
}
"""Statements that would hold an agent, or take all of its memory."""
HARMLESS = {"regex", "blob"}
"""These may also end well, or at once, since what they do is bounded by itself."""


@pytest.mark.long
@pytest.mark.root
async def test_statements_that_would_block_the_agent_end_while_events_are_delivered(tmp_path: Path) -> None:
    settings = {"limits.time": 1.0, "limits.memory_bytes": 64 * MEGABYTE, "limits.result_bytes": 32 * MEGABYTE}
    async with zeek_server() as zeek, running(tmp_path, f"--zeek={zeek.url()}", settings=settings) as agent:
        client = await zeek.client()
        await client.expect(AgentHello)
        await client.install("events", EVENTS)
        await until(lambda: agent.ask("SELECT 1 FROM zeek_agent_queries WHERE runs > 0"), complaint="no run")
        for name, sql in GREEDY.items():
            await client.install(name, Query(sql, "Test::greedy"))
        highest, arrived = await _events_meanwhile(agent, client, GREEDY.keys() - HARMLESS)
        assert highest < 400 * MEGABYTE
        assert arrived > 2


async def _events_meanwhile(agent: RunningAgent, client: Client, wrong: Set[str]) -> tuple[int, int]:
    """Start processes until all these queries have failed; most memory in use, and events that came before that."""
    highest, number = 0, 0
    while missing := wrong - {event.context.query_id for event in client.of(AgentError)}:
        number += 1
        assert number < 1_000, missing
        mark = f"during-{number}-{secrets.token_hex(4)}"
        os.waitpid(os.posix_spawn("/bin/true", [mark], {}), 0)
        await client.expect(ResultRow, lambda row, mark=mark: _cells(row)[-1] == mark)  # type: ignore[misc]
        highest = max(highest, agent.resident())
        await asyncio.sleep(0.05)
    return highest, number
