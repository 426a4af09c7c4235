"""Payloads on the bus: what a reader accepts, from peers of any version and from hostile ones."""

from __future__ import annotations

import pytest

from zeek_agent.bus import messages
from zeek_agent.bus.messages import Ack, BadMessageError, Grant, Hello, Refusal, Want, Welcome

WELCOME = Welcome("gw1", "s1", "endpoint", "8.2.2")


def test_a_message_reads_back() -> None:
    for sent in (Hello("I1", "1.0", ("linux",)), WELCOME, Want(70_000, 2), Grant(number=2), Ack(3, grant=2)):
        assert messages.read(messages.encode(sent), type(sent)) == sent


def test_a_newer_peers_fields_are_ignored() -> None:
    assert messages.read(b'{"number": 3, "shard": [1]}', Ack) == Ack(3)


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (b"", Ack),
        (b"[]", Ack),
        (b'{"number": -1}', Ack),
        (b'{"number": "3"}', Ack),
        (b"\xff\xfe", Ack),
        (b'{"seconds": 1e9}', Grant),
        (b'{"instance": "' + b"x" * 1025 + b'", "version": ""}', Hello),
        (b'{"bytes": 1' + b" " * messages.CONTROL_BYTES_MAX + b"}", Want),
    ],
)
def test_a_bad_payload_is_refused(payload: bytes, kind: type[messages.Message]) -> None:
    with pytest.raises(BadMessageError):
        messages.read(payload, kind)


def test_a_gateway_welcomes_or_refuses() -> None:
    assert messages.read_welcome(messages.encode(WELCOME)) == WELCOME
    assert messages.read_welcome(messages.encode(Refusal("full", 5.0))) == Refusal("full", 5.0)
    assert messages.read_welcome(messages.encode(Refusal("full"))) == Refusal("full", 60.0)


@pytest.mark.parametrize("name", ["", "a.b", "r", ">", "ä", "x" * 65])
def test_a_name_that_cannot_stand_in_a_subject_is_refused(name: str) -> None:
    with pytest.raises(BadMessageError, match="not a name on the bus"):
        messages.read_welcome(messages.encode(Welcome("gw1", name, "", "")))


def test_a_batch_is_its_frames() -> None:
    assert messages.split(messages.join([b'{"a":1}', b'{"b":2}'])) == [b'{"a":1}', b'{"b":2}']
    assert messages.split(b"") == []
    with pytest.raises(BadMessageError, match="a batch of"):
        messages.split(bytes(messages.BATCH_BYTES_MAX + 1))
