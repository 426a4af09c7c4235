"""Scripts that `zeek-agent pack zeek` writes, with a real Zeek and the real agent: one pack, the same lines."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from places import ROOT
from running_agent import AGENT_ID, running
from scripted_agent import collecting
from waiting import until
from zeek_program import PACKAGE, needs_zeek, records, zeek

from zeek_agent.collector import agents, pack
from zeek_agent.queries.subscriptions import Subscription

PACK = """
schedule = 1
subscription = "Snapshots"

[logs.every-type]
summary = "a value of each type"
change = false
fields = [
  { name = "moment", type = "time", optional = false },
  { name = "took", type = "interval" },
  { name = "name", type = "string" },
  { name = "number", type = "count" },
  { name = "offset", type = "int" },
  { name = "share", type = "double" },
  { name = "is_on", type = "bool" },
  { name = "address", type = "addr" },
  { name = "port", type = "port" },
  { name = "raw", type = "string" },
  { name = "names", type = "set[string]" },
  { name = "addresses", type = "set[addr]" },
  { name = "ports", type = "vector[port]" },
  { name = "numbers", type = "vector[count]" },
  { name = "extra.text", type = "string" },
  { name = "extra.type", type = "count", key = "kind" },
  { name = "extra.share", type = "double" },
  { name = "unset", type = "count" },
]

[[queries]]
log = "every-type"
sql = '''
SELECT value AS "time:time", 1.25 AS "took:interval", 'a "b" \\c	%s' AS "name:text", 7 AS "number:count",
  -8 AS "offset:int", 0.5 AS "share:real", 1 AS "is_on:bool", 'fd00::1' AS "address:address",
  '{"port":80,"proto":"tcp"}' AS "port:port", x'ff41' AS "raw:blob", '["b","a,c"]' AS "names:set[text]",
  '["10.0.0.2","10.0.0.1"]' AS "addresses:set[address]",
  '[{"port":53,"proto":"udp"},{"port":22,"proto":"tcp"}]' AS "ports:vector[port]", '[3,1,2]' AS "numbers:vector[count]",
  '{"text":"x","kind":4,"share":2.5}' AS "extra:record", NULL AS "unset:count" -- the last one
FROM json_each('[null, 1600000000.5]')
'''

[logs.from-statement]

[[queries]]
log = "from-statement"
subscription = "SnapshotPlusDifferences"
sql = '''
SELECT name, uid, is_system, home AS "when", count(*) AS "rows:count", max(1.5) AS "interval:interval",
  2 AS "int:count" FROM users
WHERE uid = '0' GROUP BY uid'''
"""

EVERY_TYPE = {
    "moment": 1600000000.5,
    "took": 1.25,
    "name": 'a "b" \\\\c\\x09%s',
    "number": 7,
    "offset": -8,
    "share": 0.5,
    "is_on": True,
    "address": "fd00::1",
    "port": 80,
    "raw": "\\xffA",
    "names": {"b", "a,c"},
    "addresses": {"10.0.0.1", "10.0.0.2"},
    "ports": (53, 22),
    "numbers": (3, 1, 2),
    "extra.text": "x",
    "extra.type": 4,
    "extra.share": 2.5,
    "unset": None,
}
FROM_STATEMENT = {"name": "root", "uid": "0", "is_system": True, "when": "/root", "rows": 1, "interval": 1.5, "int": 2}

SITE = """
@load {script}
redef ZeekAgent_EveryType::query_interval = 0.5sec;
event ZeekAgent_EveryType::log_every_type(rec: ZeekAgent_EveryType::Info)
    {{
    print "log event", rec$columns$number;
    }}
hook ZeekAgent_FromStatement::log_policy(rec: any, id: Log::ID, filter: Log::Filter)
    {{
    print "log policy", (rec as ZeekAgent_FromStatement::Info)$columns$name;
    }}
"""


def pack_zeek(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zeek_agent", "pack", "zeek", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def content(record: dict[str, Any]) -> dict[str, Any]:
    """What a line holds besides who sent it and when."""
    sets = {name: set(value) for name, value in record.items() if name in ("names", "addresses", "groups")}
    return {name: value for name, value in {**record, **sets}.items() if name not in ("t", "hid", "host", "change")}


@needs_zeek
@pytest.mark.parametrize("way", ["batches", "single rows"])
async def test_rows_of_every_type_reach_the_log(tmp_path: Path, way: str) -> None:
    (tmp_path / "pack.toml").write_text(PACK)
    script = tmp_path / "pack.zeek"
    done = pack_zeek(str(tmp_path / "pack.toml"), "--output", str(script))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    if way == "single rows":
        text = script.read_text()
        script.write_text(text.replace("$on_rows=write_rows,", ""))
        assert script.read_text() != text
    logs = tmp_path / "zeek"
    logs.mkdir()
    (logs / "zeek-agent").symlink_to(PACKAGE)
    with zeek(logs, site=SITE.format(script=script)) as url:
        async with running(tmp_path, f"--zeek={url}"):
            for path in ("every-type", "from-statement", "reporter"):
                await until(lambda path=path: records(logs / f"{path}.log"), 30, f"no {path}.log")
    lines = records(logs / "every-type.log")
    assert [content(line) for line in lines] == [EVERY_TYPE] * len(lines)
    assert content(records(logs / "from-statement.log")[0]) == FROM_STATEMENT
    errors = [line["message"] for line in records(logs / "reporter.log") if line["level"] == "Reporter::ERROR"]
    assert set(errors) == {f"Zeek Agent: row for every-type from {AGENT_ID} has no moment"}
    output = (logs / "output").read_text()
    assert "log event, 7" in output
    assert "log policy, root" in output


@pytest.mark.long
async def test_the_collector_writes_the_same_lines(tmp_path: Path) -> None:
    (tmp_path / "pack.toml").write_text(PACK)
    async with running(tmp_path, f"--pack={tmp_path / 'pack.toml'}") as agent:
        line = await agent.logged("every-type", {"number": 7})
        derived = await agent.logged("from-statement", {"uid": "0"})
    assert content(line) == EVERY_TYPE
    assert content(derived) == FROM_STATEMENT


@needs_zeek
def test_the_script_of_the_default_pack_loads_with_the_framework_alone(tmp_path: Path) -> None:
    (tmp_path / "zeek-agent").symlink_to(PACKAGE)
    assert pack_zeek("--output", str(tmp_path / "default.zeek")).returncode == 0
    done = subprocess.run(["zeek", "-a", "default.zeek"], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def header(file: Path) -> list[tuple[str, str]]:
    """Names and types of a log's fields."""
    lines = (line.split("\t") for line in file.read_text().splitlines())
    head = {line[0]: line[1:] for line in lines if line[0] in ("#fields", "#types")}
    return list(zip(head["#fields"], head["#types"], strict=True))


