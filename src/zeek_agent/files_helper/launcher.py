"""Starts a process that watches files for each socket that the agent sends.

The agent starts it before it drops its privileges, so that a watching process that ended can be replaced. It imports
nothing that it can do without, because it lives as long as the agent.
"""

from __future__ import annotations

import _socket
import os
import signal

ORDERS_BYTES_MAX = 32_768


def main(descriptor: int) -> None:
    """Fork a watching process for each packet with a socket, until the agent ends.

    A packet has the user and group ids to become, in eight bytes, and the seccomp filter.
    """
    control = _socket.socket(fileno=descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel collects the processes that end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        orders, ancillary, _, _ = control.recvmsg(ORDERS_BYTES_MAX, _socket.CMSG_SPACE(4), _socket.MSG_CMSG_CLOEXEC)
        if not orders:
            return
        for _, _, data in ancillary:
            channel = int.from_bytes(data[:4], "little")
            if os.fork() == 0:
                control.close()
                _watch(channel, orders)
            os.close(channel)


def _watch(descriptor: int, orders: bytes) -> None:
    """Watch files until the agent closes the socket, then end this process."""
    code = 1
    try:
        from socket import socket

        from zeek_agent.files_helper.serve import serve

        account = int.from_bytes(orders[:4], "little"), int.from_bytes(orders[4:8], "little")
        serve(socket(fileno=descriptor), account, orders[8:])
        code = 0
    finally:
        os._exit(code)
