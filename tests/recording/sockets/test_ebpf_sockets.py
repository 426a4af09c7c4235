"""Socket events by eBPF, from connections that really were made."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import communityid
import pytest
from children import exit_code, fork
from recording import Event, Recording, generate, load_generator
from waiting import until_sync

from zeek_agent.bpf.libbpf import BpfObject
from zeek_agent.config.sections import SourceSettings
from zeek_agent.recording.bpf_monitor import BpfMonitor
from zeek_agent.recording.processes.ebpf_processes import EbpfProcesses
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.recording.sockets.ebpf_sockets import EbpfSockets

pytestmark = pytest.mark.root
TABLE = "sockets_events"
LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
SO_COOKIE = 57
COMMUNITY_ID = communityid.CommunityID()


BECOMES_BASH = """
import os, sys
os.read(0, 1)
script = f"read go; for n in 1 2 3 4; do ( : </dev/tcp/127.0.0.1/{sys.argv[1]} ); done"
os.execv("/bin/bash", ["bash", "-c", script, "x" * 2000])
"""
"""The long argument makes the record of the exec too large for what others may have left of a small ring."""


def sources(**settings: object) -> list[EbpfProcesses | EbpfSockets]:
    wanted = SourceSettings(**{"ignore_self": False, **settings})  # type: ignore[arg-type]
    monitor = BpfMonitor(ProcessCache(), wanted.ring_bytes)
    return [EbpfProcesses(monitor, wanted), EbpfSockets(monitor, wanted)]


@pytest.fixture(scope="module")
def recording() -> Iterator[Recording]:
    with Recording(sources()) as recording:
        yield recording


def test_no_flow_is_swept_while_objects_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zeek_agent.recording.bpf_monitor._HOUSEKEEPING_SECONDS", 0)
    monkeypatch.setattr("zeek_agent.recording.sockets.ebpf_sockets._SWEEP_NS", 0)
    swept: list[str] = []
    run = BpfObject.run
    monkeypatch.setattr(BpfObject, "run", lambda self, *what: (run(self, *what), swept.append(self.name)))
    with Recording(sources()):
        until_sync(lambda: len(swept) > 1)
    assert set(swept) == {"udp"}


@contextmanager
def listener(family: int = socket.AF_INET, address: str | None = None) -> Iterator[tuple[int, list[int]]]:
    """A server on loopback that accepts and closes: its port, and the peers' ports so far."""
    peers: list[int] = []

    def serve() -> None:
        while True:
            try:
                connection, peer = server.accept()
            except OSError:
                return
            peers.append(peer[1])
            connection.close()

    with socket.socket(family) as server:
        server.bind((address or LOOPBACK[family], 0))
        server.listen(1024)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1], peers
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextmanager
def datagrams(family: int = socket.AF_INET) -> Iterator[tuple[int, socket.socket]]:
    with socket.socket(family, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        server.bind((LOOPBACK[family], 0))
        yield server.getsockname()[1], server


def check_flow(event: Event) -> None:
    make = {6: communityid.FlowTuple.make_tcp, 17: communityid.FlowTuple.make_udp}[event["protocol"]]
    ends = (event["local_addr"], event["remote_addr"], event["local_port"], event["remote_port"])
    assert event["community_id"] == COMMUNITY_ID.calc(make(*ends))


def check_client(event: Event, pid: int, port: int) -> None:
    exe = load_generator()
    assert (event["pid"], event["exe"], event["process"], event["uid"], event["gid"]) == (pid, exe, "load", 0, 0)
    assert event["remote_port"] == port
    assert event["cmdline"].startswith(exe)
    assert event["entity_id"].split("-")[1] == str(pid)
    check_flow(event)


def check_server(event: Event, port: int) -> None:
    assert (event["pid"], event["uid"]) == (os.getpid(), 0)
    assert event["exe"] == str(Path(sys.executable).resolve())
    assert event["local_port"] == port
    check_flow(event)


families = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
numbers = pytest.mark.parametrize("number", [200, pytest.param(2000, marks=pytest.mark.soak)])
"""The events of few fit into the ring whether or not the reader gets a turn meanwhile."""


@pytest.mark.long(kept=1)
@families
@numbers
def test_short_lived_processes_each_with_a_connection(recording: Recording, family: int, number: int) -> None:
    """Both ends of each are there, and the end of 98 of 100.

    A sandbox's kernel may run no program while its own daemon is the current task: a close that a packet brings just
    there is seen by nobody.
    """
    lost = recording.sources[1].counters.lost["overrun"]
    with listener(family) as (port, _):
        made = generate("exec", number, 0, load_generator(), "tcp", LOOPBACK[family], port)
        wanted = {"state": "established", "protocol": 6}
        outbound = recording.expect(TABLE, number, direction="outbound", remote_port=port, **wanted)
        inbound = recording.expect(TABLE, number, direction="inbound", local_port=port, **wanted)
        ends = {"state": "closed", "protocol": 6, "remote_port": port}
        closed = recording.expect(TABLE, number * 98 // 100, **ends)
    outbound.sort(key=lambda event: (event["pid"], event["local_port"]))
    assert [(event["pid"], event["local_port"]) for event in outbound] == sorted(made)
    assert sorted(event["remote_port"] for event in inbound) == sorted(local for _, local in made)
    for event, (pid, _) in zip(outbound, sorted(made), strict=True):
        check_client(event, pid, port)
    for event in inbound:
        check_server(event, port)
    owners = {event["cookie"]: event["pid"] for event in outbound}
    assert {event["cookie"]: event["pid"] for event in closed}.items() <= owners.items()
    assert len({event["cookie"] for event in closed}) == len(closed)
    assert recording.sources[1].counters.lost["overrun"] == lost


@pytest.mark.long(kept=1)
@families
@pytest.mark.parametrize("mode", ["udp", "udp-connected"])
@numbers
def test_short_lived_processes_each_with_a_datagram(recording: Recording, mode: str, family: int, number: int) -> None:
    with datagrams(family) as (port, _):
        made = generate("exec", number, 0, load_generator(), mode, LOOPBACK[family], port)
        wanted = {"state": "established", "protocol": 17}
        outbound = recording.expect(TABLE, number, direction="outbound", remote_port=port, **wanted)
        # a port that two clients had one after the other is one peer for the server's socket
        peers = {local for _, local in made}
        inbound = recording.expect(TABLE, len(peers), direction="inbound", local_port=port, **wanted)
    outbound.sort(key=lambda event: (event["pid"], event["local_port"]))
    assert [(event["pid"], event["local_port"]) for event in outbound] == sorted(made)
    assert sorted(event["remote_port"] for event in inbound) == sorted(peers)
    for event, (pid, _) in zip(outbound, sorted(made), strict=True):
        check_client(event, pid, port)
    for event in inbound:
        check_server(event, port)


def test_children_that_connect_without_executing_anything(recording: Recording) -> None:
    with listener() as (port, _):
        made = generate("fork-tcp", "127.0.0.1", port, 200)
        outbound = recording.expect(TABLE, 200, direction="outbound", remote_port=port, state="established")
    outbound.sort(key=lambda event: (event["pid"], event["local_port"]))
    assert [(event["pid"], event["local_port"]) for event in outbound] == sorted(made)
    for event, (pid, _) in zip(outbound, sorted(made), strict=True):
        check_client(event, pid, port)
        assert f"fork-tcp 127.0.0.1 {port}" in event["cmdline"]
    assert len({event["parent_entity_id"] for event in outbound}) == 1


def test_a_connection_belongs_to_the_program_that_made_it_not_to_what_it_became(recording: Recording) -> None:
    with listener() as (port, _):
        ((pid, _),) = generate("tcp-exec", "127.0.0.1", port, "/bin/sleep", "0.1")
        (outbound,) = recording.expect(TABLE, direction="outbound", remote_port=port, state="established")
        (closed,) = recording.expect(TABLE, direction="outbound", remote_port=port, state="closed")
    for event in (outbound, closed):
        check_client(event, pid, port)


def test_a_connection_that_is_refused_has_failed(recording: Recording) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        process = subprocess.run([load_generator(), "tcp", "127.0.0.1", str(port)], capture_output=True, check=False)
    assert process.returncode == 1
    (failed,) = recording.expect(TABLE, remote_port=port, state="failed")
    assert (failed["exe"], failed["direction"]) == (load_generator(), "outbound")
    assert failed["local_port"] > 0
    check_flow(failed)
    assert not recording.events(TABLE, local_port=port, remote_port=failed["local_port"], state="established")


def test_a_listener_opens_and_closes(recording: Recording) -> None:
    with listener() as (port, _):
        (listening,) = recording.expect(TABLE, local_port=port, state="listen")
    (closed,) = recording.expect(TABLE, cookie=listening["cookie"], state="closed")
    for event in (listening, closed):
        assert (event["pid"], event["local_addr"], event["remote_addr"]) == (os.getpid(), "127.0.0.1", None)
        assert event["direction"] is None


def test_a_reset_connection_is_closed_at_both_ends(recording: Recording) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, (_, port) = server.accept()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        (outbound,) = recording.expect(
            TABLE, state="established", local_port=port, remote_port=server.getsockname()[1], direction="outbound"
        )
        client.close()
        ends = recording.expect(TABLE, 2, state="closed", community_id=outbound["community_id"])
        accepted.close()
    assert sorted(event["direction"] for event in ends) == ["inbound", "outbound"]


def test_the_accepting_process_counts_not_the_one_that_listens(recording: Recording) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def accept() -> None:
            server.accept()[0].close()

        child = fork(accept)
        socket.create_connection(("127.0.0.1", port)).close()
        assert exit_code(child) == 0
        (inbound,) = recording.expect(TABLE, local_port=port, state="established", direction="inbound")
        assert inbound["pid"] == child
        assert inbound["listener_stands_in"] is False


def test_a_connection_that_nobody_accepts_belongs_to_the_listener(recording: Recording) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        (inbound,) = recording.expect(TABLE, local_port=port, state="established", direction="inbound")
        client.close()
    (closed,) = recording.expect(TABLE, local_port=port, state="closed", direction="inbound")
    for event in (inbound, closed):
        check_server(event, port)
        assert event["listener_stands_in"] is True


def test_for_an_accept_by_io_uring_the_listeners_owner_is_the_substitute(recording: Recording) -> None:
    with subprocess.Popen([load_generator(), "uring-accept"], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        told = server.stdout.readline().split()
        if not told:
            assert server.wait() == 3
            pytest.skip("io_uring may not be used here")
        port = int(told[1])
        socket.create_connection(("127.0.0.1", port)).close()
    assert server.returncode == 0
    (inbound,) = recording.expect(TABLE, local_port=port, state="established", direction="inbound")
    assert (inbound["pid"], inbound["exe"]) == (server.pid, load_generator())
    assert inbound["listener_stands_in"] is True


def test_ipv4_over_an_ipv6_socket_is_shown_as_ipv4(recording: Recording) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        port = server.getsockname()[1]
        client = socket.socket(socket.AF_INET6)
        client.connect(("::ffff:127.0.0.1", port))
        accepted, _ = server.accept()
        events = [
            *recording.expect(TABLE, direction="outbound", remote_port=port, state="established"),
            *recording.expect(TABLE, direction="inbound", local_port=port, state="established"),
        ]
        client.close()
        accepted.close()
    for event in events:
        assert (event["family"], event["local_addr"], event["remote_addr"]) == ("IPv4", "127.0.0.1", "127.0.0.1")
        check_flow(event)


def test_one_socket_and_two_peers_are_two_flows_however_many_datagrams(recording: Recording) -> None:
    with datagrams() as (first, _), datagrams() as (second, _):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for _ in range(10):
                client.sendto(b"x", ("127.0.0.1", first))
                client.sendto(b"x", ("127.0.0.1", second))
            cookie = int.from_bytes(client.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)
        recording.expect(TABLE, state="closed", cookie=cookie)
    flows = recording.events(TABLE, state="established", cookie=cookie)
    assert [event["remote_port"] for event in flows] == [first, second]


def test_an_answer_is_part_of_the_flow_that_it_answers(recording: Recording) -> None:
    with datagrams() as (port, server), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"question", ("127.0.0.1", port))
        _, peer = server.recvfrom(100)
        server.sendto(b"answer", peer)
        client.recv(100)
        recording.expect(TABLE, state="established", local_port=port, remote_port=peer[1], direction="inbound")
        (asked,) = recording.expect(TABLE, state="established", remote_port=port, local_port=peer[1])
    assert asked["direction"] == "outbound"


def test_a_bound_datagram_socket_listens(recording: Recording) -> None:
    with datagrams() as (port, _):
        (bound,) = recording.expect(TABLE, local_port=port, state="listen", protocol=17)
    assert bound["pid"] == os.getpid()
    recording.expect(TABLE, local_port=port, state="closed", protocol=17)


@pytest.fixture
def ping_sockets() -> Iterator[None]:
    """All groups may use ping sockets."""
    allowed = Path("/proc/sys/net/ipv4/ping_group_range")
    before = allowed.read_text()
    try:
        allowed.write_text("0 2147483647")
    except OSError as error:
        pytest.skip(f"cannot allow ping sockets: {error}")
    yield
    allowed.write_text(before)


@pytest.mark.usefixtures("ping_sockets")
@pytest.mark.parametrize("kind", [socket.SOCK_RAW, socket.SOCK_DGRAM], ids=["raw", "ping"])
@pytest.mark.parametrize("protocol", [1, 58], ids=["v4", "v6"])
def test_an_echo_request_has_the_ports_that_zeek_gives_it(recording: Recording, kind: int, protocol: int) -> None:
    family, request = (socket.AF_INET, 8) if protocol == 1 else (socket.AF_INET6, 128)
    with socket.socket(family, kind, protocol) as ping:
        ping.sendto(
            bytes([request, 0, 0xF7 if protocol == 1 else 0, 0xFF if protocol == 1 else 0, 0, 0, 0, 0]),
            (LOOPBACK[family], 0),
        )
        cookie = int.from_bytes(ping.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)
        (event,) = recording.expect(TABLE, protocol=protocol, state="established", cookie=cookie)
    assert event["pid"] == os.getpid()
    assert (event["local_port"], event["remote_port"]) == ((8, 0) if protocol == 1 else (128, 129))
    make = communityid.FlowTuple.make_icmp if protocol == 1 else communityid.FlowTuple.make_icmp6
    flow = make(event["local_addr"], event["remote_addr"], request, 0)
    assert event["community_id"] == COMMUNITY_ID.calc(flow)


@pytest.mark.usefixtures("ping_sockets")
@pytest.mark.parametrize("kind", [socket.SOCK_RAW, socket.SOCK_DGRAM], ids=["raw", "ping"])
@pytest.mark.parametrize("protocol", [1, 58], ids=["v4", "v6"])
def test_what_echo_requests_carried_is_counted(recording: Recording, kind: int, protocol: int) -> None:
    family, request = (socket.AF_INET, 8) if protocol == 1 else (socket.AF_INET6, 128)
    with socket.socket(family, kind, protocol) as ping:
        for size in (0, 1_000, 30_000):  # the last one in fragments, where the path's limit is lower
            ping.sendto(bytes([request, *bytes(7 + size)]), (LOOPBACK[family], 0))
        cookie = int.from_bytes(ping.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)
    (closed,) = recording.expect(TABLE, protocol=protocol, state="closed", cookie=cookie)
    assert (closed["bytes_sent"], closed["packets_sent"]) == (31_000, 3)
    assert (closed["bytes_received"], closed["packets_received"]) == (None, None)
    assert closed["pid"] == os.getpid()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def test_what_a_raw_socket_sent_by_a_protocol_of_its_own_is_counted(recording: Recording, family: int) -> None:
    with socket.socket(family, socket.SOCK_RAW, 253) as raw:
        for _ in range(5):
            raw.sendto(bytes(700), (LOOPBACK[family], 0))
        cookie = int.from_bytes(raw.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)
    (closed,) = recording.expect(TABLE, protocol=253, state="closed", cookie=cookie)
    assert (closed["bytes_sent"], closed["packets_sent"], closed["bytes_received"]) == (3_500, 5, None)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def test_an_sctp_packet_has_its_ports(recording: Recording, family: int) -> None:
    init = struct.pack("!HHII", 40_000, 38_412, 0, 0) + b"\x01\x00\x00\x14" + bytes(16)
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_SCTP) as raw:
        raw.sendto(init, (LOOPBACK[family], 0))
        cookie = int.from_bytes(raw.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)
        (event,) = recording.expect(TABLE, protocol=132, state="established", cookie=cookie)
    assert (event["pid"], event["direction"]) == (os.getpid(), "outbound")
    assert (event["local_addr"], event["remote_addr"]) == (LOOPBACK[family], LOOPBACK[family])
    assert (event["local_port"], event["remote_port"]) == (40_000, 38_412)
    flow = communityid.FlowTuple.make_sctp(event["local_addr"], event["remote_addr"], 40_000, 38_412)
    assert event["community_id"] == COMMUNITY_ID.calc(flow)


def test_both_ends_of_udp_lite(recording: Recording) -> None:
    try:
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136)
    except OSError:
        pytest.skip("the kernel has no UDP-Lite")
    with server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136) as client:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        client.sendto(b"x", ("127.0.0.1", port))
        recording.expect(TABLE, protocol=136, state="listen", local_port=port)
        (sent,) = recording.expect(TABLE, protocol=136, direction="outbound", remote_port=port)
        (received,) = recording.expect(TABLE, protocol=136, direction="inbound", local_port=port)
    assert received["remote_port"] == sent["local_port"] > 0


