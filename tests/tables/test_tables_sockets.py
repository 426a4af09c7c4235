"""The tables sockets and listening_ports, compared with ss and with sockets that the tests open."""

from __future__ import annotations

import ctypes
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from asking import Agent, ask
from hypothesis import given
from hypothesis import strategies as st
from test_tables_processes import child

from zeek_agent.community_id import community_id
from zeek_agent.host.internet_sockets import TCP, UDP, on_the_wire
from zeek_agent.host.linux import inet_diag, proc_net
from zeek_agent.table import Constraints, TableContext
from zeek_agent.tables.processes import processes
from zeek_agent.tables.sockets import listening_ports, packet_sockets, sockets

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's sockets")

CLONE_NEWNET = 0x4000_0000
SO_COOKIE = 57


@contextmanager
def connected(family: socket.AddressFamily = socket.AF_INET, host: str = "127.0.0.1") -> Iterator[list[socket.socket]]:
    """A listener, a client and the accepted end."""
    with (
        socket.create_server((host, 0), family=family) as listener,
        socket.create_connection(listener.getsockname()[:2]) as client,
        listener.accept()[0] as accepted,
    ):
        yield [listener, client, accepted]


def mine(**equal: Any) -> dict[int, dict[str, Any]]:
    """This process's rows by descriptor."""
    return {row["fd"]: row for row in ask(sockets, pid=os.getpid(), **equal)}


def test_it_agrees_with_ss() -> None:
    def listed() -> set[tuple[Any, ...]]:
        return {
            (row["protocol"], row["local_port"], row["remote_port"], row["state"] == "LISTEN", row["pid"])
            for row in ask(sockets)
            if row["protocol"] in {TCP, UDP} and row["state"] not in {"TIME_WAIT", "SYN_RECEIVED"}
            if row["netns"] == Path("/proc/self/ns/net").stat().st_ino
        }

    with connected(), connected(socket.AF_INET6, "::1"), socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        before, first, between, second = listed(), shown_by_ss(), listed(), shown_by_ss()
    lasting = before & between
    assert len([row for row in lasting if row[4] == os.getpid()]) >= 6
    assert lasting <= first
    assert first & second <= between


def shown_by_ss() -> set[tuple[Any, ...]]:
    command = ["ss", "-tuanpH", "exclude", "time-wait"]
    shown = set()
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        kind, state, _, _, local, remote, *users = line.split(None, 6)
        if state == "SYN-RECV":
            continue
        ports = [0 if text.endswith(":*") else int(text.rpartition(":")[2]) for text in (local, remote)]
        for pid in set(re.findall(r"pid=(\d+)", " ".join(users))) or {None}:
            number = None if pid is None else int(pid)
            shown.add((TCP if kind == "tcp" else UDP, *ports, state == "LISTEN", number))
    return shown


def test_both_ends_of_a_connection_are_described() -> None:
    with connected() as (listener, client, accepted):
        rows = mine(protocol=TCP)
        here, there = client.getsockname(), client.getpeername()
        row = rows[client.fileno()]
        assert (row["process"], row["family"], row["protocol"]) == (
            Path("/proc/self/comm").read_text().strip(),
            "IPv4",
            6,
        )
        assert (row["local_addr"], row["local_port"], row["remote_addr"], row["remote_port"]) == (*here, *there)
        assert row["state"] == "ESTABLISHED"
        assert row["uid"] == os.getuid()
        assert row["exe"] == os.path.realpath("/proc/self/exe")
        assert row["cookie"] == struct.unpack("=Q", client.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]
        assert row["netns"] == Path("/proc/self/ns/net").stat().st_ino
        assert row["community_id"] == community_id(TCP, *here, *there)
        other = rows[accepted.fileno()]
        assert (other["local_addr"], other["local_port"], other["remote_addr"], other["remote_port"]) == (*there, *here)
        assert other["community_id"] == row["community_id"]
        waiting = rows[listener.fileno()]
        assert (waiting["state"], waiting["remote_addr"], waiting["remote_port"]) == ("LISTEN", "0.0.0.0", 0)
        assert waiting["community_id"] is None


def test_udp_has_no_state_and_a_peer_only_when_connected() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as bound, socket.socket(type=socket.SOCK_DGRAM) as joined:
        bound.bind(("127.0.0.1", 0))
        joined.connect(bound.getsockname())
        rows = mine(protocol=UDP)
        row = rows[bound.fileno()]
        assert (row["local_addr"], row["local_port"]) == bound.getsockname()
        assert (row["remote_addr"], row["remote_port"], row["state"]) == ("0.0.0.0", 0, None)
        assert row["community_id"] is None
        row = rows[joined.fileno()]
        assert (row["remote_addr"], row["remote_port"], row["state"]) == (*bound.getsockname(), None)
        assert row["community_id"] == community_id(UDP, *joined.getsockname(), *bound.getsockname())


