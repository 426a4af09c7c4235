"""The lockdown of the watching process: its user, capabilities, system calls and access to files.

CAP_SYS_ADMIN is needed to open a fanotify group that reports other users' processes, and to mark whole file systems;
the marks of directories do not need it. CAP_DAC_READ_SEARCH opens files by their handles.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Final

from zeek_agent.containment import kernel, landlock
from zeek_agent.containment.landlock import Grant
from zeek_agent.containment.seccomp_filter import install

ADMIN: Final = "CAP_SYS_ADMIN"
READ: Final = "CAP_DAC_READ_SEARCH"
_SET_IDS: Final = kernel.capability_mask(("CAP_SETUID", "CAP_SETGID"))
_SECUREBITS: Final = 0x1 | 0x2 | 0x40 | 0x80
"""SECBIT_NOROOT and SECBIT_NO_CAP_AMBIENT_RAISE, both locked, as in other workers."""
_DATA_BYTES: Final = 128 << 20
_OPEN_FILES: Final = 512


def confine(account: tuple[int, int] | None, seccomp_filter: bytes, *, keeps_admin: bool) -> None:
    """Confine this process, which must have its fanotify group; irreversible. Raises OSError."""
    import resource

    parent = os.getppid()
    for name, value in ((resource.RLIMIT_DATA, _DATA_BYTES), (resource.RLIMIT_NOFILE, _OPEN_FILES)):
        hard = resource.getrlimit(name)[1]
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, permitted, _ = kernel.capability_sets()
    if account is not None and permitted & _SET_IDS == _SET_IDS:
        _become(*account, permitted)
    wanted = kernel.capability_mask((ADMIN, READ) if keeps_admin else (READ,))
    kernel.set_capabilities(wanted & permitted)
    kernel.prctl(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    with suppress(landlock.Unavailable):  # as in other workers, doctor reports it
        landlock.restrict(landlock.version(), [Grant("/", landlock.READ)])
    if seccomp_filter:
        install(seccomp_filter)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)  # the change of the uid has cleared it
    if os.getppid() != parent:
        raise ProcessLookupError(f"the parent, process {parent}, has ended")
    effective, permitted, inheritable = kernel.capability_sets()
    if effective != permitted or inheritable or permitted & ~wanted:
        raise PermissionError("capabilities could not be dropped")


def _become(uid: int, gid: int, permitted: int) -> None:
    if permitted & kernel.capability_mask(("CAP_SETPCAP",)):
        kernel.prctl(kernel.PR_SET_SECUREBITS, _SECUREBITS)
    kernel.prctl(kernel.PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    kernel.prctl(kernel.PR_SET_KEEPCAPS, 0)
