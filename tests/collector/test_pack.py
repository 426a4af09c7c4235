"""Query packs: the default one, what a pack may say, and what is wrong with a wrong one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from places import ROOT
from zeek_log import CAPTURED

from zeek_agent.collector import pack, pack_check, pack_file
from zeek_agent.collector.log_formats import TsvFormat
from zeek_agent.collector.statements import Statements
from zeek_agent.database.sql_connection import Profile
from zeek_agent.errors import UsageError
from zeek_agent.queries.subscriptions import Query, Subscription

DOCS = ROOT / "docs"

SMALL = """
[logs.things]
fields = [{ name = "name", type = "string", optional = false }, { name = "size", type = "count" }]

[[queries]]
log = "things"
sql = "SELECT name, size FROM things"
"""


def parse(text: str) -> pack.Pack:
    return pack.parse(text, "p.toml")


def query_of(log: str, given: pack.Pack) -> list[pack.PackQuery]:
    events = {event for event, entry in given.logs.items() if entry.path == log}
    return [query for query in given.queries if query.query.event in events]


def test_the_default_pack_has_the_logs_of_the_zeek_package() -> None:
    default = pack.load()
    assert {log.path for log in default.logs.values()} >= {
        "zeek-agent-files",
        "zeek-agent-listening-ports",
        "zeek-agent-process-events",
        "zeek-agent-processes",
        "zeek-agent-socket-events",
        "zeek-agent-sockets",
        "zeek-agent-ssh-authorized-keys",
        "zeek-agent-ssh-configs",
        "zeek-agent-system-logs",
        "zeek-agent-users",
    }
    assert all(query_of(log.path, default) for log in default.logs.values())


@pytest.mark.parametrize("name", ["zeek-agent-files", "zeek-agent-processes", "zeek-agent-sockets"])
def test_headers_begin_as_those_that_zeek_wrote(name: str) -> None:
    """With the stock package, whose logs have fewer fields."""
    log = next(log for log in pack.load().logs.values() if log.path == name)

    def header(content: bytes) -> dict[bytes, list[bytes]]:
        lines = [line.split(b"\t") for line in content.split(b"\n") if line.startswith(b"#")]
        return {line[0]: line[1:] for line in lines if line[0] not in (b"#open", b"#close")}

    stock = header((CAPTURED / f"{name}.log").read_bytes())
    number = len(stock[b"#fields"])
    ours = header(TsvFormat(log.path, log.fields).header(0.0))
    assert {key: cells[:number] for key, cells in ours.items()} == stock


INVENTORIES = {
    "zeek-agent-processes": Subscription.DIFFERENCES,
    "zeek-agent-sockets": Subscription.DIFFERENCES,
    "zeek-agent-users": Subscription.SNAPSHOT_PLUS_DIFFERENCES,
    "zeek-agent-files": Subscription.SNAPSHOT_PLUS_DIFFERENCES,
}
STOCK_TABLES = {"files_columns", "files_lines", "files_list", "processes", "sockets", "system_logs_events", "users"}


def test_snapshot_queries_report_differences_each_30_seconds() -> None:
    for log, subscription in INVENTORIES.items():
        for entry in query_of(log, pack.load()):
            assert entry.query.schedule == 30.0
            assert entry.query.subscription is subscription
            assert entry.groups == ("all",)


def test_searches_for_setuid_files_run_rarely() -> None:
    schedules = {
        "'/tmp/" in entry.query.sql: entry.query.schedule for entry in query_of("zeek-agent-setuid-files", pack.load())
    }
    assert schedules == {True: 60.0, False: 600.0}


def test_agents_of_version_2_are_not_asked_for_tables_that_they_lack() -> None:
    compiler = Statements()
    for entry in pack.load().queries:
        tables = compiler.compile(entry.query.sql, Profile.STOCK).tables
        assert tables <= STOCK_TABLES | entry.query.requires_tables, entry.query.sql
    compiler.close()


def test_event_queries_run_often_and_only_where_there_are_events() -> None:
    for log, table in (("process", "processes_events"), ("socket", "sockets_events")):
        for entry in query_of(f"zeek-agent-{log}-events", pack.load()):
            assert entry.query.schedule == 0.5
            assert entry.query.subscription is Subscription.EVENTS
            assert table in entry.query.requires_tables


def test_schedules_that_are_too_short_are_raised_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    quick = pack.load(schedule=0.001)
    assert query_of("zeek-agent-users", quick)[0].query.schedule == 0.05
    assert query_of("zeek-agent-process-events", quick)[0].query.schedule == 0.5
    raised = sum(one.query.schedule == 0.05 for one in quick.queries)
    notice = f"the default pack: queries with a schedule below 0.05 s will run every 0.05 s: {raised}"
    assert caplog.messages == [notice]


def test_a_schedule_replaces_that_of_snapshots_but_not_of_events() -> None:
    quick = pack.load(schedule=2.0)
    assert query_of("zeek-agent-users", quick)[0].query.schedule == 2.0
    assert query_of("zeek-agent-process-events", quick)[0].query.schedule == 0.5


@pytest.mark.long(kept=10)
@pytest.mark.parametrize("entry", pack.load().queries, ids=lambda entry: entry.query.event)
def test_every_query_of_the_default_pack_selects_its_logs_fields(entry: pack.PackQuery) -> None:
    columns = list(pack_file.columns_of(pack.load().logs[entry.query.event].columns))
    headings = Statements().compile(entry.query.sql, Profile.STOCK).headings
    is_for_version_2 = pack_file.BATCHES_TABLE in entry.query.if_missing_tables
    assert len(headings) < len(columns) if is_for_version_2 else len(headings) == len(columns)
    for (record, fields), heading in zip(columns, headings, strict=False):
        assert heading.type is not None
        expected = "any" if record else re.sub(r"^vector\[(.*)\]$", r"vector of \1", fields[0].type)
        assert heading.type.script == expected, heading.name


def test_events_are_numbered_also_where_version_2_has_the_table() -> None:
    for log in ("process-events", "socket-events", "system-logs"):
        queries = query_of(f"zeek-agent-{log}", pack.load())
        for ours, stock in zip(queries[::2], queries[1::2], strict=True):
            assert ", seq, " in ours.query.sql
            assert "seq" not in stock.query.sql
            required = ours.query.requires_tables - stock.query.requires_tables
            assert required == stock.query.if_missing_tables - ours.query.if_missing_tables != set()


SPLIT = """
[logs.things]
fields = [{ name = "name", type = "string" }, { name = "uid", type = "string" }, { name = "shell", type = "string" }]

