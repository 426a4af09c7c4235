"""Lookups by processes that really asked a server."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Iterator

import dns.message
import dns.rcode
import dns.rrset
import pytest
from children import exit_code, fork
from dns_server import dns_server
from recording import Event, Recording

from zeek_agent.config.sections import SourceSettings
from zeek_agent.recording.bpf_monitor import BpfMonitor
from zeek_agent.recording.dns import dns_lookups
from zeek_agent.recording.dns.ebpf_dns import EbpfDns
from zeek_agent.recording.dns.remote_names import RemoteNames
from zeek_agent.recording.processes.ebpf_processes import EbpfProcesses
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.recording.sockets.ebpf_sockets import EbpfSockets

pytestmark = pytest.mark.root
TABLE = "dns_events"
LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}

families = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
numbers = pytest.mark.parametrize("number", [50, pytest.param(1000, marks=pytest.mark.soak)])


def answer(query: dns.message.Message) -> dns.message.Message | None:
    """`big…` has 60 addresses, `missing…` does not exist, `silent…` gets no answer."""
    (question,) = query.question
    response = dns.message.make_response(query)
    name = question.name.to_text().lower()
    if name.startswith("silent"):
        return None
    if name.startswith("missing"):
        response.set_rcode(dns.rcode.NXDOMAIN)
        return response
    addresses = [f"192.0.2.{n}" for n in range(60)] if name.startswith("big") else ["127.0.0.1"]
    response.answer.append(dns.rrset.from_text(question.name, 60, "IN", "CNAME", "real.example."))
    response.answer.append(dns.rrset.from_text("real.example.", 60, "IN", "A", *addresses))
    return response


def sources(port: int) -> list[EbpfProcesses | EbpfDns | EbpfSockets]:
    settings = SourceSettings(ignore_self=False, dns_ports=(port,))
    monitor, names = BpfMonitor(ProcessCache()), RemoteNames()
    return [EbpfProcesses(monitor, settings), EbpfDns(monitor, settings, names), EbpfSockets(monitor, settings, names)]


@pytest.fixture(scope="module", params=[socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[int, int, Recording]]:
    """The family and port of a server, and the recording of what it is asked."""
    with dns_server(answer, request.param) as port, Recording(sources(port)) as recording:
        yield request.param, port, recording


def ask(family: int, port: int, name: str, *, over: int = socket.SOCK_DGRAM) -> bytes:
    """Ask as a stub resolver does."""
    query = dns.message.make_query(name, "A").to_wire()
    with socket.socket(family, over) as client:
        client.settimeout(10)
        client.connect((LOOPBACK[family], port))
        if over == socket.SOCK_DGRAM:
            client.send(query)
            return client.recv(1 << 16)
        client.sendall(struct.pack(">H", len(query)))
        client.sendall(query)
        with client.makefile("rb") as stream:
            (size,) = struct.unpack(">H", stream.read(2))
            return stream.read(size)


def in_child(work: Callable[[], object]) -> int:
    """Run in a process of its own; its pid."""
    pid = fork(lambda: 0 if work() else 1)
    assert exit_code(pid) == 0
    return pid


@pytest.mark.long(kept=1)
@numbers
def test_each_of_many_short_lived_processes_has_its_lookup(server: tuple[int, int, Recording], number: int) -> None:
    family, port, recording = server
    asked = {}
    for n in range(number):
        over = socket.SOCK_STREAM if n % 2 else socket.SOCK_DGRAM
        name = f"host-{n}-of-{number}.example"
        asked[in_child(lambda name=name, over=over: ask(family, port, name, over=over))] = name, 6 if n % 2 else 17
    recording.expect(TABLE, query=f"host-{number - 1}-of-{number}.example")
    rows = [row for row in recording.events(TABLE, server_port=port) if row["query"].endswith(f"-of-{number}.example")]
    assert {row["pid"]: (row["query"], row["protocol"]) for row in rows} == asked
    assert len(rows) == number
    for row in rows:
        check(row, LOOPBACK[family])


def check(row: Event, address: str) -> None:
    assert (row["type"], row["rcode"], row["attempts"], row["truncated"]) == ("A", "NOERROR", 1, False)
    assert json.loads(row["answers"]) == ["real.example", "127.0.0.1"]
    assert row["server_addr"] == address
    assert 0 < row["latency"] < 10
    assert row["entity_id"]
    assert row["community_id"].startswith("1:")


def test_a_long_answer_is_cut_over_udp_and_whole_over_tcp(server: tuple[int, int, Recording]) -> None:
    family, port, recording = server
    ask(family, port, "big.example")
    ask(family, port, "big.example", over=socket.SOCK_STREAM)
    cut, whole = sorted(recording.expect(TABLE, 2, query="big.example"), key=lambda row: row["protocol"], reverse=True)
    assert (json.loads(cut["answers"]), cut["truncated"]) == ([], True)
    assert (len(json.loads(whole["answers"])), whole["truncated"]) == (61, False)


def test_names_that_do_not_exist(server: tuple[int, int, Recording]) -> None:
    family, port, recording = server
    ask(family, port, "MISSING.Example")
    (row,) = recording.expect(TABLE, query="missing.example")
    assert (row["rcode"], row["answers"], row["pid"]) == ("NXDOMAIN", "[]", os.getpid())


def test_a_question_that_is_asked_twice_and_not_answered(
    server: tuple[int, int, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    family, port, recording = server
    monkeypatch.setattr(dns_lookups, "ANSWER_TIMEOUT_NS", 1_000_000_000)
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        query = dns.message.make_query("silent.example", "A").to_wire()
        for _ in range(2):
            client.sendto(query, (LOOPBACK[family], port))
    (row,) = recording.expect(TABLE, query="silent.example")
    assert (row["attempts"], row["rcode"], row["answers"], row["latency"]) == (2, None, None, None)


def test_several_messages_in_one_connection(server: tuple[int, int, Recording]) -> None:
    """glibc puts two questions into one segment."""
    family, port, recording = server
    queries = [dns.message.make_query(f"both-{n}.example", "A").to_wire() for n in range(2)]
    with socket.create_connection((LOOPBACK[family], port)) as client, client.makefile("rb") as stream:
        client.sendall(b"".join(struct.pack(">H", len(query)) + query for query in queries))
        for _ in queries:
            (size,) = struct.unpack(">H", stream.read(2))
            stream.read(size)
    for n in range(2):
        (row,) = recording.expect(TABLE, query=f"both-{n}.example")
        check(row, LOOPBACK[family])


def test_connections_have_the_name_that_their_process_looked_up(server: tuple[int, int, Recording]) -> None:
    family, port, recording = server

    def look_up_and_connect() -> bool:
        ask(family, port, "looked-up.example")
        with socket.create_connection(target.getsockname()):
            return True

    with socket.create_server(("127.0.0.1", 0)) as target:
        pid = in_child(look_up_and_connect)
        other = in_child(lambda: socket.create_connection(target.getsockname()).close() is None)
        local = target.getsockname()[1]
        for state in ("established", "closed"):
            (row,) = recording.expect("sockets_events", pid=pid, state=state, remote_port=local)
            assert row["remote_name"] == "looked-up.example"
            (row,) = recording.expect("sockets_events", pid=other, state=state, remote_port=local)
            assert row["remote_name"] is None


def test_a_process_that_inherits_a_connected_socket_has_its_own_lookups(server: tuple[int, int, Recording]) -> None:
    family, port, recording = server
    with socket.socket(family, socket.SOCK_DGRAM) as shared:
        shared.settimeout(10)
        shared.connect((LOOPBACK[family], port))

        def ask_there(name: str) -> bytes:
            shared.send(dns.message.make_query(name, "A").to_wire())
            return shared.recv(1 << 16)

        ask_there("parent.example")
        child = in_child(lambda: ask_there("child.example"))
        ask_there("parent-again.example")
    for name, pid in (("parent.example", os.getpid()), ("child.example", child), ("parent-again.example", os.getpid())):
        (row,) = recording.expect(TABLE, query=name)
        assert (row["pid"], row["attempts"]) == (pid, 1)


def test_a_program_that_gets_a_connected_socket_by_exec_has_its_lookups(server: tuple[int, int, Recording]) -> None:
    family, port, recording = server
    send = "import os, sys; to = int(sys.argv[1]); os.write(to, bytes.fromhex(sys.argv[2])); os.read(to, 9999)"

    def connect_and_exec() -> bool:
        client = socket.socket(family, socket.SOCK_DGRAM)
        client.connect((LOOPBACK[family], port))
        os.write(client.fileno(), dns.message.make_query("before.example", "A").to_wire())
        os.read(client.fileno(), 9999)
        client.set_inheritable(True)
        query = dns.message.make_query("after.example", "A").to_wire().hex()
        os.execv("/usr/bin/python3", ["renamed", "-c", send, str(client.fileno()), query])

    pid = in_child(connect_and_exec)
    (row,) = recording.expect(TABLE, query="after.example")
    assert (row["pid"], row["cmdline"].split()[0]) == (pid, "renamed")
    (row,) = recording.expect(TABLE, query="before.example")
    assert row["cmdline"].split()[0] != "renamed"
