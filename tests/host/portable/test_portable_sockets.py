"""psutil's sockets next to those of sock_diag(7), and the forms in which other systems show addresses."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from types import SimpleNamespace

import psutil
import pytest

from zeek_agent.host.internet_sockets import TCP, UDP, InternetSocket, TcpState, address_text
from zeek_agent.host.portable.sockets import (
    TCP_STATES,
    UNKNOWN_STATE,
    HeldSocket,
    Withheld,
    all_sockets,
    internet_socket,
    sockets_of_processes,
)

needs_sock_diag = pytest.mark.skipif(not hasattr(socket, "AF_NETLINK"), reason="compares with sock_diag(7)")

Ends = tuple[int, int, str, int, str, int]


def ends(found: InternetSocket) -> Ends:
    return (
        found.protocol,
        found.state,
        address_text(found.local),
        found.local_port,
        address_text(found.remote),
        found.remote_port,
    )


@pytest.fixture
def opened() -> Iterator[set[int]]:
    """The local ports of sockets of every kind that this process has."""
    with ExitStack() as stack:
        made = []
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            server = stack.enter_context(closing(socket.create_server((host, 0), family=family)))
            client = stack.enter_context(closing(socket.create_connection(server.getsockname()[:2])))
            accepted = stack.enter_context(closing(server.accept()[0]))
            bound = stack.enter_context(closing(socket.socket(family, socket.SOCK_DGRAM)))
            bound.bind((host, 0))
            connected = stack.enter_context(closing(socket.socket(family, socket.SOCK_DGRAM)))
            connected.connect(bound.getsockname()[:2])
            made += [server, client, accepted, bound, connected]
        dual = stack.enter_context(closing(socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)))
        made += [dual, stack.enter_context(closing(socket.create_connection(("127.0.0.1", dual.getsockname()[1]))))]
        made.append(stack.enter_context(closing(dual.accept()[0])))
        yield {one.getsockname()[1] for one in made}


def never(withheld: Withheld) -> None:
    raise AssertionError(str(withheld))


@needs_sock_diag
def test_the_sockets_of_a_process_are_those_of_sock_diag(opened: set[int]) -> None:
    from zeek_agent.host.linux import inet_diag

    expected = {ends(one) for one in inet_diag.list_sockets((TCP, UDP)) if one.local_port in opened}
    found = {ends(one.socket) for one in sockets_of_processes([os.getpid()], never) if one.socket.local_port in opened}
    assert len(found) == len(expected) == 13
    assert found == expected


@needs_sock_diag
def test_the_sockets_of_the_system_are_those_of_sock_diag(opened: set[int]) -> None:
    from zeek_agent.host.linux import inet_diag

    def by_sock_diag() -> set[Ends]:
        return {ends(one) for one in inet_diag.list_sockets((TCP, UDP))}

    before = by_sock_diag()
    found = {ends(one.socket) for one in all_sockets()}
    lasting = before & by_sock_diag()
    assert {one for one in lasting if one[3] in opened} <= found
    assert {one for one in found if one[3] in opened} <= lasting
    assert lasting <= found


def test_each_socket_has_its_process_and_descriptor() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        held = [one for one in sockets_of_processes([os.getpid()], never) if one.socket.local_port == port]
        assert [(one.pid, one.fd, one.socket.inode) for one in held] == [(os.getpid(), server.fileno(), os.getpid())]
        assert held[0].socket.state == TcpState.LISTEN


def test_processes_that_show_no_sockets_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS without root."""

    def refuse(process: psutil.Process, _: str) -> None:
        raise psutil.AccessDenied(process.pid)

    reports: list[Withheld] = []
    monkeypatch.setattr(psutil.Process, "net_connections", refuse)
    assert list(sockets_of_processes([os.getpid(), os.getppid()], reports.append)) == []
    assert [str(one) for one in reports] == ["the sockets of 2 processes are not visible to this user"]


def test_processes_that_are_gone_are_left_out() -> None:
    assert list(sockets_of_processes([-1, 2**40, 2**22 + 1], never)) == []


def shown(
    local: str, remote: str = "", kind: int = socket.SOCK_STREAM, status: str = psutil.CONN_ESTABLISHED
) -> object:
    """A connection as psutil returns it, with ports 1000 and 2000."""
    return SimpleNamespace(
        family=socket.AF_INET6 if ":" in local else socket.AF_INET,
        type=kind,
        laddr=SimpleNamespace(ip=local, port=1000),
        raddr=SimpleNamespace(ip=remote, port=2000) if remote else (),
        status=status,
        fd=3,
    )


def addresses(found: InternetSocket) -> tuple[str, str]:
    return address_text(found.local), address_text(found.remote)


@pytest.mark.parametrize(
    ("local", "remote", "expected"),
    [
        ("192.0.2.1", "192.0.2.2", ("192.0.2.1", "192.0.2.2")),
        ("192.0.2.1", "", ("192.0.2.1", "0.0.0.0")),
        ("2001:db8::1", "2001:db8::2", ("2001:db8::1", "2001:db8::2")),
        ("::", "", ("::", "::")),
        ("::1", "::1", ("::1", "::1")),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", ("192.0.2.1", "192.0.2.2")),
        ("::192.0.2.1", "::192.0.2.2", ("192.0.2.1", "192.0.2.2")),  # a socket of macOS that serves both families
        ("fe80::1%en0", "fe80::2%en0", ("fe80::1", "fe80::2")),
        ("fe80:4::1", "fe80:4::2", ("fe80::1", "fe80::2")),  # the kernel of macOS keeps the interface in the address
    ],
)
def test_addresses_are_those_of_the_packets(local: str, remote: str, expected: tuple[str, str]) -> None:
    assert addresses(internet_socket(shown(local, remote), 7)) == expected


@pytest.mark.parametrize(("status", "state"), TCP_STATES.items())
def test_states_of_tcp_have_their_numbers(status: str, state: TcpState) -> None:
    assert internet_socket(shown("192.0.2.1", "192.0.2.2", status=status), 7).state == state


def test_a_state_that_psutil_does_not_know_is_unknown() -> None:
    assert internet_socket(shown("192.0.2.1", status=psutil.CONN_NONE), 7).state == UNKNOWN_STATE


def test_datagram_sockets_are_open_with_or_without_a_peer() -> None:
    alone = internet_socket(shown("192.0.2.1", kind=socket.SOCK_DGRAM, status=psutil.CONN_NONE), 7)
    connected = internet_socket(shown("192.0.2.1", "192.0.2.2", socket.SOCK_DGRAM, psutil.CONN_NONE), 7)
    assert (alone.state, alone.connected) == (TcpState.CLOSE, False)
    assert (connected.state, connected.connected) == (TcpState.ESTABLISHED, True)


def test_sockets_that_no_process_holds_have_no_pid(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows the owner is then 0, which is the pid of the idle process."""
    closing_one = shown("192.0.2.1", "192.0.2.2", status=psutil.CONN_TIME_WAIT)
    closing_one.pid, closing_one.fd = 0, -1  # type: ignore[attr-defined]
    monkeypatch.setattr(psutil, "net_connections", lambda _: [closing_one])
    (held,) = all_sockets()
    assert held == HeldSocket(internet_socket(closing_one, 0), None, None)
