"""Bytes and packets of connections that really carried a known amount."""

from __future__ import annotations

import os
import random
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import pytest
from asking import ask
from recording import Event, Recording

from zeek_agent.config.sections import SourceSettings
from zeek_agent.events.store import EventStore
from zeek_agent.host.linux.boot_clock import time_since_boot
from zeek_agent.recording.bpf_monitor import BpfMonitor
from zeek_agent.recording.processes.ebpf_processes import EbpfProcesses
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.recording.sockets import ebpf_sockets
from zeek_agent.recording.sockets.ebpf_sockets import EbpfSockets
from zeek_agent.tables import events
from zeek_agent.tables.connections import connections

pytestmark = pytest.mark.root
TABLE: Final = "sockets_events"
LOOPBACK: Final = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104

families = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
Send = Callable[[socket.socket, int], None]


def sources(**settings: object) -> list[EbpfProcesses | EbpfSockets]:
    wanted = SourceSettings(**{"ignore_self": False, **settings})  # type: ignore[arg-type]
    monitor = BpfMonitor(ProcessCache(), wanted.ring_bytes)
    return [EbpfProcesses(monitor, wanted), EbpfSockets(monitor, wanted)]


@pytest.fixture(scope="module")
def recording() -> Iterator[Recording]:
    with Recording(sources()) as recording:
        yield recording


def by_sendall(connection: socket.socket, size: int) -> None:
    connection.sendall(bytes(size))


def by_small_writes(connection: socket.socket, size: int) -> None:
    for start in range(0, size, 997):
        connection.sendall(bytes(min(997, size - start)))


def by_sendfile(connection: socket.socket, size: int) -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        assert connection.sendfile(file) == size


def by_splice(connection: socket.socket, size: int) -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        reader, writer = os.pipe()
        try:
            left = size
            while left:
                moved = os.splice(file.fileno(), writer, min(left, 65_536))
                while moved:
                    sent = os.splice(reader, connection.fileno(), moved)
                    moved -= sent
                    left -= sent
        finally:
            os.close(reader)
            os.close(writer)


ways = pytest.mark.parametrize("send", [by_sendall, by_small_writes, by_sendfile, by_splice])


def transfer(family: int, up: int, down: int, send: Send) -> tuple[int, int]:
    """A connection on which `up` and then `down` bytes are transferred. Returns the client's and the server's port."""

    def receive(connection: socket.socket) -> int:
        received = 0
        while data := connection.recv(1 << 16):
            received += len(data)
        return received

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            totals.append(receive(connection))
            send(connection, down)

    totals: list[int] = []
    with socket.create_server((LOOPBACK[family], 0), family=family) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        with socket.create_connection(server.getsockname()[:2]) as client:
            send(client, up)
            client.shutdown(socket.SHUT_WR)
            totals.append(receive(client))
            ports = client.getsockname()[1], server.getsockname()[1]
        thread.join()
    assert totals == [up, down]
    return ports


def counts(event: Event) -> tuple[int, int]:
    return event["bytes_sent"], event["bytes_received"]


@families
@ways
@pytest.mark.parametrize("transfers", [3, pytest.param(200, marks=pytest.mark.soak)])
def test_tcp_connections_have_exactly_their_payload(
    recording: Recording, family: int, send: Send, transfers: int
) -> None:
    chance = random.Random(family)
    for number in range(transfers):
        up, down = (0, 1) if number == 0 else (chance.randrange(2_000_000), chance.randrange(200_000))
        client, server = transfer(family, up, down, send)
        ends = {"state": "closed", "local_port": client, "remote_port": server}
        (sent,) = recording.expect(TABLE, **ends)
        (received,) = recording.expect(TABLE, state="closed", local_port=server, remote_port=client)
        assert counts(sent) == (up, down)
        assert counts(received) == (down, up)
        assert sent["packets_sent"] == received["packets_received"]
        assert 0 < sent["duration"] < 60
        assert sent["receive_drops"] is None


def test_a_connection_that_was_open_before_recording_has_its_bytes_and_no_duration() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        client.sendall(bytes(1000))
        with Recording(sources()) as recording:
            client.sendall(bytes(500))
            assert len(accepted.recv(1500, socket.MSG_WAITALL)) == 1500
            port = client.getsockname()[1]
            accepted.close()
            client.close()
            (row,) = recording.expect(TABLE, state="closed", local_port=port)
            assert (row["bytes_sent"], row["duration"]) == (1500, None)