def test_a_raw_packet_without_ports_has_addresses(recording: Recording) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_GRE) as raw:
        raw.sendto(bytes(4), ("127.0.0.1", 0))
        (event,) = recording.expect(TABLE, protocol=47, state="established", pid=os.getpid())
    assert (event["local_addr"], event["remote_addr"]) == ("127.0.0.1", "127.0.0.1")
    assert event["community_id"] is None


def test_a_user_other_than_root_gets_the_reason(recording: Recording) -> None:
    with listener() as (port, _):
        command = [load_generator(), "tcp", "127.0.0.1", str(port)]
        subprocess.run(command, user=65534, group=65534, capture_output=True, check=True)
        (outbound,) = recording.expect(TABLE, direction="outbound", remote_port=port, state="established")
    assert (outbound["uid"], outbound["gid"]) == (65534, 65534)


@contextmanager
def other_namespace() -> Iterator[str]:
    """A network namespace with 198.51.100.2, reachable from here, which is 198.51.100.1 at the other end of a cable."""
    name = f"zeek-agent-{os.getpid()}"
    here, there = f"za{os.getpid() % 100_000}a", f"za{os.getpid() % 100_000}b"
    commands = [
        f"ip link add {here} type veth peer name {there} netns {name}",
        f"ip address add 198.51.100.1/24 dev {here}",
        f"ip link set {here} up",
        f"ip -n {name} address add 198.51.100.2/24 dev {there}",
        f"ip -n {name} link set {there} up",
    ]
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for command in commands:
            subprocess.run(command.split(), check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)
        subprocess.run(["ip", "link", "delete", here], check=False, capture_output=True)


