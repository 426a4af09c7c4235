"""Which process a flow is attributed to where several have its socket open; events by eBPF, from real flows."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from children import exit_code, fork
from places import ROOT
from recording import Event, Recording
from test_ebpf_sockets import TABLE, sources
from waiting import until_sync

from zeek_agent.bpf.tracepoints import has_tracepoint

pytestmark = pytest.mark.root
LOAD = ROOT / "tests" / "support" / "prefork_load.py"
SO_COOKIE = 57
CLIENT_PORTS = range(10_000, 20_000)
SERVER_PORT = 7000


@pytest.fixture(scope="module")
def recording() -> Iterator[Recording]:
    with Recording(sources()) as recording:
        yield recording


@pytest.fixture
def network() -> Iterator[str]:
    """The name of a network namespace with two addresses of each family."""
    name = f"zeek-agent-{os.getpid()}-mptcp"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for command in (
            "ip link set lo up",
            "ip address add 10.99.0.1/32 dev lo",
            "ip address add 10.99.0.2/32 dev lo",
            "ip address add fd99::1/128 dev lo nodad",
            "ip address add fd99::2/128 dev lo nodad",
        ):
            subprocess.run(["ip", "netns", "exec", name, *command.split()], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def use_mptcp(network: str, second: str = "10.99.0.2") -> None:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).close()
    except OSError:
        pytest.skip("the kernel has no MPTCP")
    for command in ("limits set subflow 2 add_addr_accepted 2", f"endpoint add {second} dev lo subflow"):
        subprocess.run(["ip", "-n", network, "mptcp", *command.split()], check=True)


class Outcome:
    """The rows of a load, compared with the truth."""

    def __init__(self, recording: Recording, network: str, kind: str, mode: str, flows: int, family: str = "4") -> None:
        command = ["ip", "netns", "exec", network, sys.executable, str(LOAD), kind, mode, str(flows), family]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        truth = [json.loads(line) for line in done.stdout.splitlines()]
        self.pids = {(line["side"], line["port"]): line["pid"] for line in truth}
        self.tokens = {(line["side"], line["token"]): line["pid"] for line in truth if line["token"]}
        self.netns = Path(f"/run/netns/{network}").stat().st_ino
        self.is_late = mode == "late"
        inbound = flows + (self.is_late and flows)
        with suppress(AssertionError):  # some may be missing, which the tests judge
            until_sync(lambda: len(self.read(recording, direction="inbound", state="established")) >= inbound)
        self.rows = self.read(recording)

    def read(self, recording: Recording, **wanted: object) -> list[Event]:
        """Rows of the load; an MPTCP connection's further subflows are not counted in `wanted` ones."""
        rows = recording.events(TABLE, netns=self.netns, **wanted)
        return [event for event in rows if not wanted or event["local_addr"] == event["remote_addr"]]

    def acting(self, event: Event) -> int | None:
        """The process that acted; None if the row is not of a flow of the load."""
        by_token = self.tokens.get((event["direction"], event["mptcp_token"]))
        if by_token is not None:
            return by_token
        port = event["local_port"] if event["direction"] == "outbound" else event["remote_port"]
        return self.pids.get((event["direction"], port))

    def flows(self, state: str) -> list[Event]:
        return [event for event in self.rows if event["state"] == state and event["direction"] is not None]

    def wrong(self) -> list[Event]:
        """Rows that name another process than the one that acted, and do not say so."""
        rows = [*self.flows("established"), *self.flows("closed")]
        return [row for row in rows if row["pid"] != self.acting(row) and not row["listener_stands_in"]]

    def attributed(self) -> set[tuple[str, int]]:
        """Side and client's port of the flows that have a row with the process that acted."""
        return {
            (row["direction"], row["local_port" if row["direction"] == "outbound" else "remote_port"])
            for row in self.flows("established")
            if row["pid"] == self.acting(row) and not row["listener_stands_in"]
        }


