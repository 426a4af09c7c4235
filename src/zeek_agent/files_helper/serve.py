"""A watching process, from the agent's orders to its end."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import Final

from zeek_agent.containment import kernel
from zeek_agent.files_helper import confinement
from zeek_agent.recording.files import watch_messages
from zeek_agent.recording.files.fanotify_groups import FanotifyGroups
from zeek_agent.recording.files.file_watcher import FileWatcher

_ORDERS_BYTES_MAX: Final = 131_072


def serve(channel: socket.socket, account: tuple[int, int] | None, seccomp_filter: bytes) -> None:
    """Watch files as the agent orders, until it closes the channel. The reason of a failure is the last message.

    `account` has the user and group ids to become; None stays as it is. Without a filter there is none.
    """
    kernel.set_name("zeek-files")
    packet = channel.recv(_ORDERS_BYTES_MAX)
    if not packet:
        return
    try:
        watch = watch_messages.decode_watch(packet)
        groups = FanotifyGroups.opened()
        mountinfo = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        watcher = FileWatcher(channel, watch, groups, mountinfo)
        watcher.start_threads()
        confinement.confine(account, seccomp_filter, keeps_admin=bool(watch.file_systems))
        watcher.run()
    except (BrokenPipeError, ConnectionResetError):
        return  # the agent has ended
    except (OSError, ValueError) as error:
        status = watch_messages.Status(0, 0, 0, 0, 0, ready=False, message=str(error))
        with suppress(OSError):
            channel.setblocking(True)
            channel.send(watch_messages.encode_status(status))
        raise