def test_both_ends_of_a_connection_between_network_namespaces(recording: Recording) -> None:
    own = Path("/proc/self/ns/net").stat().st_ino
    with (
        other_namespace() as name,
        listener(address="198.51.100.1") as (port, _),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
    ):
        server.bind(("198.51.100.1", port))
        inside = Path(f"/run/netns/{name}").stat().st_ino
        for mode, protocol in (("tcp", 6), ("udp", 17)):
            made = generate(
                "exec", 20, 0, load_generator(), mode, "198.51.100.1", port, prefix=["ip", "netns", "exec", name]
            )
            wanted = {"state": "established", "protocol": protocol}
            outbound = recording.expect(TABLE, 20, direction="outbound", remote_port=port, **wanted)
            peers = {local for _, local in made}  # a port that two clients had is one peer for the server's UDP socket
            inbound = recording.expect(TABLE, len(peers), direction="inbound", local_port=port, **wanted)
            outbound.sort(key=lambda event: (event["pid"], event["local_port"]))
            for event, (pid, _) in zip(outbound, sorted(made), strict=True):
                check_client(event, pid, port)
                assert (event["netns"], event["local_addr"], event["remote_addr"]) == (
                    inside,
                    "198.51.100.2",
                    "198.51.100.1",
                )
            for event in inbound:
                check_server(event, port)
                assert (event["netns"], event["remote_addr"]) == (own, "198.51.100.2")
            assert {event["community_id"] for event in outbound} == {event["community_id"] for event in inbound}


