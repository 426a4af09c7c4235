"""The shell's parts that need no terminal: where statements end, what completes, what commands say."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from private_files import assert_private

from zeek_agent.control import messages
from zeek_agent.control.messages import Columns, Declarations, Facts, Frame, Pause, Request, Rows
from zeek_agent.errors import SqlError, UnknownTableError, UsageError
from zeek_agent.schema import Column
from zeek_agent.table import Table
from zeek_agent.table_declarations import declare
from zeek_agent.terminal.console import Mode, Printer
from zeek_agent.terminal.shell import Shell, could_end, find_table, split_schedule, split_statements, take_statements

TABLES = [
    Table(
        "users",
        "accounts",
        description="Accounts.",
        columns=[Column("name", "text", "login"), Column("uid", "count", "number")],
    ),
    Table("processes", "what runs", description="Processes.", columns=[Column("pid", "count", "number")]),
    Table("osquery_pids", "pids", description="Pids.", columns=[Column("pid", "count", "number")], alias=True),
]

OSQUERY_PROCESSES = Table(
    "osquery_processes",
    "processes of osquery",
    description="Processes.",
    columns=[Column("parent", "int", "number")],
    osquery_name="processes",
)


ERRORS = {
    "bad": "no such thing\x1b[2J",
    "SELECT u.nme FROM users u": "no such column: u.nme",
    "SELECT coutn(*) FROM users": "no such function: coutn",
    "SELEC 1": 'near "SELEC": syntax error',
    "show tables": 'near "show": syntax error',
}


class Answers:
    """A session that says what it was asked."""

    place = "this test"

    def __init__(self, notice: str | None = None) -> None:
        self.notice = notice
        self.tables = TABLES
        self.asked: list[Request] = []

    def responses(self, request: Request) -> Generator[Frame, None, None]:
        self.asked.append(request)
        match request:
            case messages.TablesRequest():
                yield Declarations(declare(self.tables))
            case messages.StatusRequest():
                yield Facts({"running": True, "uptime": 1.26, "store": {"users_events": 3}, "store_notice": None})
            case messages.QueryRequest(sql=sql) if sql in ERRORS:
                raise SqlError(ERRORS[sql])
            case messages.QueryRequest(sql="SELECT * FROM usres") | messages.SubscribeRequest(sql="usres"):
                raise UnknownTableError("no such table: usres")
            case messages.QueryRequest(sql="SELECT * FROM qqqqq"):
                raise UnknownTableError("no such table: qqqqq")
            case messages.QueryRequest(sql=sql):
                yield Columns([("sql", "text")])
                yield Rows([(sql,)])
            case messages.SubscribeRequest(sql=sql):
                yield Columns([("sql", "text")])
                yield Rows([(sql,)], [None])
                yield Pause()
                yield Rows([(sql,), (sql,)], ["Delete", "Add"])
                yield Pause()

    def close(self) -> None:
        pass


@pytest.fixture
def answers() -> Answers:
    return Answers()


def run(answers: Answers, *lines: str, mode: Mode = Mode.CSV) -> tuple[str, str]:
    out, errors = io.StringIO(), io.StringIO()
    shell = Shell(answers, Printer(out, mode), errors)
    shell.run_script(lines)
    return out.getvalue(), errors.getvalue()


def test_a_second_name_of_a_table_is_described_but_not_listed(answers: Answers) -> None:
    out, errors = run(answers, ".tables", ".schema osquery_pids")
    assert [line.split()[0] for line in out.splitlines()[:3]] == ["processes", "users", "osquery_pids:"]
    assert errors == ""


def test_the_dialect_is_that_of_all_statements_until_it_is_set_again(answers: Answers) -> None:
    out, errors = run(
        answers,
        ".dialect",
        ".dialect osquery",
        ".dialect",
        "SELECT 1;",
        ".diffs 1 SELECT 2",
        ".dialect agent",
        "SELECT 3",
    )
    asked = [request for request in answers.asked if not isinstance(request, messages.TablesRequest)]
    assert asked == [
        messages.QueryRequest("SELECT 1", "osquery"),
        messages.SubscribeRequest("SELECT 2", "Differences", 1.0, "osquery"),
        messages.QueryRequest("SELECT 3", "full"),
    ]
    assert (out.splitlines()[:2], errors) == (["agent", "osquery"], "")


def test_tables_have_osquerys_names_in_its_dialect(answers: Answers) -> None:
    answers.tables = [*TABLES, OSQUERY_PROCESSES]
    out, _ = run(answers, ".dialect osquery", ".schema processes", ".dialect agent", ".schema processes")
    assert re.findall(r"^processes: (.*)", out, re.MULTILINE) == ["processes of osquery", "what runs"]


def test_an_unknown_dialect_is_refused(answers: Answers) -> None:
    assert run(answers, ".dialect mysql") == (
        "",
        "error: .dialect takes osquery, or agent for the agent's own tables\n",
    )


def test_the_status_is_written_for_reading(answers: Answers) -> None:
    out, _ = run(answers, ".status")
    assert out.splitlines() == [
        "running       True",
        "uptime        1.3",
        "store         users_events 3",
        "store_notice  -",
    ]


def test_a_script_runs_statements_over_several_lines_and_the_last_without_semicolon(answers: Answers) -> None:
    run(answers, "SELECT 1,", "  2;", "", "SELECT ';' ; SELECT 3", "FROM x")
    assert [request.sql for request in answers.asked if isinstance(request, messages.QueryRequest)] == [
        "SELECT 1,\n  2",
        "SELECT ';'",
        "SELECT 3\nFROM x",
    ]


def test_statements_run_at_their_semicolon_not_at_the_end_of_the_line(answers: Answers) -> None:
    shell = Shell(answers, Printer(io.StringIO(), Mode.CSV), io.StringIO())
    asked = []
    for line in ("SELECT 1; SELECT", "2", "", "FROM x;", "SELECT ';' /* ; */", "; -- done", "SELECT 3;\nSELECT 4\n;"):
        shell.feed(line)
        asked.append([one.sql for one in answers.asked if isinstance(one, messages.QueryRequest)])
        answers.asked.clear()
    assert asked == [
        ["SELECT 1"],
        [],
        [],
        ["SELECT\n2\n\nFROM x"],
        [],
        ["SELECT ';' /* ; */"],
        ["-- done\nSELECT 3", "SELECT 4"],
    ]


@pytest.mark.parametrize("word", ["help", "HELP;", "?", ".help"])
def test_help_lists_the_commands(answers: Answers, word: str) -> None:
    out, errors = run(answers, word)
    assert ".diffs [SECS] SQL" in out
    assert "quit" in out
    assert (errors, answers.asked) == ("", [])


@pytest.mark.parametrize("word", ["quit", "exit", "exit;", "QUIT", ".quit"])
def test_a_word_ends_the_shell(answers: Answers, word: str) -> None:
    assert run(answers, word, "SELECT 1;") == ("", "")
    assert answers.asked == []


def test_these_words_are_sql_within_a_statement(answers: Answers) -> None:
    run(answers, "SELECT", "exit", "FROM x;")
    assert [one.sql for one in answers.asked if isinstance(one, messages.QueryRequest)] == ["SELECT\nexit\nFROM x"]


def test_unknown_names_are_answered_with_the_nearest(answers: Answers) -> None:
    script = ["SELECT * FROM usres;", ".diffs usres", "SELECT u.nme FROM users u;", "SELECT * FROM qqqqq;", ".tabels"]
    _, errors = run(answers, *script)
    assert errors.splitlines() == [
        "error: no such table: usres; did you mean users?",
        "error: no such table: usres; did you mean users?",
        "error: no such column: u.nme; did you mean u.name?",
        "error: no such table: qqqqq; `.tables` or `zeek-agent tables` lists all",
        "error: no command .tabels; did you mean .tables?",
    ]


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("SELECT coutn(*) FROM users", "no such function: coutn; did you mean count?"),
        ("SELEC 1", 'near "SELEC": syntax error; did you mean SELECT?'),
        ("show tables", 'near "show": syntax error; `.tables` or `zeek-agent tables` lists the tables'),
    ],
)
def test_unknown_functions_and_keywords_are_answered_with_the_nearest(
    answers: Answers, statement: str, error: str
) -> None:
    _, errors = run(answers, f"{statement};")
    assert errors == f"error: {error}\n"


@pytest.mark.parametrize("line", [".schema users;", ".schema\tusers", ".schema   users ; "])
def test_commands_can_end_with_a_semicolon_and_be_separated_by_any_blank(answers: Answers, line: str) -> None:
    out, errors = run(answers, line)
    assert (out.partition(":")[0], errors) == ("users", "")


@pytest.mark.parametrize("line", [".quit;", ".exit ;", "quit;"])
def test_commands_without_arguments_can_end_with_a_semicolon(answers: Answers, line: str) -> None:
    assert run(answers, line, ".status") == ("", "")


def test_bytes_that_are_not_utf8_are_those_of_the_host(answers: Answers) -> None:
    run(answers, "SELECT '\udcff';", ".diffs 1 SELECT '\udcff'")
    assert [one.sql for one in answers.asked if not isinstance(one, messages.TablesRequest)] == ["SELECT '\uefff'"] * 2


def test_a_pager_that_cannot_be_used_is_an_error(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGER", "no-such-pager")
    out, errors = run(answers, ".pager on", ".pager")
    assert out == "pager: off\n"
    assert errors == "error: no pager: PAGER is 'no-such-pager', which is not the command line of an installed pager\n"


def test_a_script_gets_a_note_that_no_agent_is_running() -> None:
    out, errors = run(Answers("no agent is running: \x1b"), "SELECT 1;")
    assert errors == "note: no agent is running: \\x1b\n"
    assert out == "sql\nSELECT 1\n"


def test_results_can_go_to_a_private_file(answers: Answers, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    out, errors = run(
        answers, f".output {file}", "SELECT 1;", ".mode json", "SELECT 2;", ".output", ".mode csv", "SELECT 3;"
    )
    assert file.read_text() == 'sql\nSELECT 1\n[{"sql":"SELECT 2"}]\n'
    assert_private(file)
    assert out == f"(1 row to {file})\n(1 row to {file})\nsql\nSELECT 3\n"
    assert errors == ""
    nowhere = tmp_path / "none" / "rows.csv"
    _, errors = run(answers, f".output {nowhere}")
    assert errors.startswith(f"error: cannot write {nowhere}: "), "the reason is in the system's words"
    assert errors.count("\n") == 1


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="needs /dev/full")
def test_a_full_disk_is_an_error_and_the_shell_goes_on(answers: Answers) -> None:
    full = "error: cannot write /dev/full: No space left on device\n"
    out, errors = run(answers, ".output /dev/full", "SELECT 1;", ".output", "SELECT 2;")
    assert out == "sql\nSELECT 2\n"
    assert errors == full * 2
    assert run(answers, ".output /dev/full", ".tables")[1] == full


def test_reports_of_repeated_queries_have_their_time(answers: Answers, tmp_path: Path) -> None:
    out, _ = run(answers, ".snapshots SELECT 1", mode=Mode.TABLE)
    stamp = r"-- \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\n"
    report = rf"{stamp}sql\n-+\nSELECT 1\n"
    assert re.fullmatch(rf"{report}\n{report}SELECT 1\n\n", out)
    out, _ = run(answers, ".diffs SELECT 1", mode=Mode.JSON)
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["change"], line["row"]) for line in lines[1:]] == [
        ("Delete", {"sql": "SELECT 1"}),
        ("Add", {"sql": "SELECT 1"}),
    ]
    assert all(re.fullmatch(r"\d{4}-.*Z", line["time"]) for line in lines)
    assert "20" not in run(answers, ".diffs SELECT 1")[0]


def test_errors_are_one_line_and_the_rest_runs(answers: Answers) -> None:
    out, errors = run(answers, "bad;", ".nonsense", "SELECT 1;")
    assert errors == "error: no such thing\\x1b[2J\nerror: no command .nonsense; .help lists them\n"
    assert "SELECT 1" in out


def test_quit_ends(answers: Answers) -> None:
    run(answers, ".quit", "SELECT 1;")
    assert answers.asked == []


def test_commands_describe_tables_and_set_the_mode(answers: Answers) -> None:
    out, errors = run(answers, ".tables", ".schema users", ".mode", ".mode json", ".mode", ".mode x", ".help")
    assert "users      accounts" in out
    assert "  uid   count  number" in out
    assert "\ncsv\njson\n" in out
    assert ".diffs [SECS] SQL" in out
    assert errors == "error: no mode 'x'; modes are table, line, json, csv\n"


@pytest.mark.parametrize(
    ("command", "subscription"),
    [
        (".snapshots", "Snapshots"),
        (".diffs", "Differences"),
        (".snapshot-plus-diffs", "SnapshotPlusDifferences"),
        (".events", "Events"),
    ],
)
def test_repeated_queries_subscribe(answers: Answers, command: str, subscription: str) -> None:
    out, _ = run(answers, f"{command} 0.5 SELECT 1;", mode=Mode.TABLE)
    assert answers.asked == [messages.SubscribeRequest("SELECT 1", subscription, 0.5)]  # type: ignore[arg-type]
    assert ("- SELECT 1\n+ SELECT 1\n" in out) == (subscription != "Snapshots")


@pytest.mark.parametrize(
    ("argument", "error"), [("-1 SELECT 1", "more than 0"), ("0 SELECT 1", "more than 0"), ("5", "missing query")]
)
def test_a_schedule_without_a_positive_number_or_a_query_is_an_error(argument: str, error: str) -> None:
    with pytest.raises(UsageError, match=error):
        split_schedule(argument)


def test_a_schedule_is_two_seconds_unless_given() -> None:
    assert split_schedule("SELECT 1") == (2.0, "SELECT 1")
    assert split_schedule("5 SELECT 1") == (5.0, "SELECT 1")
    assert split_schedule("0.25s SELECT 1") == (0.25, "SELECT 1")
    for wrong in ("", "0 SELECT 1"):
        with pytest.raises(UsageError):
            split_schedule(wrong)


@pytest.mark.parametrize("text", ["SELECT 1", "SELECT 'a;b'", "SELECT count(*) FROM users", "-- x;\nx"])
def test_text_that_leaves_nothing_open_could_be_a_statement(text: str) -> None:
    assert could_end(text)
    assert take_statements(text) == ([], text)


@pytest.mark.parametrize(
    "text",
    ["SELECT", "SELECT a,", "SELECT (1", "SELECT 'a", "SELECT a FROM", "WHERE x =", "/* a", "SELECT 'a;", "x IN", ""],
)
def test_text_that_leaves_something_open_is_no_statement(text: str) -> None:
    assert not could_end(text)
    assert take_statements(text) == ([], text)


@given(st.text("a;'\" -\n/*(),"))
def test_taking_statements_line_by_line_is_taking_them_at_once(text: str) -> None:
    whole, rest = take_statements(text)
    taken: list[str] = []
    buffer = ""
    for index, line in enumerate(text.split("\n")):
        statements, buffer = take_statements(f"{buffer}\n{line}" if index else line)
        taken += statements
    assert (taken, buffer) == (whole, rest)


@given(st.text("a;'\" -\n/*(),"))
def test_statements_keep_their_text(text: str) -> None:
    for statement in split_statements(text):
        assert statement in text
        assert statement == statement.strip()


def test_completion_depends_on_the_position(answers: Answers) -> None:
    shell = Shell(answers, Printer(io.StringIO()), io.StringIO())
    assert shell.completions("SELECT * FROM ", "u") == ["users"]
    assert shell.completions("SELECT * FROM users, ", "p") == ["processes"]
    assert shell.completions(".schema ", "") == ["osquery_pids", "processes", "users"]
    assert shell.completions("", ".sn") == [".snapshots", ".snapshot-plus-diffs"]
    assert shell.completions(".mode ", "j") == ["json"]
    assert shell.completions("SELECT * FROM users WHERE ", "") == ["name", "uid", "osquery_pids", "processes", "users"]
    assert shell.completions("SELECT u.name FROM users u WHERE ", "u.u") == ["u.uid"]
    assert shell.completions("SELECT pi", "") != []
    assert shell.completions("", "sel") == ["SELECT"]
    assert len([one for one in answers.asked if isinstance(one, messages.TablesRequest)]) == 1


def test_an_unknown_table_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean users"):
        find_table(TABLES, "user")
    with pytest.raises(UsageError, match="name a table"):
        find_table(TABLES, "")