CASES = [
    *((kind, mode) for kind in ("tcp", "udp", "mptcp") for mode in ("fork", "reuseport", "scm", "late")),
    ("udp", "recv"),
]


@pytest.mark.long(kept=4)
@pytest.mark.parametrize(
    ("flows", "family"),
    [
        (30, "4"),
        pytest.param(1000, "4", marks=pytest.mark.soak),
        pytest.param(1000, "6", marks=pytest.mark.soak),
    ],
)
@pytest.mark.parametrize(("kind", "mode"), CASES)
def test_every_row_names_the_process_that_acted(network: str, kind: str, mode: str, flows: int, family: str) -> None:
    """None is wrong. Up to 2 of 100 may be missing: a sandbox's kernel hides what interrupts its own daemon."""
    if kind == "mptcp":
        use_mptcp(network, "fd99::2" if family == "6" else "10.99.0.2")
    with Recording(sources()) as recording:
        outcome = Outcome(recording, network, kind, mode, flows, family)
        lost = recording.sources[1].counters.lost["overrun"]
    assert outcome.wrong() == []
    assert len(outcome.attributed() & outcome.pids.keys()) >= 2 * flows * 98 // 100
    assert lost == 0
    substitutes = {(row["cookie"], row["remote_port"]) for row in outcome.rows if row["listener_stands_in"]}
    corrections = {(row["cookie"], row["remote_port"]) for row in outcome.rows if row["correction"]}
    assert corrections <= substitutes
    assert len(substitutes - corrections) <= 2 * flows * 2 // 100
    if mode == "late":
        assert len(substitutes) >= flows * 98 // 100


def test_subflows_of_an_mptcp_connection_belong_to_its_processes_and_share_its_token(network: str) -> None:
    use_mptcp(network)
    with Recording(sources()) as recording:
        outcome = Outcome(recording, network, "mptcp", "fork", 40)
        further = [
            row for row in outcome.flows("established") if "10.99.0.2" in (row["local_addr"], row["remote_addr"])
        ]
    assert {row["direction"] for row in further} == {"inbound", "outbound"}
    assert {(row["direction"], row["mptcp_token"]) for row in further} <= outcome.tokens.keys()
    assert {row["process"] for row in further} == {"python"}
    for row in further:
        assert row["pid"] == outcome.tokens[row["direction"], row["mptcp_token"]]


def test_flows_that_wait_for_their_process_are_recorded_when_recording_stops() -> None:
    with (
        Recording(sources()) as recorder,
        bound_socket() as server,
        socket.create_server(("127.0.0.1", 0)) as listening,
    ):
        unaccepted = socket.create_connection(listening.getsockname())
        ports = {unaccepted.getsockname()[1], send_to(server)}
        for source in reversed(recorder.sources):
            source.stop()
        rows = recorder.events(TABLE, direction="inbound", state="established")
        unaccepted.close()
    found = {row["remote_port"]: (row["pid"], row["listener_stands_in"]) for row in rows}
    assert {port: found.get(port) for port in ports} == dict.fromkeys(ports, (os.getpid(), True))