def test_ipv6_and_ipv4_through_an_ipv6_socket() -> None:
    with connected(socket.AF_INET6, "::1") as (_, client, _accepted):
        row = mine()[client.fileno()]
        assert (row["family"], row["local_addr"], row["remote_addr"]) == ("IPv6", "::1", "::1")
    with (
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener,
        socket.create_connection(("127.0.0.1", listener.getsockname()[1])) as client,
        listener.accept()[0] as accepted,
    ):
        rows = mine()
        assert accepted.getpeername()[0] == "::ffff:127.0.0.1"
        row = rows[accepted.fileno()]
        assert (row["family"], row["local_addr"], row["remote_addr"]) == ("IPv4", "127.0.0.1", "127.0.0.1")
        assert row["community_id"] == rows[client.fileno()]["community_id"]
        assert (rows[listener.fileno()]["family"], rows[listener.fileno()]["local_addr"]) == ("IPv6", "::")


@pytest.mark.root
def test_raw_icmp_and_udplite_sockets() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw,
        socket.socket(socket.AF_INET6, socket.SOCK_RAW, 89) as raw6,
    ):
        rows = mine()
        assert (rows[raw.fileno()]["protocol"], rows[raw.fileno()]["local_port"]) == (255, 1)
        assert (rows[raw.fileno()]["family"], rows[raw.fileno()]["state"]) == ("IPv4", None)
        assert (rows[raw6.fileno()]["protocol"], rows[raw6.fileno()]["local_port"]) == (255, 89)
        assert rows[raw6.fileno()]["family"] == "IPv6"
    for kind, family, protocol, host in (
        (socket.SOCK_DGRAM, socket.AF_INET, 136, "127.0.0.1"),
        (socket.SOCK_DGRAM, socket.AF_INET6, 136, "::1"),
    ):
        with suppress(OSError), socket.socket(family, kind, protocol) as lite:  # not in every kernel
            lite.bind((host, 0))
            row = mine(protocol=136)[lite.fileno()]
            assert (row["local_addr"], row["local_port"]) == lite.getsockname()[:2]


@pytest.mark.root
def test_ping_sockets_show_their_identifier() -> None:
    limits = Path("/proc/sys/net/ipv4/ping_group_range")
    before = limits.read_text()
    try:
        limits.write_text("0 2147483647")
    except OSError:
        pytest.skip("ping sockets cannot be enabled here")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as ping:
            ping.bind(("127.0.0.1", 0))
            row = mine(protocol=1)[ping.fileno()]
            assert (row["local_addr"], row["local_port"]) == ping.getsockname()
            assert row["state"] is None
    finally:
        limits.write_text(before)


def test_every_holder_of_a_socket_has_a_row() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, child() as first, child() as second:
        port = listener.getsockname()[1]
        rows = [row for row in ask(sockets, protocol=TCP) if row["local_port"] == port]
        assert {row["pid"] for row in rows} == {os.getpid(), first, second}
        assert len(rows) == 3
        assert len({row["cookie"] for row in rows}) == 1
        assert len({row["entity_id"] for row in rows}) == 3


def test_a_process_that_duplicates_a_descriptor_has_one_row() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, listener.dup():
        port = listener.getsockname()[1]
        assert [row["pid"] for row in ask(sockets) if row["local_port"] == port] == [os.getpid()]


def test_a_socket_that_nobody_holds_has_no_process() -> None:
    with connected() as (_, client, accepted):
        ends = client.getsockname()[1], client.getpeername()[1]
        client.close()
        accepted.close()
    (row,) = [row for row in ask(sockets) if (row["local_port"], row["remote_port"]) == ends]
    assert row["state"] == "TIME_WAIT"
    assert [row[name] for name in ("pid", "process", "fd", "uid", "exe", "entity_id")] == [None] * 6


def test_states_and_protocols_are_selected_in_the_kernel() -> None:
    with connected() as (listener, client, _):
        port = listener.getsockname()[1]
        serving = [row for row in ask(sockets, state="LISTEN") if row["protocol"] == TCP]
        assert {row["state"] for row in serving} == {"LISTEN"}
        assert port in {row["local_port"] for row in serving}
        assert client.getsockname()[1] not in {row["local_port"] for row in serving}
        assert all(row["protocol"] == UDP for row in ask(sockets, protocol=UDP))
        assert ask(sockets, state="NO SUCH STATE") == []


