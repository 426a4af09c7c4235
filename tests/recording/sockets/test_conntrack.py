"""Translated addresses: what connection tracking's messages say, and what rows of real connections through NAT hold."""

from __future__ import annotations

import ipaddress
import logging
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from acting import NOBODY, acting_as
from asking import ask
from hypothesis import given
from hypothesis import strategies as st

from zeek_agent.config.sections import SourceSettings
from zeek_agent.events import reading
from zeek_agent.events.store import EventStore
from zeek_agent.host.linux.namespaces import in_network_namespace
from zeek_agent.recording.sockets.conntrack import (
    ConnectionTuple,
    Conntrack,
    TrackedConnection,
    Translations,
    parse_connection,
)
from zeek_agent.recording.sockets.socket_event import SocketEvent, Translation
from zeek_agent.recording.supervisor import Supervisor
from zeek_agent.tables import events
from zeek_agent.tables.sockets import sockets

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="netfilter")

MASQUERADED = bytes.fromhex(
    "02000000"
    "34000180" "14000180" "08000100" "0a010002" "08000200" "0a020002"
    "1c000280" "05000100" "06000000" "06000200" "9ba60000" "06000300" "00500000"
    "34000280" "14000180" "08000100" "0a020002" "08000200" "0a020001"
    "1c000280" "05000100" "06000000" "06000200" "00500000" "06000300" "9ba60000"
    "08000c00" "1b77c352" "08000300" "00000198" "08000700" "00000078"
)  # fmt: skip
"""What Linux 6.18 told of a TCP connection that it masqueraded, from `struct nfgenmsg` on."""

CLIENT = """
import socket, sys
kind, address, port = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
with socket.socket(family, kind) as client:
    if kind == socket.SOCK_STREAM:
        client.connect((address, port))
    else:
        client.sendto(b"?", (address, port))
    seen = client.recvfrom(200)[0].decode() if kind == socket.SOCK_DGRAM else client.recv(200).decode()
    ours = client.getsockname()[1]
    print(seen, ours, flush=True)
    if len(sys.argv) > 4:
        sys.stdin.read()
"""
SERVER = """
import socket, sys
kind, address, port = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
with socket.socket(family, kind) as server:
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((address, port))
    if kind == socket.SOCK_STREAM:
        server.listen()
    print("ready", flush=True)
    if kind == socket.SOCK_STREAM:
        connection, peer = server.accept()
        with connection:
            connection.sendall(f"{peer[0]} {peer[1]}".encode())
            connection.recv(1)
    else:
        _, peer = server.recvfrom(10)
        server.sendto(f"{peer[0]} {peer[1]}".encode(), peer)
"""
TCP, UDP = 1, 2
IP_PROTOCOL = {TCP: 6, UDP: 17}

NETWORK = """
set -e
ip netns add $1-host; ip netns add $1-inside; ip netns add $1-outside
for name in host inside outside; do ip -n $1-$name link set lo up; done
ip -n $1-host link add in type veth peer name eth0 netns $1-inside
ip -n $1-host link add out type veth peer name eth0 netns $1-outside
for end in host:in:10.91.0.1/24 inside:eth0:10.91.0.2/24 host:out:10.92.0.1/24 outside:eth0:10.92.0.2/24 \\
        host:in:fd91::1/64 inside:eth0:fd91::2/64 host:out:fd92::1/64 outside:eth0:fd92::2/64; do
    name=${end%%:*}; rest=${end#*:}; link=${rest%%:*}; address=${rest#*:}
    nodad=; case $address in fd*) nodad=nodad;; esac
    ip -n $1-$name address add $address dev $link $nodad
    ip -n $1-$name link set $link up
done
ip -n $1-inside route add default via 10.91.0.1
ip -n $1-inside -6 route add default via fd91::1
ip netns exec $1-host sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
ip netns exec $1-host nft -f - <<'EOF'
table inet nat {
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname "out" masquerade
    }
    chain prerouting {
        type nat hook prerouting priority dstnat
        ip daddr 10.91.0.1 tcp dport 8080 dnat ip to 10.92.0.2:80
        ip daddr 10.92.0.1 tcp dport 8081 dnat ip to 10.91.0.2:81
    }
}
EOF
"""
"""A host that masquerades what comes from inside, and passes on port 8080 to the outside and 8081 to the inside."""


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(connection: TrackedConnection, ports: tuple[int, int] = (2, 3)) -> bytes:
    """A message as nfnetlink_conntrack.h has it; `ports` are the kinds of the attributes with ports."""
    parts = bytes(4)
    for kind, ends in ((1, connection.original), (2, connection.reply)):
        source, destination = ipaddress.ip_address(ends.source), ipaddress.ip_address(ends.destination)
        first = 1 if source.version == 4 else 3
        addresses = attribute(first, source.packed) + attribute(first + 1, destination.packed)
        transport = attribute(1, bytes([connection.protocol]))
        transport += attribute(ports[0], struct.pack("!H", ends.source_port))
        transport += attribute(ports[1], struct.pack("!H", ends.destination_port))
        parts += attribute(0x8000 | kind, attribute(0x8001, addresses) + attribute(0x8002, transport))
    return parts + attribute(3, struct.pack("!I", 0x198))


