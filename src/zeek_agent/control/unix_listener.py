"""Listening Unix sockets that only their owner and a group may use."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Final, Literal

from zeek_agent.control import messages
from zeek_agent.errors import UsageError, ZeekAgentError

_SETTINGS: Final = {"control": "control.socket", "metrics": "metrics.listen"}
"""The setting with the path, by section."""


class SocketNotCreatedError(ZeekAgentError):
    """The system does not allow creating a socket at the path."""


def listening(path: Path, group: str | None, section: Literal["control", "metrics"], backlog: int) -> socket.socket:
    """A listening socket. It appears at `path` in one step, with its owner, group and mode set.

    `section` is that of the configuration, for messages. Raises UsageError for an invalid path or group,
    SocketNotCreatedError if the system refuses, ZeekAgentError if something else is at the path.
    """
    fresh = path.with_name(f"{path.name}.new")
    gid = None if group is None else group_id(group, section)
    listener = socket.socket(socket.AF_UNIX)
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
        _remove_stale(path, section)
        fresh.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            with messages.socket_address(fresh) as address:
                listener.bind(address)
        finally:
            os.umask(mask)
        if gid is not None:
            os.chown(fresh, -1, gid)
            fresh.chmod(0o660)
        listener.listen(backlog)
        listener.setblocking(False)
        fresh.replace(path)
    except OSError as error:
        listener.close()
        raise SocketNotCreatedError(f"cannot create the {section} socket {path}: {error.strerror}") from None
    except ZeekAgentError:
        listener.close()
        raise
    return listener


def group_id(group: str, section: str) -> int:
    """The id of a group that a section of the configuration names.

    Raises UsageError if it does not exist or cannot own a file.
    """
    import grp

    try:
        number = grp.getgrnam(group).gr_gid
    except KeyError:
        raise UsageError(f"{section}.group: no such group: {group!r}") from None
    if number in {-1, 0xFFFF_FFFF}:  # chown(2) would leave the group as it is
        raise UsageError(f"{section}.group: group {group!r} has gid 4294967295, which cannot own a file")
    return number


def _remove_stale(path: Path, section: str) -> None:
    """Remove the socket left by a crashed agent. Raises ZeekAgentError if something else is at the path."""
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_socket():
        raise ZeekAgentError(f"cannot create the {section} socket: {path} exists and is not a socket; remove it")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(messages.CONNECT_TIMEOUT_SECONDS)
        with messages.socket_address(path) as address:
            refused = probe.connect_ex(address)
    if refused not in (errno.ECONNREFUSED, errno.ENOENT):
        raise ZeekAgentError(f"another agent listens on {path}; stop it or set another {_SETTINGS[section]}")
    path.unlink(missing_ok=True)
