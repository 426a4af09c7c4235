"""The connection to the process that watches files."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import subprocess
import threading
from pathlib import Path
from typing import Final, Protocol

SOCKET: Final = Path("/run/zeek-agent-files.socket")
"""On which systemd listens, to start a watching process for each connection."""
_CREDENTIALS: Final = struct.Struct("=iii")


class FileWatchers(Protocol):
    """Starts watching processes."""

    def why_not(self) -> str | None:
        """Why none can be started, with the remedy; None if one can."""

    def connect(self) -> socket.socket:
        """Start one and connect to it. Raises OSError."""


class Launcher:
    """The other side of a process that starts watching processes, from before the agent dropped its privileges."""

    def __init__(self, control: socket.socket, orders: bytes, process: subprocess.Popen[bytes]) -> None:
        """`orders` are sent along with each socket."""
        self._process = process
        self._control = control
        self._orders = orders
        self._lock = threading.Lock()

    def why_not(self) -> str | None:
        return None

    def connect(self) -> socket.socket:
        """Start a watching process. Raises OSError if the launcher has ended."""
        own, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with self._lock:
                socket.send_fds(self._control, [self._orders], [theirs.fileno()])
        except OSError as error:
            own.close()
            raise OSError(
                error.errno, "the process that starts watchers of files has ended: restart the agent"
            ) from error
        finally:
            theirs.close()
        return own

    def close(self) -> None:
        """End the launcher, and with it all processes that it has started."""
        self._control.close()
        self._process.kill()
        self._process.wait()


class Activated:
    """systemd's unit, which starts a watching process for each connection."""

    def __init__(self, path: Path = SOCKET) -> None:
        self._path = path

    def why_not(self) -> str | None:
        try:
            status = self._path.lstat()
        except OSError:
            return (
                "it needs a process of its own with CAP_SYS_ADMIN: `systemctl enable --now zeek-agent-files.socket`, "
                "or start the agent as root"
            )
        return None if stat.S_ISSOCK(status.st_mode) and status.st_uid == 0 else f"{self._path} is not root's socket"

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(os.fspath(self._path))
            _, uid, _ = _CREDENTIALS.unpack(
                connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
            if uid != 0:
                raise OSError(errno.EPERM, f"a process of user {uid} listens on {self._path}")
        except OSError:
            connection.close()
            raise
        return connection


class Startable:
    """For commands that only tell what a running agent could do."""

    def why_not(self) -> str | None:
        return None

    def connect(self) -> socket.socket:
        raise OSError(errno.EPERM, "only a running agent watches files")
