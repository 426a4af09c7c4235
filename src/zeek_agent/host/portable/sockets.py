"""Internet sockets and the processes that hold them, by psutil.

In these `InternetSocket`s `inode` is the pid of the process that holds the socket, and 0 if that is unknown: it serves
to find the owner, as inode numbers do on Linux.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address
from typing import Any, Final, NamedTuple

import psutil

from zeek_agent.host.internet_sockets import TCP, UDP, InternetSocket, TcpState, on_the_wire

TCP_STATES: Final = {
    psutil.CONN_ESTABLISHED: TcpState.ESTABLISHED,
    psutil.CONN_SYN_SENT: TcpState.SYN_SENT,
    psutil.CONN_SYN_RECV: TcpState.SYN_RECV,
    psutil.CONN_FIN_WAIT1: TcpState.FIN_WAIT1,
    psutil.CONN_FIN_WAIT2: TcpState.FIN_WAIT2,
    psutil.CONN_TIME_WAIT: TcpState.TIME_WAIT,
    psutil.CONN_CLOSE: TcpState.CLOSE,
    psutil.CONN_CLOSE_WAIT: TcpState.CLOSE_WAIT,
    psutil.CONN_LAST_ACK: TcpState.LAST_ACK,
    psutil.CONN_LISTEN: TcpState.LISTEN,
    psutil.CONN_CLOSING: TcpState.CLOSING,
    "DELETE_TCB": TcpState.CLOSE,
}
"""psutil's names of states. `DELETE_TCB` is Windows' for a socket that is closed and about to be removed."""
UNKNOWN_STATE: Final = 0

_PROTOCOLS: Final = {socket.SOCK_STREAM: TCP, socket.SOCK_DGRAM: UDP}
_LINK_LOCAL: Final = (b"\xfe\x80", 0xC0)
_NO_V6: Final = bytes(16)
_PADDING: Final = bytes(12)


class HeldSocket(NamedTuple):
    """A socket, and one of the processes that hold it, with its descriptor there; None if they are unknown."""

    socket: InternetSocket
    pid: int | None
    fd: int | None


class Withheld(NamedTuple):
    """How many processes do not show their sockets to this user."""

    processes: int

    def __str__(self) -> str:
        whose = "1 process" if self.processes == 1 else f"{self.processes:,} processes"
        return f"the sockets of {whose} are not visible to this user"


def sockets_of_processes(
    pids: Iterable[int], withheld: Callable[[Withheld], None], check: Callable[[], None] = lambda: None
) -> Iterator[HeldSocket]:
    """The TCP and UDP sockets of these processes, for systems that list them by process, as macOS does.

    `withheld` is called at the end if some were not readable.
    """
    refused = 0
    for pid in pids:
        check()
        try:
            shown = psutil.Process(pid).net_connections("inet")
        except (psutil.NoSuchProcess, ValueError, OverflowError):
            continue
        except (psutil.AccessDenied, OSError):
            refused += 1
            continue
        for one in shown:
            yield HeldSocket(internet_socket(one, pid), pid, one.fd if one.fd >= 0 else None)
    if refused:
        withheld(Withheld(refused))


def all_sockets() -> Iterator[HeldSocket]:
    """The TCP and UDP sockets of the system, for systems that list them with their owners, as Windows does.

    Raises OSError, and psutil.AccessDenied.
    """
    for one in psutil.net_connections("inet"):
        pid = one.pid or None  # 0 owns what no process holds any more
        yield HeldSocket(internet_socket(one, pid or 0), pid, one.fd if one.fd >= 0 else None)


def internet_socket(shown: Any, holder: int) -> InternetSocket:
    """One of psutil's connections. `holder` becomes `inode`."""
    length = 4 if shown.family == socket.AF_INET else 16
    local, local_port = _end(shown.laddr, length)
    remote, remote_port = _end(shown.raddr, length)
    is_mapped = False
    if length == 16:
        wire = on_the_wire(*_without_scope(local, remote))
        wire = _v4_of_dual(*wire) if len(wire[0]) == 16 else wire
        is_mapped = len(wire[0]) == 4
        local, remote = wire
    protocol = _PROTOCOLS[shown.type]
    if protocol == TCP:
        state = TCP_STATES.get(shown.status, UNKNOWN_STATE)
    else:
        state = TcpState.ESTABLISHED if remote_port else TcpState.CLOSE
    return InternetSocket(protocol, state, local, local_port, remote, remote_port, holder, None, None, None, is_mapped)


def _end(address: Any, length: int) -> tuple[bytes, int]:
    if not address:
        return bytes(length), 0
    packed = ip_address(address.ip.partition("%")[0]).packed
    if len(packed) < length:
        packed = bytes(10) + b"\xff\xff" + packed
    return packed, address.port


def _without_scope(*addresses: bytes) -> Iterator[bytes]:
    """Addresses without the interface that macOS' kernel keeps in the second pair of bytes of link-local ones."""
    prefix, mask = _LINK_LOCAL
    for address in addresses:
        is_link_local = address[0] == prefix[0] and address[1] & mask == prefix[1]
        yield address[:2] + bytes(2) + address[4:] if is_link_local else address


def _v4_of_dual(local: bytes, remote: bytes) -> tuple[bytes, bytes]:
    """The addresses of an IPv6 socket that carries IPv4 as macOS shows them: in the last four bytes, with zeros before.

    No host has an IPv6 address of that form; the unspecified and the loopback address begin with 14 zeros.
    """
    if _is_padded(local) or _is_padded(remote):
        return local[12:], remote[12:]
    return local, remote


def _is_padded(address: bytes) -> bool:
    return address.startswith(_PADDING) and any(address[12:14])
