"""osquery's tables in the database: which there are, what is asked of osquery, and that cells come through exactly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from osqueryd import Bridged, FakeTable, Osqueryd, usual_tables
from sql import Recorder

from zeek_agent.config.sections import AccessSettings, LimitSettings
from zeek_agent.database.database import Lane
from zeek_agent.database.lookups import KEYS_PER_LOOKUP
from zeek_agent.errors import AccessDeniedError, LimitError, SqlError
from zeek_agent.osquery.imported import REQUIRED
from zeek_agent.schema import Row
from zeek_agent.table import Constraints

PROCESSES = [(n, f"/bin/{n % 150}", n % 3) for n in range(500)]
LIMIT = " LIMIT 200001"


def own_tables() -> list[Recorder]:
    return [
        Recorder("processes", [("pid", "count"), ("exe", "text"), ("uid", "int")], PROCESSES),
        Recorder("users", [("name", "text")], [("ours",)]),
    ]


@pytest.fixture
def osquery(tmp_path: Path) -> Iterator[Osqueryd]:
    with Osqueryd(tmp_path / "osquery.em", usual_tables()) as running:
        yield running


@pytest.fixture
async def bridged(osquery: Osqueryd) -> AsyncIterator[Bridged]:
    async with Bridged(osquery, own_tables()) as running:
        yield running


async def test_tables_are_there_under_osquerys_name_and_a_prefixed_one(bridged: Bridged) -> None:
    names = bridged.db.tables.keys()
    assert {"deb_packages", "osquery_deb_packages", "file", "osquery_file", "osquery_users", "osquery_info"} <= names
    assert not {"file_events", "osquery_file_events", "osquery_osquery_info"} & names
    columns = [(column.name, column.type) for column in bridged.db.tables["osquery_users"].columns]
    assert columns == [
        *(("uid", "int"), ("gid", "int"), ("username", "text")),
        *(("description", "text"), ("directory", "text"), ("shell", "text")),
    ]
    assert bridged.source()["active"] is True


async def test_a_built_in_table_keeps_its_name(bridged: Bridged) -> None:
    assert await bridged.rows("SELECT * FROM users") == [("ours",)]
    assert await bridged.rows("SELECT username FROM osquery_users WHERE uid = 0") == [("root",)]
    assert [table.name for table in bridged.db.tables.values() if table.alias and "users" in table.name] == []
    assert bridged.db.tables["osquery_deb_packages"].alias


async def test_columns_are_found_without_the_pragma_too(tmp_path: Path) -> None:
    class WithoutPragma(Osqueryd):
        def query(self, sql: str) -> Any:
            return super().query("SELECT no_such_column" if sql.startswith("PRAGMA") else sql)

    with WithoutPragma(tmp_path / "osquery.em", usual_tables()) as osquery:
        async with Bridged(osquery, []) as bridged:
            columns = [(column.name, column.type) for column in bridged.db.tables["odd"].columns]
    assert columns == [("n", "int"), ("u", "count"), ("d", "real"), ("t", "text"), ("b", "blob")]


async def test_types_and_null_are_restored(bridged: Bridged) -> None:
    assert await bridged.rows("SELECT * FROM odd") == [
        (1, 2, 0.5, "", b"\0\xff"),
        (None, None, None, None, None),
        (-(2**63), 2**64 - 1, 1e300, "it's\uef80 ü", b""),
    ]
    result = await bridged.db.query("SELECT n, u, d, t, b FROM odd")
    assert [str(column.type) for column in result.columns] == ["int", "count", "real", "text", "blob"]


async def test_the_text_of_null_is_read_from_osquerys_flag(tmp_path: Path) -> None:
    with Osqueryd(tmp_path / "osquery.em", usual_tables(), null="(null)") as osquery:
        async with Bridged(osquery, []) as bridged:
            assert await bridged.rows("SELECT * FROM odd WHERE t IS NULL") == [(None,) * 5]
            assert bridged.source()["lost_decode"] == 0


async def test_cells_that_are_not_of_their_columns_type_become_null_and_are_counted(tmp_path: Path) -> None:
    rows = [("x", str(2**70)), (12, -7), ("9" * 30, "x")]
    tables = {"strange": FakeTable({"n": "BIGINT", "u": "UNSIGNED BIGINT"}, rows)}
    with Osqueryd(tmp_path / "osquery.em", tables) as osquery:
        async with Bridged(osquery, []) as bridged:
            assert await bridged.rows("SELECT * FROM strange") == [(None, None), (12, 2**64 - 7), (None, None)]
            assert bridged.source()["lost_decode"] == 4
            assert "column u" in bridged.source()["last_error"]


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("SELECT * FROM deb_packages LIMIT 2", "SELECT {name}, {version}, `size`, `weight` FROM {t} LIMIT 2"),
        ("SELECT name FROM deb_packages LIMIT 3 OFFSET 4", "SELECT {name} FROM {t} LIMIT 7"),
        ("SELECT size FROM deb_packages ORDER BY size LIMIT 2", "SELECT `size` FROM {t}{limit}"),
        ("SELECT size FROM deb_packages WHERE length(name) > 9 LIMIT 2", "SELECT {name}, `size` FROM {t}{limit}"),
        ("SELECT count(*) FROM deb_packages", "SELECT 1 AS one FROM {t}{limit}"),
        ("SELECT size FROM deb_packages WHERE size = 5000", "SELECT `size` FROM {t} WHERE `size` = 5000{limit}"),
        (
            "SELECT size FROM deb_packages WHERE size = '5000' LIMIT 1",
            "SELECT `size` FROM {t} WHERE `size` = 5000 LIMIT 1",
        ),
        (
            "SELECT size FROM deb_packages WHERE name = 'package7' LIMIT 1",
            "SELECT {name}, `size` FROM {t} WHERE `name` COLLATE BINARY = 'package7' LIMIT 1",
        ),
        (
            "SELECT size FROM deb_packages WHERE name = lower('PACKAGE7') LIMIT 1",
            "SELECT {name}, `size` FROM {t} WHERE `name` COLLATE BINARY = 'package7' LIMIT 1",
        ),
        (
            "SELECT size FROM deb_packages WHERE size IN (1000, 2000, NULL)",
            "SELECT `size` FROM {t} WHERE `size` IN (1000, 2000){limit}",
        ),
        (
            "SELECT size FROM deb_packages WHERE size > 97000 AND size <= 1e5",
            "SELECT `size` FROM {t} WHERE `size` > 97000 AND `size` <= 100000.0{limit}",
        ),
        (
            "SELECT size FROM deb_packages WHERE name LIKE 'package9_'",
            "SELECT {name}, `size` FROM {t} WHERE `name` LIKE 'package9_'{limit}",
        ),
        (
            "SELECT size FROM deb_packages WHERE version >= '1.95'",
            "SELECT {version}, `size` FROM {t} WHERE `version` COLLATE BINARY >= '1.95'{limit}",
        ),
        (
            "SELECT size FROM deb_packages WHERE name = 'O''Hara' || char(10)",
            "SELECT {name}, `size` FROM {t} WHERE `name` = 'O''Hara\n'{limit}",
        ),
        (
            "SELECT size FROM deb_packages WHERE size > (SELECT 98000) LIMIT 1",
            "SELECT `size` FROM {t} WHERE `size` > 98000 LIMIT 1",
        ),
        ("SELECT size FROM deb_packages WHERE weight = 0.5", "SELECT `size`, `weight` FROM {t}{limit}"),
        ("SELECT size FROM deb_packages WHERE name = 'a' || char(0)", "SELECT {name}, `size` FROM {t}{limit}"),
        ("SELECT size FROM deb_packages WHERE name = 5", "SELECT {name}, `size` FROM {t}{limit}"),
        ("SELECT size FROM deb_packages WHERE name = 'X' COLLATE NOCASE", "SELECT {name}, `size` FROM {t}{limit}"),
    ],
)
async def test_only_wanted_columns_and_rows_are_queried(bridged: Bridged, here: str, there: str) -> None:
    names = {column: f"'=' || `{column}` AS `{column}`" for column in ("name", "version")}
    assert await bridged.asks(here) == [there.format(t="`deb_packages`", limit=LIMIT, **names)]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT name FROM {t} WHERE size > 5000 AND name LIKE 'package1%' ORDER BY size",
        "SELECT name FROM {t} WHERE version > '1.9' ORDER BY name",
        "SELECT name FROM {t} WHERE name IN ('package1', 'nothing', NULL) OR size = 9000 ORDER BY name",
        "SELECT name FROM {t} LIMIT 3 OFFSET 95",
        "SELECT a.name, b.size FROM {t} a JOIN {t} b ON a.size = b.size + 1000 WHERE a.size < 9000 ORDER BY 1",
        "SELECT a.name FROM {t} a WHERE NOT EXISTS (SELECT 1 FROM {t} b WHERE b.size = a.size + 3000) ORDER BY 1",
        "SELECT name, (SELECT max(b.name) FROM {t} b WHERE b.size = a.size * 2 LIMIT 1) FROM {t} a ORDER BY 1",
        "SELECT p.pid, {t}.name FROM processes p LEFT JOIN {t} ON {t}.size = p.pid * 1000 ORDER BY 1",
        "WITH RECURSIVE c(n) AS (SELECT 8000 UNION SELECT size / 2 FROM {t}, c WHERE size = n) SELECT * FROM c",
        "SELECT count(*), sum(weight), max(version) FROM {t}",
        "SELECT name FROM {t} WHERE weight = 7.5 AND version GLOB '1.*'",
        "SELECT name FROM {t} WHERE name IN (x'7061636b61676531', 'package2')",
        "SELECT name FROM {t} WHERE name = x'7061636b61676531' OR name = 'package3'",
        "SELECT name FROM {t} WHERE name IN (SELECT exe FROM processes WHERE pid = -1) OR size = 9000",
        "SELECT name FROM {t} WHERE version IN (SELECT pid FROM processes WHERE pid = -1)",
        "SELECT p.pid FROM processes p JOIN {t} ON size IN (SELECT pid FROM processes q WHERE q.pid = p.pid * 400) "
        "WHERE p.pid < 3 ORDER BY 1",
        "SELECT name FROM {t} WHERE size IN (SELECT 1 WHERE 0)",
        "SELECT name FROM {t} WHERE size IN (SELECT 1 WHERE 0) OR name = 'package7'",
        "SELECT p.pid FROM processes p LEFT JOIN {t} ON {t}.size IN (SELECT 1 WHERE 0) ORDER BY 1",
    ],
)
async def test_rows_equal_those_of_an_sqlite_table(osquery: Osqueryd, sql: str) -> None:
    columns = [("name", "text"), ("version", "text"), ("size", "int"), ("weight", "real")]
    rows = list(osquery.tables["deb_packages"].rows)  # type: ignore[arg-type]
    async with Bridged(osquery, [*own_tables(), Recorder("twin", columns, rows)]) as bridged:
        assert await bridged.rows(sql.format(t="deb_packages")) == await bridged.rows(sql.format(t="twin"))


async def test_a_join_is_one_question(bridged: Bridged) -> None:
    sql = "SELECT count(*) FROM processes p JOIN osquery_users u ON u.uid = p.uid"
    assert await bridged.rows(sql) == [(167,)]
    assert await bridged.asks(sql) == ["SELECT `uid` FROM `users` WHERE `uid` IN (0, 1, 2)" + LIMIT]
    sql = "SELECT count(*) FROM processes p LEFT JOIN deb_packages d ON d.size = p.pid * 1000"
    assert await bridged.rows(sql) == [(500,)]
    assert await bridged.asks(sql) == ["SELECT `size` FROM `deb_packages`" + LIMIT]


@pytest.mark.parametrize("lane", list(Lane))
async def test_a_table_of_ours_is_scanned_once_for_a_join(osquery: Osqueryd, lane: Lane) -> None:
    processes, _ = own_tables()
    async with Bridged(osquery, [processes]) as bridged:
        sql = "SELECT count(*) FROM processes p JOIN users u ON u.uid = p.uid JOIN deb_packages d ON d.size = u.gid"
        assert (await bridged.db.query(sql, lane=lane)).rows == [(167,)]
        assert len(processes.scans) == 1


async def test_constant_constraints_of_a_join_are_part_of_the_query(bridged: Bridged) -> None:
    sql = "SELECT 1 FROM processes p JOIN deb_packages d ON d.size = p.pid * 1000 AND d.name LIKE 'package1%'"
    (statement,) = await bridged.asks(sql)
    assert statement.endswith("WHERE `name` LIKE 'package1%'" + LIMIT)


async def test_required_columns_get_their_values_from_a_join_in_batches(bridged: Bridged, osquery: Osqueryd) -> None:
    sql = "SELECT p.pid, f.size FROM processes p JOIN file f ON f.path = p.exe ORDER BY p.pid"
    assert await bridged.rows(sql) == [(pid, len(exe)) for pid, exe, _ in PROCESSES]
    given = [len(scan["path"]) for scan in osquery.tables["file"].generated if scan]
    assert given == [KEYS_PER_LOOKUP, 50]


async def test_a_long_list_of_values_is_not_sent_as_one_statement(bridged: Bridged, osquery: Osqueryd) -> None:
    sql = "SELECT count(*) FROM deb_packages WHERE size IN (SELECT pid * 1000 FROM processes)"
    assert await bridged.rows(sql) == [(100,)]
    assert await bridged.asks(sql) == ["SELECT `size` FROM `deb_packages`" + LIMIT]
    assert await bridged.rows("SELECT count(*) FROM file WHERE path IN (SELECT exe FROM processes)") == [(150,)]
    assert [len(scan["path"]) for scan in osquery.tables["file"].generated if scan] == [KEYS_PER_LOOKUP, 50]


async def test_a_required_value_from_an_empty_list_gives_no_rows_and_no_question(
    bridged: Bridged, osquery: Osqueryd
) -> None:
    assert await bridged.rows("SELECT size FROM file WHERE path IN (SELECT exe FROM processes WHERE pid = -1)") == []
    assert osquery.asked("file") == []
    sql = "SELECT size FROM file WHERE path IN (SELECT exe FROM processes WHERE pid = 1)"
    assert await bridged.rows(sql) == [(6,)]


async def test_two_constraints_of_the_same_kind_on_a_column_are_both_in_the_query(bridged: Bridged) -> None:
    sql = "SELECT size FROM deb_packages WHERE size > 96000 AND size > 1000 LIMIT 1"
    assert await bridged.rows(sql) == [(97000,)]
    (statement,) = await bridged.asks(sql)
    assert "`size` > 96000 AND `size` > 1000" in statement


async def test_only_values_from_another_table_make_a_statement_run_again(osquery: Osqueryd) -> None:
    runs = Recorder("runs", [("name", "text")], [("package1",), ("package2",)])
    async with Bridged(osquery, [runs]) as bridged:

        async def scans(condition: str) -> int:
            runs.scans.clear()
            sql = f"SELECT count(*) FROM runs CROSS JOIN deb_packages d WHERE runs.name = 'package1' AND {condition}"
            assert await bridged.rows(sql) == [(1,)]
            return len(runs.scans)

        assert await scans("d.size IN (1000, 9999999)") == 1
        assert await scans("d.size > (SELECT 98000)") == 1
        assert await scans("d.name = runs.name") == 2


async def test_no_more_values_are_collected_than_a_query_may_have(osquery: Osqueryd) -> None:
    read = []

    def rows(wanted: Constraints) -> Iterator[Row]:
        for row in PROCESSES:
            read.append(row)
            yield row

    processes = Recorder("processes", [("pid", "count"), ("exe", "text"), ("uid", "int")], rows)
    sql = "SELECT count(*) FROM processes p CROSS JOIN deb_packages d ON d.size = p.pid * 1000 WHERE p.uid IN (0, 1, 2)"
    async with Bridged(osquery, [processes]) as bridged:
        assert await bridged.rows(sql) == [(100,)]
        assert len(processes.scans) == 2
        assert len(read) < 2 * len(PROCESSES)
        assert len(osquery.asked("deb_packages")) == 1


async def test_an_or_of_columns_is_answered(bridged: Bridged) -> None:
    sql = "SELECT name FROM deb_packages WHERE name = 'package1' OR size = 5000 ORDER BY 1"
    assert await bridged.rows(sql) == [("package1",), ("package5",)]
    sql = "SELECT path FROM file WHERE path = '/a' OR path IN ('/bc', '/a') OR directory = '/'"
    assert sorted(await bridged.rows(sql)) == [("/a",), ("/bc",)]
    sql = "SELECT p.pid, d.name FROM deb_packages d RIGHT JOIN processes p ON d.size = p.pid * 1000 WHERE p.pid < 2"
    assert await bridged.rows(sql) == [(0, "package0"), (1, "package1")]


async def test_the_error_names_a_missing_required_value(bridged: Bridged) -> None:
    with pytest.raises(SqlError, match="table file: a value for directory or path is required"):
        await bridged.rows("SELECT * FROM file")
    with pytest.raises(SqlError, match="required"):
        await bridged.rows("SELECT * FROM processes p JOIN file f ON f.path LIKE p.exe || '%'")
    assert await bridged.rows("SELECT size FROM file WHERE path = '/etc/' || lower('HOSTS')") == [(10,)]
    assert await bridged.rows("SELECT size FROM file WHERE path IN ('/a', '/bc') ORDER BY 1") == [(2,), (3,)]
    assert set(REQUIRED["file"]) == {"path", "directory"}


async def test_required_columns_of_other_tables_can_be_configured(osquery: Osqueryd) -> None:
    async with Bridged(osquery, [], required_columns=("deb_packages.name",)) as bridged:
        with pytest.raises(SqlError, match="a value for name is required"):
            await bridged.rows("SELECT * FROM deb_packages")


async def test_tables_of_a_user_are_queried_for_each_user(osquery: Osqueryd) -> None:
    history = FakeTable(
        {"uid": "BIGINT", "command": "TEXT"},
        lambda given: [(uid, f"ls {uid}") for uid in sorted(given.get("uid", {0}))],
    )
    osquery.tables["crashes"] = history
    async with Bridged(osquery, own_tables(), tables_exclude=()) as bridged:
        sql = "SELECT DISTINCT h.command FROM processes p JOIN crashes h ON h.uid = p.pid"
        assert len(await bridged.rows(sql)) == len(PROCESSES)
        assert await bridged.rows("SELECT command FROM crashes") == [("ls 0",)]


@pytest.mark.parametrize("table", ["shadow", "shell_history", "sudoers", "process_envs", "process_memory_map"])
async def test_secrets_that_the_path_gate_denies_are_not_taken_over(osquery: Osqueryd, table: str) -> None:
    osquery.tables[table] = FakeTable({"line": "TEXT"}, [("secret",)])
    async with Bridged(osquery, []) as bridged:
        for name in (table, f"osquery_{table}"):
            with pytest.raises(SqlError, match="no such table"):
                await bridged.rows(f"SELECT line FROM {name}")


async def test_command_lines_are_masked_and_not_searched_for_there(osquery: Osqueryd) -> None:
    osquery.tables["crontab"] = FakeTable({"command": "TEXT"}, [("run --password=secret",), (None,)])
    async with Bridged(osquery, []) as bridged:
        assert await bridged.rows("SELECT command FROM crontab") == [("run --password=***",), (None,)]
        (statement,) = await bridged.asks("SELECT 1 FROM crontab WHERE command LIKE '%secret%'")
        assert "secret" not in statement
        assert await bridged.rows("SELECT 1 FROM crontab WHERE command LIKE '%secret%'") == []


async def test_arguments_in_json_and_steps_of_images_are_masked(osquery: Osqueryd) -> None:
    lists = ['["mysql","-phunter2","a \\"b\\""]', "[]", "mysql -phunter2"]
    osquery.tables["bpf_process_list"] = FakeTable({"json_cmdline": "TEXT"}, [(line,) for line in lists])
    steps = [("/bin/sh -c TOKEN=hunter2 make",), ('CMD ["nginx"]',)]
    osquery.tables["docker_image_history"] = FakeTable({"created_by": "TEXT"}, steps)
    async with Bridged(osquery, []) as bridged:
        assert await bridged.rows("SELECT json_cmdline FROM bpf_process_list") == [
            ('["mysql","-p***","a \\"b\\""]',),
            ("[]",),
            ("mysql -p***",),
        ]
        masked = [("/bin/sh -c TOKEN=*** make",), ('CMD ["nginx"]',)]
        assert await bridged.rows("SELECT created_by FROM docker_image_history") == masked
        sql = "SELECT 1 FROM bpf_process_list WHERE json_cmdline LIKE '%hunter2%'"
        assert await bridged.rows(sql) == []
        assert not any("hunter2" in statement for statement in await bridged.asks(sql))


async def test_environments_of_containers_are_neither_returned_nor_searchable(osquery: Osqueryd) -> None:
    rows = [("web", "PASSWORD_FILE=x, KEY=a"), ("db", "")]
    osquery.tables["docker_containers"] = FakeTable({"name": "TEXT", "env_variables": "TEXT"}, rows)
    async with Bridged(osquery, []) as bridged:
        assert await bridged.rows("SELECT * FROM docker_containers") == [("web", "***"), ("db", "")]
        sql = "SELECT name FROM docker_containers WHERE env_variables LIKE '%KEY=a%'"
        assert await bridged.rows(sql) == []
        assert not any("KEY=a" in statement for statement in await bridged.asks(sql))


async def test_denied_tables_are_denied_under_each_name(osquery: Osqueryd) -> None:
    async with Bridged(osquery, [], access=AccessSettings(tables_deny=("deb_packages",))) as bridged:
        for name in ("deb_packages", "osquery_deb_packages"):
            with pytest.raises((SqlError, AccessDeniedError)):
                await bridged.rows(f"SELECT * FROM {name}")
        assert not osquery.asked("deb_packages")


async def test_excluded_tables_are_not_there(osquery: Osqueryd) -> None:
    osquery.tables["curl"] = FakeTable({"url": "TEXT"})
    async with Bridged(osquery, []) as bridged:
        assert "curl" not in bridged.db.tables


async def test_too_many_rows_are_an_error_and_are_not_transferred(osquery: Osqueryd) -> None:
    async with Bridged(osquery, [], rows=50) as bridged:
        with pytest.raises(LimitError, match=r"more than 50 rows \(osquery\.rows\)"):
            await bridged.rows("SELECT * FROM deb_packages")
        assert osquery.asked("deb_packages")[-1].endswith("LIMIT 51")
        assert len(await bridged.rows("SELECT * FROM deb_packages WHERE size < 50000")) == 50


async def test_statements_of_the_same_moment_share_an_answer(bridged: Bridged, osquery: Osqueryd) -> None:
    osquery.statements.clear()
    results = await asyncio.gather(*(bridged.rows("SELECT name FROM deb_packages") for _ in range(5)))
    assert all(len(rows) == 100 for rows in results)
    assert len(osquery.asked("deb_packages")) == 1


async def test_a_hundred_thousand_rows(tmp_path: Path) -> None:
    columns = {"n": "BIGINT", "name": "TEXT"} | {f"c{index}": "INTEGER" for index in range(9)}
    tables = {"big": FakeTable(columns, [(n, f"row {n}", *range(9)) for n in range(100_000)])}
    with Osqueryd(tmp_path / "osquery.em", tables) as osquery:
        async with Bridged(osquery, [], time=60.0, limits=LimitSettings(time=60.0)) as bridged:
            rows = await bridged.rows("SELECT * FROM big")
            assert len(rows) == 100_000
            assert rows[-1] == (99_999, "row 99999", *range(9))
            assert await bridged.rows("SELECT name FROM big WHERE n = 77777") == [("row 77777",)]
            assert bridged.source()["received"] == 100_001
