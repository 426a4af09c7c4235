"""Socket events without eBPF, from connections that really were made."""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import communityid
import pytest
from recording import Event, Recording, argv_of
from waiting import until_sync

from zeek_agent.config.sections import SourceSettings
from zeek_agent.host.linux.procfs import Procfs, ProcfsProcess
from zeek_agent.recording.audit.audit import AuditProcesses, AuditSockets
from zeek_agent.recording.processes.proc_connector import ProcConnector
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.recording.snapshots import ProcessSnapshots, SocketSnapshots
from zeek_agent.recording.sockets import socket_polling
from zeek_agent.recording.sockets.socket_event import SocketEvent
from zeek_agent.recording.sockets.socket_owners import SocketOwners, living_owners
from zeek_agent.recording.sockets.socket_polling import SocketPolling
from zeek_agent.recording.source import Source
from zeek_agent.schema import Row

TABLE = "sockets_events"
PYTHON = str(Path(sys.executable).resolve())
COMMUNITY_ID = communityid.CommunityID()

root = pytest.mark.root

PEER = r"""
import os, socket, sys, threading, time
role, address, port, life, count, rate = sys.argv[1], sys.argv[2], *map(float, sys.argv[3:7])
times = os.open(sys.argv[7], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def later(connection):
    if life < 0:
        threading.Thread(target=until_the_other_end_closes, args=(connection,), daemon=True).start()
    else:
        client = connection.getsockname() if role == "client" else connection.getpeername()
        threading.Timer(life, close, (connection, client[1], time.monotonic())).start()

def close(connection, client_port, opened):
    os.write(times, f"{role} {client_port} {opened} {time.monotonic()}\n".encode())
    connection.close()

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


def fallback_settings(**settings: object) -> SourceSettings:
    return SourceSettings(
        **{"ignore_self": False, "audit_rules": True, "snapshot_interval": 0.1, **settings}  # type: ignore[arg-type]
    )


def sources(backend: str, **settings: object) -> list[Source]:
    wanted, cache = fallback_settings(**settings), ProcessCache()
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
def server(address: str, life: float, times: Path = Path(os.devnull)) -> Iterator[tuple[int, int]]:
    """A process that accepts connections and closes each after `life` seconds, or once the client has, if that is
    negative: its pid and port.

    `times` gets a line for each that it closes after `life` seconds: role, the client's port, and the times (of the
    monotonic clock) between which it was open.
    """
    command = [sys.executable, "-c", PEER, "server", address, "0", str(life), "0", "0", str(times)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.pid, int(process.stdout.readline())
        finally:
            process.kill()


def client(
    address: str, port: int, life: float, count: int, rate: float, times: Path = Path(os.devnull)
) -> tuple[int, set[int]]:
    """A process that opens connections and closes each after `life` seconds: its pid, the ports that it used.

    `times` is as for the server.
    """
    command = [sys.executable, "-c", PEER, "client", address, str(port), str(life), str(count), str(rate), str(times)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        return process.pid, {int(line) for line in process.stdout}


@contextmanager
def open_connections(address: str, port: int, count: int) -> Iterator[tuple[int, set[int]]]:
    """A process that opens connections, and closes them at the end of the block: its pid, the ports that it uses."""
    command = [sys.executable, "-c", PEER, "client", address, str(port), "-1", str(count), "1000", os.devnull]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.pid, {int(process.stdout.readline()) for _ in range(count)}


def check_community_id(event: Event) -> None:
    ends = (event["local_addr"], event["remote_addr"], event["local_port"], event["remote_port"])
    assert event["community_id"] == COMMUNITY_ID.calc(communityid.FlowTuple.make_tcp(*ends))


class TimedPolling(SocketPolling):
    """Notes when each of its rounds began and ended."""

    def __init__(self, cache: ProcessCache, settings: SourceSettings) -> None:
        super().__init__(cache, settings)
        self.rounds: list[tuple[float, float]] = []

    def _round(self) -> None:
        begun = time.monotonic()
        super()._round()
        self.rounds.append((begun, time.monotonic()))

    def saw(self, opened: float, closed: float) -> bool:
        """Whether a whole round falls into this time."""
        return any(opened <= begun and ended <= closed for begun, ended in self.rounds)


@pytest.mark.long
@root
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("number", [50, pytest.param(1_000, marks=pytest.mark.soak)])
def test_every_connection_of_50_ms_is_there_at_both_ends_with_its_process_if_a_whole_round_saw_it(
    tmp_path: Path, address: str, number: int
) -> None:
    """No connection has another process. How many a round sees depends on how busy the machine is."""
    settings, cache, times = fallback_settings(), ProcessCache(), tmp_path / "times"
    polling = TimedPolling(cache, settings)
    with (
        Recording([ProcConnector(cache, settings), polling]) as recording,
        server(address, 0.05, times) as (server_pid, port),
    ):
        client_pid, ports = client(address, port, 0.05, number, 100, times)
        for state in ("established", "closed"):
            outbound = recording.expect(TABLE, number, remote_port=port, direction="outbound", state=state)
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
        known = {("client", event["local_port"]) for event in outbound if event["pid"] is not None}
        known |= {("server", event["remote_port"]) for event in inbound if event["pid"] is not None}
        ends = [line.split() for line in times.read_text().splitlines()]
        seen = {(role, int(port)) for role, port, opened, closed in ends if polling.saw(float(opened), float(closed))}
        assert len(ends) == 2 * number
        assert seen - known == set()


@pytest.mark.long
@root
def test_connections_shorter_than_a_round_are_there_without_their_process() -> None:
    with Recording(sources("inet_diag")) as recording, server("127.0.0.1", 0.0) as (_, port):
        _, ports = client("127.0.0.1", port, 0.0, 100, 500)
        for state in ("established", "closed"):
            outbound = recording.expect(TABLE, 100, remote_port=port, direction="outbound", state=state)
            inbound = recording.expect(TABLE, 100, local_port=port, direction="inbound", state=state)
            assert {event["local_port"] for event in outbound} == {event["remote_port"] for event in inbound} == ports
            for event in outbound + inbound:
                check_community_id(event)
        assert not recording.events(TABLE, remote_port=port, state="failed")


@pytest.mark.long
@root
@pytest.mark.parametrize("number", [100, pytest.param(2_000, marks=pytest.mark.soak)])
def test_every_connect_and_accept_is_audited_at_200_a_second(number: int) -> None:
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
        assert {event["local_port"] for event in whole} <= ports
        for event in whole:
            check_community_id(event)


@root
def test_audited_connections_that_stay_open_are_recorded_with_both_ends() -> None:
    with (
        Recording(sources("audit")) as recording,
        server("127.0.0.1", -1) as (server_pid, port),
        open_connections("127.0.0.1", port, 100) as (client_pid, ports),
    ):
        outbound = recording.expect(TABLE, 100, pid=client_pid, remote_port=port)
        inbound = recording.expect(TABLE, 100, pid=server_pid, direction="inbound")
        assert {event["local_port"] for event in outbound} == {event["remote_port"] for event in inbound} == ports
        assert len(outbound) == len(inbound) == 100
        for event in outbound + inbound:
            check_community_id(event)


@root
@pytest.mark.parametrize("shut_down", [False, True])
def test_a_pending_connection_is_audited_when_it_succeeds_or_fails(shut_down: bool) -> None:
    with (
        Recording(sources("audit")) as recording,
        server("127.0.0.1", 5.0) as (_, port),
        socket.socket() as connecting,
    ):
        connecting.setblocking(False)
        connecting.connect_ex(("127.0.0.1", port))
        if shut_down:
            connecting.shutdown(socket.SHUT_WR)
        (event,) = recording.expect(TABLE, pid=os.getpid(), remote_port=port)
        assert (event["state"], event["local_port"]) == ("established", connecting.getsockname()[1])


@root
def test_an_accept_whose_descriptor_is_reused_before_its_record_is_read_keeps_its_peer() -> None:
    blocked, go_on = threading.Event(), threading.Event()
    peers: list[tuple[str | None, int | None]] = []

    def sink(_: str, rows: Iterable[Row]) -> None:
        for row in rows:
            assert isinstance(row, SocketEvent)
            if row.pid == os.getpid() and row.direction == "inbound":
                peers.append((row.state, row.remote_port))
        blocked.set()
        assert go_on.wait(60)

    source = AuditSockets(ProcessCache(), fallback_settings())
    if reason := source.probe():
        pytest.skip(reason)
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        source.start(sink)
        stack.callback(source.stop)
        stack.callback(go_on.set)
        ports = []
        for _ in range(3):
            client = stack.enter_context(socket.create_connection(listener.getsockname()))
            ports.append(client.getsockname()[1])
        assert blocked.wait(60)  # by an event of a client: it reads no more records until it may go on
        with listener.accept()[0] as first:
            descriptor = first.fileno()
        with listener.accept()[0] as second:
            assert second.fileno() == descriptor
        with listener.accept()[0] as third:
            assert third.fileno() == descriptor
            go_on.set()
            until_sync(lambda: len(peers) >= 3, complaint=lambda: f"{peers}")
    assert peers == [("established", port) for port in ports]


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
        assert event["netns"] == shown.netns
        assert shown.arguments is not None
        assert "\0".join(argv_of(event)).encode() + b"\0" == shown.arguments
        assert event["cmdline"] == " ".join(argv_of(event))
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


@contextmanager
def rounds_by_hand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recording]:
    """Rounds happen only when events are asked for."""
    monkeypatch.setattr(socket_polling, "_ROUND", 3_600.0)
    with Recording(sources("inet_diag")) as recording:
        yield recording


@contextmanager
def attempt(address: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection that is being opened until its listener accepts another one or closes; and that listener."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        socket.create_server((address, 0), backlog=0, family=family) as listener,
        socket.create_connection(listener.getsockname()[:2]),
        socket.socket(family) as connecting,
    ):
        connecting.setblocking(False)
        connecting.connect_ex(listener.getsockname())
        yield connecting, listener


def sockets_of(pid: int) -> int:
    return sum(os.readlink(link).startswith("socket:") for link in Path(f"/proc/{pid}/fd").iterdir())  # noqa: PTH115


@root
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_one_round_gives_every_open_connection_its_process_at_both_ends(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    with (
        rounds_by_hand(monkeypatch) as recording,
        server(address, -1) as (server_pid, port),
        open_connections(address, port, 100) as (client_pid, ports),
    ):
        until_sync(lambda: sockets_of(server_pid) == 101)  # all are accepted
        events = recording.events(TABLE, state="established")
        outbound = [event for event in events if event["remote_port"] == port]
        inbound = [event for event in events if event["local_port"] == port]
        assert {event["local_port"] for event in outbound} == {event["remote_port"] for event in inbound} == ports
        assert {(event["pid"], event["direction"]) for event in outbound} == {(client_pid, "outbound")}
        assert {(event["pid"], event["direction"]) for event in inbound} == {(server_pid, "inbound")}


@root
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_connection_that_was_established_between_two_rounds_has_not_failed(
    monkeypatch: pytest.MonkeyPatch, address: str, end: str
) -> None:
    with rounds_by_hand(monkeypatch) as recording, attempt(address) as (connecting, listener):
        own = {"local_port": connecting.getsockname()[1], "remote_port": listener.getsockname()[1]}
        assert not recording.events(TABLE, **own)  # a round has seen it
        accepted = [listener.accept()[0]]
        assert select.select([], [connecting], [], 30)[1]
        assert connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        accepted.append(listener.accept()[0])
        if end == "reset":
            connecting.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        accepted[1].close()
        connecting.close()
        accepted[0].close()
        events = recording.expect(TABLE, 2, **own)
        assert [event["state"] for event in events] == ["established", "closed"]
        for event in events:
            assert (event["pid"], event["direction"]) == (os.getpid(), "outbound")
            check_community_id(event)


@root
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_connection_that_was_refused_between_two_rounds_has_failed(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    with rounds_by_hand(monkeypatch) as recording, attempt(address) as (connecting, listener):
        own = {"local_port": connecting.getsockname()[1], "remote_port": listener.getsockname()[1]}
        assert not recording.events(TABLE, **own)
        listener.close()
        assert select.select([], [connecting], [], 30)[1]
        connecting.close()
        (event,) = recording.expect(TABLE, **own)
        assert (event["state"], event["pid"], event["direction"]) == ("failed", os.getpid(), "outbound")


@root
def test_a_refused_connection_that_no_round_saw_was_not_established(monkeypatch: pytest.MonkeyPatch) -> None:
    with rounds_by_hand(monkeypatch) as recording, socket.socket() as connecting, socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))
        connecting.setblocking(False)
        connecting.connect_ex(refusing.getsockname())
        own = {"local_port": connecting.getsockname()[1], "remote_port": refusing.getsockname()[1]}
        connecting.close()
        (event,) = recording.expect(TABLE, **own)
        assert (event["state"], event["direction"]) == ("failed", "outbound")


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


def test_a_socket_under_several_descriptors_has_one_owner() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, server.dup():
        inode = os.fstat(server.fileno()).st_ino
        assert SocketOwners().find([inode]) == {inode: os.getpid()}


@pytest.mark.parametrize("age_seconds", [0, 10])
def test_the_owner_is_the_program_that_runs_before_the_cache_knows_of_its_exec(age_seconds: int) -> None:
    """The cache has the process as its fork left it: with its parent's program."""
    cache = ProcessCache()
    parent = cache.read(os.getpid())
    assert parent is not None
    with socket.create_server(("127.0.0.1", 0)) as server:
        inode = os.fstat(server.fileno()).st_ino
        process = subprocess.Popen(["/bin/sleep", "100"], pass_fds=[server.fileno()])
    try:
        place = Path(f"/proc/{process.pid}")
        until_sync(lambda: (place / "comm").read_text() == "sleep\n" and b"100" in (place / "cmdline").read_bytes())
        shown = cache.read(process.pid)
        assert shown is not None
        since = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - age_seconds * 1_000_000_000
        forked = replace(
            parent,
            pid=process.pid,
            start_ticks=shown.start_ticks,
            since=since,
            parent_entity_id="a",
            parent_name="made it",
        )
        cache.begin(forked)
        owner = living_owners(SocketOwners(), cache, {inode}, fed=True)[inode]
        assert owner.command_line is not None
        assert (owner.name, owner.command_line.argv) == ("sleep", ["/bin/sleep", "100"])
        assert (owner.parent_entity_id, owner.parent_name) == ("a", "made it")
    finally:
        process.kill()
        process.wait()