def ends(addresses: st.SearchStrategy[object]) -> st.SearchStrategy[ConnectionTuple]:
    port, address = st.integers(0, 65_535), addresses.map(str)
    return st.builds(ConnectionTuple, address, port, address, port)


CONNECTIONS = st.one_of(
    st.builds(TrackedConnection, st.sampled_from([6, 17, 132, 136]), ends(addresses), ends(addresses))
    for addresses in (st.ip_addresses(v=4), st.ip_addresses(v=6).filter(lambda address: address.ipv4_mapped is None))
)
INSIDE = TrackedConnection(
    6, ConnectionTuple("10.0.0.2", 1000, "192.0.2.1", 80), ConnectionTuple("192.0.2.1", 80, "198.51.100.1", 2000)
)
CLIENTS_VIEW = (6, "10.0.0.2", 1000, "192.0.2.1", 80)
SERVERS_VIEW = (6, "192.0.2.1", 80, "198.51.100.1", 2000)
BEYOND = Translation("198.51.100.1", 2000, "192.0.2.1", 80)


def test_a_message_of_the_kernel_holds_both_directions() -> None:
    assert parse_connection(MASQUERADED) == TrackedConnection(
        6, ConnectionTuple("10.1.0.2", 39846, "10.2.0.2", 80), ConnectionTuple("10.2.0.2", 80, "10.2.0.1", 39846)
    )


@given(CONNECTIONS)
def test_messages_are_understood(connection: TrackedConnection) -> None:
    assert parse_connection(message(connection)) == connection


@given(CONNECTIONS, st.integers(0, 200))
def test_a_message_that_is_cut_is_refused_in_an_orderly_way(connection: TrackedConnection, length: int) -> None:
    with suppress(struct.error, LookupError, ValueError):
        assert parse_connection(message(connection)[:length]) in {None, connection}


def test_protocols_without_ports_are_left_out() -> None:
    assert parse_connection(message(INSIDE, ports=(5, 6))) is None


def test_each_end_finds_the_other_side_of_the_translation() -> None:
    known = Translations()
    known.begin(INSIDE)
    assert known.find(CLIENTS_VIEW) == BEYOND
    assert known.find(SERVERS_VIEW) == Translation("192.0.2.1", 80, "10.0.0.2", 1000)
    assert known.find((17, *CLIENTS_VIEW[1:])) is None
    known.begin(
        TrackedConnection(
            6, ConnectionTuple("10.0.0.3", 1, "192.0.2.1", 80), ConnectionTuple("192.0.2.1", 80, "10.0.0.3", 1)
        )
    )
    assert len(known) == 1, "what is not translated is not kept"


def test_an_ended_connection_is_kept_for_a_while_unless_it_is_reopened() -> None:
    known = Translations(grace_seconds=60)
    known.begin(INSIDE)
    known.end(INSIDE, 100.0)
    known.expire(159.0)
    assert known.find(CLIENTS_VIEW) == BEYOND
    known.begin(INSIDE)
    known.expire(161.0)
    assert known.find(CLIENTS_VIEW) == BEYOND
    known.end(INSIDE, 200.0)
    known.expire(261.0)
    assert (known.find(CLIENTS_VIEW), known.find(SERVERS_VIEW), len(known)) == (None, None, 0)