def test_listening_ports_are_those_that_serve() -> None:
    with connected() as (listener, client, accepted), socket.socket(type=socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        rows = {(row["protocol"], row["port"]): row for row in ask(listening_ports) if row["pid"] == os.getpid()}
        assert (TCP, listener.getsockname()[1]) in rows
        assert rows[UDP, bound.getsockname()[1]]["address"] == "127.0.0.1"
        assert (TCP, client.getsockname()[1]) not in rows
        assert accepted is not None


@pytest.mark.root
def test_sockets_of_other_network_namespaces_are_seen() -> None:
    def serve_elsewhere() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(CLONE_NEWNET) == 0
        bound = socket.socket(type=socket.SOCK_DGRAM)
        bound.bind(("0.0.0.0", 4242))
        listener = socket.create_server(("0.0.0.0", 4243))
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 99)
        keep.extend([bound, listener, raw])

    keep: list[socket.socket] = []
    with child(serve_elsewhere) as pid:
        namespace = Path(f"/proc/{pid}/ns/net").stat().st_ino
        assert namespace != Path("/proc/self/ns/net").stat().st_ino
        for rows in (ask(sockets), ask(sockets, pid=pid)):
            found = {(row["protocol"], row["local_port"]): row for row in rows if row["pid"] == pid}
            assert set(found) >= {(UDP, 4242), (TCP, 4243), (255, 99)}
            assert {row["netns"] for row in found.values() if row["local_port"] in {4242, 4243}} == {namespace}
        assert Path("/proc/thread-self/ns/net").stat().st_ino != namespace
        with socket.create_server(("127.0.0.1", 0)) as here:
            serving = {(row["pid"], row["port"]): row["own_netns"] for row in ask(listening_ports)}
            assert serving[pid, 4243] is False
            assert serving[os.getpid(), here.getsockname()[1]] is True


@pytest.mark.root
def test_without_privileges_other_users_sockets_have_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a forked process, which fails if an assertion does."""
    # iterators that root has loaded in this process would still show all
    monkeypatch.setattr("zeek_agent.tables.sockets.loaded_iterators", lambda: None)

    def look_around() -> None:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        with socket.create_server(("127.0.0.1", 0)) as mine:
            rows = {row["local_port"]: row for row in ask(sockets, protocol=TCP)}
            own, other = rows[mine.getsockname()[1]], rows[port]
            assert (own["pid"], own["uid"]) == (os.getpid(), 65534)
            assert (other["pid"], other["uid"], other["state"]) == (None, 0, "LISTEN")

    with socket.create_server(("127.0.0.1", 0)) as theirs:
        port = theirs.getsockname()[1]

        def alone() -> None:
            theirs.close()
            look_around()

        with child(alone):
            pass


@pytest.mark.root
def test_sniffers_are_shown_in_all_namespaces() -> None:
    def sniff() -> None:
        assert ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0
        kept.append(socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)))

    kept: list[socket.socket] = []
    with child(sniff) as pid, socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sniffer:
        sniffer.bind(("lo", 3))
        rows = {row["pid"]: row for row in ask(packet_sockets)}
        here, there = rows[os.getpid()], rows[pid]
        assert (here["type"], here["ethertype"], here["interface"], here["uid"]) == ("raw", 3, "lo", 0)
        assert (here["fd"], here["exe"]) == (sniffer.fileno(), str(Path(sys.executable).resolve()))
        assert (there["type"], there["ethertype"], there["interface"]) == ("datagram", 0x0800, None)
        assert there["netns"] == Path(f"/proc/{pid}/ns/net").stat().st_ino != here["netns"]


def open_now() -> tuple[int, int]:
    """Descriptors and threads of this process."""
    return len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))


def test_scans_leave_no_descriptors_open() -> None:
    ask(sockets)
    ask(processes)
    before = open_now()
    for _ in range(5):
        ask(sockets)
        ask(processes)
        next(iter(processes.rows(Constraints(TableContext(Agent())))))
    assert open_now() == before


def test_the_kernels_two_ways_to_list_sockets_agree() -> None:
    with connected(), connected(socket.AF_INET6, "::1"), socket.socket(type=socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        for protocol in (TCP, UDP):
            own = {row["local_port"] for row in mine(protocol=protocol).values()}
            by_netlink = {found._replace(cookie=None) for found in inet_diag.list_sockets([protocol])}
            by_proc = set(proc_net.list_sockets(protocol))
            assert own
            assert {found for found in by_netlink if found.local_port in own} == {
                found for found in by_proc if found.local_port in own
            }


def test_proc_is_the_fallback_without_sock_diag(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> list[bytes]:
        raise FileNotFoundError("no such family")

    monkeypatch.setattr("zeek_agent.host.linux.netlink.dump", refuse)
    with connected() as (listener, client, _):
        rows = mine()
        assert rows[listener.fileno()]["state"] == "LISTEN"
        assert rows[client.fileno()]["community_id"]
        assert rows[client.fileno()]["cookie"] is None


@given(st.binary(min_size=4, max_size=4), st.binary(min_size=4, max_size=4))
def test_mapped_addresses_are_ipv4(local: bytes, remote: bytes) -> None:
    mapped = bytes(10) + b"\xff\xff"
    assert on_the_wire(mapped + local, mapped + remote) == (local, remote)
    assert on_the_wire(mapped + local, bytes(16)) == (local, bytes(4))
    plain = b"\xfd" + bytes(11)
    assert on_the_wire(plain + local, plain + remote) == (plain + local, plain + remote)
