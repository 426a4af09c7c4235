"""osquery's packs as packs of the collector: logs, statements, what is left out."""

from __future__ import annotations

import json
import logging
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from zeek_agent.collector import osquery_queries, pack, pack_check
from zeek_agent.collector.osquery_queries import Translated
from zeek_agent.collector.pack_file import FieldEntry, QueryEntry
from zeek_agent.collector.statement_check import Verdict
from zeek_agent.collector.statements import Statements
from zeek_agent.database.sql_connection import Profile
from zeek_agent.errors import UsageError


def translate(tmp_path: Path, queries: dict[str, Any], **of_pack: Any) -> Translated:
    file = tmp_path / "p.conf"
    file.write_text(json.dumps({"queries": queries, **of_pack}))
    return osquery_queries.load(file)


def only(translated: Translated) -> QueryEntry:
    (query,) = translated.file.queries
    with closing(Statements()) as statements:
        statements.compile(query.sql, Profile.OSQUERY)
    return query


def query(sql: str, **keys: Any) -> dict[str, Any]:
    return {"q": {"query": sql, "interval": 60, **keys}}


def test_a_statement_whose_columns_have_types_is_sent_as_it_is(tmp_path: Path) -> None:
    translated = translate(tmp_path, query("SELECT hour, datetime FROM time; -- that is all"))
    assert only(translated) == QueryEntry(
        "SELECT hour, datetime FROM time", "pack_p_q", schedule=60.0, subscription="SnapshotPlusDifferences"
    )
    assert translated.file.dialect == "osquery"
    log = translated.file.logs["pack_p_q"]
    assert [(field.name, field.type, field.key) for field in log.fields or ()] == [
        ("hour", "int", "hour"),
        ("datetime", "string", "datetime"),
    ]
    assert (log.change, log.removed, log.result_name) == (True, True, "pack_p_q")
    assert log.event == "ZeekAgent_Osquery_pack_p_q::query_result"


def test_columns_get_types_and_names_of_fields(tmp_path: Path) -> None:
    sql = 'SELECT hour, hour AS host, count(*), hour + 1, hour, \'x\' AS "type", 1 AS "2nd col" FROM time -- comment'
    translated = translate(tmp_path, query(sql))
    fields = translated.file.logs["pack_p_q"].fields or ()
    assert [(field.name, field.type, field.key) for field in fields] == [
        ("hour", "int", "hour"),
        ("host_", "int", "host"),
        ("count_", "string", "count(*)"),
        ("hour_1", "string", "hour + 1"),
        ("hour_2", "int", "hour"),
        ("type_", "string", "type"),
        ("c_2nd_col", "string", "2nd col"),
    ]
    assert only(translated).sql == (
        "WITH r(c1, c2, c3, c4, c5, c6, c7) AS ("
        'SELECT hour, hour AS host, count(*), hour + 1, hour, \'x\' AS "type", 1 AS "2nd col" FROM time -- comment\n) '
        'SELECT c1 AS "hour:int", c2 AS "host_:int", CAST(c3 AS TEXT) AS "count_:text", '
        'CAST(c4 AS TEXT) AS "hour_1:text", '
        'c5 AS "hour_2:int", CAST(c6 AS TEXT) AS "type_:text", CAST(c7 AS TEXT) AS "c_2nd_col:text" FROM r'
    )


@pytest.mark.parametrize(
    ("sql", "keys", "subscription", "change"),
    [
        ("SELECT hour FROM time", {"snapshot": True}, "Snapshots", False),
        ("SELECT hour FROM time", {}, "SnapshotPlusDifferences", True),
        ("SELECT pid FROM process_events", {}, "Events", False),
        ("SELECT pid FROM process_events", {"snapshot": True}, "Events", False),
        ("SELECT count(*) FROM process_events JOIN time", {}, "Events", False),
    ],
)
def test_subscriptions(tmp_path: Path, sql: str, keys: dict[str, Any], subscription: str, change: bool) -> None:
    translated = translate(tmp_path, query(sql, **keys))
    assert only(translated).subscription == subscription
    assert translated.file.logs["pack_p_q"].change is change


@pytest.mark.parametrize(
    ("platform", "groups"), [("", ("all",)), ("any", ("all",)), ("linux", ("linux",)), ("posix", ("linux", "darwin"))]
)
def test_platforms_are_groups(tmp_path: Path, platform: str, groups: tuple[str, ...]) -> None:
    assert only(translate(tmp_path, query("SELECT hour FROM time", platform=platform))).groups == groups


def test_discovery_is_a_condition(tmp_path: Path) -> None:
    of_pack = ["SELECT 1 FROM uptime WHERE days > 3;", "SELECT 1 FROM time -- x"]
    translated = translate(tmp_path, query("SELECT hour FROM time"), discovery=of_pack)
    assert only(translated).sql == (
        'WITH r(c1) AS (SELECT hour FROM time) SELECT c1 AS "hour:int" FROM r '
        "WHERE EXISTS (SELECT 1 FROM uptime WHERE days > 3) AND EXISTS (SELECT 1 FROM time -- x\n)"
    )


