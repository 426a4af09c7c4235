"""Functions and collations that osquery adds to SQL: its results, hostile arguments, and bounds on time and memory.

Expected results marked "documented" are those of osquery's documentation ("SQL introduction"); no osquery runs here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import statistics
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sql import Recorder, database
from workers import contained

from zeek_agent.config.sections import LimitSettings
from zeek_agent.database.database import Database
from zeek_agent.database.functions import FUNCTIONS, regex_split
from zeek_agent.database.osquery_functions import StandardDeviation, from_base64, sha256, to_base64
from zeek_agent.database.sandbox import Run, confine
from zeek_agent.database.sql_values import as_real
from zeek_agent.database.versions import COLLATIONS, compare_versions
from zeek_agent.errors import LimitError, SqlError
from zeek_agent.text import from_bytes

VERSIONS = ["1.9", "1.10", "1.2", "10.0", "1.2-1", "1.2~rc1"]
INVALID = from_bytes(b"/tmp/\xff\xfe")

DOCUMENTED = [
    ("regex_split('500', '[1-5]', 0)", ""),
    ("regex_split('1001', '[1-5]', 1)", "00"),
    ("inet_aton('1.0.1.5')", 16777477),
    ("version_compare('1.0', '1.0')", 0),
    ("version_compare('4:1.1.0', '4:1.1.0-3', 'ARCH')", 0),
    ("version_compare('50.4.1b', '50.4.1c')", -1),
    ("version_compare('1.0.0~rc2^2021', '1.0.0', 'RHEL')", -1),
    ("version_compare('1:1.2.13-2', '4.2.1', 'ARCH')", 1),
    ("to_base64('CPU0')", "Q1BVMA=="),
    ("from_base64(to_base64('CPU0'))", "CPU0"),
    ("from_base64('not base64!')", ""),
    ("conditional_to_base64('CPU0')", "CPU0"),
    ("conditional_to_base64('CPU0' || char(183))", "Q1BVMMK3"),
    ("round(cot(30), 12)", -0.156119952162),
    ("community_id_v1_strict('66.35.250.204', '128.232.110.120', 80, 34855, 6)", "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
    ("'1.0' = '1.0' COLLATE VERSION", 1),
    ("'50.4.1b' < '50.4.1c' COLLATE VERSION", 1),
    ("'20.10a' > '20.102' COLLATE VERSION", 1),
    ("'4:2' = '4:2-1' COLLATE VERSION_ARCH", 1),
    ("'2-2pre' < '2-2rc' COLLATE VERSION_ARCH", 1),
    ("'42.2-1' > '42.1-2' COLLATE VERSION_ARCH", 1),
    ("'1:2.0-10' = '1:2.0-10' COLLATE VERSION_DPKG", 1),
    ("'22.07.5-2ubuntu1.3' < '22.07.5-2ubuntu1.4' COLLATE VERSION_DPKG", 1),
    ("'2:8.2.3995-1ubuntu2.9' > '2:8.2.3995-1ubuntu2.3' COLLATE VERSION_DPKG", 1),
    ("'0.5.0~rc1^202' = '0.5.0~rc1^202' COLLATE VERSION_RHEL", 1),
    ("'1.1.0~BETA2' < '1.1.0~CR1' COLLATE VERSION_RHEL", 1),
    ("'1.0.0' > '1.0.0~rc2' COLLATE VERSION_RHEL", 1),
]

OWN = [
    ("regex_split('a--b-c', '-+', 2)", "c"),
    ("regex_split('a,b,', ',', 2)", None),
    ("regex_split('', ',', 0)", ""),
    ("regex_split('a', ',', -1)", None),
    ("regex_split('éa', 'z*', 1)", "é"),
    ("regex_split(1001, '0+', 1)", "1"),
    ("regex_split(NULL, ',', 0)", None),
    ("regex_split('a', NULL, 0)", None),
    ("regex_split('a', ',', 9223372036854775807)", None),
    ("inet_aton('255.255.255.255')", 0xFFFFFFFF),
    ("inet_aton('::1')", None),
    ("inet_aton('1.2.3')", None),
    ("inet_aton('01.2.3.4')", None),
    ("inet_aton(NULL)", None),
    ("inet_aton(x'312e302e312e35')", 16777477),
    ("version_compare('1.10', '1.9')", 1),
    ("version_compare('1.2', '1.2.1')", -1),
    ("version_compare('', '1')", -1),
    ("version_compare('1-0', '1.0')", 0),
    ("version_compare('1-0', '1.0', 'dpkg')", -1),
    ("version_compare('1.2~rc1', '1.2', 'rhel')", -1),
    ("version_compare('1.2^git', '1.2', 'rhel')", 1),
    ("version_compare(NULL, '1')", None),
    ("version_compare('1', '1', NULL)", None),
    ("to_base64('')", ""),
    ("to_base64(NULL)", None),
    ("to_base64(x'00ff')", "AP8="),
    ("to_base64(12)", "MTI="),
    ("from_base64('Q1BVMA')", "CPU0"),
    ("from_base64('Q1BV' || char(10) || 'MA==')", "CPU0"),
    ("from_base64('Q')", ""),
    ("from_base64('Q1BV!!!!')", ""),
    ("from_base64('Q1=VMA==')", ""),
    ("from_base64(NULL)", None),
    ("hex(from_base64('YQBi'))", "610062"),
    ("conditional_to_base64('a' || char(127))", "YX8="),
    ("conditional_to_base64('a' || char(10))", "YQo="),
    ("conditional_to_base64(x'ff')", "/w=="),
    ("conditional_to_base64('')", ""),
    ("md5('')", "d41d8cd98f00b204e9800998ecf8427e"),
    ("md5('abc')", "900150983cd24fb0d6963f7d28e17f72"),
    ("sha1('abc')", "a9993e364706816aba3e25717850c26c9cd0d89d"),
    ("sha256('abc')", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
    ("sha256(x'616263') = sha256('abc')", 1),
    ("sha1(5) = sha1('5')", 1),
    ("coalesce(md5(NULL), sha1(NULL), sha256(NULL))", None),
    ("md5(9223372036854775807) = md5('9223372036854775807')", 1),
    ("parent_directory('/usr/bin/sh')", "/usr/bin"),
    ("parent_directory('/sh')", ""),
    ("parent_directory('sh')", None),
    ("parent_directory(NULL)", None),
    ("cot(0)", math.inf),
    ("cot(NULL)", None),
    ("cot('x')", None),
    ("cot(1e999)", None),
]


@pytest.fixture
async def db() -> AsyncIterator[Database]:
    table = Recorder("packages", [("version", "text"), ("number", "real")], [(text, None) for text in VERSIONS])
    opened = database(table, limits=LimitSettings(time=30))
    yield opened
    await opened.aclose()


async def value(db: Database, expression: str) -> object:
    [(found,)] = (await db.query(f"SELECT {expression}")).rows
    return found


@pytest.mark.parametrize(("expression", "expected"), DOCUMENTED)
async def test_results_are_those_that_osquery_documents(db: Database, expression: str, expected: object) -> None:
    assert await value(db, expression) == expected


@pytest.mark.parametrize(("expression", "expected"), OWN)
async def test_other_arguments_have_results_too(db: Database, expression: str, expected: object) -> None:
    assert await value(db, expression) == expected


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("regex_split('a', '', 0)", "regex_split: the pattern is empty"),
        ("regex_split('a', '(', 0)", r"not a regular expression \(RE2\)"),
        ("regex_split('a', '(?=a)', 0)", r"not a regular expression \(RE2\)"),
        ("regex_split('a', ',', 'x')", "'x' is not a number"),
        ("version_compare(1.0, '1')", "a version is not a text"),
        ("version_compare('1', '1', 'deb')", "not one of ARCH, DPKG and RHEL"),
        ("parent_directory(5)", "the path is not a text"),
        ("community_id_v1_strict('x', '::1', 1, 2, 6)", "community_id_v1_strict: "),
        ("community_id_v1_strict(NULL, '::1', 1, 2, 6)", "community_id_v1_strict: "),
        ("community_id_v1_strict('::1', '::2', 1, 2, NULL)", "community_id_v1_strict: "),
        ("sha256(CAST(x'ff' AS TEXT))", "not valid UTF-8"),
        ("CAST(x'ff' AS TEXT) < 'a' COLLATE version", "not valid UTF-8"),
        ("md5()", "wrong number of arguments"),
        ("stdev(1) OVER ()", "may not be used as a window function"),
    ],
)
async def test_wrong_arguments_of_osquerys_functions_are_reported(db: Database, expression: str, message: str) -> None:
    with pytest.raises(SqlError, match=message):
        await value(db, expression)


@pytest.mark.parametrize("expression", ["carve('/etc/passwd')", "sleep(1)", "find_file_path_in_cmd('/bin/sh -c x')"])
async def test_functions_of_osquery_with_side_effects_do_not_exist(db: Database, expression: str) -> None:
    with pytest.raises(SqlError, match="no such function"):
        await value(db, expression)


def test_hashes_and_base64_are_of_the_bytes_on_the_host() -> None:
    assert sha256(INVALID) == hashlib.sha256(b"/tmp/\xff\xfe").hexdigest()
    assert to_base64(INVALID) == base64.b64encode(b"/tmp/\xff\xfe").decode()
    assert from_base64(to_base64(INVALID)) == INVALID


@given(st.binary())
def test_base64_decodes_what_it_encodes(raw: bytes) -> None:
    assert from_base64(to_base64(raw)) == from_bytes(raw)


# Versions


async def test_collations_order_rows_and_filter_them(db: Database) -> None:
    found = await db.query("SELECT version FROM packages ORDER BY version COLLATE version")
    assert [version for (version,) in found.rows] == ["1.2", "1.2-1", "1.2~rc1", "1.9", "1.10", "10.0"]
    found = await db.query("SELECT max(version COLLATE version) FROM packages WHERE version < '1.10' COLLATE version")
    assert found.rows == [("1.9",)]
    found = await db.query("SELECT count(*) FROM packages WHERE version = '1-9' COLLATE version")
    assert found.rows == [(1,)]


TEXTS = st.text("019a~-^.:é", max_size=8)


@given(TEXTS, TEXTS, st.sampled_from(sorted(COLLATIONS)))
def test_the_order_of_versions_does_not_depend_on_which_is_first(left: str, right: str, name: str) -> None:
    order = compare_versions(left, right, COLLATIONS[name])
    assert order in {-1, 0, 1}
    assert compare_versions(right, left, COLLATIONS[name]) == -order
    assert compare_versions(left, left, COLLATIONS[name]) == 0


@given(
    st.lists(st.integers(0, 10**12), min_size=1, max_size=4), st.lists(st.integers(0, 10**12), min_size=1, max_size=4)
)
def test_versions_of_numbers_compare_as_lists_of_numbers(left: list[int], right: list[int]) -> None:
    size = min(len(left), len(right))
    left, right = left[:size], right[:size]
    expected = (left > right) - (left < right)
    for name in ("version", "version_arch", "version_dpkg"):
        assert compare_versions(".".join(map(str, left)), ".".join(map(str, right)), COLLATIONS[name]) == expected


def test_the_last_number_of_an_rpm_version_compares_by_characters_as_in_osquery() -> None:
    assert compare_versions("1.9", "1.10", COLLATIONS["version_rhel"]) == 1
    assert compare_versions("1.9-1", "1.10-1", COLLATIONS["version_rhel"]) == -1


def test_sorting_by_a_collation_ends_with_the_statement() -> None:
    checks = 0

    def check() -> None:
        nonlocal checks
        checks += 1
        if checks == 10:
            raise LimitError("the statement has ended")

    connection = apsw.Connection(":memory:")
    confine(connection, LimitSettings(), lambda: 0.0, None, check)
    numbers = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 1000)"
    with pytest.raises(LimitError, match="has ended"):
        connection.execute(f"{numbers} SELECT x FROM c ORDER BY CAST(x AS TEXT) COLLATE version").fetchall()
    assert checks == 10
    connection.close()


# Aggregates


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.floats(-1e6, 1e6), min_size=2))
def test_stdev_is_that_of_the_sample(numbers: list[float]) -> None:
    deviation = StandardDeviation()
    for number in numbers:
        deviation.step(number)
    size = max(abs(float(number)) for number in numbers)
    found = deviation.final()
    assert found is not None
    assert math.isclose(found, statistics.stdev(map(float, numbers)), rel_tol=1e-6, abs_tol=1e-9 + size * 1e-9)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("(1), (2), (3), (4)", 1.2909944487358056),
        ("(1), (NULL), ('x'), (x'ff'), ('3')", math.sqrt(2)),
        ("(1)", None),
        ("(NULL)", None),
        ("(1e308), (-1e308)", None),
        ("(1e999), (1)", None),
        ("(9223372036854775807), (9223372036854775807)", 0.0),
    ],
)
async def test_stdev_ignores_anything_but_numbers(db: Database, values: str, expected: float | None) -> None:
    assert await value(db, f"stdev(column1) FROM (VALUES {values})") == expected


async def test_stdev_works_per_group(db: Database) -> None:
    values = "(VALUES ('a', 1), ('b', 5), ('a', 3), ('b', 5))"
    found = await db.query(f"SELECT column1, stdev(column2) FROM {values} GROUP BY 1 ORDER BY 1")
    assert found.rows == [("a", math.sqrt(2)), ("b", 0.0)]
    assert await value(db, "stdev(column1) FROM (VALUES (1)) WHERE 0") is None


def test_stdev_stores_no_values() -> None:
    deviation = StandardDeviation()
    deviation.step(0)
    tracemalloc.start()
    try:
        for number in range(50_000):
            deviation.step(number)
        assert tracemalloc.get_traced_memory()[0] < 10_000
    finally:
        tracemalloc.stop()
    assert deviation.final() == pytest.approx(statistics.stdev([0, *range(50_000)]))


# Bounds

BIG = "printf('%.*c', 4000000, '1')"


@pytest.mark.long(kept=4)
@pytest.mark.parametrize(
    "expression",
    [
        f"length(md5({BIG}) || sha1({BIG}) || sha256({BIG}))",
        "length(to_base64(printf('%.*c', 3000000, 'a')))",
        "length(from_base64(printf('%.*c', 4000000, 'V')))",
        "from_base64(printf('%.*c', 4000000, '='))",
        f"length(conditional_to_base64({BIG}))",
        f"inet_aton({BIG})",
        f"inet_aton(replace({BIG}, '1', '.'))",
        f"length(parent_directory({BIG} || '/'))",
        f"cot({BIG} || 'x')",
        f"cot('1.' || {BIG} || 'x')",
        f"stdev({BIG} || 'x')",
        f"version_compare({BIG} || 'a', {BIG} || 'b')",
        f"version_compare(replace({BIG}, '1', '.'), replace({BIG}, '1', '-'), 'RHEL')",
        f"{BIG} < {BIG} || '1' COLLATE version_arch",
        f"regex_split({BIG}, '(1|11)+$', 1)",
        f"regex_split({BIG}, '(1*)*b', 1)",
    ],
)
async def test_one_call_takes_time_in_proportion_to_its_arguments(db: Database, expression: str) -> None:
    """The statement fails if a call takes longer than `limits.time`."""
    assert len((await db.query(f"SELECT {expression}")).rows) == 1


async def test_a_result_longer_than_a_value_may_be_is_refused(db: Database) -> None:
    with pytest.raises(LimitError, match=r"limits\.value_bytes"):
        await value(db, f"to_base64({BIG})")


async def test_a_large_pattern_on_a_long_text_is_refused(db: Database) -> None:
    with pytest.raises(LimitError, match="takes too long on a text of 4000000 bytes"):
        await value(db, f"regex_split({BIG}, '(1?){{500}}(1?){{500}}b$', 0)")


def test_regex_split_checks_limits_between_matches() -> None:
    run = Run(LimitSettings(), clock=iter([0.0, 0.0, *range(1_000)]).__next__)
    with pytest.raises(LimitError, match=r"limits\.time"):
        regex_split(run.check, "1" * 100_000, "1(1*b)?", 50_000)


@pytest.mark.parametrize("text", ["1" * 100_000 + "x", "1." + "1" * 100_000 + "x", " " * 100_000, "nan", "inf", "1_0"])
def test_a_text_that_is_not_a_number_is_recognized(text: str) -> None:
    assert as_real(text) is None


# Worker processes and the program

PROBES = {
    "regex_split('a1b', '[0-9]', 1)": "b",
    "version_compare('1.10', '1.9')": 1,
    "inet_aton('1.0.1.5')": 16777477,
    "parent_directory('/a/b')": "/a",
    "to_base64('CPU0')": "Q1BVMA==",
    "from_base64('Q1BVMA==')": "CPU0",
    "conditional_to_base64('CPU0')": "CPU0",
    "md5('abc')": "900150983cd24fb0d6963f7d28e17f72",
    "sha1('abc')": "a9993e364706816aba3e25717850c26c9cd0d89d",
    "length(sha256('abc'))": 64,
    "cot(1) > 0": 1,
    "community_id_v1_strict('66.35.250.204', '128.232.110.120', 80, 34855, 6)": "1:LQU9qZlK+B5F3KDmev6m5PMibrg=",
    "'1.10' > '1.9' COLLATE version": 1,
    "(SELECT stdev(column1) FROM (VALUES (1), (3)))": math.sqrt(2),
}


def test_the_probes_are_of_all_functions() -> None:
    for function in FUNCTIONS:
        if function.osquery or function.aggregate:
            assert any(f"{function.name}(" in probe for probe in PROBES), function.name


async def test_the_functions_work_in_worker_processes(tmp_path: Path) -> None:
    async with contained(tmp_path) as db:
        found = await db.query(f"SELECT {', '.join(PROBES)}")
        assert found.rows == [tuple(PROBES.values())]


def test_the_functions_work_in_queries_of_the_program(tmp_path: Path) -> None:
    columns = ", ".join(f"{probe} AS c{number}" for number, probe in enumerate(PROBES))
    arguments = ["query", f"SELECT {columns}", "--format", "json", "--state-dir", str(tmp_path / "state")]
    done = subprocess.run([sys.executable, "-m", "zeek_agent", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    [row] = shown if isinstance(shown, list) else [shown]
    assert list(row.values()) == list(PROBES.values())