def test_the_oldest_translation_is_evicted() -> None:
    known = Translations(limit=10)
    for port in range(1, 21):
        known.begin(INSIDE._replace(original=INSIDE.original._replace(source_port=port)))
    assert len(known) == 10
    assert known.find((6, "10.0.0.2", 10, "192.0.2.1", 80)) is None
    assert known.find((6, "10.0.0.2", 11, "192.0.2.1", 80)) == BEYOND


def test_after_lost_messages_unlisted_connections_have_ended() -> None:
    known, other = Translations(grace_seconds=60), INSIDE._replace(protocol=17)
    known.begin(INSIDE)
    known.replace({other}, 100.0)
    assert known.find((17, *CLIENTS_VIEW[1:])) == BEYOND
    known.expire(161.0)
    assert (known.find(CLIENTS_VIEW), len(known)) == (None, 1)


def test_reasons_for_missing_translations_include_advice(tmp_path: Path) -> None:
    assert "nf_conntrack is not loaded" in str(Conntrack(sysctl=tmp_path).probe())
    (tmp_path / "nf_conntrack_count").write_text("0\n")
    assert "CONFIG_NF_CONNTRACK_EVENTS" in str(Conntrack(sysctl=tmp_path).probe())
    (tmp_path / "nf_conntrack_events").write_text("0\n")
    assert "sysctl net.netfilter.nf_conntrack_events=1" in str(Conntrack(sysctl=tmp_path).probe())


def test_a_host_that_tracks_no_connections_is_nothing_to_warn_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = EventStore(None, events.TABLES)
    supervisor = Supervisor(
        SourceSettings(), store, choose=lambda settings, redact: {"translations": [Conntrack(sysctl=tmp_path)]}
    )
    try:
        supervisor.start()
        ((_, backend, active, reason, *_),) = supervisor.status()
        assert (backend, active) == ("conntrack", False)
        assert "nothing is translated" in str(reason)
        assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    finally:
        supervisor.stop()
        store.close()


@pytest.mark.root
def test_missing_permission_for_translations_names_the_capability() -> None:
    source = Conntrack()
    if (reason := source.probe()) is not None:
        pytest.skip(reason)
    with acting_as(NOBODY, NOBODY), pytest.raises(PermissionError, match="CAP_NET_ADMIN"):
        source.start(lambda table, rows: None)