def bound_socket(family: int = socket.AF_INET) -> socket.socket:
    server = socket.socket(family, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
    return server


def send_to(server: socket.socket, data: bytes = b"x") -> int:
    """Send a datagram from a new socket; its port."""
    with socket.socket(server.family, socket.SOCK_DGRAM) as client:
        client.sendto(data, server.getsockname())
        return int(client.getsockname()[1])


reading = pytest.mark.parametrize(
    "read",
    [lambda server: server.recvfrom(9), lambda server: server.recv(9), lambda server: server.recvmsg(9)],
    ids=["recvfrom", "recv", "recvmsg"],
)


@reading
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def test_the_first_datagram_belongs_to_the_child_that_reads_it_not_to_the_parent_that_bound(
    recording: Recording, read: Callable[[socket.socket], object], family: int
) -> None:
    with bound_socket(family) as server:
        reader = fork(lambda: read(server) and None)
        port = send_to(server)
        assert exit_code(reader) == 0
        (received,) = recording.expect(
            TABLE, direction="inbound", local_port=server.getsockname()[1], remote_port=port, state="established"
        )
        (bound,) = recording.expect(TABLE, state="listen", cookie=received["cookie"])
    (closed,) = recording.expect(TABLE, state="closed", cookie=received["cookie"])
    assert (received["pid"], received["listener_stands_in"], received["correction"]) == (reader, False, False)
    assert bound["pid"] == os.getpid()
    assert (closed["pid"], closed["listener_stands_in"]) == (reader, False)


@pytest.mark.parametrize(
    "peek", [lambda server: server.recvfrom(9, socket.MSG_PEEK), lambda server: server.recv(9, socket.MSG_PEEK)]
)
def test_a_process_that_only_looks_at_the_first_datagram_is_not_its_reader(
    recording: Recording, peek: Callable[[socket.socket], object]
) -> None:
    """Linux 6.3 tells them apart."""
    if not has_tracepoint("sock_recv_length"):
        pytest.skip("the kernel has no tracepoint at the end of reads")
    with bound_socket() as server:
        port = send_to(server)
        peek(server)
        reader = fork(lambda: server.recvfrom(9) and None)
        assert exit_code(reader) == 0
        (received,) = recording.expect(TABLE, direction="inbound", remote_port=port, state="established")
    assert (received["pid"], received["listener_stands_in"]) == (reader, False)


@pytest.mark.long
def test_each_of_several_readers_has_the_flows_that_it_read(recording: Recording) -> None:
    with bound_socket() as server:
        readers, ports = [], []
        for _ in range(5):
            readers.append(fork(lambda: server.recvfrom(9) and None))
            ports.append(send_to(server))
            assert exit_code(readers[-1]) == 0
        rows = recording.expect(TABLE, 5, direction="inbound", local_port=server.getsockname()[1])
    (closed,) = recording.expect(TABLE, state="closed", local_port=rows[0]["local_port"], cookie=rows[0]["cookie"])
    assert [(row["remote_port"], row["pid"]) for row in rows] == list(zip(ports, readers, strict=True))
    assert closed["pid"] == os.getpid(), "the one that bound it, as for its `listen`"


def test_an_unread_datagram_waits_and_then_has_a_holder_that_is_corrected(recording: Recording) -> None:
    with bound_socket() as server:
        port = send_to(server)
        (substitute,) = recording.expect(
            TABLE, direction="inbound", local_port=server.getsockname()[1], remote_port=port, state="established"
        )
        reader = fork(lambda: server.recvfrom(9) and None)
        assert exit_code(reader) == 0
        (correction,) = recording.expect(
            TABLE, direction="inbound", local_port=server.getsockname()[1], remote_port=port, correction=True
        )
    (closed,) = recording.expect(TABLE, state="closed", cookie=substitute["cookie"])
    assert (substitute["pid"], substitute["listener_stands_in"]) == (os.getpid(), True)
    assert (correction["pid"], correction["listener_stands_in"]) == (reader, False)
    assert correction["time"] == substitute["time"]
    assert (closed["pid"], closed["listener_stands_in"]) == (reader, False)


def test_the_holder_of_an_unread_datagram_is_a_living_process(recording: Recording) -> None:
    """The process that bound the socket has ended: a daemon that forked after it."""
    ports, told = os.pipe()
    go, gone = os.pipe()

    def bind_and_leave() -> None:
        server = bound_socket()
        os.write(told, server.getsockname()[1].to_bytes(2, "big"))
        fork(lambda: os.write(told, os.getpid().to_bytes(4, "big")) and os.read(go, 1) and None)

    binder = fork(bind_and_leave)
    assert exit_code(binder) == 0
    server_port = int.from_bytes(os.read(ports, 2), "big")
    daemon = int.from_bytes(os.read(ports, 4), "big")
    try:
        recording.expect("processes_events", pid=binder, state="stopped")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"x", ("127.0.0.1", server_port))
            port = client.getsockname()[1]
        (row,) = recording.expect(TABLE, direction="inbound", local_port=server_port, remote_port=port)
    finally:
        os.write(gone, b".")
    assert (row["pid"], row["listener_stands_in"]) == (daemon, True)