[[queries]]
log = "things"
sql = "SELECT name, uid FROM users"
batch_sql = "SELECT name, uid, shell FROM users"
requires_tables = ["users"]
"""


def test_agents_with_batches_get_the_statement_for_them_and_others_the_basic_one() -> None:
    ours, others = parse(SPLIT).queries
    assert (ours.query.sql, others.query.sql) == ("SELECT name, uid, shell FROM users", "SELECT name, uid FROM users")
    assert ours.query.requires_tables == {"users", "zeek_agent_tables"}
    assert others.query.requires_tables == {"users"}
    assert others.query.if_missing_tables == {"zeek_agent_tables"}
    derived = parse(re.sub(r"fields = .*", "", SPLIT))
    assert [field.name for field in derived.logs["Collector::things"].columns] == ["name", "uid", "shell"]


def test_a_log_with_fields_for_zeek_alone_has_the_columns_of_the_basic_statement() -> None:
    given = parse(SPLIT.replace('"shell", type = "string"', '"shell", type = "string", only = "zeek"'))
    assert [query.query.sql for query in given.queries] == ["SELECT name, uid FROM users"]
    assert [field.name for field in given.logs["Collector::things"].columns] == ["name", "uid"]


def test_both_statements_of_a_query_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(SPLIT)
    assert list(pack_check.problems(file)) == []
    file.write_text(
        SPLIT.replace("SELECT name, uid FROM", "SELECT name, gid FROM").replace("uid, shell FROM", "uid FROM")
    )
    assert [problem.text.removeprefix(f"{file}: ") for problem in pack_check.problems(file)] == [
        "queries[0]: log things has fields for 3 columns, but the query selects 2: name, uid",
        "queries[0]: field uid of log things is of type string, but gid is count",
    ]


def test_a_custom_pack() -> None:
    given = parse(
        """
        schedule = 5
        subscription = "Snapshots"
        """
        + SMALL
        + """
        schedule = 0
        groups = ["web", "Linux"]
        requires_tables = ["things"]
        if_missing_tables = ["others"]

        [[queries]]
        log = "things"
        sql = "SELECT 1"
        hosts = ["HAbc"]

        [[queries]]
        log = "things"
        sql = "SELECT 2"
        enabled = false
        """
    )
    first, second = given.queries
    assert first == pack.PackQuery(
        Query(
            sql="SELECT name, size FROM things",
            event="Collector::things",
            schedule=0,
            subscription=Subscription.SNAPSHOTS,
            requires_tables=frozenset({"things"}),
            if_missing_tables=frozenset({"others"}),
        ),
        ("web", "linux"),
        (),
    )
    assert (second.query.schedule, second.groups, second.hosts) == (5.0, (), ("HAbc",))
    log = given.logs["Collector::things"]
    assert [(field.name, field.type) for field in log.fields[-3:]] == [
        ("change", "string"),
        ("name", "string"),
        ("size", "count"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shedule = 3\n" + SMALL, "p.toml: unknown key shedule; did you mean schedule?"),
        (SMALL + "subscribtion = 'Events'", "unknown key queries[0].subscribtion; did you mean subscription?"),
        (SMALL.replace("type", "typ"), "unknown key logs[...].fields[0].typ; did you mean type?"),
        (SMALL.replace("fields =", "field ="), "unknown key logs[...].field; did you mean fields?"),
        (SMALL + "schedule = -1", "Expected `float` >= 0.0 (at queries[0].schedule)"),
        (SMALL + "subscription = 'Diffs'", "Invalid enum value 'Diffs' (at queries[0].subscription)"),
        (SMALL.replace("count", "counts"), "logs.things: field size: unknown type 'counts'"),
        (SMALL.replace('log = "things"', 'log = "thing"'), "there is no log thing; did you mean things?"),
        (SMALL.replace("things]", '"../etc"]'), "logs.../etc: not a valid log name"),
        (SMALL.replace("things", "reporter"), "logs.reporter: not a valid log name"),
        (SMALL.replace('"size"', '"name"'), "field name: not a valid name, or a duplicate"),
        (SMALL.replace('"size"', '"hid"'), "field hid: every log already has a field of that name"),
        (SMALL.replace('"size"', '"si\\tze"'), "not a valid name, or a duplicate"),
        (SMALL + "groups = ['a/b']", "not a group: 'a/b'"),
        ("queries = []", "Object missing required field `logs`"),
        ("[logs.things]\nevent = 'nonsense'\nfields = []\n[[queries]]\nsql=''\nlog='things'", "expected Module::name"),
        ("[logs.a]\nevent='A::b'\nfields=[]\n[logs.b]\nevent='A::b'\nfields=[]\n", "missing required field `queries`"),
        ("queries=[]\n[logs.a]\nevent='A::b'\nfields=[]\n[logs.b]\nevent='A::b'\nfields=[]\n", "the same event A::b"),
        ("][", "not valid TOML"),
    ],
)
def test_a_wrong_pack_is_one_clear_error(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(text)
    assert message in str(error.value)
    assert str(error.value).startswith("p.toml: ")
    assert "\n" not in str(error.value)


def test_a_pack_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(SMALL)
    assert list(pack.load(tmp_path / "mine.toml").logs) == ["Collector::things"]
    with pytest.raises(UsageError, match="cannot read the query pack"):
        pack.load(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not valid TOML"):
        pack.load(tmp_path / "binary.toml")


@pytest.mark.parametrize(
    "section", [pack_file.PackFile, pack_file.LogEntry, pack_file.FieldEntry, pack_file.QueryEntry]
)
def test_every_key_of_a_pack_is_documented(section: type[Any]) -> None:
    documented = (DOCS / "collector.md").read_text(encoding="utf-8")
    for field in msgspec.structs.fields(section):
        assert re.search(rf"^\| [^|]*`{field.name}`", documented, re.MULTILINE), field.name


def test_the_pack_in_the_documentation_is_a_pack() -> None:
    [example] = re.findall(r"```toml\n(.*?)```", (DOCS / "collector.md").read_text(encoding="utf-8"), re.DOTALL)
    [query] = parse(example).queries
    assert query.groups == ("linux",)


def test_every_log_of_the_default_pack_is_documented() -> None:
    documented = (DOCS / "collector.md").read_text(encoding="utf-8")
    for log in pack.load().logs.values():
        assert log.path.removeprefix("zeek-agent") in documented


WRONG = """
shedule = 3