def test_sockets_that_were_open_before_are_attributed() -> None:
    with datagrams() as (port, _), socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, (_, client_port) = server.accept()
        with Recording(sources()) as recording:
            generate("udp", "127.0.0.1", port)
            (received,) = recording.expect(TABLE, local_port=port, protocol=17, direction="inbound")
            client.close()
            accepted.close()
            (outbound,) = recording.expect(TABLE, local_port=client_port, state="closed", direction="outbound")
            (inbound,) = recording.expect(TABLE, remote_port=client_port, state="closed", direction="inbound")
    for event in (received, outbound, inbound):
        assert event["pid"] == os.getpid()
        check_flow(event)


def test_loopback_can_be_left_out_by_the_kernel() -> None:
    with Recording(recorded := sources(ignore_loopback=True)) as recording, listener() as (port, _):
        for mode in ("tcp", "udp"):
            generate("exec", 20, 0, load_generator(), mode, "127.0.0.1", port)
        recording.expect(TABLE, state="listen", local_port=port)
        everything = recording.events(TABLE)
        assert not [event for event in everything if port in (event["local_port"], event["remote_port"])][1:]
        assert recorded[1].counters.received < len(everything) + 40


def test_executables_and_users_can_be_left_out() -> None:
    exe = load_generator()
    with listener() as (port, _):
        with Recording(sources(ignore_executables=(exe,))) as recording:
            generate("tcp", "127.0.0.1", port)
            recording.expect(TABLE, local_port=port, direction="inbound", state="established")
            assert not recording.events(TABLE, exe=exe)
        with Recording(sources(ignore_uids=(65534,))) as recording:
            subprocess.run([exe, "tcp", "127.0.0.1", str(port)], user=65534, capture_output=True, check=True)
            recording.expect(TABLE, local_port=port, direction="inbound", state="established")
            assert not recording.events(TABLE, uid=65534, remote_port=port)


