"""Lookups out of the kernel's records, in orders that real sockets rarely have."""

from __future__ import annotations

import struct

import dns.message

from zeek_agent.bpf.records import MESSAGE, SOCKET, RecordKind, SocketRecord
from zeek_agent.recording.dns.dns_lookups import DnsLookups
from zeek_agent.recording.dns.remote_names import RemoteNames
from zeek_agent.recording.processes.process_cache import ProcessCache

TCP = 6
SERVER = bytes((198, 51, 100, 1)) + bytes(12)


def segment(name: str, sequence: int, connected: int) -> bytes:
    """A question in a segment of a connection that was made at that time."""
    end = SocketRecord._make(SOCKET.unpack(bytes(SOCKET.size)))._replace(
        kind=RecordKind.MESSAGE, protocol=TCP, family=4, pid=7, started=1, acted=connected, time=connected, cookie=3
    )
    end = end._replace(remote=SERVER, remote_port=53, local_port=4000, outbound=1)
    wire = dns.message.make_query(name, "A").to_wire()
    stream = struct.pack(">H", len(wire)) + wire
    return SOCKET.pack(*end) + MESSAGE.pack(sequence, len(stream)) + stream


def test_a_socket_that_connects_again_between_the_same_ends() -> None:
    """The kernel begins the second connection's sequence numbers a window behind the first one's, or anywhere."""
    lookups = DnsLookups(ProcessCache(), RemoteNames())
    starts = [100, 70_000, 50, 1 << 31]
    names = [f"name-{number}.example" for number in range(len(starts))]
    segments = [segment(name, start, at) for at, (name, start) in enumerate(zip(names, starts, strict=True), 1)]
    assert lookups.rows(segments, 0.0) == []
    assert [row.query for row in lookups.remaining()] == names
    assert (lookups.undecoded, lookups.lost_streams) == (0, 0)
