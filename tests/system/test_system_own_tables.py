"""Own tables in a running agent: the examples of the documentation, reload, restarts and kills."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from own_table_files import declared, roots_directory, script
from places import ROOT
from running_agent import RunningAgent, running, started
from waiting import until

from zeek_agent.cli.program import run_command
from zeek_agent.errors import ZeekAgentError

pytestmark = pytest.mark.root

PAGE = (ROOT / "docs/own-tables.md").read_text()
EXAMPLES = [
    text for text in re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) if "[tables]" not in text
]
QUERIES = re.findall(r'^\$ zeek-agent query "(.*)"$', PAGE, re.MULTILINE)
(EVENT,) = re.findall(r"^(\{\"@timestamp.*\})$", PAGE, re.MULTILINE)
FOLLOWED = """
[tables.jobs_events]
summary = "jobs"
follow = "{path}"
columns = [{{name = "job", type = "count", summary = "number of the job"}}]
"""
ALL = "SELECT job, seq FROM jobs_events_history ORDER BY seq"


@pytest.fixture
def place() -> Iterator[Path]:
    with roots_directory() as directory:
        yield directory


@asynccontextmanager
async def agent_with(directory: Path, text: str, place: Path) -> AsyncIterator[RunningAgent]:
    path = declared(place, text)
    async with running(directory, "--set", f"tables.files={path}") as agent:
        yield agent


def command(place: Path, text: str) -> str:
    """The declaration of a table `made` with one column, from a script."""
    program = script(place, "command", text)
    return (
        f'[tables.made]\nsummary = "made for a test"\ncommand = ["{program}"]\n'
        'columns = [{name = "value", type = "text", summary = "a value"}]\n'
    )


def append(path: Path, *numbers: int) -> None:
    with path.open("a") as file:
        file.writelines(f'{{"job": {number}}}\n' for number in numbers)


async def followed(agent: RunningAgent, count: int) -> list[dict[str, Any]]:
    """The rows of the followed file, as soon as there are so many."""

    async def found() -> list[dict[str, Any]] | None:
        rows = await agent.ask(ALL)
        return rows if len(rows) >= count else None

    return await until(found)


@pytest.mark.long
async def test_the_examples_of_the_documentation_run(tmp_path: Path, place: Path) -> None:
    assert len(EXAMPLES) == 3
    assert len(QUERIES) == 3
    text = "\n".join(EXAMPLES).replace("/var/log/backup", str(tmp_path))
    async with agent_with(tmp_path, text, place) as agent:
        assert (await agent.ask(QUERIES[0]))[0].keys() == {"name", "kind", "size"}
        assert (await agent.ask(QUERIES[1]))[0]["kind"] == "hosts"
        event = {**json.loads(EVENT), "@timestamp": datetime.now(UTC).isoformat()}
        (tmp_path / "jobs.jsonl").write_text(f"{json.dumps(event)}\n")
        (row,) = await until(lambda: agent.ask(QUERIES[2]))
        assert row == {
            "time": datetime.fromisoformat(event["@timestamp"]).timestamp(),
            "job": "home",
            "duration": 61.25,
        }
        (whole,) = await agent.ask("SELECT bytes, failed, seq FROM backup_jobs_events")
        assert whole == {"bytes": 734_003_200, "failed": (), "seq": 1}
        listed = await agent.ask(
            "SELECT name, kind, summary FROM zeek_agent_tables "
            "WHERE name IN ('disks', 'name_services', 'backup_jobs_events') ORDER BY name"
        )
        assert [(one["name"], one["kind"]) for one in listed] == [
            ("backup_jobs_events", "events"),
            ("disks", "snapshot"),
            ("name_services", "snapshot"),
        ]
        assert listed[0]["summary"] == "backup jobs that ended"
        sql = "SELECT backend, active, received FROM zeek_agent_sources WHERE source = 'backup_jobs'"
        (source,) = await agent.ask(sql)
        assert source == {"backend": "followed_file", "active": True, "received": 1}


@pytest.mark.long
def test_commands_list_describe_and_check_own_tables(
    tmp_path: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = declared(place, command(place, "echo '{\"value\": 1}'") + FOLLOWED.format(path=tmp_path / "none.jsonl"))
    options = ["--state-dir", str(tmp_path / "state"), "--set", f"tables.files={path}"]
    assert run_command(["tables", *options]) == 0
    assert re.search(r"^made +made for a test$", capsys.readouterr().out, re.MULTILINE)
    assert run_command(["tables", "made", *options]) == 0
    assert "a value" in capsys.readouterr().out
    assert run_command(["tables", "--zeek", "made", *options]) == 0
    assert "value: string &optional;" in capsys.readouterr().out
    assert run_command(["query", "SELECT value FROM made", "--format", "csv", *options]) == 0
    assert capsys.readouterr().out.split() == ["value", "1"]
    run_command(["doctor", "--format", "json", *options])
    checks = [check for check in json.loads(capsys.readouterr().out) if check["name"] == "own tables"]
    assert [check["verdict"] for check in checks] == ["ok", "ok"]
    assert checks[1]["found"] == f"jobs_events: {tmp_path}/none.jsonl does not exist yet"
    (place / "command").chmod(0o775)
    run_command(["doctor", "--format", "json", *options])
    checks = [check for check in json.loads(capsys.readouterr().out) if check["name"] == "own tables"]
    assert [check["verdict"] for check in checks] == ["ok", "warn", "ok"]
    assert "with mode 0775" in checks[1]["found"]
    (place / "tables.toml").chmod(0o664)
    assert run_command(["doctor", *options]) == 1
    assert "cannot be trusted" in capsys.readouterr().out
    assert run_command(["config", "check", *options]) == 2
    assert run_command(["tables", *options]) == 2
    assert "cannot be trusted" in capsys.readouterr().err


@pytest.mark.long
async def test_a_rule_on_tables_may_name_an_own_one(tmp_path: Path, place: Path) -> None:
    path = declared(place, command(place, "echo '{\"value\": 1}'"))
    settings = {"tables.files": path, "access.tables_deny": "made", "osquery.socket": "off"}
    async with running(tmp_path, settings=settings) as agent:
        with pytest.raises(ZeekAgentError, match="made"):
            await agent.ask("SELECT * FROM made")


@pytest.mark.long
async def test_a_bad_file_keeps_the_agent_from_starting_and_says_why(tmp_path: Path, place: Path) -> None:
    path = declared(place, command(place, "true").replace('"text"', '"string"'))
    with started(tmp_path, "--set", f"tables.files={path}") as agent:
        assert await asyncio.to_thread(agent.process.wait, 60) == 2
        assert f"{path}: table 'made': column 'value': not a Zeek type: 'string'" in agent.output.read_text()


@pytest.mark.long
async def test_a_reload_applies_changed_declarations(tmp_path: Path, place: Path) -> None:
    log = tmp_path / "jobs.jsonl"
    log.touch()
    made = command(place, 'echo \'{"value": 1, "other": 2}\'')
    async with agent_with(tmp_path, made, place) as agent:
        assert await agent.ask("SELECT * FROM made") == [{"value": "1"}]
        declared(place, made.replace("made]", "renamed]").replace('"value"', '"other"') + FOLLOWED.format(path=log))
        assert "applied: tables.files" in await reloaded(agent)
        with pytest.raises(ZeekAgentError, match=r"made.*it is not declared any more"):
            await agent.ask("SELECT * FROM made")
        assert await agent.ask("SELECT * FROM renamed") == [{"other": "2"}]
        await until(lambda: agent.ask("SELECT * FROM zeek_agent_sources WHERE source = 'jobs' AND active"))
        append(log, 1)
        assert await followed(agent, 1) == [{"job": 1, "seq": 1}]
        declared(place, made + FOLLOWED.format(path=log).replace('"count"', '"text"'))
        assert "applied: tables.files" in await reloaded(agent)
        append(log, 2)
        assert await followed(agent, 2) == [{"job": "1", "seq": 1}, {"job": "2", "seq": 2}]
        assert await agent.ask("SELECT * FROM made") == [{"value": "1"}]
        assert "nothing to apply" in await reloaded(agent)
        declared(place, made)
        assert "applied: tables.files" in await reloaded(agent)
        for name in ("jobs_events", "jobs_events_history"):
            with pytest.raises(ZeekAgentError, match=f"no such table: {name} any more: it is not declared any more"):
                await agent.ask(f"SELECT job FROM {name}")
        assert await agent.ask("SELECT * FROM zeek_agent_sources WHERE source = 'jobs'") == []
        gaps = await agent.ask("SELECT * FROM zeek_agent_gaps WHERE source = 'jobs'")
        assert gaps == []


@pytest.mark.long
async def test_a_reload_refuses_a_bad_file_as_a_whole(tmp_path: Path, place: Path) -> None:
    made = command(place, "echo '{\"value\": 1}'")
    async with agent_with(tmp_path, made, place) as agent:
        for text, reason in (
            (made + made.replace("made]", "processes]"), "table processes: the agent has a table of that name already"),
            (made.replace("made]", "renamed]") + "[tables.broken]\n", "table 'broken': exactly one of the keys"),
            (made + "[", "not valid TOML"),
        ):
            path = declared(place, text)
            with pytest.raises(ZeekAgentError, match=re.escape(reason)):
                await reloaded(agent)
            agent.process.send_signal(signal.SIGHUP)
            await until(lambda path=path: f"is not reloaded: {path}" in agent.output.read_text())
            assert await agent.ask("SELECT * FROM made") == [{"value": "1"}]
        (place / "tables.toml").chmod(0o664)
        with pytest.raises(ZeekAgentError, match="cannot be trusted"):
            await reloaded(agent)


async def reloaded(agent: RunningAgent) -> str:
    """What the agent says about a reload."""
    from zeek_agent.control import messages

    def ask() -> str:
        client = messages.ControlClient(agent.state / "zeek-agent.sock")
        try:
            return " ".join(str(frame) for frame in client.responses(messages.ReloadRequest()))
        finally:
            client.close()

    return await asyncio.to_thread(ask)


@pytest.mark.long
async def test_each_line_is_recorded_once_whenever_the_agent_is_killed(tmp_path: Path, place: Path) -> None:
    log, written = tmp_path / "jobs.jsonl", 0
    log.touch()
    for turn in range(6):
        async with agent_with(tmp_path, FOLLOWED.format(path=log), place) as agent:
            for _ in range(3):
                append(log, *range(written, written + 500))
                written += 500
                await asyncio.sleep(0.1 * turn)
            if turn == 0:
                await followed(agent, 1)
            if turn % 2:
                log.rename(tmp_path / f"jobs.jsonl.{9 - turn}")
                log.touch()
            agent.kill()
        append(log, *range(written, written + 10))
        written += 10
    async with agent_with(tmp_path, FOLLOWED.format(path=log), place) as agent:
        rows = await followed(agent, written)
        assert [row["job"] for row in rows] == list(range(written))
        assert [row["seq"] for row in rows] == sorted({row["seq"] for row in rows})
        gaps = await agent.ask("SELECT DISTINCT source FROM zeek_agent_gaps")
        assert [gap["source"] for gap in gaps] == ["agent"]


@pytest.mark.long
async def test_a_hostile_command_leaves_the_agent_alone(tmp_path: Path, place: Path) -> None:
    text = (
        "(trap '' TERM INT HUP; while :; do read x < /dev/zero; done) & while :; do echo xxxxxxxxxxxxxxxxxxxxxxxx; done"
    )
    async with agent_with(tmp_path, command(place, text), place) as agent:
        for _ in range(3):
            with pytest.raises(ZeekAgentError, match="wrote more than 4194304 bytes"):
                await agent.ask("SELECT * FROM made")
        assert await agent.ask("SELECT id FROM zeek_agent")
        await until(lambda: not list(commands_of(place)))


def commands_of(place: Path) -> Iterator[int]:
    """Processes that run the script."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(place).encode() in path.read_bytes() and b"tables.files" not in path.read_bytes():
                yield int(path.parent.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
