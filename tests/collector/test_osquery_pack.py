"""osquery's packs and configurations: what is read from them, and what is wrong with wrong ones."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from zeek_agent.collector import osquery_pack, pack
from zeek_agent.collector.osquery_pack import OsqueryFile, OsqueryQuery, log_name
from zeek_agent.errors import UsageError

CONFIGURATION = """
// of a test
{
  "options": {"host_identifier": "hostname"},
  "schedule": {
    "clock": {"query": "SELECT unix_time FROM time;", "interval": 2, "removed": false, "description": "the time"},
  },
  "decorators": {
    "load": ["SELECT 'x' AS host_uuid"],
    "always": ["SELECT 1 AS one"],
    "interval": {"60": ["SELECT total_seconds FROM uptime"]},
  },
  "file_paths": {"etc": ["/etc/%%", "/opt/%/conf"]},
  "packs": {
    "inline": {
      "platform": "linux", "version": "1.5.0", "shard": "50", "discovery": ["SELECT 1 FROM uptime"],
      "queries": {
        "up": {"query": "SELECT * FROM uptime", "interval": "10", "snapshot": true, "platform": "ubuntu,darwin"},
      },
    },
    "named": "packs/one.conf",
    "*": "packs/t*.conf",
  },
}
"""


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    (tmp_path / "packs").mkdir()
    for name in ("one", "two", "three"):
        (tmp_path / "packs" / f"{name}.conf").write_text('{"queries": {"q": {"query": "SELECT 1 AS a"}}}')
    file = tmp_path / "osquery.conf"
    file.write_text(CONFIGURATION)
    return file


def read(tmp_path: Path, document: Any) -> OsqueryFile:
    file = tmp_path / "test.conf"
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return osquery_pack.read(file)


def pack_with(**query: Any) -> dict[str, Any]:
    return {"queries": {"q": {"query": "SELECT 1 AS a", "interval": 60, **query}}}


def test_a_configuration_has_a_schedule_packs_and_decorators(configuration: Path) -> None:
    found = osquery_pack.read(configuration)
    by_name = {query.full_name: query for query in found.queries}
    assert list(by_name) == ["clock", "pack_inline_up", "pack_named_q", "pack_three_q", "pack_two_q"]
    assert by_name["clock"] == OsqueryQuery(
        "schedule.clock", "", "clock", "SELECT unix_time FROM time;", 2.0, removed=False, summary="the time"
    )
    assert by_name["pack_inline_up"] == OsqueryQuery(
        place="packs.inline.queries.up",
        pack="inline",
        name="up",
        sql="SELECT * FROM uptime",
        interval=10.0,
        snapshot=True,
        platforms=frozenset({"ubuntu"}),
        version="1.5.0",
        shard=50,
        discovery=("SELECT 1 FROM uptime",),
    )
    assert by_name["pack_named_q"].place == f"{configuration.parent / 'packs' / 'one.conf'}: queries.q"
    assert by_name["pack_named_q"].interval == 3600
    assert [(one.sql, one.interval) for one in found.decorators] == [
        ("SELECT 'x' AS host_uuid", 0.0),
        ("SELECT 1 AS one", 60.0),
        ("SELECT total_seconds FROM uptime", 60.0),
    ]


def test_keys_without_effect_are_noticed(configuration: Path) -> None:
    assert osquery_pack.read(configuration).notices == [
        "file_paths has no effect here: the agent watches what sources.files_watch names, for file_events; add "
        "/etc/**, /opt/*/conf there",
        "options has no effect here",
    ]


def test_a_pack_is_named_by_its_file(tmp_path: Path) -> None:
    (query,) = read(tmp_path, pack_with()).queries
    assert (query.full_name, query.platforms, query.snapshot, query.removed) == (
        "pack_test_q",
        frozenset(),
        False,
        True,
    )


@pytest.mark.parametrize(
    ("of_pack", "own", "both"),
    [
        ("", "", set()),
        ("any", "linux", {"linux"}),
        ("linux", "", {"linux"}),
        ("posix", "linux", {"linux"}),
        ("linux", "posix", {"linux"}),
        ("linux", "ubuntu", {"ubuntu"}),
        ("posix", "darwin", {"darwin"}),
        ("linux", "darwin", {"linux and darwin"}),
        ("ubuntu", "centos", {"ubuntu and centos"}),
        ("", ["linux", "darwin"], {"linux", "darwin"}),
    ],
)
def test_a_query_has_the_platforms_that_its_pack_has_too(
    tmp_path: Path, of_pack: str, own: Any, both: set[str]
) -> None:
    (query,) = read(tmp_path, {"platform": of_pack, **pack_with(platform=own)}).queries
    assert query.platforms == both


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("[1]", "the file: expected an object, got a list"),
        ({"a": 1}, "neither a pack (queries) nor a configuration (schedule, packs) of osquery"),
        ('{"queries": {"q": 1, "q": 2}}', "not valid JSON: the key 'q' occurs twice in one object"),
        ('{"queries": ' + "[" * 100_000, "not valid JSON: nested too deeply"),
        ({"queries": []}, "queries: expected an object, got a list"),
        ({"queries": {"q": "SELECT 1"}}, "queries.q: expected an object, got 'SELECT 1'"),
        ({"queries": {"q": {}}}, "queries.q.query: expected a statement, got nothing"),
        ({"queries": {"q": {"query": 7}}}, "queries.q.query: expected a statement, got 7"),
        ({"queries": {" ": {"query": "SELECT 1"}}}, "queries. : a query needs a name"),
        (pack_with(interval=0), "queries.q.interval: expected seconds from 1 to 604800, got 0"),
        (pack_with(interval="1e9"), "queries.q.interval: expected seconds from 1 to 604800, got '1e9'"),
        (pack_with(interval=True), "queries.q.interval: expected seconds from 1 to 604800, got True"),
        (pack_with(snapshot="maybe"), "queries.q.snapshot: expected true or false, got 'maybe'"),
        (pack_with(removed=[]), "queries.q.removed: expected true or false, got a list"),
        (pack_with(denylist={}), "queries.q.denylist: expected true or false, got an object"),
        (pack_with(platform=3), "queries.q.platform: expected the names of platforms, got 3"),
        (pack_with(platform="linux, plan9"), "queries.q.platform: unknown platform 'plan9'"),
        (pack_with(version=5), "queries.q.version: expected a version of osquery in quotes, got 5"),
        (pack_with(shard=101), "queries.q.shard: expected a percentage of hosts, got 101"),
        ({"discovery": "SELECT 1", "queries": {}}, "discovery: expected a list of texts, got 'SELECT 1'"),
        ({"schedule": 3}, "schedule: expected an object, got 3"),
        ({"packs": {"a": 3}}, "packs.a: expected an object, got 3"),
        ({"packs": {"a": {"queries": {"q": {}}}}}, "packs.a.queries.q.query: expected a statement, got nothing"),
        ({"packs": {"a": "none.conf"}}, "packs.a: no such file: none.conf"),
        ({"packs": {"*": "n*.conf"}}, "packs.*: no such file: n*.conf"),
        ({"packs": {"a": "x\0y"}}, "packs.a: not a path: x\0y"),
        ({"decorators": {"often": []}}, "decorators.often: there are load, always and interval"),
        ({"decorators": {"interval": {"x": []}}}, "decorators.interval.x: expected seconds from 1 to 604800, got 'x'"),
        ({"decorators": {"load": ["SELECT 1"] * 101}}, "decorators: more than 100 queries"),
        ({"file_paths": {"etc": "/etc"}}, "file_paths.etc: expected a list of texts, got '/etc'"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_the_file_and_the_key(tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        read(tmp_path, document)
    assert str(raised.value) == f"{tmp_path / 'test.conf'}: {message}"


def test_a_configuration_names_no_files_outside_of_its_directory(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    outside = tmp_path / "outside.conf"
    outside.write_text(json.dumps(pack_with()))
    (here / "link.conf").symlink_to(outside)
    for named in ("../outside.conf", str(outside), "link.conf", "../o*.conf"):
        with pytest.raises(UsageError, match=r"packs.a: \S+ is neither in the directory of the configuration nor in"):
            read(here, {"packs": {"a": named}})


@pytest.mark.timeout(20)
def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    pipe, large, binary = tmp_path / "pipe.conf", tmp_path / "large.conf", tmp_path / "binary.conf"
    os.mkfifo(pipe)
    with large.open("wb") as file:
        file.truncate(osquery_pack.FILE_BYTES_MAX + 1)
    binary.write_bytes(b'{"queries": "\xff"}')
    for path, message in (
        (pipe, "not a regular file"),
        (tmp_path, "not a regular file|Is a directory"),
        (large, "larger than 10485760 bytes"),
        (binary, "not UTF-8: byte 13"),
        (tmp_path / "none.conf", "cannot be read: No such file or directory"),
    ):
        with pytest.raises(UsageError, match=message):
            osquery_pack.read(path)


def test_a_file_has_a_bounded_number_of_queries(tmp_path: Path) -> None:
    queries = {str(number): {"query": "SELECT 1"} for number in range(osquery_pack.QUERIES_MAX + 1)}
    with pytest.raises(UsageError, match=r"queries\.1000: more than 1000 queries"):
        read(tmp_path, {"queries": queries})


@pytest.mark.parametrize(
    ("name", "log"),
    [
        ("crontab", "pack_p_crontab"),
        ("a b/c.d", "pack_p_a_b_c_d"),
        ("größe", "pack_p_gr_e"),
        ("x" * 200, "pack_p_" + "x" * 84 + "_a045e948"),
    ],
)
def test_names_of_logs_have_zeeks_characters(name: str, log: str) -> None:
    assert log_name(OsqueryQuery("", "p", name, "", 1.0)) == log


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.conf", "", True),
        ("a.json", "", True),
        ("a.toml", "{", False),
        ("a", "// c\n{}", True),
        ("a", "# c\n[logs.x]", False),
    ],
)
def test_the_files_of_osquery_and_of_the_agent_are_recognized(
    tmp_path: Path, name: str, content: str, expected: bool
) -> None:
    file = tmp_path / name
    file.write_text(content)
    assert osquery_pack.is_osquery(file) is expected


def test_patterns_name_several_files_and_none_is_an_error(tmp_path: Path) -> None:
    for name in ("b.conf", "a.conf", "a.toml", "[x].conf"):
        (tmp_path / name).touch()
    names = [
        path.name
        for path in osquery_pack.expanded([f"{tmp_path}/*.conf", f"{tmp_path / 'a.conf'}", f"{tmp_path}/[x].conf"])
    ]
    assert names == ["[x].conf", "a.conf", "b.conf"]
    with pytest.raises(UsageError, match=r"no query pack matches \S+/c\*"):
        osquery_pack.expanded([f"{tmp_path}/c*"])


def test_a_file_of_unknown_kind_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the query pack"):
        pack.load_all([str(tmp_path / "none")])
