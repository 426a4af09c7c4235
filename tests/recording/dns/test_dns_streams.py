"""Messages out of TCP segments: split, joined, repeated, out of order, and not captured to their end."""

from __future__ import annotations

import random

import pytest

from zeek_agent.recording.dns.dns_streams import BYTES_MAX, STREAMS_MAX, WAITING_MAX, DnsStreams, StreamMessage

KEY = (1, 0)
START = (1 << 32) - 50  # the sequence numbers wrap around
MESSAGES = [bytes([number]) * number * 30 for number in range(1, 8)]
STREAM = b"".join(len(message).to_bytes(2, "big") + message for message in MESSAGES)


def segments(chance: random.Random, most: int = 100) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while at < len(STREAM):
        size = chance.randint(1, most)
        found.append(((START + at) % (1 << 32), STREAM[at : at + size]))
        at += size
    return found


def fed(streams: DnsStreams, parts: list[tuple[int, bytes]]) -> list[StreamMessage]:
    return [message for sequence, data in parts for message in streams.add(KEY, sequence, data, len(data))]


@pytest.mark.parametrize("seed", range(20))
def test_segments_of_any_size_repeated_and_out_of_order(seed: int) -> None:
    chance = random.Random(seed)
    first, *parts = segments(chance)
    parts += chance.sample(parts, 5)  # sent again
    for at in range(0, len(parts) - 4, 4):
        parts[at : at + 4] = chance.sample(parts[at : at + 4], 4)
    streams = DnsStreams()
    assert fed(streams, [first, *parts]) == [StreamMessage(message, False) for message in MESSAGES]
    assert streams.lost == 0


def test_a_message_that_was_not_captured_to_its_end_does_not_hide_the_next_ones() -> None:
    long = (1000).to_bytes(2, "big") + bytes(1000)
    after = (3).to_bytes(2, "big") + b"abc"
    streams = DnsStreams()
    assert streams.add(KEY, 0, long[:100], 600) == [StreamMessage(bytes(98), True)]
    assert streams.add(KEY, 600, (long + after)[600:], 407) == [StreamMessage(b"abc", False)]
    assert streams.lost == 0


def test_a_stream_is_abandoned_when_the_next_message_cannot_be_found() -> None:
    streams = DnsStreams()
    assert streams.add(KEY, 0, (10).to_bytes(2, "big") + b"12345", 5000) == [StreamMessage(b"12345", True)]
    assert streams.add(KEY, 5000, STREAM, len(STREAM)) == []
    assert streams.lost == 1


def test_streams_and_segments_that_wait_are_bounded() -> None:
    streams = DnsStreams()
    for number in range(STREAMS_MAX + 10):
        streams.add((number, 0), 0, b"\0", 1)
    assert streams.lost == 10
    for number in range(WAITING_MAX + 2):
        streams.add((0, 1), 0 if number == 0 else number * 10, b"\0", 1)
    assert streams.lost == 12


def test_connections_that_are_over_are_not_lost_messages() -> None:
    streams = DnsStreams()
    for number in range(STREAMS_MAX + 10):
        assert len(streams.add((number, 0), 0, STREAM, len(STREAM))) == len(MESSAGES)
    assert streams.lost == 0


def test_what_streams_keep_is_bounded_in_all() -> None:
    """As much as a process makes them keep: messages of 64 KB that do not come to their end, and late segments."""
    streams, segment = DnsStreams(), bytes(4096)
    fed = 0
    for number in range(STREAMS_MAX):
        streams.add((number, 0), 0, b"\xff\xff", 2)
        for at in range(WAITING_MAX - 1):
            streams.add((number, 0), 10_000 + at * 4096, segment, 4096)
            fed += 4096
    kept = sum(
        len(stream.data) + sum(len(data) for data, _ in stream.waiting.values()) for stream in streams._streams.values()
    )
    assert 0 < kept <= BYTES_MAX < fed
    assert streams.lost == STREAMS_MAX - len(streams._streams)
