"""Zeek scripts from query packs: what is derived from compiling the statements, and what is wrong with a wrong pack."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from zeek_agent.collector import pack, pack_file, zeek_script
from zeek_agent.errors import UsageError

SMALL = """
[logs.open-files]
fields = [{ name = "path", type = "string" }, { name = "size", type = "count" }]

[[queries]]
log = "open-files"
sql = "SELECT path, size FROM files_list('/var/spool/*')"
"""
UNTYPED = """
[logs.accounts]

[[queries]]
log = "accounts"
sql = '''SELECT gid, count(*) AS "users:count", uid AS event FROM users GROUP BY gid'''
"""


def script(text: str) -> str:
    return zeek_script.script(pack_file.parse(text, "p.toml"), "p.toml")


def fields(text: str, record: str = "Columns") -> list[str]:
    """The fields of a record type, without their comments."""
    body = re.search(rf"\ttype {record}: record {{\n(.*?)\n\t}};", text, re.DOTALL)
    assert body is not None
    return [line.strip() for line in body[1].splitlines() if "##" not in line]


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zeek_agent", "pack", "zeek", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def test_fields_and_types_default_to_those_of_the_statement() -> None:
    written = script(UNTYPED)
    assert fields(written) == [
        "gid: count &log &optional;",
        "users: count &log &optional;",
        "event_: string &log &optional;",
    ]
    assert 'table(["event_"] = "event")' in written
    [log] = pack.parse(UNTYPED, "p.toml").logs.values()
    assert [(column.name, column.type) for column in log.columns] == [
        ("gid", "count"),
        ("users", "count"),
        ("event", "string"),
    ]


def test_a_type_may_be_left_out_of_a_declared_field() -> None:
    text = SMALL.replace(', type = "count"', "")
    assert fields(script(text)) == fields(script(SMALL))
    [log] = pack.parse(text, "p.toml").logs.values()
    assert [column.type for column in log.columns] == ["string", "count"]


def test_descriptions_of_fields_are_the_packs_or_else_the_tables() -> None:
    written = script(SMALL.replace('"string" }', '"string", summary = "where it\\n is" }'))
    assert "\t\t## Where it is.\n\t\tpath: string" in written
    assert "\t\t## Size in bytes.\n\t\tsize: count" in written


def test_columns_of_batches_only_are_those_of_batch_sql() -> None:
    text = SMALL.replace('"count" }]', '"count" }, { name = "uid", only = "zeek" }]')
    text += """batch_sql = "SELECT path, size, uid FROM files_list('/var/spool/*')"\n"""
    written = script(text)
    assert fields(written, "Basic") == fields(script(SMALL))
    assert fields(written) == [*fields(script(SMALL)), "uid: count &log &optional;"]
    assert "columns as Basic" in written
    [log] = pack.parse(text, "p.toml").logs.values()
    assert [column.name for column in log.columns] == ["path", "size"]


def test_a_star_selects_the_columns_of_each_kind_of_agent() -> None:
    """Agents that know no batches leave out the columns that version 2 did not have."""
    text = '[logs.all]\n[[queries]]\nlog = "all"\nsql = "SELECT * FROM users"\n'
    basic, whole = fields(script(text), "Basic"), fields(script(text))
    assert len(basic) == 9
    assert whole[:9] == basic
    assert [column.name for column in pack.parse(text, "p.toml").logs["Collector::all"].columns] == [
        field.partition(":")[0] for field in basic
    ]


def test_a_statement_whose_columns_have_the_fields_names_is_not_wrapped() -> None:
    assert "$batch_stmt" not in script(SMALL)
    renamed = script(SMALL.replace('"path"', '"place"')).replace('"\n\t    + "', "")
    inner = "SELECT path, size FROM files_list('/var/spool/*')"
    wrapped = rf"WITH r(c1, c2) AS ({inner}) SELECT c1 AS \"place:text\", c2 AS \"size:count\" FROM r"
    assert f'local sql = "{inner}";' in renamed
    assert f'local batch_sql = "{wrapped}";' in renamed


@pytest.mark.parametrize("end", [";", " ; ;\n", "; -- all of them", " /* all */ ; /* of; them */"])
def test_what_follows_a_statement_is_not_wrapped_with_it(end: str) -> None:
    renamed = SMALL.replace('"path"', '"place"').replace("""'/var/spool/*')\"""", f"""'/var/spool/*'){end}\"""")
    renamed = renamed.replace('sql = "', "sql = '''").replace(f'{end}"', f"{end}'''")
    written = " ".join(script(renamed).replace('"\n\t    + "', "").split())
    assert r"""AS \"size:count\" FROM r""" in written
    assert re.search(r"FROM files_list\('/var/spool/\*'\)( /\* all \*/)?\) SELECT c1", written)