def test_which_of_several_plain_reads_got_a_flow_is_marked_as_unknown(recording: Recording) -> None:
    """Reads without the sender's address do not tell their flow."""
    with bound_socket() as server:
        rows = []
        for _ in range(2):
            reader = fork(lambda: server.recv(9) and None)
            port = send_to(server)
            assert exit_code(reader) == 0
            rows += recording.expect(
                TABLE, direction="inbound", local_port=server.getsockname()[1], remote_port=port, pid=reader
            )
    assert [row["listener_stands_in"] for row in rows] == [False, True]


def test_a_child_that_sends_from_its_parents_connected_socket_is_the_sender(recording: Recording) -> None:
    with bound_socket() as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(server.getsockname())
        sender = fork(lambda: client.send(b"x") and None)
        assert exit_code(sender) == 0
        (sent,) = recording.expect(
            TABLE, direction="outbound", local_port=client.getsockname()[1], remote_port=server.getsockname()[1]
        )
    (closed,) = recording.expect(TABLE, state="closed", cookie=sent["cookie"])
    assert (sent["pid"], closed["pid"]) == (sender, sender)


@pytest.mark.long
def test_a_sender_is_found_among_many_descriptors(recording: Recording) -> None:
    def send_from(descriptor: int) -> None:
        os.dup2(client.fileno(), descriptor)
        client.close()
        os.write(descriptor, b"x")

    with bound_socket() as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(server.getsockname())
        sender = fork(lambda: send_from(900))
        assert exit_code(sender) == 0
        (sent,) = recording.expect(
            TABLE, direction="outbound", local_port=client.getsockname()[1], remote_port=server.getsockname()[1]
        )
    assert sent["pid"] == sender


@pytest.mark.long
def test_a_late_accept_is_a_marked_correction_and_the_end_agrees(recording: Recording) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        port = client.getsockname()[1]
        (substitute,) = recording.expect(
            TABLE, direction="inbound", local_port=server.getsockname()[1], remote_port=port, state="established"
        )
        acceptor = fork(lambda: accept_and_close(server))
        assert exit_code(acceptor) == 0
    (closed,) = recording.expect(TABLE, cookie=substitute["cookie"], state="closed")
    rows = recording.events(TABLE, cookie=substitute["cookie"], state="established")
    assert [(row["pid"], row["listener_stands_in"], row["correction"]) for row in rows] == [
        (os.getpid(), True, False),
        (acceptor, False, True),
    ]
    assert {(row["time"], row["cookie"]) for row in rows} == {(substitute["time"], substitute["cookie"])}
    assert (closed["pid"], closed["listener_stands_in"], closed["correction"]) == (acceptor, False, False)


def test_a_connection_that_was_reset_before_its_accept_is_not_established_again(recording: Recording) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        port = client.getsockname()[1]
        recording.expect(
            TABLE, direction="inbound", local_port=server.getsockname()[1], remote_port=port, state="established"
        )
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        recording.expect(
            TABLE, direction="inbound", local_port=server.getsockname()[1], remote_port=port, state="closed"
        )
        acceptor = fork(lambda: accept_and_close(server))
        assert exit_code(acceptor) == 0
        rows = recording.expect(TABLE, 4, direction="inbound", local_port=server.getsockname()[1], remote_port=port)
    assert [(row["state"], row["pid"], row["listener_stands_in"], row["correction"]) for row in rows] == [
        ("established", os.getpid(), True, False),
        ("closed", os.getpid(), True, False),
        ("established", acceptor, False, True),
        ("closed", acceptor, False, True),
    ]


def accept_and_close(server: socket.socket) -> None:
    server.accept()[0].close()