@contextmanager
def datagrams(family: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two sockets: a client connected to a server."""
    with socket.socket(family, socket.SOCK_DGRAM) as server, socket.socket(family, socket.SOCK_DGRAM) as client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        server.bind((LOOPBACK[family], 0))
        client.connect(server.getsockname())
        yield client, server


@families
@pytest.mark.parametrize("segment", [0, 700], ids=["single", "GSO"])
@pytest.mark.parametrize("joined", [False, True], ids=["plain", "GRO"])
def test_udp_flows_have_the_payload_of_their_datagrams(
    recording: Recording, family: int, segment: int, joined: bool
) -> None:
    sizes = [0, 1, 1200, 9000, 700, 20_000]
    with datagrams(family) as (client, server):
        if segment:
            client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, segment)
        if joined:
            server.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        for size in sizes:
            client.send(bytes(size))
        received = peer = None
        total = 0
        while total < sum(sizes):
            received, peer = server.recvfrom(1 << 16)
            total += len(received)
        server.sendto(b"answer", peer)
        assert client.recv(100) == b"answer"
        ports = client.getsockname()[1], server.getsockname()[1]
    packets = sum(max(1, -(-size // segment)) if segment else 1 for size in sizes)
    (sent,) = recording.expect(TABLE, state="closed", local_port=ports[0], remote_port=ports[1])
    (answered,) = recording.expect(TABLE, state="closed", local_port=ports[1], remote_port=ports[0])
    assert (*counts(sent), sent["packets_sent"], sent["packets_received"]) == (sum(sizes), 6, packets, 1)
    assert (*counts(answered), answered["packets_received"]) == (6, sum(sizes), packets)
    assert (sent["receive_drops"], answered["receive_drops"]) == (0, 0)


@pytest.mark.long
def test_datagrams_that_found_the_receive_buffer_full_are_counted(recording: Recording) -> None:
    with datagrams(socket.AF_INET) as (client, server):
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(200):
            client.send(bytes(1000))
        read = 0
        server.setblocking(False)
        while True:
            try:
                server.recv(2000)
            except BlockingIOError:
                break
            read += 1
        port = server.getsockname()[1]
    assert 0 < read < 200
    (row,) = recording.expect(TABLE, state="closed", local_port=port)
    assert (row["packets_received"], row["receive_drops"]) == (200, 200 - read)


def test_each_flow_of_a_server_ends_with_what_it_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a socket with several peers, its end tells nothing about them: their flows expire, here at once."""
    monkeypatch.setattr("zeek_agent.recording.sockets.ebpf_sockets.time_since_boot", in_two_minutes)
    monkeypatch.setattr(ebpf_sockets, "_SWEEP_NS", 0)
    with Recording(sources()) as recording, datagrams(socket.AF_INET) as (_, server):
        ports = []
        for number in range(1, 4):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.sendto(bytes(number * 100), server.getsockname())
                _, peer = server.recvfrom(1000)
                server.sendto(bytes(number), peer)
                other.recv(100)
                ports.append(other.getsockname()[1])
        local = server.getsockname()[1]
        for number, port in enumerate(ports, 1):
            (row,) = recording.expect(TABLE, state="expired", direction="inbound", local_port=local, remote_port=port)
            assert counts(row) == (number, number * 100)
            assert (row["pid"], row["packets_received"]) == (os.getpid(), 1)
            assert row["time"] < time.time()


def in_two_minutes() -> int:
    return time_since_boot() + 120_000_000_000


@pytest.mark.long
def test_connections_that_stay_open_have_rows_with_what_they_carried_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    interval = 0.5
    monkeypatch.setattr(ebpf_sockets, "_SWEEP_NS", 0)
    with (
        Recording(sources(traffic_interval=interval)) as recording,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
        datagrams(socket.AF_INET) as (talker, listener),
    ):
        accepted, _ = server.accept()
        client.sendall(bytes(5000))
        received = 0
        while received < 5000:
            received += len(accepted.recv(5000))
        stop = threading.Event()

        def talk() -> None:
            while not stop.wait(0.2):
                talker.send(b"more")
                listener.recv(10)

        thread = threading.Thread(target=talk)
        thread.start()
        try:
            port = client.getsockname()[1]
            first, second = recording.expect(TABLE, 2, state="active", local_port=port)[:2]
            datagram = recording.expect(TABLE, state="active", local_port=talker.getsockname()[1])[0]
        finally:
            stop.set()
            thread.join()
            accepted.close()
    assert counts(first) == counts(second) == (5000, 0)
    assert second["duration"] > first["duration"] >= interval
    assert (first["pid"], first["direction"]) == (os.getpid(), "outbound")
    assert datagram["bytes_sent"] == 4 * datagram["packets_sent"] > 0


def test_the_table_shows_what_open_and_closed_connections_carried() -> None:
    store = EventStore(None, events.TABLES)
    running = sources()
    for source in running:
        if (reason := source.probe()) is not None:
            pytest.skip(reason)
        source.start(store.append)
    try:
        closed, _ = transfer(socket.AF_INET, 12_345, 678, by_sendall)
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname()) as client,
            datagrams(socket.AF_INET) as (talker, listener),
        ):
            accepted, _ = server.accept()
            with accepted:
                client.sendall(bytes(99))
                talker.send(b"hello")
                listener.recv(10)
                for source in running:
                    source.drain()
                assert store.flush()
                rows = {row["local_port"]: row for row in ask(connections, store=store)}
                ended, opened = rows[closed], rows[client.getsockname()[1]]
                flow = rows[talker.getsockname()[1]]
    finally:
        for source in reversed(running):
            source.stop()
        store.close()
    assert (ended["state"], *counts(ended)) == ("closed", 12_345, 678)
    assert ended["ended"] - ended["began"] == pytest.approx(ended["duration"], abs=1e-5)
    assert (opened["state"], *counts(opened), opened["ended"]) == ("open", 99, 0, None)
    assert (opened["pid"], opened["direction"]) == (os.getpid(), "outbound")
    assert (flow["state"], flow["protocol"], flow["pid"]) == ("open", 17, os.getpid())
    assert opened["began"] < time.time()