def test_a_table_that_only_agents_have_is_one_that_the_query_requires() -> None:
    text = """
    [logs.packages]
    fields = [
      { name = "name", type = "string" }, { name = "ips", type = "set[addr]" },
      { name = "size.kib", type = "double" }, { name = "size.port", type = "count" },
    ]
    [[queries]]
    log = "packages"
    sql = "SELECT name, ips, size FROM ext_inventory"
    """
    with pytest.raises(UsageError, match=r"queries\[0\].sql: no such table: ext_inventory .*requires_tables"):
        script(text)
    required = text + 'requires_tables = ["ext_inventory"]'
    assert fields(script(required)) == [
        "name: string &log &optional;",
        "ips: set[addr] &log &optional;",
        "size: ColumnsSize &log &optional;",
    ]
    written = script(required).replace('"\n\t    + "', "")
    assert (
        r"""WITH r(c1, c2, c3) AS (SELECT name, ips, size FROM ext_inventory) SELECT c1 AS \"name:text\",""" in written
    )
    assert r"""c2 AS \"ips:set[address]\", iif(c3 IS NULL, NULL, json_object('kib', c3 -> 'kib',""" in written
    with pytest.raises(UsageError, match="no such table: ext_inventory"):
        script(required.replace(', type = "count"', ""))


def test_an_agent_that_is_in_all_groups_runs_a_query_once() -> None:
    assert "ZeekAgent::query(query)," in script(SMALL + 'groups = ["linux", "All"]')
    assert script(SMALL + 'groups = ["linux", "linux"]') == script(SMALL + 'groups = ["linux"]')


def test_queries_for_groups_hosts_and_tables() -> None:
    more = """
    groups = ["linux", "Web-\\"1\\""]
    requires_tables = ["files_list"]
    if_missing_tables = ["x"]

    [[queries]]
    log = "open-files"
    sql = "SELECT path, size FROM files_list('/tmp/*')"
    hosts = ["HAbc"]
    schedule = 0.001
    subscription = "Events"
    """
    written = script(SMALL + more)
    assert 'add query$requires_tables["files_list"];' in written
    assert 'add query$if_missing_tables["x"];' in written
    assert 'ZeekAgent::query(query, ZeekAgent::Group, "linux"),' in written
    assert r'ZeekAgent::query(query, ZeekAgent::Group, "Web-\"1\""),' in written
    assert 'ZeekAgent::query(query_2, ZeekAgent::Host, "HAbc"),' in written
    assert "option query_interval = 30sec;" in written
    assert "option query_interval_2 = 0.05sec;" in written
    assert "option subscription_2 = ZeekAgent::Events;" in written
    assert "$schedule_=query_interval_2, $subscription=subscription_2" in " ".join(written.split())


def test_disabled_queries_are_not_installed() -> None:
    off = SMALL + "enabled = false\n"
    assert "const enabled = F &redef;" in script(off)
    assert "ZeekAgent::query(query)," in script(off)
    both = off + """[[queries]]\nlog = "open-files"\nsql = "SELECT path, size FROM files_list('/tmp/*')"\n"""
    assert "const enabled = T &redef;" in script(both)
    assert "/var/spool" not in script(both)


def test_queries_for_one_audience_are_not_installed_by_the_other() -> None:
    text = SMALL + 'only = "zeek"\n[logs.other]\n[[queries]]\nlog = "other"\nsql = "SELECT name FROM users"\n'
    text += 'only = "collector"\n'
    assert [log.path for log in pack.parse(text, "p.toml").logs.values()] == ["other"]
    assert "other" not in script(text)