def dissolve(client: socket.socket) -> None:
    """connect(2) with AF_UNSPEC, which Python's socket has no name for."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.connect(client.fileno(), struct.pack("=H14x", socket.AF_UNSPEC), 16) == 0, os.strerror(
        ctypes.get_errno()
    )


@pytest.mark.parametrize("again", ["connected", "unconnected"])
def test_a_dissolved_socket_that_is_used_again_is_two_flows_each_with_its_end(recording: Recording, again: str) -> None:
    with bound_socket() as first, bound_socket() as second:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            ports = []
            for server in (first, second):
                if server is first or again == "connected":
                    client.connect(server.getsockname())
                    client.send(b"x")
                else:
                    client.sendto(b"x", server.getsockname())
                ports.append((client.getsockname()[1], server.getsockname()[1]))
                if server is first:
                    dissolve(client)
            cookie = int.from_bytes(client.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)
        recording.expect(TABLE, 2, state="closed", cookie=cookie)
    rows = recording.events(TABLE, cookie=cookie)
    ends = [(row["state"], row["local_port"], row["remote_port"], row["pid"], row["direction"]) for row in rows]
    assert ends == [(state, *pair, os.getpid(), "outbound") for pair in ports for state in ("established", "closed")]
    assert ports[0][0] != ports[1][0]


def test_a_dissolved_socket_that_is_bound_has_ended_its_flow(recording: Recording) -> None:
    with bound_socket() as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(server.getsockname())
        client.send(b"x")
        ports = [client.getsockname()[1]]
        dissolve(client)
        client.bind(("127.0.0.1", 0))
        ports.append(client.getsockname()[1])
        cookie = int.from_bytes(client.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)
        peer = server.getsockname()[1]
    recording.expect(TABLE, 2, state="closed", cookie=cookie)
    assert [
        (row["state"], row["local_port"], row["remote_port"]) for row in recording.events(TABLE, cookie=cookie)
    ] == [
        ("established", ports[0], peer),
        ("closed", ports[0], peer),
        ("listen", ports[1], None),
        ("closed", ports[1], None),
    ]


def test_a_connection_that_waited_for_its_accept_when_recording_began_has_its_acceptor_to_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        port = client.getsockname()[1]
        with Recording(sources()) as recorder:
            acceptor = fork(lambda: accept_and_close(server))
            assert exit_code(acceptor) == 0
            client.close()
            recorder.expect(TABLE, remote_port=port, state="closed")
            rows = recorder.events(TABLE, remote_port=port, local_port=server.getsockname()[1])
    assert [(row["state"], row["direction"], row["pid"], row["listener_stands_in"]) for row in rows] == [
        ("established", "inbound", acceptor, False),
        ("closed", "inbound", acceptor, False),
    ]


@pytest.mark.parametrize("outcome", ["established", "failed"])
def test_a_connection_that_began_before_recording_is_outbound(outcome: str) -> None:
    """Its server's queue is full, so that the kernel repeats the first packet."""
    with socket.socket() as server, socket.socket() as client, ExitStack() as queued:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for connection in (queued.enter_context(socket.socket()) for _ in range(2)):
            connection.setblocking(False)
            connection.connect_ex(server.getsockname())
        client.setblocking(False)
        assert client.connect_ex(server.getsockname()) == errno.EINPROGRESS
        port = client.getsockname()[1]
        with Recording(sources()) as recorder:
            if outcome == "established":
                server.accept()[0].close()
            else:
                server.close()
            (row,) = recorder.expect(TABLE, local_port=port, state=outcome)
            others = recorder.events(TABLE, local_port=port)
    assert (row["direction"], row["pid"], row["listener_stands_in"]) == ("outbound", os.getpid(), False)
    assert others == [row]


def test_a_socket_that_connects_to_another_peer_is_two_flows_each_with_its_end(recording: Recording) -> None:
    with bound_socket() as first, bound_socket() as second:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for server in (first, second):
                client.connect(server.getsockname())
                client.send(b"x")
            cookie = int.from_bytes(client.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)
        recording.expect(TABLE, 2, state="closed", cookie=cookie)
        peers = [server.getsockname()[1] for server in (first, second)]
    rows = recording.events(TABLE, cookie=cookie)
    assert [(row["state"], row["remote_port"]) for row in rows] == [
        (state, peer) for peer in peers for state in ("established", "closed")
    ]


