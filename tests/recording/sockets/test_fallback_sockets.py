"""Socket events without eBPF, from connections that really were made."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import communityid
import pytest
from recording import Event, Recording
from waiting import until_sync

from zeek_agent.config import SourceSettings
from zeek_agent.host.linux.procfs import Procfs, ProcfsProcess
from zeek_agent.recording.audit.audit import AuditProcesses, AuditSockets
from zeek_agent.recording.processes.proc_connector import ProcConnector
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.recording.snapshots import ProcessSnapshots, SocketSnapshots
from zeek_agent.recording.sockets.socket_polling import SocketPolling
from zeek_agent.recording.source import Source

TABLE = "sockets_events"
PYTHON = str(Path(sys.executable).resolve())
COMMUNITY_ID = communityid.CommunityID()

root = pytest.mark.root

PEER = """
import socket, sys, threading, time
role, address, port, life, count, rate = sys.argv[1], sys.argv[2], *map(float, sys.argv[3:])

def later(connection):
    if life < 0:
        threading.Thread(target=until_the_other_end_closes, args=(connection,), daemon=True).start()
    else:
        threading.Timer(life, connection.close).start()

def until_the_other_end_closes(connection):
    connection.recv(1)
    connection.close()

if role == "server":
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.create_server((address, 0), backlog=1024, family=family)
    print(server.getsockname()[1], flush=True)
    while True:
        later(server.accept()[0])
else:
    begun, held = time.monotonic(), []
    for number in range(int(count)):
        connection = socket.create_connection((address, int(port)))
        print(connection.getsockname()[1])
        held.append(connection)
        if life >= 0:
            later(connection)
        time.sleep(max(begun + (number + 1) / rate - time.monotonic(), 0))
    sys.stdout.flush()
    if life < 0:
        sys.stdin.read()
        for connection in held:
            connection.close()