def test_what_does_not_run_is_left_out_with_its_reason(tmp_path: Path) -> None:
    queries = {
        "good": {"query": "SELECT hour FROM time", "interval": 60},
        "table": {"query": "SELECT 1 FROM nowhere", "interval": 60},
        "column": {"query": "SELECT missing FROM time", "interval": 60},
        "syntax": {"query": "SELEC hour FROM time", "interval": 60},
        "function": {"query": "SELECT no_function(1)", "interval": 60},
        "two": {"query": "SELECT 1; SELECT 2", "interval": 60},
        "write": {"query": "CREATE TABLE x(a)", "interval": 60},
        "mac": {"query": "SELECT 1", "interval": 60, "platform": "darwin"},
        "later": {"query": "SELECT 1", "interval": 60, "version": "99.0"},
    }
    translated = translate(tmp_path, queries)
    assert [entry.log for entry in translated.file.queries] == ["pack_p_good"]
    assert {one.place.removeprefix("queries."): one.verdict for one in translated.left_out} == {
        "table": Verdict.NO_TABLE,
        "column": Verdict.NO_COLUMN,
        "syntax": Verdict.SYNTAX,
        "function": Verdict.NO_FUNCTION,
        "two": Verdict.SYNTAX,
        "write": Verdict.DENIED,
        "mac": Verdict.PLATFORM,
        "later": Verdict.PLATFORM,
    }


def test_a_discovery_that_does_not_compile_leaves_the_pack_out(tmp_path: Path) -> None:
    translated = translate(tmp_path, query("SELECT hour FROM time"), discovery=["SELECT 1 FROM nowhere"])
    assert (translated.file.queries, [str(one) for one in translated.left_out]) == (
        (),
        ["queries.q: discovery SELECT 1 FROM nowhere: no such table: nowhere"],
    )


def test_two_queries_with_one_log_are_an_error_that_names_both(tmp_path: Path) -> None:
    queries = {"a b": {"query": "SELECT hour FROM time"}, "a/b": {"query": "SELECT hour FROM time"}}
    with pytest.raises(UsageError, match=r"p\.conf: queries\.a/b and queries\.a b have the same log, pack_p_a_b"):
        translate(tmp_path, queries)
    with pytest.raises(UsageError, match="have the same log, pack_p_a_b"):
        translate(tmp_path, {"a-b": queries["a b"], "a_b": queries["a b"]})
    queries["a/b"]["platform"] = "darwin"
    assert only(translate(tmp_path, queries)).log == "pack_p_a_b"


