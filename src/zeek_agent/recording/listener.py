"""Reads netlink(7) multicasts, in a separate thread or on demand."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from zeek_agent.recording.periodic import raise_priority

_DATAGRAM_BYTES_MAX: Final = 65_536
"""More than any netlink message that the kernel multicasts."""
_DATAGRAMS_PER_TURN: Final = 1_000
"""Datagrams read before `settle`, so that a flood does not delay rows."""
_SO_RCVBUFFORCE: Final = 33


class Listener:
    """Calls `receive` with each datagram, in order, and `settle` within `batch_seconds` of it and every `tick_seconds`.

    Both are called by one thread at a time. `overrun` is called when the kernel dropped datagrams, `failed` with the
    reason when the listener ended by itself. `urgent` raises the priority, for a listener that reads short-lived state.
    """

    def __init__(
        self,
        channel: socket.socket,
        receive: Callable[[bytes], None],
        *,
        settle: Callable[[], None],
        overrun: Callable[[], None],
        failed: Callable[[str], None],
        batch_seconds: float = 0.02,
        tick_seconds: float = 0.5,
        urgent: bool = False,
    ) -> None:
        channel.setblocking(False)
        self._channel = channel
        self._receive = receive
        self._settle = settle
        self._overrun = overrun
        self._failed = failed
        self._batch_seconds = batch_seconds
        self._tick_seconds = tick_seconds
        self._urgent = urgent
        self._lock = threading.Lock()
        self._emptied: int | None = None
        self.settled_until: int | None = None
        """The boot time (ns) until which all datagrams were received, and settled."""
        self._wake, self._stopping = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="netlink-listener", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def drain(self) -> None:
        """Read pending datagrams in the caller's thread. Raises OSError if the socket is no longer usable."""
        with self._lock:
            while self._receive_pending():
                pass
            self._settle_all()

    def stop(self) -> None:
        """End the thread and close the socket."""
        os.close(self._stopping)
        if self._thread.ident is not None:
            self._thread.join()
        os.close(self._wake)
        self._channel.close()

    def _run(self) -> None:
        if self._urgent:
            raise_priority()
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        try:
            due = 0.0
            while True:
                ready = poll.poll(max(due - time.monotonic(), 0.0) * 1_000)
                if any(descriptor == self._wake for descriptor, _ in ready):
                    return
                with self._lock:
                    if ready:
                        self._receive_pending()
                        due = min(due, time.monotonic() + self._batch_seconds)
                    if time.monotonic() >= due:
                        if not ready:
                            self._receive_pending()
                        self._settle_all()
                        due = time.monotonic() + self._tick_seconds
        except Exception as error:  # noqa: BLE001 - whatever it is, the source has ended and must be replaced
            self._failed(f"{type(error).__name__}: {error}")

    def _settle_all(self) -> None:
        self._settle()
        self.settled_until = self._emptied

    def _receive_pending(self) -> bool:
        """Handle up to `_DATAGRAMS_PER_TURN` datagrams. Returns False if no more are pending."""
        receive, recv = self._receive, self._channel.recv
        for _ in range(_DATAGRAMS_PER_TURN):
            begun = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            try:
                datagram = recv(_DATAGRAM_BYTES_MAX)
            except BlockingIOError:
                self._emptied = begun
                return False
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._overrun()
            else:
                receive(datagram)
        return True


def enlarge(channel: socket.socket, size_bytes: int) -> None:
    """Set the size of the receive buffer, beyond the system's limit if permitted."""
    try:
        channel.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size_bytes)
    except PermissionError:
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size_bytes)
