"""The output of commands: JSON, JSON lines, CSV and TSV."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeek_agent.own_tables.cells import Notes
from zeek_agent.own_tables.declarations import Format
from zeek_agent.own_tables.documents import DocumentError, decode_json, objects, value_at


def found(output: bytes, form: Format = "json", rows: Any = (), notes: Notes | None = None) -> list[dict[str, Any]]:
    return list(objects(output, form, rows, notes or Notes(), lambda: None))


@pytest.mark.parametrize(
    ("output", "rows"),
    [
        (b'[{"a": 1}, {"a": 2}]', [{"a": 1}, {"a": 2}]),
        (b'{"a": 1}', [{"a": 1}]),
        (b"\xef\xbb\xbf[]", []),
        (b"  \n", []),
        (b'{"a": "\xff\\u0000"}', [{"a": "\uefff\0"}]),
    ],
)
def test_json_is_an_array_of_objects_or_one_of_them(output: bytes, rows: list[dict[str, Any]]) -> None:
    assert found(output) == rows


def test_rows_can_be_anywhere_in_the_document() -> None:
    document = b'{"data": [{"items": [{"a": 1}, 2]}]}'
    notes = Notes()
    assert found(document, rows=("data", 0, "items"), notes=notes) == [{"a": 1}]
    assert notes.texts() == ["rows left out that are not JSON objects: 1, such as 2"]
    notes = Notes()
    assert found(document, rows=("data", 1, "items"), notes=notes) == []
    assert notes.texts() == ["outputs without anything at data.1.items: 1"]


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (b"none", "the output is not JSON: "),
        (b"3", "neither a JSON object nor an array"),
        (b'"text"', "neither a JSON object nor an array"),
        (b"[" * 1_000_000, "nested too deeply"),
        (b'{"a":' * 1_000_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "out of range"),
        (b'{"a": 1e999}', "out of range"),
        (b'{"a": NaN}', "malformed"),
        (b'{"a": 1}{"a": 2}', "trailing"),
        (b'{"a": "' + b"x" * 100, "truncated"),
    ],
)
def test_other_output_is_an_error_with_its_reason(output: bytes, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason):
        found(output)


def test_of_json_lines_only_the_bad_ones_are_left_out() -> None:
    notes = Notes()
    output = b'\xef\xbb\xbf{"a": 1}\r\n\nnot\n[' + b"[" * 100_000 + b'\n3\n{"a": 2}'
    assert found(output, "json_lines", notes=notes) == [{"a": 1}, {"a": 2}]
    texts = notes.texts()
    assert texts[0].startswith("lines left out that are not JSON: 2, such as not (")
    assert texts[1] == "rows left out that are not JSON objects: 1, such as 3"


def test_separated_values_have_a_header() -> None:
    notes = Notes()
    output = b'name, size\n"a, ""b""\nc",1\nd\ne,f,g\n\xff,\x00\n'
    assert found(output, "csv", notes=notes) == [{"name": 'a, "b"\nc', "size": "1"}, {"name": "\uefff", "size": "\0"}]
    assert notes.texts() == ["lines left out that do not have 2 fields: 2, such as d"]
    assert found(b"name\tsize\na b\t2\n", "tsv") == [{"name": "a b", "size": "2"}]
    assert found(b"", "csv") == []
    assert found(b"\n\nname\na\n", "csv") == [{"name": "a"}]


@pytest.mark.parametrize(
    ("line", "form"), [(b"\n", "json_lines"), (b"x\n", "json_lines"), (b"\n", "csv"), (b"1\n", "csv"), (b"\n", "tsv")]
)
def test_the_time_of_a_statement_is_checked_also_while_all_lines_are_left_out(line: bytes, form: Any) -> None:
    def check() -> None:
        nonlocal checks
        checks += 1
        if checks > 3:
            raise TimeoutError

    checks = 0
    with pytest.raises(TimeoutError):
        list(objects(b"a,b\n" * (form != "json_lines") + line * 10_000, form, (), Notes(), check))


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (b"a,a\n1,2\n", "a name is in the header twice"),
        (b'a,b\n"x" y,2\n', "line 2 of the output: "),
        (b"a\n" + b"x" * (1 << 21), "line 2 of the output: field larger than field limit"),
    ],
)
def test_separated_values_that_are_ambiguous_are_an_error(output: bytes, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason):
        found(output, "csv")


def test_a_source_is_one_key_as_it_is_or_a_path() -> None:
    value = {"id.orig_h": "192.0.2.1", "id": {"orig_h": 1}, "list": [10, 20], "": 5}
    assert value_at(value, "id.orig_h") == "192.0.2.1"
    assert value_at(value, ["id", "orig_h"]) == 1
    assert value_at(value, ["list", -1]) == 20
    assert value_at(value, "") == 5
    for absent in ("x", ["list", 2], ["list", "0"], ["id", "orig_h", "x"], ["list", -3]):
        assert value_at(value, absent) is None


@given(st.binary(max_size=200), st.sampled_from(["json", "json_lines", "csv", "tsv"]))
def test_any_bytes_are_rows_or_an_error(output: bytes, form: Any) -> None:
    try:
        rows = found(output, form)
    except DocumentError:
        rows = []
    assert all(isinstance(row, dict) for row in rows)


@given(st.binary(max_size=100))
def test_any_bytes_are_json_or_an_error(raw: bytes) -> None:
    try:
        value = decode_json(raw)
    except DocumentError:
        value = None
    assert value is None or isinstance(value, bool | int | float | str | list | dict)
