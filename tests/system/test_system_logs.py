"""The system's log, from an entry in the journal or a line in a file to Zeek, by the program as it is started."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from journald import PrivateJournal, private_journal
from places import TESTS
from running_agent import RunningAgent, started
from waiting import until
from zeek_server import Client, zeek_server

from zeek_agent.queries.subscriptions import Change
from zeek_agent.zeek.broker_json import String, Timestamp
from zeek_agent.zeek.protocol import AgentHello, ResultRow

CAPTURE = TESTS / "captures" / "zeek-9.1-package-2.4-agent-2.3.jsonl"
EVENT = "ZeekAgent_SystemLogs::query_result"
V2_SHAPE = ["Timestamp", "String", "String", "String", "Nothing"]
"""Wire types of version 2's five columns; the package's record takes the first four."""


def captured_query() -> str:
    """The frame with which a stock package installed its query, run every half second."""
    records = [json.loads(line) for line in CAPTURE.read_text().splitlines()]
    frames = [one["message"] for one in records if one["from"] == "zeek" and EVENT in one.get("message", "")]
    assert frames
    assert "SELECT * FROM system_logs_events" in frames[0]
    return str(frames[0]).replace('"30s"', '"500ms"')


async def has_run(agent: RunningAgent) -> None:
    """Wait for the first run of the query: it reports what is recorded from then on."""
    sql = "SELECT id FROM zeek_agent_queries WHERE runs > 0"
    await until(lambda: agent.ask(sql), complaint="the query has not run")


@asynccontextmanager
async def beside(journal: PrivateJournal, directory: Path, *arguments: str) -> AsyncIterator[RunningAgent]:
    """The agent where that journal is the system's."""
    with started(directory, *arguments, settings={"collector.schedule": 1}, prefix=journal.prefix) as agent:
        await agent.ready()
        yield agent


async def expect(client: Client, message: str) -> ResultRow:
    """The row with that message; that it has version 2's shape."""
    row = await client.expect(ResultRow, lambda row: row.event == EVENT and text(row, 3) == message)
    assert shape(row) in (V2_SHAPE, ["Timestamp", "String", "Nothing", "String", "Nothing"])
    assert row.context.change is Change.ADD
    return row


def shape(row: ResultRow) -> Sequence[str]:
    return [type(value).__name__ for value in row.columns.data]


def text(row: ResultRow, column: int) -> str:
    cell = row.columns.data[column]
    assert isinstance(cell, String | Timestamp), cell
    return cell.data


def messages(client: Client) -> list[str]:
    return [text(row, 3) for row in client.of(ResultRow, lambda row: row.event == EVENT)]


@pytest.mark.long
@pytest.mark.root
async def test_the_captured_query_gets_entries_of_the_journal(tmp_path: Path) -> None:
    with private_journal() as journal:
        async with zeek_server() as zeek:
            async with beside(journal, tmp_path, f"--zeek={zeek.url()}") as agent:
                client = await zeek.client()
                await client.expect(AgentHello)
                await client.send(captured_query())
                await has_run(agent)
                journal.write(MESSAGE="it begins", PRIORITY=4, SYSLOG_IDENTIFIER="test")
                row = await expect(client, "it begins")
                assert abs(datetime.fromisoformat(text(row, 0)).replace(tzinfo=UTC).timestamp() - time.time()) < 60
                assert shape(row) == V2_SHAPE
                assert text(row, 2) == "4"
                journal.write(MESSAGE=b"\x1b[2J\xff\0 and more")
                await expect(client, r"\x1b[2J\xff\x00 and more")
                sources = await agent.ask(
                    "SELECT backend FROM zeek_agent_sources WHERE source = 'system_logs' AND active"
                )
                assert sources == [{"backend": "journal"}]
            journal.write(MESSAGE="while it was down", PRIORITY=2)
            async with beside(journal, tmp_path, f"--zeek={zeek.url()}") as agent:
                client = await zeek.client()
                await client.expect(AgentHello)
                await client.send(captured_query())
                await expect(client, "while it was down")
                journal.write(MESSAGE="up again")
                await expect(client, "up again")
                rows = await agent.ask("SELECT message FROM system_logs_events")
                recorded = [row["message"] for row in rows]
                assert len(set(recorded)) == len(recorded)
                assert "it begins" not in messages(client)


@pytest.mark.long
@pytest.mark.root
async def test_the_collector_writes_the_journal_as_a_log(tmp_path: Path) -> None:
    with private_journal() as journal:
        async with beside(journal, tmp_path) as agent:
            sql = "SELECT backend FROM zeek_agent_sources WHERE source = 'system_logs' AND active"
            await until(lambda: agent.ask(sql), 60, "log messages are not recorded")
            sql = "SELECT id FROM zeek_agent_queries WHERE sql LIKE '%FROM system_logs_events%' AND runs > 0"
            await until(lambda: agent.ask(sql), 60, "the collector has not asked for log messages")
            journal.write(MESSAGE="into the log", PRIORITY=3)
            record = await agent.logged("zeek-agent-system-logs", {"message": "into the log"})
            assert list(record)[:3] == ["t", "hid", "host"]
            assert list(record)[3:7] == ["time_", "process", "level", "message"]
            assert list(record)[-2:] == ["seq", "store"]
            assert (record["level"], bool(record["process"])) == ("3", True)


@pytest.mark.long
async def test_without_a_journal_the_lines_of_syslog_s_files_are_delivered(tmp_path: Path) -> None:
    file = tmp_path / "syslog"
    file.write_text("Nov 24 04:48:05 host before: the start\n")
    settings = {"sources.system_logs": "syslog", "sources.syslog_files": json.dumps([str(file)])}
    async with zeek_server() as zeek:
        with started(tmp_path, f"--zeek={zeek.url()}", settings=settings) as agent:
            await agent.ready()
            client = await zeek.client()
            await client.expect(AgentHello)
            await client.send(captured_query())
            await has_run(agent)
            with file.open("a") as stream:
                stream.write("Nov 24 04:48:05 host sshd[9]: Accepted publickey for root\n")
            row = await expect(client, "Accepted publickey for root")
            assert text(row, 1) == "sshd"
            assert messages(client) == ["Accepted publickey for root"]