def test_the_collector_and_the_package_declare_the_same_fields_for_every_log() -> None:
    """Against the logs of the package's own test suite, which compares them with what Zeek writes."""
    written = ROOT / "zeek" / "testing" / "Baseline" / "tables.logs"
    ours = {log.path: log.fields for log in pack.load().logs.values()} | {agents.LOG: agents.LOG_FIELDS}
    assert set(ours) == {file.stem for file in written.glob("*.log")}
    for path, fields in ours.items():
        assert [(field.name, field.type) for field in fields] == header(written / f"{path}.log"), path


SNAPSHOTS = "\n".join(
    f"redef ZeekAgent_{module}::subscription = ZeekAgent::Snapshots;\nredef ZeekAgent_{module}::query_interval = 1sec;"
    for module in ("Processes", "Sockets", "Users", "ListeningPorts", "Sources", "SetuidFiles")
)
SNAPSHOTS += "\nredef ZeekAgent_SetuidFiles::subscription_2 = ZeekAgent::Snapshots;"
SNAPSHOTS += "\nredef ZeekAgent_SetuidFiles::query_interval_2 = 1sec;"


@needs_zeek
@pytest.mark.root
async def test_an_agent_gives_the_collector_and_zeek_the_same_lines(tmp_path: Path) -> None:
    with tempfile.NamedTemporaryFile(dir="/tmp") as program:
        os.utime(program.name, (1_600_000_000, 1_600_000_000))
        os.fchmod(program.fileno(), 0o4755)
        await compare_lines(tmp_path, program.name)


async def compare_lines(tmp_path: Path, program: str) -> None:
    given = pack.load(schedule=1.0)
    queries = [
        one
        if one.query.subscription is Subscription.EVENTS
        else replace(one, query=replace(one.query, subscription=Subscription.SNAPSHOTS))
        for one in given.queries
    ]
    both = tmp_path / "zeek", tmp_path / "collector"
    events = {"zeek-agent-process-events": "pid", "zeek-agent-socket-events": "remote_port"}
    async with collecting(both[1], given=replace(given, queries=tuple(queries))) as collector:
        other = "--zeek=ws://{}:{}".format(*collector.address)
        with zeek(both[0], site=SNAPSHOTS) as url, socket.create_server(("127.7.7.12", 0)) as server:
            snapshots = {
                "zeek-agent-processes": ("pid", os.getpid()),
                "zeek-agent-users": ("name", "root"),
                "zeek-agent-listening-ports": ("port", server.getsockname()[1]),
                "zeek-agent-sources": ("source", "processes"),
                "zeek-agent-setuid-files": ("path", program),
            }
            async with running(tmp_path, f"--zeek={url}", other):
                for directory in both:
                    for path, (key, value) in snapshots.items():

                        def is_logged(
                            file: Path = directory / f"{path}.log", key: str = key, value: Any = value
                        ) -> bool:
                            return any(line[key] == value for line in records(file))

                        await until(is_logged, 30, f"no {key} {value} in {directory}/{path}.log")
                child = subprocess.Popen(["true"])
                child.wait()
                with socket.create_connection(server.getsockname()):
                    pass
                made = {"zeek-agent-process-events": child.pid, "zeek-agent-socket-events": server.getsockname()[1]}

                def lines(directory: Path, path: str) -> dict[tuple[str, int], Mapping[str, Any]]:
                    return {
                        (line["store"], line["seq"]): line
                        for line in records(directory / f"{path}.log")
                        if line[events[path]] == made[path]
                    }

                for path in events:
                    await until(lambda path=path: all(lines(one, path) for one in both), 30, f"no {path}")
                    await until(lambda path=path: lines(both[0], path).keys() == lines(both[1], path).keys(), 30, path)
    for path in (agents.LOG, *snapshots, *events, "zeek-agent-sockets"):
        assert header(both[0] / f"{path}.log") == header(both[1] / f"{path}.log"), path
    for path in events:
        zeeks, ours = (lines(one, path) for one in both)
        for key, line in zeeks.items():
            times = {name: pytest.approx(line[name], abs=2e-6) for name in ("t", "time_")}  # Zeek rounds another way
            assert content(ours[key]) == {name: times.get(name, value) for name, value in content(line).items()}
            assert all(key)
            assert line["entity_id"]
            assert line["exe"]
    for path, (key, value) in snapshots.items():
        zeeks, ours = (next(line for line in records(one / f"{path}.log") if line[key] == value) for one in both)
        assert content(zeeks) == content(ours), path
        assert not {"exe", "entity_id", "groups"}.intersection(name for name, cell in zeeks.items() if cell is None)
