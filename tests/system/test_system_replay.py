"""The messages of a real Zeek with the stock package, played to the real program, give the agent's side of them.

What Zeek sent and what the agent of version 2 answered are in a capture; only the schedules are shortened.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import pytest
from places import TESTS
from running_agent import AGENT_ID, RunningAgent, running
from waiting import until
from zeek_server import BROKER_ACK, Client, zeek_server

from zeek_agent.queries.subscriptions import Change, Subscription
from zeek_agent.zeek import protocol
from zeek_agent.zeek.protocol import AgentHello, InstallQuery, Message, ResultRow

CAPTURE = TESTS / "captures" / "zeek-9.1-package-2.4-agent-2.3.jsonl"
INSTANCE = "zeek_LYLwI26Jm7LXIKG77"

SHAPES: Final = {
    "ZeekAgent_Processes::query_result": "String Count Count Count Count String Timespan?",
    "ZeekAgent_Sockets::query_result": "Count? String? String Count Address Count Address Count String?",
    "ZeekAgent_Users::query_result": "String String Boolean Boolean String Count String String String?",
    "ZeekAgent_Files::query_result": "String String Count Count String Timestamp Count",
    "ZeekAgent_SSH::query_result_configs": "String Count Vector",
    "ZeekAgent_SSH::query_result_keys": "String Count String",
    "ZeekAgent_SystemLogs::query_result": "Timestamp String? String? String?",
}
"""Wire types of the records of version 2, by the event that carries them; `?` where a value may be absent."""


@cache
def captured(sender: str) -> Sequence[str]:
    """The frames of one side, in order."""
    records = [json.loads(line) for line in CAPTURE.read_text().splitlines()]
    return [record["message"] for record in records if record["from"] == sender and "message" in record]


def of_zeek(schedule: str = "1s") -> list[str]:
    """What Zeek sent after its ack, with another schedule."""
    return [frame.replace('"30s"', f'"{schedule}"') for frame in captured("zeek") if '"ack"' not in frame]


def installed() -> dict[str, InstallQuery]:
    """The queries of the capture by id."""
    events = [protocol.zeek_event(message) for frame in of_zeek() if (message := _message(frame))]
    return {event.query_id: event for event in events if isinstance(event, InstallQuery)}


def _message(frame: str) -> Message | None:
    message = protocol.read_message(frame)
    return message if isinstance(message, Message) else None


def shape(row: ResultRow) -> list[str]:
    return [type(value).__name__ for value in row.columns.data]


def fits(row: ResultRow) -> bool:
    """Whether a row has the number, order and wire types that its event's record has in version 2."""
    wanted = SHAPES[row.event].split()
    found = shape(row)
    return len(found) == len(wanted) and all(
        kind == want.rstrip("?") or (kind == "Nothing" and want.endswith("?"))
        for kind, want in zip(found, wanted, strict=True)
    )


def test_the_shapes_are_those_of_the_capture() -> None:
    messages = [message for frame in captured("agent")[1:] if (message := _message(frame))]
    rows = [event for message in messages if isinstance(event := protocol.agent_event(message), ResultRow)]
    assert len(rows) > 10
    assert all(map(fits, rows))
    assert {query.query.event for query in installed().values()} == SHAPES.keys()


async def replay(client: Client) -> None:
    for frame in of_zeek():
        await client.send(frame)


@dataclass(frozen=True)
class Causes:
    """What the queries shall see: names that only this run has."""

    agent: RunningAgent
    mark: str
    directory: Path

    def files(self) -> None:
        root = self.agent.root
        for place in ("ssh/sshd_config", "ssh/sshd_config.d/zz.conf"):
            file = root / "etc" / place
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a") as stream:
                stream.write(f"\nBanner {self.mark}\n")
        (root / f"etc/{self.mark}").write_text("a file\n")
        keys = root / f"home/{self.mark}/.ssh/authorized_keys"
        keys.parent.mkdir(parents=True)
        keys.write_text(f"ssh-ed25519 AAAA {self.mark}\n")

    @contextmanager
    def all(self) -> Iterator[None]:
        self.files()
        self.agent.run_beside("useradd", "--no-create-home", self.mark)
        program = self.directory / self.mark
        shutil.copy2(shutil.which("sleep") or "/bin/sleep", program)
        with socket.create_server(("127.0.0.1", 0)), subprocess.Popen([str(program), "300"]) as process:
            try:
                yield
            finally:
                process.kill()