def test_the_agents_own_connections_can_be_left_out() -> None:
    with Recording(sources(ignore_self=True)) as recording, listener() as (port, _):
        generate("tcp", "127.0.0.1", port)
        recording.expect(TABLE, remote_port=port, direction="outbound", state="established")
        assert not recording.events(TABLE, pid=os.getpid())


def test_records_that_the_ring_has_no_room_for_are_counted() -> None:
    with Recording(recorded := sources(ring_bytes=4096)), datagrams() as (port, _):
        monitor = recorded[1]._monitor
        recorded[1].drain()
        before = recorded[1].counters.received + recorded[1].counters.lost["overrun"]
        with monitor.lock:
            made = generate("exec", 100, 0, load_generator(), "udp", "127.0.0.1", port)
        counters = recorded[1].counters
        # of each datagram: sent and closed; received once of each peer, which on a busy machine can take a moment
        wanted = before + 2 * len(made) + len({local for _, local in made})

        def all_counted() -> bool:
            recorded[1].drain()
            return counters.received + counters.lost["overrun"] >= wanted

        until_sync(all_counted)
        assert counters.lost["overrun"] > 200


def test_children_of_a_program_whose_exec_was_lost_do_not_inherit_its_old_attributes() -> None:
    processes, sockets = sources()
    processes._monitor.ring_bytes = 4096
    bash = str(Path("/bin/bash").resolve())
    with Recording([processes, sockets]) as recording, listener() as (port, _):
        command = [sys.executable, "-c", BECOMES_BASH, str(port)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0) as parent:
            assert parent.stdin is not None
            recording.expect("processes_events", pid=parent.pid, state="started")
            with processes._monitor.lock:
                generate("exec", 40, 0, "/bin/true")
                parent.stdin.write(b".")
                until_sync(lambda: str(Path(f"/proc/{parent.pid}/exe").readlink()) == bash)
            parent.stdin.write(b"\n")
        found = recording.expect(TABLE, 4, remote_port=port, direction="outbound", state="established")
        assert not recording.events("processes_events", pid=parent.pid, exe=bash, state="started")
    assert {event["exe"] for event in found} <= {bash, None}
    assert {event["process"] for event in found} == {"bash"}


def test_lost_execs_cause_no_wrong_attribution() -> None:
    processes, sockets = sources()
    monitor = processes._monitor
    monitor.ring_bytes = 4096
    exe = load_generator()
    with Recording([processes, sockets]) as recording, listener() as (port, _):
        for _ in range(5):
            with monitor.lock:
                made = generate("exec", 40, 0, exe, "tcp", "127.0.0.1", port)
            found = recording.expect(TABLE, len(made), remote_port=port, direction="outbound", state="established")
        assert processes.counters.lost["overrun"] > 100
    assert len(found) == 200
    assert {event["process"] for event in found} == {"load"}
    assert {event["exe"] for event in found} <= {exe, None}
    assert {event["uid"] for event in found} == {0}
