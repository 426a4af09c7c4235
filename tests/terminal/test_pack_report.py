"""`zeek-agent pack check`: which queries run here, why not, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from zeek_agent.collector.statement_check import Verdict, verdict
from zeek_agent.errors import AccessDeniedError, SqlError, UnknownTableError

QUERIES = {
    "runs": {"query": "SELECT hour FROM time"},
    "table": {"query": "SELECT 1 FROM nowhere"},
    "mac": {"query": "SELECT 1 FROM launchd", "platform": "darwin"},
}


def check(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zeek_agent", "pack", "check", *arguments, "--state-dir", str(tmp_path / "state")]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.long
def test_each_query_is_listed_with_its_reason_and_totals(tmp_path: Path) -> None:
    file = tmp_path / "p.conf"
    file.write_text(json.dumps({"queries": QUERIES, "options": {}}))
    done = check(tmp_path, str(file))
    assert done.returncode == 1
    assert done.stdout == (
        f"{file}\n"
        "  runs            pack_p_runs\n"
        "  no such table   pack_p_table: no such table: nowhere\n"
        "  other platform  pack_p_mac: for darwin\n"
        "\n"
        "3 queries: 1 run here, 1 no such table, 1 other platform\n"
    )
    assert f"zeek-agent: {file}: options has no effect here\n" in done.stderr
    document = json.loads(check(tmp_path, "--json", str(file)).stdout)
    assert (document["total"], document["counts"]) == (3, {"runs": 1, "no such table": 1, "other platform": 1})
    assert document["queries"][1] == {
        "file": str(file),
        "place": "queries.table",
        "name": "pack_p_table",
        "verdict": "no such table",
        "reason": "no such table: nowhere",
    }


def test_queries_for_other_platforms_are_no_failure_and_an_invalid_file_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text(json.dumps({"queries": {name: QUERIES[name] for name in ("runs", "mac")}}))
    (tmp_path / "b.toml").write_text(
        '[logs.own]\n[[queries]]\nlog = "own"\nsql = "SELECT pid, exe FROM processes"\n'
        '[[queries]]\nlog = "own"\nsql = "SELECT pid, parent FROM processes"\ndialect = "osquery"\n'
    )
    done = check(tmp_path, f"{tmp_path}/*.conf", f"{tmp_path}/b.toml")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "4 queries: 3 run here, 1 other platform")
    (tmp_path / "a.conf").write_text('{"queries": 1}')
    done = check(tmp_path, f"{tmp_path}/a.conf")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"zeek-agent: {tmp_path}/a.conf: queries: expected an object, got 1\n"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UnknownTableError("no such table: x", "x"), Verdict.NO_TABLE),
        (SqlError("no such column: p.x"), Verdict.NO_COLUMN),
        (SqlError("cannot join using column uid - column not present in both tables"), Verdict.NO_COLUMN),
        (SqlError("table file: a value for directory or path is required (=, IN, or LIKE a text)"), Verdict.NO_VALUE),
        (SqlError("no such function: f"), Verdict.NO_FUNCTION),
        (AccessDeniedError("function sqlite_version may not be used"), Verdict.NO_FUNCTION),
        (SqlError('near "x": syntax error'), Verdict.SYNTAX),
        (SqlError("incomplete input"), Verdict.SYNTAX),
        (AccessDeniedError("table x may not be queried (access.tables_deny)"), Verdict.DENIED),
        (SqlError("ambiguous column name: path"), Verdict.OTHER),
    ],
)
def test_reasons_have_classes(error: SqlError, expected: Verdict) -> None:
    assert verdict(error) is expected