[logs.users]
fields = [{ name = "name", type = "string" }, { name = "uid", type = "counts" }, { name = "gid", type = "int" }]

[logs.typo]
fields = [{ name = "name", typ = "string" }]

[logs."no name"]

[[queries]]
log = "uers"
sql = "SELECT 1"

[[queries]]
log = "users"
sql = "SELECT name, uid, gid FROM usres"

[[queries]]
log = "users"
sql = "SELECT gid, uid, gid FROM users"

[[queries]]
log = "users"
sql = "SELECT name, ui FROM users"

[[queries]]
log = "users"
sql = "SELECT name FROM users"
schedule = -1

[[queries]]
log = "users"
sql = "SELECT name, count(*) FROM users"

[[queries]]
log = "users"
sql = "SELECT name, uid, gid AS \\"gid:int\\", home FROM users"

[[queries]]
log = "users"
sql = "SELECT name, uid, gid FROM ext_inventory"

[[queries]]
log = "users"
sql = "SELECT name, uid, gid FROM ext_packages"
requires_tables = ["ext_packages"]

[[queries]]
log = "users"
sql = "SELECT no FROM nowhere"
only = "zeek"
"""


def test_all_problems_of_a_pack_are_found_at_once(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(WRONG)
    found = list(pack_check.problems(file))
    selects = "log users has fields for 3 columns, but the query selects"
    assert [problem.text.removeprefix(f"{file}: ") for problem in found if not problem.is_warning] == [
        "unknown key shedule; did you mean schedule?",
        "logs.users: field uid: unknown type 'counts'",
        "unknown key logs.typo.fields[0].typ; did you mean type?",
        "logs.no name: not a valid log name (letters, digits, - and _; not reporter or zeek-agent)",
        "query 'SELECT 1': there is no log uers; did you mean users?",
        "Expected `float` >= 0.0 (at queries[4].schedule)",
        "queries[1].sql: no such table: usres; did you mean users?",
        "queries[2]: field name of log users is of type string, but gid is count",
        "queries[2]: field gid of log users is of type int, but gid is count",
        "queries[3].sql: no such column: ui",
        f"queries[5]: {selects} 2: name, count(*)",
    ]
    assert [problem.text.removeprefix(f"{file}: ") for problem in found if problem.is_warning] == [
        f"queries[6]: {selects} 4: name, uid, gid, home",
        "queries[7].sql: no such table: ext_inventory (if agents have it, for instance from osquery, add it to "
        "requires_tables)",
    ]


@pytest.mark.parametrize("path", [None, *sorted((ROOT / "tests").rglob("*pack*.toml"))])
def test_a_good_pack_has_no_problem(path: Path | None) -> None:
    assert list(pack_check.problems(path)) == []


def test_a_pack_that_cannot_be_read_is_one_problem(tmp_path: Path) -> None:
    (missing,) = pack_check.problems(tmp_path / "p.toml")
    assert missing.text == f"cannot read the query pack {tmp_path / 'p.toml'}: No such file or directory"
    (tmp_path / "p.toml").write_text("][")
    (invalid,) = pack_check.problems(tmp_path / "p.toml")
    assert invalid.text.startswith(f"{tmp_path / 'p.toml'}: not valid TOML: ")


def test_names_that_collide_are_a_problem(tmp_path: Path) -> None:
    logs = "".join(f"[logs.{name}]\nevent = 'A::b'\nfields = []\n" for name in "ab")
    (tmp_path / "p.toml").write_text(f"queries = []\n{logs}")
    (problem,) = pack_check.problems(tmp_path / "p.toml")
    assert "the same event A::b" in problem.text
