"""A DNS server on loopback, with the answers that a test wants."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dns.flags
import dns.message

Answer = Callable[[dns.message.Message], dns.message.Message | None]
LIMIT = 512
"""Bytes of an answer over UDP; a longer one is cut, and the client asks again over TCP."""


@contextmanager
def dns_server(answer: Answer, family: int = socket.AF_INET) -> Iterator[int]:
    """Answers questions over UDP and TCP, until the end of the block; gives the port. None is no answer."""
    address = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((address, 0), family=family, backlog=1024) as streams:
        port = streams.getsockname()[1]
        with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
            datagrams.bind((address, port))
            threads = [
                threading.Thread(target=_serve_datagrams, args=(datagrams, answer)),
                threading.Thread(target=_serve_streams, args=(streams, answer)),
            ]
            for thread in threads:
                thread.start()
            try:
                yield port
            finally:
                with socket.socket(family, socket.SOCK_DGRAM) as last:
                    last.sendto(b"", (address, port))
                streams.shutdown(socket.SHUT_RDWR)
                for thread in threads:
                    thread.join()


def _serve_datagrams(server: socket.socket, answer: Answer) -> None:
    while True:
        question, peer = server.recvfrom(1 << 16)
        if not question:
            return
        response = answer(dns.message.from_wire(question))
        if response is None:
            continue
        wire = response.to_wire(max_size=65_535)
        if len(wire) > LIMIT:
            response.answer.clear()
            response.flags |= dns.flags.TC
            wire = response.to_wire()
        server.sendto(wire, peer)


def _serve_streams(server: socket.socket, answer: Answer) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection, connection.makefile("rb") as stream:
            while len(size := stream.read(2)) == 2:
                response = answer(dns.message.from_wire(stream.read(int.from_bytes(size, "big"))))
                if response is not None:
                    wire = response.to_wire(max_size=65_535)
                    for part in (len(wire).to_bytes(2, "big"), wire[:100], wire[100:]):
                        connection.sendall(part)
