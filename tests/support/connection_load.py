"""Short-lived clients of a few servers, and the truth of who they were.

    python connection_load.py ADDRESS TCP UDP RATE

Starts servers at ADDRESS, then TCP and UDP clients, each a process of its own that has one exchange and ends; RATE of
them a second. Prints a line of JSON a client: protocol, client's port and pid, server's port and pid.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from functools import partial
from typing import Final, NoReturn

from children import fork

PORTS: Final = 40
"""Server ports of each protocol, so that no pair of ports comes twice within Zeek's time-outs."""


def listen(address: str, kind: socket.SocketKind) -> socket.socket:
    server = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    server.bind((address, 0))
    if kind is socket.SOCK_STREAM:
        server.listen(128)
    return server


def serve_tcp(server: socket.socket) -> NoReturn:
    while True:
        connection, _ = server.accept()
        with connection:
            connection.sendall(connection.recv(64))
            connection.recv(64)


def serve_udp(server: socket.socket) -> NoReturn:
    while True:
        data, client = server.recvfrom(64)
        server.sendto(data, client)


def tcp_client(target: tuple[str, int], _: int) -> int:
    with socket.create_connection(target) as connection:
        connection.sendall(b"ping")
        connection.recv(64)
        return int(connection.getsockname()[1])


def udp_client(target: tuple[str, int], number: int) -> int:
    """Every other one connects its socket; the others name the peer with each datagram."""
    with socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        if number % 2:
            client.connect(target)
            client.send(b"ping")
        else:
            client.sendto(b"ping", target)
        client.recvfrom(64)
        return int(client.getsockname()[1])


def start_server(address: str, kind: socket.SocketKind) -> tuple[int, int]:
    """A server process that holds its own socket; its port and pid."""
    reading, writing = os.pipe()

    def serve() -> None:
        server = listen(address, kind)
        os.write(writing, str(server.getsockname()[1]).encode())
        serve_tcp(server) if kind is socket.SOCK_STREAM else serve_udp(server)

    pid = fork(serve)
    port = int(os.read(reading, 16))
    os.close(reading)
    os.close(writing)
    return port, pid


def run_client(kind: socket.SocketKind, address: str, number: int, server: tuple[int, int]) -> None:
    port, pid = server
    exchange = tcp_client if kind is socket.SOCK_STREAM else udp_client
    truth = {
        "proto": "tcp" if kind is socket.SOCK_STREAM else "udp",
        "orig_p": exchange((address, port), number),
        "orig_pid": os.getpid(),
        "resp_p": port,
        "resp_pid": pid,
    }
    sys.stdout.write(json.dumps(truth) + "\n")


def main() -> None:
    address, rate = sys.argv[1], float(sys.argv[4])
    numbers = {socket.SOCK_STREAM: int(sys.argv[2]), socket.SOCK_DGRAM: int(sys.argv[3])}
    servers = {kind: [start_server(address, kind) for _ in range(PORTS)] for kind in numbers}
    plan = [(kind, number) for kind, total in numbers.items() for number in range(total)]
    started = time.monotonic()
    for turn, (kind, number) in enumerate(plan):
        server = servers[kind][number % PORTS]
        os.waitpid(fork(partial(run_client, kind, address, number, server)), 0)
        time.sleep(max(0.0, started + turn / rate - time.monotonic()))
    for _, pid in (server for group in servers.values() for server in group):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
