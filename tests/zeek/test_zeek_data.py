"""Broker's data model in JSON: what is written is what Zeek takes, what Zeek writes is read, hostile or not."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeek_agent import text
from zeek_agent.database.database import ResultColumn
from zeek_agent.schema import ZeekType
from zeek_agent.zeek import broker_json
from zeek_agent.zeek.broker_json import ProtocolError

READER = broker_json.MessageReader(broker_json.Data)
SECONDS = st.integers(-(2**33), 2**33 - 1)
NAMES = st.text(st.characters(codec="ascii", exclude_characters="\\", exclude_categories=["C"]))
CELLS: dict[str, st.SearchStrategy[Any]] = {
    "address": st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(str),
    "blob": NAMES,
    "bool": st.booleans(),
    "count": st.integers(0, 2**64 - 1),
    "enum": NAMES,
    "int": st.integers(-(2**63), 2**63 - 1),
    "interval": SECONDS.map(float) | st.integers(-(10**9), 10**9).map(lambda us: us / 1_000_000),
    "port": st.tuples(st.integers(0, 65535), st.sampled_from(["tcp", "udp", "icmp", "unknown"])),
    "real": st.floats(allow_nan=False, allow_infinity=False),
    "text": NAMES,
    "time": SECONDS.map(float) | st.integers(0, 2**31).map(lambda second: second + 0.123456),
}
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(st.characters())
    | st.binary(),
    lambda member: st.lists(member, max_size=3).map(tuple) | st.tuples(st.text(), member),
    max_leaves=8,
)
TYPES = st.sampled_from([*CELLS, "record", *(f"{box}[{name}]" for box in ("set", "vector") for name in CELLS)])


def encoded(type_name: str, cell: object) -> str:
    return broker_json.encoder(ZeekType.parse(type_name))(cell)


@pytest.mark.parametrize(
    ("type_name", "cell", "tag", "written"),
    [
        ("count", 0, "count", 0),
        ("count", 2**64 - 1, "count", 2**64 - 1),
        ("count", True, "count", 1),
        ("int", -5, "integer", -5),
        ("bool", False, "boolean", False),
        ("real", 5, "real", 5.0),
        ("text", "caf\u00e9", "string", "caf\u00e9"),
        ("text", "a\\b\n\x00\x7f\uefff", "string", "a\\\\b\\x0a\\x00\\x7f\\xff"),
        ("blob", b"\xffx", "string", "\\xffx"),
        ("enum", "Log::WRITER_ASCII", "enum-value", "Log::WRITER_ASCII"),
        ("address", "fe80::1%eth0", "address", "fe80::1"),
        ("port", (53, "UDP"), "port", "53/udp"),
        ("port", (53, "sctp"), "port", "53/?"),
        ("time", 1795489155.123456, "timestamp", "2026-11-24T02:59:15.123456"),
        ("time", 0, "timestamp", "1970-01-01T00:00:00.000000"),
        ("time", -0.5, "timestamp", "1969-12-31T23:59:59.500000"),
        ("time", 1.9999999, "timestamp", "1970-01-01T00:00:02.000000"),
        ("interval", 0.0, "timespan", "0s"),
        ("interval", 90.0, "timespan", "90s"),
        ("interval", 0.5, "timespan", "500ms"),
        ("interval", -0.000001, "timespan", "-1us"),
        ("interval", 0.000000001, "timespan", "1ns"),
    ],
)
def test_cells_are_written_as_their_type(type_name: str, cell: object, tag: str, written: object) -> None:
    assert json.loads(encoded(type_name, cell)) == {"@data-type": tag, "data": written}


@pytest.mark.parametrize(
    ("type_name", "cell"),
    [
        ("count", -1),
        ("count", 2**64),
        ("count", 1.0),
        ("count", "1"),
        ("int", 2**63),
        ("int", -(2**63) - 1),
        ("bool", "true"),
        ("real", math.inf),
        ("real", math.nan),
        ("real", 10**400),
        ("real", "1.0"),
        ("text", 5),
        ("address", "localhost"),
        ("address", ""),
        ("address", "1.2.3.4\0"),
        ("address", "::1\ud800"),
        ("port", (65536, "tcp")),
        ("port", 80),
        ("time", 1e11),
        ("time", math.inf),
        ("time", "2026-01-01"),
        ("interval", math.nan),
        ("interval", 1e10),
        ("set[count]", 5),
        ("record", "text"),
    ],
)
def test_values_that_do_not_fit_their_type_are_unset(type_name: str, cell: object) -> None:
    assert encoded(type_name, cell) == broker_json.NONE


def test_reals_always_have_a_point_or_an_exponent() -> None:
    for number in (1, 1.0, 1e16, 1e22, 1e-7, -0.0, 123456789012345680.0):
        written = encoded("real", number)
        assert re.search(r'"data":-?\d+(\.\d+|(\.\d+)?e[+-]?\d+)', written), written
        assert json.loads(written)["data"] == number


def test_containers_have_no_holes() -> None:
    assert broker_json.to_cell(READER.read(encoded("vector[count]", (1, None, "x", 2)))) == (1, 2)
    assert broker_json.to_cell(READER.read(encoded("set[address]", ["::1", "nowhere"]))) == ("::1",)


def test_records_are_written_by_their_values_types() -> None:
    record = (("1", "ssh"), ("2", 5), ("3", -5), ("4", 0.5), ("5", None), ("6", True))
    tags = [member["@data-type"] for member in json.loads(encoded("record", record))["data"]]
    assert tags == ["string", "count", "integer", "real", "none", "boolean"]


@pytest.mark.parametrize("type_name", list(CELLS))
@given(cell_source=st.data())
def test_cells_survive_a_round_trip(type_name: str, cell_source: st.DataObject) -> None:
    cell = cell_source.draw(CELLS[type_name])
    assert broker_json.to_cell(READER.read(encoded(type_name, cell))) == cell
    assert broker_json.to_cell(READER.read(encoded(f"vector[{type_name}]", (cell, cell)))) == (cell, cell)


@given(TYPES, ANYTHING)
def test_any_value_in_a_column_of_any_type_gives_a_value_of_that_type_or_none(type_name: str, cell: Any) -> None:
    column = ResultColumn("c", ZeekType.parse(type_name))
    frame = broker_json.row_encoder([column])((cell,))
    (value,) = READER.read(frame.encode()).data
    if not isinstance(value, broker_json.Nothing):
        tags = {"text": "string", "blob": "string", "bool": "boolean", "int": "integer", "enum": "enum-value"}
        tags |= {"interval": "timespan", "time": "timestamp", "record": "vector"}
        name = column.type.name
        assert json.loads(frame)["data"][0]["@data-type"] == tags.get(name, name)


@given(st.binary())
def test_any_host_bytes_are_escaped_reversibly(raw: bytes) -> None:
    written = json.loads(encoded("text", text.from_bytes(raw)))["data"]
    back = re.sub(
        rb"\\(?:x([0-9a-f]{2})|\\)",
        lambda match: bytes.fromhex(match[1].decode()) if match[1] else b"\\",
        written.encode(),
    )
    assert back == raw
    assert all(character.isprintable() or ord(character) >= 0xA0 for character in written)


@given(st.text(st.characters()))
def test_identifiers_are_written_unchanged(identifier: str) -> None:
    written = READER.read(broker_json.string(identifier).encode(errors="strict"))
    assert written.data == re.sub("[\ud800-\udfff]", "\ufffd", identifier)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'{"@data-type":"none","data":{}}', None),
        (b'{"data":5,"@data-type":"count"}', 5),
        (b'{"@data-type":"real","data":5}', 5.0),
        (b'{"@data-type":"real","data":inf}', None),
        (b'{"@data-type":"real","data":-nan}', None),
        (b'{"@data-type":"string","data":"\\"data\\":inf"}', '"data":inf'),
        (b'{"@data-type":"string","data":"a\x00\x1b\n\\v\\\\v"}', "a\x00\x1b\n\x0b\\v"),
        (b'{"@data-type":"string","data":"\xff\xc3\xa9"}', "\uefff\u00e9"),
        (b'{"@data-type":"string","data":"\\udcff"}', "?"),
        (b'{"@data-type":"timestamp","data":"2026-11-24T02:59:15.000"}', 1795489155.0),
        (b'{"@data-type":"timestamp","data":"2026-11-24T02:59:15.123456789Z"}', 1795489155.123456),
        (b'{"@data-type":"timestamp","data":"2026-11-24T03:59:15+01:00"}', 1795489155.0),
        (b'{"@data-type":"timespan","data":"500ms"}', 0.5),
        (b'{"@data-type":"timespan","data":"-2min"}', -120.0),
        (b'{"@data-type":"timespan","data":"1500us"}', 0.0015),
        (b'{"@data-type":"port","data":"80"}', (80, "tcp")),
        (b'{"@data-type":"port","data":"80/?"}', (80, "unknown")),
        (b'{"@data-type":"subnet","data":"10.0.0.0/8"}', "10.0.0.0/8"),
        (b'{"@data-type":"boolean","data":true}', True),
        (
            b'{"@data-type":"table","data":[{"key":{"@data-type":"count","data":1},'
            b'"value":{"@data-type":"string","data":"x"}}]}',
            ((1, "x"),),
        ),
        (b'{"@data-type":"count","data":123456789012345678901234567890}', 123456789012345678901234567890),
    ],
)
def test_reads_what_zeek_writes_valid_or_not(raw: bytes, value: object) -> None:
    assert broker_json.to_cell(READER.read(raw)) == value


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"nonsense",
        b"null",
        b'{"@data-type":"colour","data":1}',
        b'{"@data-type":"count","data":"1"}',
        b'{"@data-type":"count"}',
        b'{"@data-type":"count","data":' + b"9" * 10_000 + b"}",
        b"[" * 500_000,
        b'{"@data-type":"vector","data":[' * 50_000 + b"]}" * 50_000,
        b'{"@data-type":"none","data":' + b'{"a":' * 500_000,
        b'{"@data-type":"string","data":"\\',
    ],
    ids=range(11),
)
def test_invalid_values_are_refused_with_a_reason(raw: bytes) -> None:
    with pytest.raises(ProtocolError) as refusal:
        READER.read(raw)
    assert 10 < len(str(refusal.value)) < 300


@pytest.mark.parametrize(
    "value",
    [
        broker_json.Timespan("1.5s"),
        broker_json.Timespan("5d"),
        broker_json.Timespan("9" * 30 + "s"),
        broker_json.Timestamp("yesterday"),
        broker_json.Timestamp("99999-01-01T00:00:00"),
        broker_json.Port("http"),
        broker_json.Port("65536/tcp"),
    ],
)
def test_values_that_are_not_of_their_type_are_refused(value: broker_json.Data) -> None:
    with pytest.raises(ProtocolError):
        broker_json.to_cell(value)


@given(st.binary() | st.text().map(str.encode))
def test_arbitrary_bytes_raise_only_protocol_errors(raw: bytes) -> None:
    for frame in (raw, b'{"@data-type":"string","data":"' + raw + b'"}', b'{"@data-type":"count","data":' + raw + b"}"):
        try:
            broker_json.to_cell(READER.read(frame))
        except ProtocolError:
            continue