class Network:
    """The namespaces, and what was recorded by sources that run in the host's one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.store = EventStore(None, events.TABLES)
        settings = SourceSettings(ignore_self=False, system_logs="off", logins="off", files="off")
        self.supervisor = Supervisor(settings, self.store)

    def on_host(self, function: Callable[[], Any]) -> Any:
        return in_network_namespace(f"/run/netns/{self.name}-host", function)

    @contextmanager
    def running(self, where: str, program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
        command = ["ip", "netns", "exec", f"{self.name}-{where}", sys.executable, "-c", program, *map(str, arguments)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            yield process

    @contextmanager
    def talking(
        self, kind: int, server: tuple[str, str, int], client: tuple[str, str, int]
    ) -> Iterator[tuple[int, int, int, list[str]]]:
        """A server and its client, each by where it is and which address and port it uses.

        Gives the server's pid, the client's pid and port, and the client's address and port as the server sees them.
        """
        with self.running(server[0], SERVER, kind, *server[1:]) as serving:
            assert serving.stdout is not None
            assert serving.stdout.readline() == "ready\n"
            with self.running(client[0], CLIENT, kind, *client[1:], "wait") as asking:
                assert asking.stdout is not None
                address, port, ours = asking.stdout.readline().split()
                yield serving.pid, asking.pid, int(ours), [address, port]

    def events(self, pid: int, **wanted: object) -> list[dict[str, Any]]:
        self.supervisor.drain()
        assert self.store.flush()
        names = [column.name for column in events.sockets_events.columns]
        rows = reading.read_rows(self.store.uri, f"SELECT {', '.join(names)} FROM sockets_events WHERE pid = ?", [pid])
        found = [dict(zip(names, row, strict=True)) for row in rows]
        return [event for event in found if all(event[name] == value for name, value in wanted.items())]


def ends_of(event: dict[str, Any], prefix: str = "") -> tuple[Any, ...]:
    return tuple(event[f"{prefix}{end}"] for end in ("local_addr", "local_port", "remote_addr", "remote_port"))


def translated_ends(event: dict[str, Any]) -> tuple[Any, ...]:
    return ends_of(event, "translated_")


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if shutil.which("nft") is None:
        pytest.skip("needs nft")
    network = Network(f"za{os.getpid()}")
    try:
        subprocess.run(["sh", "-c", NETWORK, "sh", network.name], check=True)
        network.on_host(network.supervisor.start)
        yield network
    finally:
        network.supervisor.stop()
        network.store.close()
        for where in ("host", "inside", "outside"):
            subprocess.run(["ip", "netns", "delete", f"{network.name}-{where}"], check=False)


@pytest.mark.root
@pytest.mark.parametrize("kind", [TCP, UDP])
@pytest.mark.parametrize(("outside", "masqueraded"), [("10.92.0.2", "10.92.0.1"), ("fd92::2", "fd92::1")])
def test_the_row_of_a_masqueraded_client_has_the_ends_that_the_server_sees(
    network: Network, kind: int, outside: str, masqueraded: str
) -> None:
    with network.talking(kind, ("outside", outside, 7000), ("inside", outside, 7000)) as (_, pid, port, seen):
        (opened,) = network.events(pid, state="established")
        assert (opened["local_port"], opened["protocol"]) == (port, IP_PROTOCOL[kind])
        assert seen[0] == masqueraded != opened["local_addr"]
        assert translated_ends(opened) == (masqueraded, int(seen[1]), outside, 7000)
        if kind == TCP:
            (row,) = network.on_host(lambda: ask(sockets, pid=pid))
            assert (ends_of(row), translated_ends(row)) == (ends_of(opened), translated_ends(opened))


@pytest.mark.root
def test_both_ends_of_a_connection_that_is_passed_on_have_the_other_side(network: Network) -> None:
    with network.talking(TCP, ("outside", "10.92.0.2", 80), ("inside", "10.91.0.1", 8080)) as (_, pid, port, seen):
        (opened,) = network.events(pid, state="established")
    assert ends_of(opened) == ("10.91.0.2", port, "10.91.0.1", 8080)
    assert translated_ends(opened) == ("10.92.0.1", int(seen[1]), "10.92.0.2", 80)
    with network.talking(TCP, ("inside", "10.91.0.2", 81), ("outside", "10.92.0.1", 8081)) as (pid, _, port, seen):
        (accepted,) = network.events(pid, state="established")
    assert seen == ["10.92.0.2", str(port)]
    assert ends_of(accepted) == ("10.91.0.2", 81, "10.92.0.2", port)
    assert translated_ends(accepted) == ("10.92.0.1", 8081, "10.92.0.2", port)


@pytest.mark.root
def test_a_connection_without_translation_has_none(network: Network) -> None:
    with network.talking(TCP, ("host", "10.91.0.1", 7001), ("inside", "10.91.0.1", 7001)) as (server, client, _, seen):
        assert seen[0] == "10.91.0.2"
        for pid in (server, client):
            (event,) = network.events(pid, state="established")
            assert translated_ends(event) == (None,) * 4
        (row,) = network.on_host(lambda: ask(sockets, pid=client))
        assert (row["state"], translated_ends(row)) == ("ESTABLISHED", (None,) * 4)


@pytest.mark.root
def test_connections_that_exist_at_the_start_are_tracked_to_their_end(network: Network) -> None:
    late = Conntrack()
    with network.talking(TCP, ("outside", "10.92.0.2", 7002), ("inside", "10.92.0.2", 7002)) as (_, pid, _, _):
        network.on_host(lambda: late.start(network.store.append))
        try:
            (opened,) = network.events(pid, state="established")
            names = [column.name for column in events.sockets_events.recorded]
            bare = SocketEvent(*(None if name.startswith("translated") else opened[name] for name in names))
            (completed,) = late.complete("sockets_events", [bare])
            assert completed == SocketEvent(*(opened[name] for name in names))
            assert late.complete("processes_events", [bare]) == [bare]
        finally:
            late.stop()
    (closed,) = network.events(pid, state="closed")
    assert translated_ends(closed) == translated_ends(opened) != (None,) * 4


@pytest.mark.root
def test_the_source_shows_in_the_table_of_sources(network: Network) -> None:
    (row,) = (row for row in network.supervisor.status() if row.source == "translations")
    assert (row.backend, row.active, row.reason) == ("conntrack", True, None)
