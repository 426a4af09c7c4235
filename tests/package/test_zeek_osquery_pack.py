"""A configuration of osquery with the real agent: through the collector, and as a script with a real Zeek."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running_agent import AGENT_ID, RunningAgent, running
from waiting import until
from zeek_program import PACKAGE, needs_zeek, records, zeek

CONFIGURATION = """
{ // as osquery reads it
  "schedule": {
    "up": {"query": "SELECT total_seconds > 0 AS up, 'x' AS host FROM uptime;", "interval": 1, "snapshot": true},
    "gone": {"query": "SELECT 1 FROM no_such_table", "interval": 1},
  },
  "packs": {
    "site": {
      "discovery": ["SELECT 1 FROM uptime WHERE total_seconds > 0"],
      "queries": {"init": {"query": "select pid, name, parent from processes where pid = 1 -- first", "interval": 1}},
    },
    "never": {
      "discovery": ["SELECT 1 FROM uptime WHERE total_seconds < 0"],
      "queries": {"init": {"query": "select pid from processes where pid = 1", "interval": 1}},
    },
  },
  "decorators": {"load": ["SELECT 'here' AS site"]},
}
"""


QUESTIONS = """
@load %s
type Parent: record {
	parent: int &optional;
};
type Parents: vector of Parent;
event ZeekAgent::agent_joined(agent_id: string, hello: ZeekAgentAPI::AgentHelloV1)
	{
	local sql = "SELECT parent FROM processes WHERE pid = 1";
	when [agent_id, sql] ( local one = ZeekAgent::ask(agent_id, sql, Parents, 30sec, "osquery") )
		{
		Reporter::info(fmt("parent %%d", (one$rows as Parents)[0]$parent));
		}
	when [agent_id, sql] ( local two = ZeekAgent::ask(agent_id, sql, Parents, 30sec, "mysql") )
		{
		Reporter::info(fmt("error %%s", two$error));
		}
	}
"""


def started(tmp_path: Path) -> Path:
    file = tmp_path / "osquery.conf"
    file.write_text(CONFIGURATION)
    return file


def first_process() -> dict[str, str]:
    return {"pid": "1", "name": Path("/proc/1/comm").read_text().strip(), "parent": "0"}


@pytest.mark.long
async def test_the_collector_runs_a_configuration_and_writes_osquerys_results(tmp_path: Path) -> None:
    async with running(tmp_path, f"--pack={started(tmp_path)}", "--log-format=osquery") as agent:

        def lines(log: str) -> list[dict[str, Any]]:
            file = agent.logs / f"{log}.log"
            return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

        await until(lambda: lines("pack_site_init") and len(lines("up")) > 1, 30, "no results")
        (line,) = lines("pack_site_init")
        assert (line["name"], line["action"], line["counter"], line["columns"]) == (
            "pack_site_init",
            "added",
            0,
            first_process(),
        )
        snapshot = lines("up")[-1]
        assert (snapshot["action"], snapshot["columns"]) == ("snapshot", {"up": "1", "host": "x"})
        assert snapshot["decorations"] == {"zeek_agent_id": AGENT_ID, "site": "here"}
        assert lines("pack_never_init") == []


@pytest.mark.long
async def test_commands_ask_the_running_agent_in_osquerys_dialect(tmp_path: Path) -> None:
    file = started(tmp_path)

    def command(agent: RunningAgent, *arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "zeek_agent", *arguments, "--state-dir", str(agent.state)]
        return subprocess.run(line, check=False, capture_output=True, text=True, timeout=60)

    async with running(tmp_path) as agent:
        sql = "SELECT pid, parent FROM processes WHERE pid = 1"
        asked = await asyncio.to_thread(command, agent, "query", "--dialect=osquery", "--format=csv", sql)
        assert (asked.returncode, asked.stdout, asked.stderr) == (0, "pid,parent\n1,0\n", "")
        refused = await asyncio.to_thread(command, agent, "query", sql)
        assert (refused.returncode, refused.stderr) == (1, "zeek-agent: no such column: parent\n")
        checked = await asyncio.to_thread(command, agent, "pack", "check", str(file))
    assert (checked.returncode, checked.stderr) == (1, "")
    assert checked.stdout.splitlines()[-1] == "5 queries: 4 run here, 1 no such table"


@needs_zeek
async def test_zeek_runs_the_script_of_a_configuration(tmp_path: Path) -> None:
    script = tmp_path / "site.zeek"
    command = [sys.executable, "-m", "zeek_agent", "pack", "zeek", str(started(tmp_path)), "--output", str(script)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
    assert [line.rpartition("osquery.conf: ")[2] for line in done.stderr.splitlines()] == [
        "left out: schedule.gone: no such table: no_such_table",
        "decorators are left out: scripts do not add columns to results",
    ]
    logs = tmp_path / "zeek"
    logs.mkdir()
    (logs / "zeek-agent").symlink_to(PACKAGE)
    with zeek(logs, site=QUESTIONS % script) as url:
        async with running(tmp_path, f"--zeek={url}"):
            for path in ("up", "pack_site_init"):
                await until(lambda path=path: records(logs / f"{path}.log"), 30, f"no {path}.log")

            def answers() -> list[str]:
                messages = (line["message"] for line in records(logs / "reporter.log"))
                return sorted(text for text in messages if text.startswith(("parent ", "error ")))

            await until(lambda: len(answers()) == 2, 30, "no answers")
    assert answers()[1] == "parent 0"
    assert answers()[0].endswith("(unknown dialect 'mysql'; this agent has osquery))")
    line = records(logs / "pack_site_init.log")[0]
    assert {name: str(line[name]) for name in first_process()} == first_process()
    assert (records(logs / "up.log")[0]["up"], records(logs / "up.log")[0]["host_"]) == ("1", "x")
    assert not (logs / "pack_never_init.log").exists()
