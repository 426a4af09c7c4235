"""Packet sockets, as sniffers have, by eBPF: from sockets that really were opened."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import exit_code, fork
from recording import Event, Recording
from test_ebpf_sockets import TABLE, datagrams, listener, other_namespace, sources

from zeek_agent.bpf import libbpf
from zeek_agent.bpf.records import RecordKind
from zeek_agent.recording import bpf_objects
from zeek_agent.recording.bpf_monitor import RecordStream
from zeek_agent.recording.sockets.ebpf_sockets import EbpfSockets

pytestmark = pytest.mark.root
ETH_P_ALL = 3
PYTHON = str(Path(sys.executable).resolve())
SNIFFER = [
    *(PYTHON, "-S", "-c"),
    f"import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons({ETH_P_ALL}))",
]
AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=+net_raw"]
WITHOUT_ENDS = ("protocol", "local_addr", "local_port", "remote_addr", "remote_port", "direction", "community_id")


@pytest.fixture(scope="module")
def recording() -> Iterator[Recording]:
    with Recording(sources()) as recording:
        yield recording


def sniff(prefix: tuple[str, ...] = ()) -> int:
    """A process opens a packet socket and ends; its id."""
    with subprocess.Popen([*prefix, *SNIFFER]) as process:
        assert process.wait(20) == 0
    return process.pid


def packet_socket(kind: socket.SocketKind = socket.SOCK_RAW) -> socket.socket:
    return socket.socket(socket.AF_PACKET, kind, socket.htons(ETH_P_ALL))


def packet_stream(source: object) -> RecordStream:
    assert isinstance(source, EbpfSockets)
    (stream,) = [stream for stream in source._streams if stream.object.name == "packet"]
    return stream


def check_sniffer(event: Event, pid: int, uid: int = 0) -> None:
    assert (event["pid"], event["uid"], event["gid"]) == (pid, uid, uid)
    assert (event["exe"], event["cmdline"]) == (PYTHON, " ".join(SNIFFER))
    assert event["entity_id"].split("-")[1] == str(pid)


@pytest.mark.parametrize("kind", [socket.SOCK_RAW, socket.SOCK_DGRAM])
def test_a_packet_socket_is_a_row_without_ends(recording: Recording, kind: socket.SocketKind) -> None:
    before = time.time()
    seen = len(recording.events(TABLE, family="packet", pid=os.getpid()))
    with packet_socket(kind):
        event = recording.expect(TABLE, seen + 1, family="packet", pid=os.getpid())[-1]
    assert {event[column] for column in WITHOUT_ENDS} == {None}
    assert (event["state"], event["uid"], event["gid"], event["exe"]) == ("listen", 0, 0, PYTHON)
    assert event["netns"] == Path("/proc/self/ns/net").stat().st_ino
    assert before - 0.1 < event["time"] < time.time() + 0.1


def test_other_sockets_are_not_packet_sockets(recording: Recording) -> None:
    opened = (
        "import socket; [socket.socket(family, socket.SOCK_RAW if family == 16 else socket.SOCK_DGRAM) "
        "for family in (1, 2, 10, 16)]; socket.socketpair(); socket.socket(17, socket.SOCK_RAW)"
    )
    with subprocess.Popen([PYTHON, "-S", "-c", opened]) as process:
        assert process.wait(20) == 0
    recording.expect(TABLE, pid=process.pid, family="packet")
    assert len(recording.events(TABLE, pid=process.pid)) == 1


def test_a_sniffer_in_a_network_namespace(recording: Recording) -> None:
    with other_namespace() as name:
        inside = Path(f"/run/netns/{name}").stat().st_ino
        pid = sniff(("ip", "netns", "exec", name))
        (event,) = recording.expect(TABLE, family="packet", netns=inside)
    check_sniffer(event, pid)


def test_a_child_that_executes_nothing(recording: Recording) -> None:
    child = fork(lambda: packet_socket().close())
    assert exit_code(child) == 0
    (event,) = recording.expect(TABLE, family="packet", pid=child)
    assert event["exe"] == PYTHON
    assert event["parent_entity_id"].split("-")[1] == str(os.getpid())


def test_a_sniffer_that_is_gone_before_anybody_reads(recording: Recording) -> None:
    processes, _ = recording.sources
    with processes._monitor.lock:  # type: ignore[attr-defined]
        pids = [sniff() for _ in range(3)]
    for pid in pids:
        (event,) = recording.expect(TABLE, family="packet", pid=pid)
        check_sniffer(event, pid)


def test_users_can_be_left_out_by_the_kernel() -> None:
    as_nobody = (*AS_NOBODY, "--ambient-caps=+net_raw")
    with Recording(sources(ignore_loopback=True)) as recording:
        pid = sniff(as_nobody)
        (event,) = recording.expect(TABLE, family="packet", pid=pid)
        check_sniffer(event, pid, uid=65534)
    with Recording(recorded := sources(ignore_uids=(65534,))) as recording:
        left_out, pid = sniff(as_nobody), sniff()
        recording.expect(TABLE, family="packet", pid=pid)
        assert not recording.events(TABLE, family="packet", pid=left_out)
        assert packet_stream(recorded[1]).received == 1


def test_executables_can_be_left_out() -> None:
    with Recording(recorded := sources(ignore_executables=(PYTHON,))) as recording:
        pid = sniff()
        assert not recording.events(TABLE, family="packet", pid=pid)
        assert packet_stream(recorded[1]).received == 1


def test_the_agents_own_can_be_left_out() -> None:
    with Recording(sources(ignore_self=True)) as recording, packet_socket():
        recording.expect(TABLE, family="packet", pid=sniff())
        assert not recording.events(TABLE, pid=os.getpid())


def test_those_that_the_ring_has_no_room_for_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = 40  # the kernel takes some 10 ms to close one
    monkeypatch.setattr(bpf_objects, "_PACKET_RING_BYTES", 4096)
    with Recording(recorded := sources()) as recording:
        with recorded[1]._monitor.lock:
            for _ in range(opened):
                packet_socket().close()
        rows = len(recording.events(TABLE, family="packet", pid=os.getpid()))
        lost = packet_stream(recorded[1]).lost()[RecordKind.PACKET]
        assert (rows > 0, lost > 0, rows + lost) == (True, True, opened)
        assert recorded[1].counters.lost["overrun"] >= lost


def test_other_sockets_are_recorded_without_the_system_calls_tracepoint(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attached = libbpf.open_tracepoint

    def refuse(category: str, name: str) -> int:
        if name == "sys_exit_socket":
            raise OSError(2, "no such tracepoint")
        return attached(category, name)

    monkeypatch.setattr(libbpf, "open_tracepoint", refuse)
    with (
        caplog.at_level(logging.WARNING),
        Recording(recorded := sources()) as recording,
        listener() as (tcp_port, _),
        datagrams() as (udp_port, _),
        packet_socket(),
    ):
        recording.expect(TABLE, local_port=tcp_port, protocol=6, state="listen")
        recording.expect(TABLE, local_port=udp_port, protocol=17, state="listen")
        assert not recording.events(TABLE, family="packet")
        told = recorded[1].counters.last_error
    assert told is not None
    assert told.startswith("packet sockets are not recorded: BPF object packet: cannot attach on_socket: ")
    assert "no such tracepoint" in told
    assert f"socket events: {told}" in caplog.text
