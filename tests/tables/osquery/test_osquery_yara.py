"""YARA rules on files, in a worker process."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from io import FileIO
from pathlib import Path

import pytest
from workers import contained

from zeek_agent.config.sections import AccessSettings
from zeek_agent.containment.contained_database import ContainedDatabase
from zeek_agent.database.results import Result
from zeek_agent.errors import SqlError
from zeek_agent.host.files import yara_scan
from zeek_agent.host.files.gate import OpenedFile
from zeek_agent.host.files.yara_scan import YaraError, YaraRules

RULES = 'rule a : x y { strings: $s = "needle" condition: $s } rule b { condition: filesize > 100 }'
KEY = "-----BEGIN PRIVATE KEY-----\nMIIneedle\n-----END PRIVATE KEY-----\n"


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    (place / "found").write_text("a needle, and one more needle")
    (place / "long").write_bytes(b"\0" * 200)
    (place / "none").write_text("")
    return place


@pytest.fixture
async def database(tmp_path: Path, place: Path) -> AsyncIterator[ContainedDatabase]:
    access = AccessSettings(files_allow=(f"{place}/**", "/proc/cpuinfo"), paths_deny=(f"{place}/secret",))
    async with contained(tmp_path, access=access) as database:
        yield database


async def scan(database: ContainedDatabase, path: str, **given: str) -> Result:
    sql = f"SELECT path, matches, count, strings, tags, sigfile, sigrule FROM yara WHERE path LIKE '{path}'"
    for column, value in given.items():
        sql += f" AND {column} = '" + value.replace("'", "''") + "'"
    return await database.query(sql)


async def test_a_row_has_the_rules_that_match_and_where(database: ContainedDatabase, place: Path) -> None:
    result = await scan(database, f"{place}/%", sigrule=RULES)
    assert result.errors == ()
    assert sorted(result.rows) == [
        (f"{place}/found", "a", 1, "$s:2", "x,y", "", RULES),
        (f"{place}/long", "b", 1, "", "", "", RULES),
        (f"{place}/none", "", 0, "", "", "", RULES),
    ]


async def test_rules_can_be_in_a_file(database: ContainedDatabase, place: Path) -> None:
    (place / "rules.yar").write_text(RULES)
    ((path, matches, *_, sigfile, sigrule),) = (
        await scan(database, f"{place}/found", sigfile=f"{place}/rules.yar")
    ).rows
    assert (path, matches, sigfile, sigrule) == (f"{place}/found", "a", f"{place}/rules.yar", "")
    result = await scan(database, f"{place}/found", sigfile=f"{place}/missing")
    assert result.rows == []
    assert "there is no such file" in result.errors[0]


async def test_a_join_scans_the_files_of_another_table(database: ContainedDatabase, place: Path) -> None:
    sql = f"SELECT file.path, matches FROM file JOIN yara USING (path) WHERE file.path LIKE '{place}/%'"
    result = await database.query(f"{sql} AND sigrule = '{RULES}' AND count > 0 ORDER BY 1")
    assert result.rows == [(f"{place}/found", "a"), (f"{place}/long", "b")]


async def test_a_file_of_the_kernel_is_read(database: ContainedDatabase) -> None:
    rule = 'rule cpu { strings: $s = "processor" condition: $s }'
    assert [row[1] for row in (await scan(database, "/proc/cpuinfo", sigrule=rule)).rows] == ["cpu"]


async def test_only_contents_that_may_be_read_are_scanned(database: ContainedDatabase, place: Path) -> None:
    (place / "secret").write_text("needle")
    (place / "link").symlink_to("/etc/shadow")
    for path in (f"{place}/secret", f"{place}/link", "/etc/shadow", "/etc/gshadow"):
        result = await scan(database, path, sigrule=RULES)
        assert result.rows == []
    assert (await scan(database, f"{place}/secret", sigrule=RULES)).files.refused == 1
    result = await scan(database, f"{place}/found", sigfile="/etc/shadow")
    assert result.rows == []
    assert "contents are not readable" in result.errors[0]


async def test_a_file_that_begins_with_a_private_key_is_not_scanned(database: ContainedDatabase, place: Path) -> None:
    (place / "key").write_text(KEY)
    result = await scan(database, f"{place}/key", sigrule=RULES)
    assert result.rows == []
    assert result.files.skipped == 1


def test_rules_do_not_see_private_keys_in_files_that_are_public(place: Path) -> None:
    (place / "mixed").write_text("x\n" * 3_000 + KEY + "end")
    rules = YaraRules(
        'rule key { strings: $s = "needle" $t = "BEGIN" condition: any of them }'
        'rule end { strings: $e = "end" condition: $e }'
    )
    with FileIO(place / "mixed") as file:
        assert rules.scan(OpenedFile(file, masks_keys=True), 6_100, 1.0).rules == ["end"]
        assert rules.scan(OpenedFile(file, masks_keys=False), 6_100, 1.0).rules == ["key", "end"]


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("rule", "do not compile"),
        ('include "/etc/passwd"', "includes are disabled"),
        ("rule r { condition: " + "not " * 100_000 + "true }", "do not compile"),
        ("/" + "*" * (yara_scan.RULES_BYTES_MAX + 1), "more than"),
        ("rule \udcff { condition: true }", "do not compile"),
    ],
)
def test_bad_rules_are_an_error(rule: str, reason: str) -> None:
    with pytest.raises(YaraError, match=reason):
        YaraRules(rule)


async def test_a_rule_that_does_not_compile_costs_no_other(database: ContainedDatabase, place: Path) -> None:
    result = await database.query(
        f"SELECT matches FROM yara WHERE path = '{place}/found' AND sigrule IN ('rule', '{RULES}')"
    )
    assert result.rows == [("a",)]
    assert "the rules do not compile" in result.errors[0]


async def test_a_source_of_rules_is_required(database: ContainedDatabase, place: Path) -> None:
    with pytest.raises(SqlError, match="a value for sigrule or sigfile is required"):
        await scan(database, f"{place}/found")
    for column in ("sig_group", "sigurl"):
        result = await scan(database, f"{place}/found", **{column: "x"})
        assert result.rows == []
        assert f"{column} is not supported" in result.errors[0]


@pytest.mark.parametrize("failure", [MemoryError, SystemError])
def test_a_file_with_too_many_found_strings_is_a_file_that_cannot_be_scanned(
    place: Path, failure: type[Exception]
) -> None:
    class Full:
        def match(self, **_: object) -> None:
            raise failure

    rules = YaraRules("rule x { condition: true }")
    rules._rules = Full()
    (place / "many").write_bytes(b"x")
    with FileIO(place / "many") as file, pytest.raises(YaraError, match="occur too often"):
        rules.scan(OpenedFile(file, masks_keys=True), 1, 1.0)


def test_without_the_library_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yara", None)
    with pytest.raises(SqlError, match=r"pip install 'zeek-agent\[yara\]'"):
        YaraRules(RULES)
