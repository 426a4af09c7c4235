"""Messages on a message bus: what other programs send is a message or an error."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeek_agent.host.dbus.messages import DbusError, Message, message_bytes, method_call, parse


def decoded(signature: str, content: bytes) -> tuple[object, ...]:
    return Message(2, 1, "", signature, content).body()


@given(st.binary(max_size=80), st.text("ybnqiuxtdsogva(){}", max_size=8))
def test_any_body_is_values_or_an_error(content: bytes, signature: str) -> None:
    try:
        values = decoded(signature, content)
    except DbusError:
        return
    assert isinstance(values, tuple)


@given(st.binary(max_size=200))
def test_any_message_is_one_or_an_error(rest: bytes) -> None:
    message = b"l\2\0\1" + struct.pack("<III", 0, 1, len(rest)) + rest + bytes(-len(rest) % 8)
    try:
        found = parse(message)
    except DbusError:
        return
    assert message_bytes(message) == len(message) >= len(found.content)


def test_values_are_aligned_and_nested() -> None:
    content = struct.pack("<B3xI4s", 7, 3, b"abc\0") + struct.pack("<I", 16) + struct.pack("<QI4s", 9, 3, b"abc\0")
    assert decoded("ysa(ts)", content) == (7, "abc", [(9, "abc")])
    assert decoded("v", b"\2ai\0\4\0\0\0\xff\xff\xff\xff") == ([-1],)


def test_nesting_is_limited() -> None:
    with pytest.raises(DbusError, match="nested too deeply"):
        decoded("v", b"\1v\0" * 1_000)


def test_a_call_is_read_back() -> None:
    call = method_call(5, "org.example", "/a", "org.example.I", "Do", "one", "zwei für drei")
    assert message_bytes(call) == len(call)
    assert parse(call).body() == ("one", "zwei für drei")