PROXY = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.setsockopt(socket.IPPROTO_IP, 19, 1)  # IP_TRANSPARENT
server.bind(("0.0.0.0", 5353))
server.settimeout(5)
for _ in range(2):
    for port in (1000, 1001):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.bind(("10.99.0.1", port + 1000))
            client.sendto(b"x", ("10.99.0.1", port))
            server.recvfrom(9)
"""
TRANSPARENT = (
    "nft add table ip proxy",
    "nft add chain ip proxy pre { type filter hook prerouting priority mangle; }",
    "nft add rule ip proxy pre udp dport 1000-1001 tproxy to 127.0.0.1:5353 meta mark set 1 accept",
    "ip rule add fwmark 1 lookup 100",
    "ip route add local 0.0.0.0/0 dev lo table 100",
)


def test_flows_of_a_transparent_proxy_do_not_end_each_other(network: str, recording: Recording) -> None:
    """Its flows have other local ports than its socket."""
    if shutil.which("nft") is None:
        pytest.skip("needs nft")
    for command in TRANSPARENT:
        if subprocess.run(["ip", "netns", "exec", network, *command.split()], check=False).returncode:
            pytest.skip("the kernel has no transparent proxies")
    subprocess.run(["ip", "netns", "exec", network, sys.executable, "-c", PROXY], check=True)
    netns = Path(f"/run/netns/{network}").stat().st_ino
    (bound,) = recording.expect(TABLE, state="listen", netns=netns, local_port=5353)
    recording.expect(TABLE, 2, state="established", cookie=bound["cookie"])
    recording.expect(TABLE, state="closed", cookie=bound["cookie"])
    rows = [(row["state"], row["local_port"]) for row in recording.events(TABLE, cookie=bound["cookie"])]
    assert sorted(rows) == [("closed", 5353), ("established", 1000), ("established", 1001), ("listen", 5353)]


def test_the_end_of_a_server_has_the_address_that_it_was_bound_to(recording: Recording) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("0.0.0.0", 0))
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
        ):
            for client in (one, other):
                client.sendto(b"x", ("127.0.0.1", server.getsockname()[1]))
                server.recvfrom(9)
        (bound,) = recording.expect(TABLE, state="listen", local_port=server.getsockname()[1], protocol=17)
    (closed,) = recording.expect(TABLE, state="closed", cookie=bound["cookie"])
    assert closed["direction"] is None
    assert (closed["local_addr"], closed["local_port"]) == (bound["local_addr"], bound["local_port"])


PADDING = b"\x01\x04\0\0\0\0"  # an option of padding that fills a header of 8 bytes
EXTENSIONS = {
    "hop-by-hop": [(socket.IPPROTO_HOPOPTS, b"\0\0" + PADDING)],
    "destination": [(socket.IPPROTO_DSTOPTS, b"\0\0" + PADDING)],
    "both": [(socket.IPPROTO_HOPOPTS, b"\0\0" + PADDING), (socket.IPPROTO_DSTOPTS, b"\0\0" + PADDING)],
}
OPTIONS = {socket.IPPROTO_HOPOPTS: socket.IPV6_HOPOPTS, socket.IPPROTO_DSTOPTS: socket.IPV6_DSTOPTS}


@pytest.mark.parametrize("extensions", EXTENSIONS.values(), ids=EXTENSIONS)
def test_udp_behind_extension_headers_has_its_ports_at_both_ends(
    recording: Recording, extensions: list[tuple[int, bytes]]
) -> None:
    with bound_socket(socket.AF_INET6) as server, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
        for protocol, header in extensions:
            client.setsockopt(socket.IPPROTO_IPV6, OPTIONS[protocol], header)
        client.sendto(b"x", server.getsockname())
        server.recvfrom(9)
        ports = client.getsockname()[1], server.getsockname()[1]
        (sent,) = recording.expect(TABLE, protocol=17, local_port=ports[0], remote_port=ports[1])
        (received,) = recording.expect(TABLE, protocol=17, local_port=ports[1], remote_port=ports[0])
    assert (sent["direction"], received["direction"]) == ("outbound", "inbound")
    assert sent["community_id"] == received["community_id"] is not None


def udp_packet(source: int, target: int, data: bytes) -> bytes:
    """A UDP header and data between ::1 and ::1, with its checksum."""
    header = struct.pack("!HHHH", source, target, 8 + len(data), 0)
    pseudo = socket.inet_pton(socket.AF_INET6, "::1") * 2 + struct.pack("!II", 8 + len(data), 17) + header + data
    words = struct.unpack(f"!{len(pseudo) // 2}H", pseudo)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return header[:6] + struct.pack("!H", ~total & 0xFFFF) + data


def send_raw(next_header: int, payload: bytes) -> int:
    """Send an IPv6 packet from and to ::1 whose headers are given; the socket's cookie."""
    address = socket.inet_pton(socket.AF_INET6, "::1")
    packet = struct.pack("!IHBB", 6 << 28, len(payload), next_header, 64) + 2 * address + payload
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(packet, ("::1", 0))
        return int.from_bytes(raw.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)


