"""Short-lived connections between hosts that are network namespaces, and the truth of who they were.

    python hosts_load.py TCP UDP RATE NAMESPACE=ADDRESS…

Starts servers in each namespace at its address, then clients, each a process of its own in one namespace that has one
exchange with a server in another, and ends; RATE of them a second. Prints a line of JSON for each client, with the time
when its connection had ended.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import Final

from children import fork
from connection_load import listen, serve_tcp, serve_udp, tcp_client, udp_client

PORTS: Final = 10
"""Server ports of each protocol in each namespace."""
_CLONE_NEWNET: Final = 0x40000000
_setns: Final = ctypes.CDLL(None, use_errno=True).setns


def enter(namespace: str) -> None:
    with Path("/run/netns", namespace).open() as file:
        if _setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")


def start_server(namespace: str, address: str, kind: socket.SocketKind) -> tuple[int, int]:
    """A server process in a namespace; its port and pid."""
    reading, writing = os.pipe()

    def serve() -> None:
        enter(namespace)
        server = listen(address, kind)
        os.write(writing, str(server.getsockname()[1]).encode())
        serve_tcp(server) if kind is socket.SOCK_STREAM else serve_udp(server)

    pid = fork(serve)
    port = int(os.read(reading, 16))
    os.close(reading)
    os.close(writing)
    return port, pid


def run_client(
    namespace: str, own: str, peer: str, kind: socket.SocketKind, number: int, server: tuple[int, int]
) -> None:
    enter(namespace)
    exchange = tcp_client if kind is socket.SOCK_STREAM else udp_client
    truth = {
        "proto": "tcp" if kind is socket.SOCK_STREAM else "udp",
        "orig_h": own,
        "orig_p": exchange((peer, server[0]), number),
        "orig_pid": os.getpid(),
        "resp_h": peer,
        "resp_p": server[0],
        "resp_pid": server[1],
        "ended": time.time(),
    }
    sys.stdout.write(json.dumps(truth) + "\n")


def main() -> None:
    rate = float(sys.argv[3])
    hosts = [(name, address) for name, _, address in (word.partition("=") for word in sys.argv[4:])]
    numbers = {socket.SOCK_STREAM: int(sys.argv[1]), socket.SOCK_DGRAM: int(sys.argv[2])}
    servers = {(host, kind): [start_server(*host, kind) for _ in range(PORTS)] for host in hosts for kind in numbers}
    plan = [(kind, number) for kind, total in numbers.items() for number in range(total)]
    started = time.monotonic()
    for turn, (kind, number) in enumerate(plan):
        name, own = hosts[number % len(hosts)]
        peer = hosts[(number + 1 + number // len(hosts) % (len(hosts) - 1)) % len(hosts)]
        server = servers[peer, kind][number // len(hosts) % PORTS]
        os.waitpid(fork(partial(run_client, name, own, peer[1], kind, number, server)), 0)
        time.sleep(max(0.0, started + turn / rate - time.monotonic()))
    for _, pid in (server for group in servers.values() for server in group):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