@pytest.mark.long
@pytest.mark.root
async def test_each_query_of_the_capture_gets_rows_of_the_right_shape(tmp_path: Path) -> None:
    mark = f"zz{secrets.token_hex(4)}"
    async with zeek_server() as zeek, running(tmp_path, f"--zeek={zeek.url()}", private_files=True) as agent:
        client = await zeek.client()
        assert client.topics == json.loads(captured("agent")[0])
        hello = await client.expect(AgentHello)
        assert list(hello.named()) == list(protocol.HELLO_FIELDS)
        assert hello.named()["agent_id"] == AGENT_ID
        await replay(client)
        queries = installed()
        differences = {
            query_id for query_id, one in queries.items() if one.query.subscription is Subscription.DIFFERENCES
        }
        await until(lambda: _compared(agent, len(differences)), complaint="the queries do not run")
        with Causes(agent, mark, tmp_path).all():
            rows = await _a_new_row_of_each(client, differences)
        assert all(map(fits, rows)), [(row.event, shape(row)) for row in rows if not fits(row)]
        for row in rows:
            assert row.event == queries[row.context.query_id or ""].query.event
            assert row.context.cookie is None
        if "system_logs_events" not in await _tables(agent):
            states = await agent.ask("SELECT state FROM zeek_agent_queries WHERE sql LIKE '%system_logs_events'")
            assert states == [{"state": "waiting"}]
        assert not client.of(protocol.AgentError)


async def _compared(agent: RunningAgent, number: int) -> bool:
    """Whether so many queries have run."""
    return (
        len(await agent.ask("SELECT 1 FROM zeek_agent_queries WHERE subscription = 'Differences' AND runs > 0"))
        >= number
    )


async def _tables(agent: RunningAgent) -> set[str]:
    return {row["name"] for row in await agent.ask("SELECT name FROM zeek_agent_tables")}


async def _a_new_row_of_each(client: Client, query_ids: set[str]) -> list[ResultRow]:
    """All rows that came until each of the queries had one that is new."""
    await asyncio.gather(
        *(
            client.expect(
                ResultRow,
                lambda row, wanted=query_id: (  # type: ignore[misc]
                    row.context.query_id == wanted and row.context.change is Change.ADD
                ),
            )
            for query_id in query_ids
        )
    )
    return client.of(ResultRow)


@pytest.mark.long
async def test_towards_zeek_s_old_broker_server_the_hello_has_13_fields(tmp_path: Path) -> None:
    async with zeek_server(BROKER_ACK) as zeek, running(tmp_path, f"--zeek={zeek.url()}"):
        client = await zeek.client()
        hello = await client.expect(AgentHello)
        captured_hello = next(
            event
            for frame in captured("agent")[1:]
            if (message := _message(frame)) and isinstance(event := protocol.agent_event(message), AgentHello)
        )
        assert [type(value) for value in hello.columns.data] == [type(value) for value in captured_hello.columns.data]
        assert list(hello.named()) == list(protocol.HELLO_FIELDS_BROKER)


@pytest.mark.long
async def test_queries_that_are_installed_again_are_there_once(tmp_path: Path) -> None:
    """Zeek sends its queries again with each hello; the capture played twice changes nothing."""
    async with zeek_server() as zeek, running(tmp_path, f"--zeek={zeek.url()}") as agent:
        client = await zeek.client()
        await replay(client)
        await replay(client)
        await until(lambda: _compared(agent, 8), complaint="the queries do not run")
        rows = await agent.ask("SELECT id FROM zeek_agent_queries")
        assert sorted(row["id"] for row in rows) == sorted(installed())
        assert (await agent.connection())["instances"] == 1