def extension(following: int, units: int = 0) -> bytes:
    """Destination options that contain padding only, of 8 bytes and `units` times 8 more."""
    return bytes([following, units, 1, 4 + 8 * units]) + bytes(4 + 8 * units)


@pytest.mark.long
def test_fragments_of_a_datagram_are_one_flow(recording: Recording) -> None:
    with bound_socket(socket.AF_INET6) as server:
        target = server.getsockname()[1]
        datagram = udp_packet(4444, target, b"0123456789abcdef")
        first = send_raw(44, struct.pack("!BBHI", 17, 0, 1, 77) + datagram[:16])
        second = send_raw(44, struct.pack("!BBHI", 17, 0, 16, 77) + datagram[16:])
        assert server.recvfrom(20)[0] == b"0123456789abcdef"
        (received,) = recording.expect(TABLE, state="established", direction="inbound", local_port=target)
        (sent,) = recording.expect(TABLE, state="established", cookie=first)
    assert (received["protocol"], received["remote_port"]) == (17, 4444)
    assert (sent["protocol"], sent["local_port"], sent["remote_port"]) == (17, 4444, target)
    assert not recording.events(TABLE, state="established", cookie=second)


@pytest.mark.parametrize("number", [1, 16])
def test_a_chain_of_extension_headers_is_walked(recording: Recording, number: int) -> None:
    chain = b"".join(extension(60, units % 3) for units in range(number - 1)) + extension(17)
    cookie = send_raw(60, chain + udp_packet(4445, 4446, b""))
    (sent,) = recording.expect(TABLE, state="established", cookie=cookie)
    assert (sent["protocol"], sent["local_port"], sent["remote_port"]) == (17, 4445, 4446)


def test_behind_too_many_extension_headers_protocol_and_ports_are_null(recording: Recording) -> None:
    cookie = send_raw(60, b"".join(extension(60) for _ in range(16)) + extension(17) + udp_packet(4445, 4446, b""))
    (sent,) = recording.expect(TABLE, state="established", cookie=cookie)
    assert (sent["protocol"], sent["local_port"], sent["remote_port"]) == (None, None, None)
    assert (sent["pid"], sent["remote_addr"]) == (os.getpid(), "::1")


def test_an_icmpv6_echo_request_behind_an_extension_header(recording: Recording) -> None:
    cookie = send_raw(60, extension(58) + bytes([128, 0, 0, 0, 0, 0, 0, 0]))
    (sent,) = recording.expect(TABLE, state="established", cookie=cookie)
    assert (sent["protocol"], sent["local_port"], sent["remote_port"]) == (58, 128, 129)