def test_the_collector_loads_several_packs_and_adds_what_decorators_say(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    (tmp_path / "a.conf").write_text(
        json.dumps(
            {
                "schedule": {**query("SELECT hour FROM time"), "bad": {"query": "SELECT 1 FROM nowhere"}},
                "decorators": {"load": ["SELECT 'x' AS site"], "interval": {"60": ["SELECT days AS up FROM uptime"]}},
            }
        )
    )
    (tmp_path / "b.toml").write_text(
        'dialect = "osquery"\n[logs.own]\n[[queries]]\nlog = "own"\nsql = "SELECT pid, path FROM process_events"\n'
        'subscription = "Events"\n[[queries]]\nlog = "own"\nsql = "SELECT pid, exe FROM processes"\ndialect = "agent"\n'
    )
    loaded = pack.load_all([f"{tmp_path}/*.conf", f"{tmp_path / 'b.toml'}"])
    assert [log.path for log in loaded.logs.values()] == ["q", "own"]
    assert [one.query.dialect for one in loaded.queries] == ["osquery", "osquery", None]
    assert [(one.event, one.names, one.query.schedule) for one in loaded.decorators] == [
        ("Collector::decorations_0", ("site",), None),
        ("Collector::decorations_1", ("up",), 60.0),
    ]
    for log in loaded.logs.values():
        assert [field.name for field in log.fields][-2:] == ["decoration_site", "decoration_up"]
    assert [record.getMessage() for record in caplog.records] == [
        f"query pack {tmp_path / 'a.conf'}: left out: schedule.bad: no such table: nowhere"
    ]


def test_two_packs_with_one_log_are_an_error(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.conf").write_text(json.dumps({"schedule": query("SELECT hour FROM time")}))
    with pytest.raises(UsageError) as raised:
        pack.load_all([f"{tmp_path}/*.conf"])
    assert str(raised.value) == f"{tmp_path / 'b.conf'}: {tmp_path / 'a.conf'} has a log q, too"
    problems = list(pack_check.all_problems([f"{tmp_path / 'a.conf'}", f"{tmp_path / 'b.conf'}"]))
    assert [problem.text for problem in problems] == [str(raised.value)]


@pytest.mark.parametrize(
    ("columns", "decorator", "field"),
    [("hour AS decoration_x", "1 AS x", "decoration_x"), ("hour", '1 AS "a b", 2 AS "a-b"', "decoration_a_b")],
)
def test_a_decorator_with_the_name_of_another_field_is_an_error(
    tmp_path: Path, columns: str, decorator: str, field: str
) -> None:
    document = {"schedule": query(f"SELECT {columns} FROM time"), "decorators": {"load": [f"SELECT {decorator}"]}}
    (tmp_path / "a.conf").write_text(json.dumps(document))
    with pytest.raises(UsageError, match=f"log q: decorators add a field {field}, which there is already"):
        pack.load_all([f"{tmp_path / 'a.conf'}"])


def test_names_of_decorations_are_names_of_fields(tmp_path: Path) -> None:
    document = {"schedule": query("SELECT hour FROM time"), "decorators": {"load": ['SELECT 1 AS "a\tb:c"']}}
    (tmp_path / "a.conf").write_text(json.dumps(document))
    (log,) = pack.load_all([f"{tmp_path / 'a.conf'}"]).logs.values()
    assert (log.fields[-1].name, log.results.decorations) == ("decoration_a_b_c", ("a\tb:c",))


def test_a_pattern_without_a_match_is_one_problem(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.conf").write_text(json.dumps({"schedule": query("SELECT 1 FROM nowhere")}))
    names = [f"{tmp_path / 'a.conf'}", f"{tmp_path / 'none*'}", "default"]
    assert [problem.text for problem in pack_check.all_problems(names)] == [
        f"{tmp_path / 'a.conf'}: left out: schedule.q: no such table: nowhere",
        f"no query pack matches {tmp_path / 'none*'}",
    ]
    assert caplog.records == []


def test_the_default_pack_can_be_one_of_several(tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text(json.dumps({"schedule": query("SELECT hour FROM time")}))
    loaded = pack.load_all(["default", f"{tmp_path / 'a.conf'}"])
    assert len(loaded.logs) == len(pack.load().logs) + 1


def test_all_problems_of_an_osquery_pack_are_listed(tmp_path: Path) -> None:
    file = tmp_path / "p.conf"
    file.write_text(json.dumps({"schedule": query("SELECT 1 FROM nowhere"), "options": {}}))
    assert [(problem.text, problem.is_warning) for problem in pack_check.problems(file)] == [
        (f"{file}: options has no effect here", True),
        (f"{file}: left out: schedule.q: no such table: nowhere", True),
    ]
    file.write_text('{"schedule": 3}')
    assert [(problem.text, problem.is_warning) for problem in pack_check.problems(file)] == [
        (f"{file}: schedule: expected an object, got 3", False)
    ]


def test_a_shard_is_that_part_of_all_agents(tmp_path: Path) -> None:
    entry = only(translate(tmp_path, query("SELECT hour FROM time", shard=30)))
    assert entry.shard == 30
    (loaded,) = pack.load_all([f"{tmp_path / 'p.conf'}"]).queries
    share = sum(loaded.is_for(f"H{number}") for number in range(2_000)) / 2_000
    assert 0.27 < share < 0.33


def test_a_distribution_is_a_condition_on_os_version(tmp_path: Path) -> None:
    sql = only(translate(tmp_path, query("SELECT hour FROM time", platform="ubuntu,rhel"))).sql
    assert sql.endswith(
        "FROM r WHERE EXISTS (SELECT 1 FROM (SELECT ' ' || ifnull(platform, '') || ' ' || ifnull(platform_like, '') "
        "|| ' ' AS of FROM os_version) WHERE of LIKE '% rhel %' OR of LIKE '% ubuntu %')"
    )


def test_fields_of_a_pack_may_be_declared(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(
        '[logs.own]\nresult_name = "mine"\nremoved = false\nfields = [{ name = "h", type = "int", key = "hour" }]\n'
        '[[queries]]\nlog = "own"\nsql = "SELECT hour FROM time"\ndialect = "osquery"\nshard = 5\n'
        '[[decorators]]\nsql = "SELECT \'x\' AS \\"site:text\\""\nnames = ["site"]\n'
    )
    loaded = pack.load_all([str(file)])
    (log,) = loaded.logs.values()
    assert log.columns == (FieldEntry("h", "int", key="hour"),)
    assert (log.results.name, log.results.columns, log.results.decorations) == ("mine", ("hour",), ("site",))
    assert (log.removed, loaded.queries[0].shard) == (False, 5)
    assert (loaded.decorators[0].query.dialect, loaded.decorators[0].query.runs_once) == (None, True)
