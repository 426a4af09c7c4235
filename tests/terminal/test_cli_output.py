"""How results look: on a terminal, in a pipe, with text that would like to act on the terminal."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeek_agent.schema import ZeekType
from zeek_agent.terminal.console import Mode, Printer, display_width, fit, iso_time

COLUMNS = [
    ("pid", ZeekType("count")),
    ("name", ZeekType("text")),
    ("started", ZeekType("time")),
    ("tags", ZeekType.parse("set[text]")),
]
ROWS: list[tuple[Any, ...]] = [
    (1, "init", 0.25, ("a", "b")),
    (22, None, None, ()),
    (333, "", 1.0, None),
    (4, "-", None, ("x,y",)),
    (5, 'a"b\n\x1b[2J\uefff\\', None, None),
]


def printed(mode: Mode, rows: list[Any] = ROWS, columns: Any = COLUMNS, changes: Any = None, **options: Any) -> str:
    out = io.StringIO()
    Printer(out, mode, **options).write(columns, rows, changes)
    return out.getvalue()


def test_a_table_is_aligned_and_distinguishes_unset_empty_and_dash() -> None:
    assert printed(Mode.TABLE).splitlines() == [
        "pid  name                  started                      tags",
        "---  --------------------  ---------------------------  ------",
        "  1  init                  1970-01-01T00:00:00.250000Z  {a, b}",
        " 22  -                     -                            {}",
        "333                        1970-01-01T00:00:01.000000Z  -",
        r"  4  \x2d                  -                            {x,y}",
        r'  5  a"b\x0a\x1b[2J\xff\\  -                            -',
    ]


def test_lines_are_one_value_each() -> None:
    assert printed(Mode.LINE, ROWS[:2]).splitlines() == [
        "    pid = 1",
        "   name = init",
        "started = 1970-01-01T00:00:00.250000Z",
        "   tags = {a, b}",
        "",
        "    pid = 22",
        "   name = -",
        "started = -",
        "   tags = {}",
    ]


def test_json_is_one_array_with_an_object_a_line() -> None:
    text = printed(Mode.JSON)
    rows = json.loads(text)
    assert len(text.splitlines()) == len(ROWS)
    assert rows[0] == {"pid": 1, "name": "init", "started": "1970-01-01T00:00:00.250000Z", "tags": ["a", "b"]}
    assert rows[1] == {"pid": 22, "name": None, "started": None, "tags": []}
    assert rows[4]["name"] == 'a"b\\x0a\\x1b[2J\\xff\\\\'
    assert json.loads(printed(Mode.JSON, [])) == []


def test_json_keeps_columns_of_the_same_name_and_odd_numbers() -> None:
    columns = [("x", ZeekType("real")), ("x", ZeekType("int"))]
    assert json.loads(printed(Mode.JSON, [(math.inf, 2)], columns)) == [{"x": "inf", "x:2": 2}]


def test_csv_reads_back_and_distinguishes_null_from_empty() -> None:
    text = printed(Mode.CSV)
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0] == ["pid", "name", "started", "tags"]
    assert rows[1] == ["1", "init", "1970-01-01T00:00:00.250000Z", '["a","b"]']
    assert text.splitlines()[2] == "22,,,[]"
    assert text.splitlines()[3] == '333,"",1970-01-01T00:00:01.000000Z,'
    assert rows[5][1] == 'a"b\\x0a\\x1b[2J\\xff\\\\'


@pytest.mark.parametrize(
    ("kind", "value", "shown", "plain"),
    [
        ("bool", True, "true", True),
        ("interval", 0.5, "0.5", 0.5),
        ("interval", 3.0, "3", 3.0),
        ("port", (80, "tcp"), "80/tcp", "80/tcp"),
        ("vector[count]", (1, 2), "[1, 2]", [1, 2]),
        ("set[port]", ((80, "tcp"),), "{80/tcp}", ["80/tcp"]),
        ("vector[text]", (None, "-"), "[-, \\x2d]", [None, "-"]),
        ("record", (("a", 1), ("b", None)), "{a: 1, b: -}", {"a": 1, "b": None}),
        ("blob", b"\x00\xff", "\\x00\\xff", "\\x00\\xff"),
        ("time", 1e20, "1e+20", "1e+20"),
        ("address", "::1", "::1", "::1"),
    ],
)
def test_each_type_has_a_form_for_reading_and_one_for_programs(kind: str, value: Any, shown: str, plain: Any) -> None:
    columns = [("x", ZeekType.parse(kind))]
    assert printed(Mode.LINE, [(value,)], columns) == f"x = {shown}\n"
    assert json.loads(printed(Mode.JSON, [(value,)], columns)) == [{"x": plain}]


def test_changes_are_signed_and_coloured() -> None:
    changes = ["Add", "Delete", None, None, None]
    lines = printed(Mode.TABLE, changes=changes, color=True).splitlines()
    assert lines[2].startswith("\x1b[32m+   1  init")
    assert lines[3].startswith("\x1b[31m-  22  -")
    assert lines[4].startswith("  333")
    assert json.loads(printed(Mode.JSON, changes=changes).splitlines()[1])["change"] == "Delete"
    assert printed(Mode.CSV, changes=changes).splitlines()[:2] == [
        "change,pid,name,started,tags",
        'Add,1,init,1970-01-01T00:00:00.250000Z,"[""a"",""b""]"',
    ]


def test_a_table_is_truncated_to_the_terminal_or_else_printed_line_by_line() -> None:
    rows = [(1, "x" * 500)]
    columns = [("n", ZeekType("count")), ("long", ZeekType("text"))]
    lines = printed(Mode.TABLE, rows, columns, width=40).splitlines()
    assert max(map(len, lines)) == 40
    assert lines[-1].endswith("x…")
    assert printed(Mode.TABLE, rows, columns, width=10).startswith("   n = 1\n")


@given(st.lists(st.integers(1, 200), min_size=1, max_size=8), st.integers(1, 300))
def test_fitted_columns_fit_and_lose_no_more_than_needed(widths: list[int], room: int) -> None:
    fitted = fit(widths, room)
    margin = 2 * (len(widths) - 1)
    if fitted is None:
        assert sum(min(width, 12) for width in widths) + margin > room
        return
    assert sum(fitted) + margin <= max(room, 0)
    assert all(new == old or new >= 12 for new, old in zip(fitted, widths, strict=True))


def test_wide_and_combining_characters_are_counted_as_terminals_do() -> None:
    assert display_width("日本") == 4
    assert display_width("e\u0301") == 1


@given(st.floats())
def test_any_number_can_be_a_time(number: float) -> None:
    assert iso_time(number)


@given(st.text(), st.sampled_from(list(Mode)))
def test_no_text_gets_control_characters_through(text: str, mode: Mode) -> None:
    out = printed(mode, [(text,)], [(text, ZeekType("text"))])
    assert not any((ord(character) < 32 and character != "\n") or 127 <= ord(character) < 160 for character in out)


@pytest.mark.parametrize("mode", list(Mode))
def test_characters_that_reorder_text_are_escaped(mode: Mode) -> None:
    shown = printed(mode, [("sshd\u202ecod.exe\u2066\u2028é",)], [("name", ZeekType("text"))])
    assert r"sshd\xe2\x80\xaecod.exe\xe2\x81\xa6\xe2\x80\xa8é" in shown.replace("\\\\", "\\")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-62135596800.0, "0001-01-01T00:00:00.000000Z"), (253402300799.5, "9999-12-31T23:59:59.500000Z")],
)
def test_years_have_four_digits(seconds: float, shown: str) -> None:
    assert iso_time(seconds) == shown


@pytest.mark.parametrize("environment", [{}, {"TERM": "dumb"}, {"TERM": "xterm", "NO_COLOR": "1"}])
def test_only_a_terminal_that_has_colours_gets_them(environment: dict[str, str]) -> None:
    class Console(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert Printer.for_stream(Console(), Mode.TABLE, {"TERM": "xterm"}).color
    assert not Printer.for_stream(Console(), Mode.TABLE, environment).color
