"""Starts the launcher of the processes that watch files, while the agent still has the privileges that these need."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from zeek_agent import platforms
from zeek_agent.containment import kernel, lockdown, own_code, seccomp
from zeek_agent.containment.accounts import worker_account
from zeek_agent.containment.protections import LockdownError
from zeek_agent.recording.files.file_watcher_link import Launcher

if TYPE_CHECKING:
    from zeek_agent.config.sections import SourceSettings

log = logging.getLogger(__name__)

_NEEDED: Final = ("CAP_SYS_ADMIN", "CAP_DAC_READ_SEARCH")
_CAPABILITIES: Final = (*_NEEDED, "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")
_RUN: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); from zeek_agent.files_helper import launcher; "
    "launcher.main(int(sys.argv[2]))"
)


def launched(settings: SourceSettings) -> Launcher | None:
    """A launcher, if files are to be watched and this process has the privileges for it.

    It is started by exec, so that it has nothing of the agent's memory. It ends with this thread.
    """
    if settings.files == "off" or platforms.HERE.key != "linux":
        return None
    needed = kernel.capability_mask(_NEEDED)
    effective, _, _ = kernel.capability_sets()
    if effective & needed != needed:
        return None
    try:
        account = worker_account() if os.geteuid() == 0 else None
    except LockdownError:
        return None  # the agent says why when it starts its workers
    uid, gid = (account.uid, account.gid) if account else (os.getuid(), os.getgid())
    orders = uid.to_bytes(4, "little") + gid.to_bytes(4, "little") + _filter()
    own, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()

    def confine() -> None:
        """What an exec keeps: it ends with the agent, and root gets no other capabilities."""
        lockdown.die_with(parent)
        if effective & kernel.capability_mask(("CAP_SETPCAP",)):
            for number in range(64):
                if (kernel.bounding_set() & ~kernel.capability_mask(_CAPABILITIES)) >> number & 1:
                    kernel.prctl(kernel.PR_CAPBSET_DROP, number)
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)

    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _RUN, own_code.ROOT, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            cwd="/",
            env={},
            process_group=0,
            preexec_fn=confine,  # noqa: PLW1509 - there is one thread
        )
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("files events: the process that watches files cannot be started: %s", error)
        own.close()
        return None
    finally:
        theirs.close()
    return Launcher(own, orders, process)


def _filter() -> bytes:
    """The seccomp filter of the watching process; empty where the kernel has none."""
    try:
        machine = seccomp.architecture()
        seccomp.require(machine)
    except seccomp.Unavailable as unavailable:
        log.info("files events: the process that watches files has no seccomp filter: %s", unavailable)
        return b""
    return seccomp.packed(seccomp.compiled(seccomp.file_watcher_rules(), machine))