"""


def sources(backend: str, **settings: object) -> list[Source]:
    wanted = SourceSettings(
        **{"ignore_self": False, "audit_rules": True, "snapshot_interval": 0.1, **settings}  # type: ignore[arg-type]
    )
    cache = ProcessCache()
    if backend == "inet_diag":
        return [ProcConnector(cache, wanted), SocketPolling(cache, wanted)]
    if backend == "audit":
        return [AuditProcesses(cache, wanted), AuditSockets(cache, wanted)]
    return [ProcessSnapshots(cache, wanted), SocketSnapshots(cache, wanted)]


@pytest.fixture(scope="module", params=["inet_diag", "snapshots"])
def recording(request: pytest.FixtureRequest) -> Iterator[Recording]:
    if request.param != "snapshots" and os.geteuid() != 0:
        pytest.skip("needs root")
    with Recording(sources(request.param)) as recording:
        yield recording


@contextmanager
def server(address: str, life: float) -> Iterator[tuple[int, int]]:
    """A process that accepts connections and closes each after `life` seconds, or once the client has, if that is
    negative: its pid and port."""
    command = [sys.executable, "-c", PEER, "server", address, "0", str(life), "0", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.pid, int(process.stdout.readline())
        finally:
            process.kill()


def client(address: str, port: int, life: float, count: int, rate: float) -> tuple[int, set[int]]:
    """A process that opens connections and closes each after `life` seconds: its pid, the ports that it used."""
    command = [sys.executable, "-c", PEER, "client", address, str(port), str(life), str(count), str(rate)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        return process.pid, {int(line) for line in process.stdout}


@contextmanager
def open_connections(address: str, port: int, count: int) -> Iterator[tuple[int, set[int]]]:
    """A process that opens connections, and closes them at the end of the block: its pid, the ports that it uses."""
    command = [sys.executable, "-c", PEER, "client", address, str(port), "-1", str(count), "1000"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.pid, {int(process.stdout.readline()) for _ in range(count)}


def check_community_id(event: Event) -> None:
    ends = (event["local_addr"], event["remote_addr"], event["local_port"], event["remote_port"])
    assert event["community_id"] == COMMUNITY_ID.calc(communityid.FlowTuple.make_tcp(*ends))


@root
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_every_connection_of_50_ms_is_there_at_both_ends_and_never_with_another_process(address: str) -> None:
    connections_of_50_ms(address, 50)


@root
@pytest.mark.soak
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_connections_of_50_ms_have_their_process_where_the_agent_gets_its_turns(address: str) -> None:
    """At least 99 of 100, on a machine that has nothing else to do."""
    assert connections_of_50_ms(address, 1_000) >= 0.99 * 2_000


def outbound_of(recording: Recording, number: int, port: int, state: str) -> list[Event]:
    """The events of so many clients, once they are there.

    One that a round saw while it was being opened, and no later round saw at all, counts as failed.
    """

    def found() -> list[Event]:
        events = recording.events(TABLE, remote_port=port, direction="outbound")
        return [event for event in events if event["state"] in {state, "failed"}]

    until_sync(lambda: len(found()) >= number, complaint=lambda: f"{len(found())} of {number} are {state} or failed")
    assert sum(event["state"] == state for event in found()) > number / 2
    return found()


def connections_of_50_ms(address: str, number: int) -> int:
    """Makes so many and checks all that is recorded; how many of their ends have their process."""
    with Recording(sources("inet_diag")) as recording, server(address, 0.05) as (server_pid, port):
        client_pid, ports = client(address, port, 0.05, number, 100)
        for state in ("established", "closed"):
            outbound = outbound_of(recording, number, port, state)
            inbound = recording.expect(TABLE, number, local_port=port, direction="inbound", state=state)
            assert {event["local_port"] for event in outbound} == ports
            assert {event["remote_port"] for event in inbound} == ports
            assert len(outbound) == len(inbound) == number
            for event in outbound:
                assert (event["pid"], event["exe"], event["gid"]) in {(client_pid, PYTHON, 0), (None, None, None)}
                assert event["uid"] in {0, None}
                assert (event["local_addr"], event["remote_addr"], event["protocol"]) == (address, address, 6)
            for event in inbound:
                assert (event["pid"], event["process"]) in {(server_pid, "python"), (None, None)}
            for event in outbound + inbound:
                check_community_id(event)
        assert len({event["cookie"] for event in outbound + inbound}) == 2 * number
        return sum(event["pid"] is not None for event in outbound + inbound)


@root
def test_connections_shorter_than_a_round_are_there_without_their_process() -> None:
    with Recording(sources("inet_diag")) as recording, server("127.0.0.1", 0.0) as (_, port):
        _, ports = client("127.0.0.1", port, 0.0, 100, 500)
        for state in ("established", "closed"):
            outbound = outbound_of(recording, 100, port, state)
            inbound = recording.expect(TABLE, 100, local_port=port, direction="inbound", state=state)
            assert {event["local_port"] for event in outbound} == {event["remote_port"] for event in inbound} == ports
            for event in outbound + inbound:
                check_community_id(event)


@root
@pytest.mark.parametrize(
    ("number", "least_known"), [(100, 0), pytest.param(2_000, 1_800, marks=pytest.mark.soak)], ids=["100", "2000"]
)
def test_every_connect_and_accept_is_audited_at_200_a_second(number: int, least_known: int) -> None:
    """The local port is known of those that were looked up while they were open."""
    with Recording(sources("audit")) as recording, server("127.0.0.1", 0.05) as (server_pid, port):
        client_pid, ports = client("127.0.0.1", port, 0.05, number, 200)
        outbound = recording.expect(TABLE, number, pid=client_pid, remote_port=port)
        inbound = recording.expect(TABLE, number, pid=server_pid, direction="inbound")
        assert len(outbound) == len(inbound) == number
        assert {event["state"] for event in outbound + inbound} == {"established"}
        assert {event["remote_port"] for event in inbound} == ports
        assert {event["exe"] for event in outbound + inbound} == {PYTHON}
        whole = [event for event in outbound if event["local_port"] is not None]
        assert len(whole) >= least_known
        assert {event["local_port"] for event in whole} <= ports
        for event in whole:
            check_community_id(event)


@root
def test_a_pending_connection_is_audited_when_it_succeeds_or_fails() -> None:
    with (
        Recording(sources("audit")) as recording,
        server("127.0.0.1", 5.0) as (_, port),
        socket.socket() as connecting,
    ):
        connecting.setblocking(False)
        connecting.connect_ex(("127.0.0.1", port))
        (event,) = recording.expect(TABLE, pid=os.getpid(), remote_port=port)
        assert (event["state"], event["local_port"]) == ("established", connecting.getsockname()[1])


def test_connections_that_are_open_at_a_scan_are_recorded_with_their_processes(recording: Recording) -> None:
    with server("127.0.0.1", -1) as (server_pid, port):

        def check(state: str) -> None:
            outbound = recording.expect(TABLE, 20, remote_port=port, state=state, direction="outbound")
            inbound = recording.expect(TABLE, 20, local_port=port, state=state, direction="inbound")
            assert {event["local_port"] for event in outbound} == {event["remote_port"] for event in inbound} == ports
            assert {event["pid"] for event in outbound} == {client_pid}
            assert {event["pid"] for event in inbound} == {server_pid}
            assert {event["exe"] for event in outbound + inbound} == {PYTHON}

        with open_connections("127.0.0.1", port, 20) as (client_pid, ports):
            check("established")
        check("closed")


def test_a_socket_event_names_its_process_as_the_process_table_does(recording: Recording) -> None:
    with server("127.0.0.1", 0.3) as (pid, port), ProcfsProcess(Procfs(), pid) as shown:
        (event,) = recording.expect(TABLE, local_port=port, state="listen")
        assert (event["pid"], event["entity_id"]) == (pid, shown.entity_id)
        assert (event["netns"], event["cmdline"]) == (shown.netns, shown.cmdline)
        assert event["parent_entity_id"] == shown.parent_entity_id


def test_a_listener_opens_and_closes(recording: Recording) -> None:
    with server("127.0.0.1", 0.3) as (pid, port):
        (event,) = recording.expect(TABLE, pid=pid, state="listen")
        assert (event["local_addr"], event["local_port"], event["protocol"]) == ("127.0.0.1", port, 6)
        assert (event["remote_addr"], event["direction"]) == (None, None)
    recording.expect(TABLE, pid=pid, state="closed", local_port=port, remote_port=None)


def test_sockets_that_were_open_before_are_not_reported_until_they_close() -> None:
    with server("127.0.0.1", -1) as (_, port), socket.create_connection(("127.0.0.1", port)) as connection:
        own_port = connection.getsockname()[1]
        with Recording(sources("snapshots")) as recording:
            assert not recording.events(TABLE, local_port=own_port)
            connection.close()
            (event,) = recording.expect(TABLE, local_port=own_port)
            assert (event["state"], event["pid"], event["direction"]) == ("closed", os.getpid(), "outbound")


def test_datagram_sockets_with_a_peer_or_a_port_of_their_own(recording: Recording) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connected:
        connected.connect(("127.0.0.1", 9))
        port = connected.getsockname()[1]
        (event,) = recording.expect(TABLE, local_port=port, protocol=17)
        assert (event["state"], event["direction"], event["remote_port"]) == ("established", "outbound", 9)
        assert event["pid"] == os.getpid()
    recording.expect(TABLE, local_port=port, protocol=17, state="closed")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        time.sleep(0.3)
        assert not recording.events(TABLE, local_port=bound.getsockname()[1], protocol=17)
    for port in range(20_000, 20_100):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
            try:
                bound.bind(("127.0.0.1", port))
            except OSError:
                continue
            recording.expect(TABLE, local_port=port, protocol=17, state="listen")
        break


@contextmanager
def other_namespace() -> Iterator[str]:
    name = f"zeek-agent-fallback-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@root
@pytest.mark.parametrize("backend", ["inet_diag", "snapshots"])
def test_connections_in_another_network_namespace(backend: str) -> None:
    code = (
        "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)\n"
        "sys.stdin.readline(); c = socket.create_connection(s.getsockname()); a = s.accept(); sys.stdin.readline()"
    )
    with other_namespace() as name, Recording(sources(backend)) as recording:
        inside = Path(f"/run/netns/{name}").stat().st_ino
        command = ["ip", "netns", "exec", name, sys.executable, "-c", code]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            port = int(process.stdout.readline())
            recording.expect(TABLE, local_port=port, netns=inside, state="listen")
            process.stdin.write(b"connect\n")
            (outbound,) = recording.expect(TABLE, remote_port=port, netns=inside, state="established")
            (inbound,) = recording.expect(TABLE, local_port=port, netns=inside, state="established")
            assert outbound["pid"] == inbound["pid"] == process.pid
            assert (outbound["direction"], inbound["direction"]) == ("outbound", "inbound")
        recording.expect(TABLE, 3, netns=inside, state="closed", pid=process.pid)


@root
def test_a_connection_that_nobody_answers_has_failed() -> None:
    with other_namespace() as name, Recording(sources("inet_diag")) as recording:
        for command in (
            "link add here type veth peer name nobody",
            "address add 203.0.113.1/24 dev here",
            "link set here up",
            "link set nobody up",
        ):
            subprocess.run(["ip", "-n", name, *command.split()], check=True)
        code = (
            "import socket, sys; n = socket.create_server(('203.0.113.1', 4320)); sys.stdin.readline()\n"
            "s = socket.socket(); s.setblocking(False); s.connect_ex(('203.0.113.9', 4321))\n"
            "print('connecting', flush=True); sys.stdin.readline()"
        )
        command = ["ip", "netns", "exec", name, sys.executable, "-c", code]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            recording.expect(TABLE, local_port=4320, state="listen")  # it has found the namespace
            process.stdin.write(b"connect\n")
            process.stdout.readline()
            assert not recording.events(TABLE, remote_addr="203.0.113.9")
        (event,) = recording.expect(TABLE, remote_addr="203.0.113.9")
        assert (event["state"], event["direction"], event["remote_port"]) == ("failed", "outbound", 4321)
        assert (event["pid"], event["local_addr"]) == (process.pid, "203.0.113.1")


@root
def test_loopback_can_be_left_out() -> None:
    with (
        Recording(sources("inet_diag", ignore_loopback=True)) as recording,
        server("127.0.0.1", 0.1) as (_, port),
    ):
        client("127.0.0.1", port, 0.1, 5, 100)
        time.sleep(0.3)
        assert not [event for event in recording.events(TABLE) if port in {event["local_port"], event["remote_port"]}]


@root
@pytest.mark.parametrize("backend", ["inet_diag", "audit", "snapshots"])
def test_sources_leave_no_descriptor_and_no_thread_behind(backend: str) -> None:
    def held() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    before = held()
    for _ in range(3):
        with other_namespace(), Recording(sources(backend)) as recording:
            with subprocess.Popen(["/bin/sleep", "0.1"]) as process:
                pass
            recording.events(TABLE)
            assert process.returncode == 0
    # The module's recording has files open for moments.
    until_sync(lambda: held() == before, complaint=lambda: f"{held()} descriptors and threads, {before} before")
