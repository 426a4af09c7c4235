"""JSON with comments, trailing commas and continued lines, as osquery's files have it."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeek_agent.collector.relaxed_json import JsonError, is_object, parse

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES, st.sampled_from([None, 0, 2]))
def test_plain_json_is_read_as_it_is(value: object, indent: int | None) -> None:
    assert parse(json.dumps(value, indent=indent)) == value
    assert parse(json.dumps(value, indent=indent, ensure_ascii=False)) == value


def test_comments_commas_and_continued_lines() -> None:
    text = """# first
    { // second, "x": 1
      "query": "SELECT '//' AS a, '#' AS b, \\"/*\\" \\
FROM t;", /* third
      , */ "list": [1, 2, # fourth
      ],
    }"""
    assert parse(text) == {"query": "SELECT '//' AS a, '#' AS b, \"/*\" FROM t;", "list": [1, 2]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,\n "b" 2}', "Expecting ':' delimiter (line 2, column 6)"),
        ('{"a": "x\\\ny",\n "b" 2}', "Expecting ':' delimiter (line 3, column 6)"),
        ('// x\n{"a": /* y\n */ }', "Expecting value (line 3, column 5)"),
        ('{"a": 1, "b": {"a": 2, "a": 3}}', "the key 'a' occurs twice in one object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": "\\ud800"}', "a text has half of a surrogate pair (\\ud800 to \\udfff)"),
        ('{"a": NaN}', "NaN is not a value of JSON"),
        ("[,]", "Expecting value (line 1, column 2)"),
        ("[1,,]", "Expecting value (line 1, column 4)"),
        ('"abc', "Unterminated string starting at (line 1, column 1)"),
        ("{} /* open", "Extra data (line 1, column 4)"),
        ("", "Expecting value (line 1, column 1)"),
    ],
)
def test_errors_have_the_position_in_the_file(text: str, message: str) -> None:
    with pytest.raises(JsonError) as raised:
        parse(text)
    assert str(raised.value) == message


def test_a_number_of_too_many_digits_is_an_error() -> None:
    with pytest.raises(JsonError):
        parse("9" * 5_000)


@given(st.text(alphabet='{}[]",:\\/*#\n ab1', max_size=60))
def test_any_text_is_a_value_or_an_error(text: str) -> None:
    with suppress(JsonError):
        assert json.loads(json.dumps(parse(text))) is not NotImplemented


@pytest.mark.parametrize(("text", "expected"), [("# c\n /* d */ {", True), ("# c\n[logs.x]", False), ("", False)])
def test_an_object_is_recognized_behind_comments(text: str, expected: bool) -> None:
    assert is_object(text) is expected
