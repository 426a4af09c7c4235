"""Scripts that `zeek-agent pack zeek` writes, with a real Zeek and the real agent: one pack, the same lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running_agent import AGENT_ID, running
from waiting import until
from zeek_program import PACKAGE, needs_zeek, records, zeek

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
    sets = {name: set(value) for name, value in record.items() if name in ("names", "addresses")}
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
