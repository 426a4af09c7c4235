"""Own tables in a real Zeek: the script of the documentation, and every type."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_table_files import declared, roots_directory, script
from places import ROOT
from running_agent import RunningAgent, running
from waiting import until
from zeek_program import joined, needs_zeek, zeek

from zeek_agent.control.messages import ControlClient, ReloadRequest
from zeek_agent.own_tables import files
from zeek_agent.own_tables.snapshots import tables
from zeek_agent.terminal.table_text import zeek_record

pytestmark = [pytest.mark.root, needs_zeek]

PAGE = (ROOT / "docs/own-tables.md").read_text()
(SCRIPT,) = re.findall(r"^```zeek\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
VALUES = {
    "a_count": ("count", 2**63 - 1),
    "an_int": ("int", -7),
    "a_real": ("real", 2.5),
    "a_bool": ("bool", True),
    "a_text": ("text", "Grüße"),
    "an_enum": ("enum", "red"),
    "a_blob": ("blob", "bytes"),
    "an_address": ("address", "2001:db8::1"),
    "a_port": ("port", "443/tcp"),
    "a_time": ("time", 1_790_000_000),
    "an_interval": ("interval", 90),
    "a_set": ("set[count]", [3]),
    "a_vector": ("vector[text]", ["x", "y"]),
    "unset": ("count", "many"),
}
QUERY = """
type Mades: vector of Made;
function on_rows(ctx: ZeekAgent::Context, batch: ZeekAgentAPI::Batch, rows: any)
    {
    for ( _, row in rows as Mades )
        print fmt("row %s", row);
    }
event zeek_init()
    {
    ZeekAgent::query(ZeekAgent::Query($sql_stmt="SELECT * FROM made", $row_type=Mades, $on_rows=on_rows,
                                      $schedule_=1sec, $subscription=ZeekAgent::Snapshots,
                                      $requires_tables=set("made")));
    }
"""


@pytest.fixture
def place() -> Iterator[Path]:
    with roots_directory() as directory:
        yield directory


async def test_the_script_of_the_documentation_gets_rows(tmp_path: Path, place: Path) -> None:
    devices = place / "devices.json"
    program = script(place, "command", f"exec /usr/bin/cat {devices}")
    path = declared(
        place,
        f"""[tables.disks]
summary = "devices"
command = ["{program}"]
programs = ["/usr/bin/cat"]
columns = [
    {{name = "name", type = "text", summary = "the name"}},
    {{name = "size", type = "count", summary = "the size"}},
]
""",
    )
    devices.write_text("[]")
    site = SCRIPT.replace("5min", "1sec")
    with zeek(tmp_path / "zeek", site=site) as url:
        async with running(tmp_path, f"--zeek={url}", "--set", f"tables.files={path}") as agent:
            await joined(tmp_path / "zeek")
            sql = "SELECT runs FROM zeek_agent_queries WHERE sql GLOB '*disks*' AND runs > {runs}"
            await until(lambda: agent.ask(sql.format(runs=1)))
            devices.write_text('[{"name": "sda", "size": 5}]')
            delivered = "SELECT 1 FROM zeek_agent_queries WHERE sql GLOB '*disks*' AND rows > 0"
            await until(lambda: agent.ask(delivered))
    output = (tmp_path / "zeek/output").read_text()
    assert re.search(r", new, \[name=sda, size=5\]", output), output


@pytest.mark.long
async def test_values_of_each_type_reach_zeek(tmp_path: Path, place: Path) -> None:
    row = json.dumps({name: value for name, (_, value) in VALUES.items()}, ensure_ascii=False)
    columns = "".join(
        f'{{name = "{name}", type = "{kind}", summary = "a value"}},\n' for name, (kind, _) in VALUES.items()
    )
    program = script(place, "command", f"echo '{row}'")
    path = declared(place, f'[tables.made]\nsummary = "made"\ncommand = ["{program}"]\ncolumns = [\n{columns}]\n')
    (table,) = tables(files.load([path]))
    with zeek(tmp_path / "zeek", site=zeek_record(table) + QUERY) as url:
        async with running(tmp_path, f"--zeek={url}", "--set", f"tables.files={path}") as agent:
            await joined(tmp_path / "zeek")
            delivered = "SELECT 1 FROM zeek_agent_queries WHERE sql = 'SELECT * FROM made' AND rows > 1"
            await until(lambda: agent.ask(delivered))
    output = (tmp_path / "zeek/output").read_text()
    found = re.search(r"^row \[(.*)\]$", output, re.MULTILINE)
    assert found is not None, output
    for text in (
        *(
            "a_count=9223372036854775807",
            "an_int=-7",
            "a_real=2.5",
            "a_bool=T",
            r"a_text=Gr\xc3\xbc\xc3\x9fe",
            "an_enum=red",
        ),
        *("a_blob=bytes", "an_address=2001:db8::1", "a_port=443/tcp", "a_time=1790000000.0", "an_interval=1.0 min"),
        *("a_vector=[x, y]", "unset=<uninitialized>"),
    ):
        assert text in found[1], output


FOLLOWED = """[tables.jobs_events]
summary = "jobs"
follow = "{path}"
columns = [{{name = "job", type = "count", summary = "a number"}}]
"""
EVENTS_QUERY = """
type Job: record { job: count &optional; };
type Jobs: vector of Job;
function on_rows(ctx: ZeekAgent::Context, batch: ZeekAgentAPI::Batch, rows: any)
    {
    for ( _, row in rows as Jobs )
        print fmt("job %d", row$job);
    }
event zeek_init()
    {
    ZeekAgent::query(ZeekAgent::Query($sql_stmt="SELECT job FROM jobs_events", $row_type=Jobs, $on_rows=on_rows,
                                      $schedule_=1sec, $subscription=ZeekAgent::Events REQUIRES));
    }
"""


@pytest.mark.long
@pytest.mark.parametrize("requires", ["", ', $requires_tables=set("jobs_events")'])
async def test_a_subscription_goes_on_after_its_table_was_gone_for_a_while(
    requires: str, tmp_path: Path, place: Path
) -> None:
    log = place / "jobs.jsonl"
    log.touch()
    text = FOLLOWED.format(path=log)
    path = declared(place, text)

    def record(number: int) -> None:
        with log.open("a") as file:
            file.write(json.dumps({"job": number}) + "\n")

    with zeek(tmp_path / "zeek", site=EVENTS_QUERY.replace(" REQUIRES", requires)) as url:
        async with running(tmp_path, f"--zeek={url}", "--set", f"tables.files={path}") as agent:

            async def shown(condition: str) -> None:
                sql = f"SELECT 1 FROM zeek_agent_queries WHERE sql GLOB '*jobs_events*' AND {condition}"
                await until(lambda: agent.ask(sql))

            await joined(tmp_path / "zeek")
            await shown("runs > 0")
            record(1)
            await shown("rows = 1")
            declared(place, text.replace("jobs_events", "other_events"))
            await asyncio.to_thread(reload, agent)
            record(2)
            if requires:
                await shown("state = 'waiting'")
            declared(place, text)
            await asyncio.to_thread(reload, agent)
            record(3)
            await shown("rows = 3")
    found = re.findall(r"^job (\d+)$", (tmp_path / "zeek/output").read_text(), re.MULTILINE)
    assert found == ["1", "2", "3"]


def reload(agent: RunningAgent) -> None:
    client = ControlClient(agent.state / "zeek-agent.sock")
    try:
        assert "tables.files" in " ".join(map(str, client.responses(ReloadRequest())))
    finally:
        client.close()
