"""Values of JSON and of text as cells of Zeek's types: what fits keeps its meaning, anything else is unset."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeek_agent.database.cells import decode, encode
from zeek_agent.own_tables.cells import NESTING_MAX, Cells, MisfitError, Notes, converter
from zeek_agent.own_tables.declarations import OwnColumn
from zeek_agent.schema import SCALAR_TYPES, ZeekType

TYPES = [*sorted(SCALAR_TYPES), "set[count]", "set[address]", "vector[text]", "vector[port]", "set[time]"]


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


def column(kind: str, **options: Any) -> OwnColumn:
    return OwnColumn("x", kind, "x", **options)


@pytest.mark.parametrize(
    ("kind", "value", "cell"),
    [
        ("count", 7, 7),
        ("count", "7", 7),
        ("count", 7.0, 7),
        ("count", 2**63 - 1, 2**63 - 1),
        ("int", "-7", -7),
        ("real", "1e3", 1000.0),
        ("bool", "True", True),
        ("bool", 0, False),
        ("text", 3.5, "3.5"),
        ("text", True, "true"),
        ("text", "a\0b", "a\0b"),
        ("blob", "\uef80", b"\x80"),
        ("address", "2001:DB8::1", "2001:db8::1"),
        ("port", "80/tcp", (80, "tcp")),
        ("port", [53, "udp"], (53, "udp")),
        ("port", {"port": 1, "proto": "icmp"}, (1, "icmp")),
        ("time", 1_790_000_000, 1_790_000_000.0),
        ("time", "2026-09-21T13:33:20Z", 1_789_997_600.0),
        ("time", "2026-09-21T15:33:20.5+02:00", 1_789_997_600.5),
        ("interval", "2.5", 2.5),
        ("record", {"a": [1]}, {"a": [1]}),
        ("record", '{"a": 1}', {"a": 1}),
        ("record", {"a": [2**64 - 1, -(2**63)]}, {"a": [2**64 - 1, -(2**63)]}),
        ("record", nested(NESTING_MAX - 1), nested(NESTING_MAX - 1)),
        ("set[count]", [3, "3", 1], [3, 1]),
        ("vector[text]", '["a", 2]', ["a", "2"]),
    ],
)
def test_a_value_that_fits_keeps_its_meaning(kind: str, value: Any, cell: Any) -> None:
    assert converter(column(kind))(value) == cell


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("count", -1),
        ("count", 2**63),
        ("count", "99999999999999999999"),
        ("count", "1_000"),
        ("count", "٣"),
        ("count", True),
        ("count", 1.5),
        ("count", 1e300),
        ("count", "9" * 5_000),
        ("int", -(2**63) - 1),
        ("real", math.inf),
        ("real", "nan"),
        ("real", "1e999"),
        ("real", "1" * 5_000),
        ("real", 10**400),
        ("bool", 2),
        ("bool", "yes"),
        ("text", {"a": 1}),
        ("text", [1]),
        ("address", "fe80::1%eth0"),
        ("address", "localhost"),
        ("address", 1),
        ("port", "80"),
        ("port", "65536/tcp"),
        ("port", [True, "tcp"]),
        ("time", "2026-09-21T13:33:20"),
        ("time", "yesterday"),
        ("time", -1),
        ("time", 1e18),
        ("record", []),
        ("record", nested(NESTING_MAX)),
        ("record", {"a": [2**64]}),
        ("record", {"a": -(2**63) - 1}),
        ("set[record]", [{"a": 2**200}]),
        ("vector[record]", [nested(NESTING_MAX)]),
        ("record", "{" * 100_000),
        ("set[count]", [1, "x"]),
        ("set[count]", 1),
        ("vector[text]", "[" * 100_000),
    ],
)
def test_a_value_of_another_type_does_not_fit(kind: str, value: Any) -> None:
    with pytest.raises(MisfitError):
        converter(column(kind))(value)


@pytest.mark.parametrize(("unit", "seconds"), [("s", 1500.0), ("ms", 1.5), ("us", 0.0015), ("ns", 0.0000015)])
def test_numbers_of_times_are_in_the_declared_unit(unit: Any, seconds: float) -> None:
    assert converter(column("time", unit=unit))(1500) == seconds
    assert converter(column("interval", unit=unit))("1500") == seconds


def test_misfits_are_unset_counted_by_column_and_shown_once() -> None:
    notes = Notes()
    cells = Cells([column("count"), OwnColumn("y", "text", "y")], notes)
    values = iter(["bad\x1b[31m", "a", "worse", "b", None, "c", 4, "d"])
    rows = [cells.row(lambda *_: next(values)) for _ in range(4)]
    assert rows == [[None, "a"], [None, "b"], [None, "c"], [4, "d"]]
    (text,) = notes.texts()
    assert text == r"values of column x that are not a count and are unset: 2, such as 'bad\\x1b[31m'"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(TYPES), JSON)
def test_whatever_the_value_sqlite_and_zeek_get_a_cell_of_the_columns_type(kind: str, value: Any) -> None:
    row = Cells([column(kind)], Notes()).row(lambda *_: value)
    stored = encode(ZeekType.parse(kind), row[0])
    back = decode(ZeekType.parse(kind), stored)
    assert (back is None) == (row[0] is None)
