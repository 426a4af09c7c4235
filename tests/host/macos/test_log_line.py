"""Reading lines of `log stream`: entries, losses, any bytes."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_records import HEADER, line, loss, record

from zeek_agent.host.macos.log_line import FIELDS, LogRecord, Loss, Unreadable, read_line
from zeek_agent.text import from_bytes

pytestmark = pytest.mark.documented_shape

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
COLUMNS = {
    "time": "time",
    "level": "level",
    "message": "message",
    "exe": "exe, process",
    "pid": "pid",
    "uid": "uid",
    "subsystem": "identifier",
    "category": "identifier",
}
"""The columns that an entry's fields determine."""


def test_an_entry() -> None:
    assert read_line(line(record("unlocked by /usr/bin/login", messageType="Error"))) == LogRecord(
        time=1_772_366_400_250_000,
        level="3",
        message="unlocked by /usr/bin/login",
        exe="/usr/libexec/vaultd",
        pid=321,
        uid=501,
        subsystem="com.example.vault",
        category="keys",
    )


def test_every_field_has_an_entry_and_determines_the_columns_that_it_names() -> None:
    assert set(record("x")) | set(loss(1)) == set(FIELDS)
    before = read_line(line(record("x")))
    assert isinstance(before, LogRecord)
    for name, meaning in FIELDS.items():
        entry = copy.deepcopy(record("x"))
        entry[name] = (
            "2026-03-01 13:00:00.250001+0100" if name == "timestamp" else 7 if name.endswith("ID") else "Fault"
        )
        after = read_line(line(entry))
        assert isinstance(after, LogRecord)
        differing = {COLUMNS[field] for field in LogRecord._fields if getattr(before, field) != getattr(after, field)}
        is_dropped = meaning.startswith(("dropped:", "counted:"))
        assert differing == (set() if is_dropped else {meaning}), name


@pytest.mark.parametrize(
    ("name", "level"),
    [("Default", "5"), ("Info", "6"), ("Debug", "7"), ("Error", "3"), ("Fault", "2"), ("Other", None), (7, None)],
)
def test_levels_are_those_of_syslog(name: object, level: str | None) -> None:
    found = read_line(line(record("x", messageType=name)))
    assert isinstance(found, LogRecord)
    assert found.level == level


def test_private_values_stay_as_they_are() -> None:
    found = read_line(line(record("user <private> logged in")))
    assert isinstance(found, LogRecord)
    assert found.message == "user <private> logged in"


@pytest.mark.parametrize(
    "missing", ["userID", "processID", "processImagePath", "subsystem", "category", "eventMessage"]
)
def test_a_field_may_be_missing(missing: str) -> None:
    entry = record("x")
    del entry[missing]
    found = read_line(line(entry))
    assert isinstance(found, LogRecord)
    assert None in found


@pytest.mark.parametrize(("count", "entries"), [(12, 12), (0, 1), (-3, 1), ("many", 1), (True, 1)])
def test_losses_are_counted(count: Any, entries: int) -> None:
    assert read_line(line(loss(count))) == Loss(entries)


def test_a_name_that_is_not_utf_8_keeps_its_bytes() -> None:
    found = read_line(line(record("x", processImagePath="PLACE")).replace(b"PLACE", b"/tmp/\xff"))
    assert isinstance(found, LogRecord)
    assert found.exe == from_bytes(b"/tmp/\xff")


@pytest.mark.parametrize(
    "raw", [HEADER, b"", b"[]", b"{}", b'{"timestamp":"now"}', b'{"timestamp":-1}', b"[" * 100_000]
)
def test_anything_else_is_unreadable(raw: bytes) -> None:
    assert isinstance(read_line(raw), Unreadable)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_entry_or_unreadable(raw: bytes) -> None:
    assert isinstance(read_line(raw), LogRecord | Loss | Unreadable)


@given(st.lists(st.tuples(st.sampled_from(sorted(FIELDS)), JSON), max_size=3))
def test_any_values_are_an_entry_or_unreadable(changes: list[tuple[str, object]]) -> None:
    found = read_line(json.dumps(record("x") | dict(changes)).encode())
    assert isinstance(found, LogRecord | Loss | Unreadable)
    if isinstance(found, LogRecord):
        assert all(isinstance(value, str | int | None) and not isinstance(value, bool) for value in found)


@given(st.data())
def test_a_damaged_line_is_an_entry_or_unreadable(data: st.DataObject) -> None:
    raw = bytearray(line(record("x")))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(raw)))
    assert isinstance(read_line(bytes(raw)), LogRecord | Loss | Unreadable)
    assert isinstance(read_line(bytes(raw[:end])), LogRecord | Loss | Unreadable)