def test_nothing_in_a_pack_ends_a_comment_or_a_string() -> None:
    text = SMALL.replace("[logs.open-files]", '[logs.open-files]\nsummary = "a\\nprint 1;"').replace(
        '"count" }', '"count", summary = "b\\r\\nprint 2;\\u2028print 3;\\u001b\\u0000" }'
    )
    text = text.replace("'/var/spool/*'", "'/\\\\\\\"; print 4; \\n'")
    written = script(text)
    for line in written.splitlines():
        assert not line.strip().startswith("print")
    assert r"files_list('/\\\"; print 4; \n')" in written
    assert all(line.expandtabs().isprintable() for line in written.splitlines())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SMALL.replace("size FROM", "sise FROM"), "queries[0].sql: no such column: sise"),
        (SMALL.replace("files_list", "file_list"), "queries[0].sql: no such table: file_list"),
        (SMALL.replace("SELECT path", "DELETE path"), "queries[0].sql: "),
        (
            SMALL.replace("size FROM", "uid, size FROM"),
            "its fields take 2 columns, but the query selects 3: path, uid, size",
        ),
        (SMALL.replace("path, size FROM", "path FROM"), "its fields take 2 columns, but the query selects 1: path"),
        (
            SMALL.replace('"count" }', '"int" }'),
            "queries[0]: logs.open-files: field size is of type int, but size is count",
        ),
        (SMALL.replace("size FROM", "1 + 1 FROM"), 'queries[0].sql: 1 + 1 has no type: select it AS "name:type"'),
        (SMALL.replace("size FROM", r"NULL AS \"size:enum\" FROM"), "Zeek has no type for enum: select it as text"),
        (SMALL.replace('"count" }', '"counts" }'), "logs.open-files: field size: unknown type 'counts'"),
        (SMALL.replace('"size"', '"hid"'), "field hid: every log already has a field of that name"),
        (
            SMALL.replace('"size"', '"port"').replace('"path"', '"port_"'),
            "field port_: two fields would have this name",
        ),
        (SMALL + "batch_sql = 'SELECT path, x FROM users'", "queries[0].batch_sql: no such column: path"),
        (SMALL + "batch_sql = 'SELECT name, gid FROM users UNION SELECT 1'", "queries[0].batch_sql: "),
        (
            SMALL.replace("[logs.open-files]", '[logs.open-files]\nevent = "ZeekAgent::x"'),
            "ZeekAgent::x is already used in Zeek",
        ),
        (
            SMALL.replace("[logs.open-files]", '[logs.open-files]\nevent = "Mine::event"'),
            "Mine::event is already used in Zeek",
        ),
        *(
            (
                SMALL.replace("[logs.open-files]", f'[logs.open-files]\nevent = "Mine::{name}"'),
                f"Mine::{name} is already used in Zeek",
            )
            for name in ("query", "sql", "batch_sql_2", "zeek_init")
        ),
        *(
            (SMALL.replace("open-files", name), f"our Zeek package has a module ZeekAgent_{module}: set event")
            for name, module in (("files", "Files"), ("SSH", "SSH"), ("process-events", "ProcessEvents"))
        ),
        (SMALL.replace("open-files", "policy"), "ZeekAgent_Policy::log_policy would be defined twice"),
        (SMALL.replace("/*')", "/*'); SELECT 1"), "queries[0].sql: only one statement at a time"),
        (SMALL + "schedule = inf", "Expected `float` <= 1000000000.0 (at queries[0].schedule)"),
        (SMALL + 'only = "collector"', "the pack has no log for Zeek"),
        (
            SMALL.replace("[logs.open-files]", '[logs.open-files]\nevent = "Mine::write_rows"'),
            "Mine::write_rows would be defined twice",
        ),
        (SMALL + SMALL.replace("open-files", "open_files"), "would be defined twice"),
        ("queries = []\n[logs.lonely]\nfields = []", "logs.lonely: no query writes to it"),
        (
            """[logs.x]\n[[queries]]\nlog = "x"\nsql = "SELECT columns FROM files_columns('/x', '$1:text')"\n""",
            "logs.x: columns is a record: declare its members as fields columns.member",
        ),
        (
            SMALL.replace('"count" }', '"count" }, { name = "uid" }, { name = "gid" }')
            + """batch_sql = "SELECT path, size, uid, gid FROM files_list('/x')"\n[[queries]]\nlog = "open-files"\n"""
            + """sql = "SELECT path, size, uid FROM files_list('/x')"\n"""
            + """batch_sql = "SELECT path, size, uid, gid FROM files_list('/x')"\n""",
            "queries[1].sql: selects 3 columns, another query of open-files selects 2",
        ),
        (
            """[logs.x]\nfields = [{ name = "c.a", type = "addr" }]\n[[queries]]\nlog = "x"\n"""
            """sql = "SELECT columns FROM files_columns('/etc/hosts', '$1:text')"\n""",
            "field c.a: a record's member is one of bool, count, double, int, string, not addr",
        ),
    ],
)
def test_a_pack_that_makes_no_script_is_one_clear_error(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        script(text)
    assert message in str(error.value)
    assert str(error.value).startswith("p.toml: ")
    assert "\n" not in str(error.value)


def test_the_command_writes_the_script_of_a_pack_or_of_the_default_one(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(SMALL)
    done = program(str(tmp_path / "p.toml"))
    assert (done.returncode, done.stdout, done.stderr) == (0, script(SMALL), "")
    default = program("--output", str(tmp_path / "default.zeek"))
    assert (default.returncode, default.stdout, default.stderr) == (0, "", "")
    assert (tmp_path / "default.zeek").read_text(encoding="utf-8") == zeek_script.script(*pack_file.load())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.toml",), "cannot read the query pack none.toml: No such file or directory"),
        (("bad.toml",), "bad.toml: queries[0].sql: no such column: sise"),
        (("good.toml", "--output", "none/out.zeek"), "cannot write none/out.zeek: No such file or directory"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.toml").write_text(SMALL)
    Path("bad.toml").write_text(SMALL.replace("size FROM", "sise FROM"))
    done = program(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.replace("\\", "/") == f"zeek-agent: {message}\n"
