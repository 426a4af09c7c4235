"""Flows to servers whose processes share a socket, and the truth of who acted.

    python prefork_load.py KIND MODE FLOWS [4 | 6]

KIND: tcp, udp or mptcp. MODE is how the WORKERS processes get the socket that they accept from or read: `fork` (from a
parent that bound it), `reuseport` (each its own at the same port), `scm` (passed over a Unix socket), `late` (forked,
and serving only when all flows have waited longer than the agent waits) or, for UDP, `recv` (one process, which does
not ask for the sender). Runs at 10.99.0.1 or fd99::1 of its network namespace; MPTCP opens a second subflow from
10.99.0.2 or fd99::2.

Prints a line of JSON for each side of a flow: side, client's port, pid, and the token of an MPTCP connection.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Final, NoReturn

from children import exit_code, fork

FAMILY: Final = socket.AF_INET6 if sys.argv[4:] == ["6"] else socket.AF_INET
ADDRESS: Final = "fd99::1" if FAMILY == socket.AF_INET6 else "10.99.0.1"
PORT: Final = 7000
FIRST_CLIENT_PORT: Final = 10_000
WORKERS: Final = 4
CLIENTS: Final = 4
LATE_SECONDS: Final = 2.5
"""Longer than the agent waits, with its housekeeping interval."""
IPPROTO_MPTCP: Final = 262
SOL_MPTCP, MPTCP_INFO = 284, 1
TOKEN_OFFSET: Final = 12  # in struct mptcp_info (include/uapi/linux/mptcp.h)


def new_socket(kind: str) -> socket.socket:
    if kind == "udp":
        return socket.socket(FAMILY, socket.SOCK_DGRAM)
    return socket.socket(FAMILY, socket.SOCK_STREAM, IPPROTO_MPTCP if kind == "mptcp" else socket.IPPROTO_TCP)


def bound(kind: str) -> socket.socket:
    server = new_socket(kind)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    server.bind((ADDRESS, PORT))
    if kind == "udp":
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    else:
        server.listen(4096)
    return server


def note(side: str, port: int, connection: socket.socket) -> None:
    """One line, written at once."""
    token = None
    if connection.proto == IPPROTO_MPTCP:
        info = connection.getsockopt(SOL_MPTCP, MPTCP_INFO, 64)
        token = int.from_bytes(info[TOKEN_OFFSET : TOKEN_OFFSET + 4], sys.byteorder)
    os.write(1, json.dumps({"side": side, "port": port, "pid": os.getpid(), "token": token}).encode() + b"\n")


def serve(kind: str, mode: str, server: socket.socket) -> NoReturn:
    while True:
        if kind != "udp":
            connection, (_, port, *_) = server.accept()
            note("inbound", port, connection)
            with connection:
                connection.send(connection.recv(16))
                connection.recv(16)
        elif mode == "recv":
            data = server.recv(16)
            note("inbound", int(data), server)
            server.sendto(data, (ADDRESS, int(data)))
        else:
            data, client = server.recvfrom(16)
            note("inbound", client[1], server)
            server.sendto(data, client)


def serve_late(kind: str, server: socket.socket, inherited: list[socket.socket]) -> NoReturn:
    for client in inherited:
        client.close()
    serve(kind, "late", server)


def received(channel: socket.socket) -> socket.socket:
    """A socket that came over a Unix socket."""
    descriptors = array.array("i")
    _, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_LEN(descriptors.itemsize))
    descriptors.frombytes(ancillary[0][2])
    return socket.socket(fileno=descriptors[0])


def start_workers(kind: str, mode: str) -> Iterator[int]:
    if mode == "reuseport":
        yield from (fork(lambda: serve(kind, mode, bound(kind))) for _ in range(WORKERS))
        return
    if mode == "scm":
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        workers = [fork(lambda: serve(kind, mode, received(there))) for _ in range(WORKERS)]
        server = bound(kind)
        for _ in workers:
            socket.send_fds(here, [b"."], [server.fileno()])
        yield from workers
        return
    server = bound(kind)
    number = 1 if mode == "recv" else WORKERS
    yield from (fork(partial(serve, kind, mode, server)) for _ in range(number))


def begin(kind: str, port: int) -> socket.socket:
    client = new_socket(kind)
    client.settimeout(20)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.bind((ADDRESS, port))
    client.connect((ADDRESS, PORT))
    note("outbound", port, client)
    client.send(str(port).encode())
    return client


def finish(client: socket.socket) -> None:
    with client:
        client.recv(16)


def run_client(kind: str, ports: range) -> None:
    for port in ports:
        finish(begin(kind, port))


def ports_of(client: int, flows: int) -> range:
    return range(FIRST_CLIENT_PORT + client, FIRST_CLIENT_PORT + flows, CLIENTS)


def main() -> None:
    kind, mode, flows = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if mode == "late":
        server = bound(kind)
        clients = [begin(kind, port) for port in range(FIRST_CLIENT_PORT, FIRST_CLIENT_PORT + flows)]
        time.sleep(LATE_SECONDS)
        workers = [fork(partial(serve_late, kind, server, clients)) for _ in range(WORKERS)]
        for client in clients:
            finish(client)
    else:
        workers = list(islice(start_workers(kind, mode), WORKERS))
        time.sleep(0.2)  # until all of them have their sockets
        clients = [fork(partial(run_client, kind, ports_of(number, flows))) for number in range(CLIENTS)]
        failed = [code for code in map(exit_code, clients) if code]
        if failed:
            sys.exit(f"clients ended with {failed}")
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


main()
