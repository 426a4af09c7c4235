"""Messages of the process that watches files, which the agent does not trust."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeek_agent.recording.files import watch_messages
from zeek_agent.recording.files.watch_messages import Action, Change, FileStatus, MessageError, Status, Watch

_UNSIGNED = st.integers(0, 2**64 - 1)
_PATHS = st.none() | st.binary(max_size=5_000).map(lambda raw: b"/" + raw.replace(b"\0", b""))
_CHANGES = st.builds(
    Change,
    st.sampled_from(Action),
    st.none() | st.integers(1, 2**32 - 1),
    _UNSIGNED,
    _PATHS,
    _PATHS,
    is_directory=st.booleans(),
    is_found=st.booleans(),
    count=st.integers(1, 2**32 - 1),
    status=st.none() | st.builds(FileStatus, _UNSIGNED, _UNSIGNED, _UNSIGNED, st.integers(0, 2**32 - 1)),
    sha256=st.none() | st.binary(min_size=32, max_size=32),
)


def fields(change: Change) -> list[object]:
    return [getattr(change, name) for name in Change.__slots__]


@given(st.lists(_CHANGES, min_size=1, max_size=30))
def test_changes_arrive_as_they_were(changes: list[Change]) -> None:
    packets = list(watch_messages.encode_changes(changes))
    assert all(len(packet) <= watch_messages.PACKET_BYTES_MAX for packet in packets)
    arrived = [each for packet in packets for each in _changes(packet)]
    assert list(map(fields, arrived)) == list(map(fields, changes))


@given(st.binary(max_size=300), st.sampled_from([b"", b"c", b"s"]))
def test_whatever_arrives_is_a_message_or_an_error(raw: bytes, kind: bytes) -> None:
    try:
        message = watch_messages.decode(kind + raw)
    except MessageError:
        return
    assert isinstance(message, Status | list)


@given(_CHANGES, st.data())
def test_a_changed_byte_is_a_message_or_an_error(change: Change, data: st.DataObject) -> None:
    (packet,) = watch_messages.encode_changes([change])
    at = data.draw(st.integers(0, len(packet) - 1))
    broken = packet[:at] + bytes([packet[at] ^ data.draw(st.integers(1, 255))]) + packet[at + 1 :]
    try:
        changes = watch_messages.decode(broken)
    except MessageError:
        return
    for each in changes if isinstance(changes, list) else []:
        assert all(path is None or path[:1] in {b"/", b""} for path in (each.path, each.old_path))


def test_orders_arrive_as_they_were() -> None:
    watch = Watch([b"/etc", b"!/etc/a"], [b"/usr/bin"], [b"/srv"], [b"ext4", b"xfs"], 0.5, 10, 1_000, 12.5)
    assert watch_messages.decode_watch(watch_messages.encode_watch(watch)) == watch


def test_too_many_paths_are_refused() -> None:
    with pytest.raises(ValueError, match="too many"):
        watch_messages.encode_watch(Watch([b"/" + b"x" * 4_000] * 40, [], [], [], 1.0, 1, 0, 0.0))


def _changes(packet: bytes) -> list[Change]:
    message = watch_messages.decode(packet)
    assert isinstance(message, list)
    return message
