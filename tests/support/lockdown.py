"""Work in forked processes that are locked down as workers, and the outcome of what they try there."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from children import exit_code, fork

from zeek_agent.containment.lockdown import lock_down
from zeek_agent.containment.protections import WorkerClass, WorkerLimits

ORDINARY_UID = 12_345
ROOT = os.geteuid() == 0
MACHINE = {"x86_64": 0, "aarch64": 1}.get(os.uname().machine)

# fmt: off
NUMBERS = {
    "add_key": (248, 217), "bpf": (321, 280), "chroot": (161, 51), "clone3": (435, 435), "delete_module": (176, 106),
    "execveat": (322, 281), "fsopen": (430, 430), "init_module": (175, 105), "io_uring_setup": (425, 425),
    "kexec_load": (246, 104), "keyctl": (250, 219), "landlock_create_ruleset": (444, 444), "memfd_create": (319, 279),
    "mount": (165, 40), "open_by_handle_at": (304, 265), "open_tree": (428, 428), "openat2": (437, 437),
    "perf_event_open": (298, 241), "personality": (135, 92), "pidfd_getfd": (438, 438), "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "ptrace": (101, 117), "rt_sigqueueinfo": (129, 138), "seccomp": (317, 277), "setns": (308, 268),
    "setxattr": (188, 5), "shmget": (29, 194), "tkill": (200, 130), "umount2": (166, 39), "unshare": (272, 97),
    "userfaultfd": (323, 282), "utimensat": (280, 88),
}
# fmt: on
"""System calls that no worker needs, on x86-64 and on aarch64."""


def number(name: str) -> int:
    assert MACHINE is not None
    return NUMBERS[name][MACHINE]


def outcome(attempt: Callable[[], object]) -> str:
    """`ok`, the name of the error number, or that of another exception."""
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    except Exception as error:  # noqa: BLE001 - reported to the test
        return type(error).__name__
    return "ok"


ROOMY_BYTES = 8 << 30
"""The child has all the memory of the tests before it, which may be more than a worker may have."""


ROOMY = WorkerLimits(data_bytes=ROOMY_BYTES)


def locked(
    worker_class: WorkerClass,
    work: Callable[[], Any],
    *,
    before: Callable[[], object] = lambda: None,
    **options: Any,
) -> tuple[dict[str, Any], Any]:
    """What `lock_down` returned in a new process, and what `work` returned there afterwards, by way of JSON.

    `before` runs in that process before the lockdown.
    """
    parent = os.getpid()
    options.setdefault("limits", ROOMY)
    reading, writing = os.pipe()

    def worker() -> None:
        os.close(reading)
        before()
        protections = lock_down(worker_class, parent=parent, **options)
        answer = json.dumps([dataclasses.asdict(protections), work()]).encode()
        while answer:
            answer = answer[os.write(writing, answer) :]

    pid = fork(worker)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    code = exit_code(pid)
    assert code == 0, f"the worker ended with {code}"
    protections, result = json.loads(answer)
    return protections, result


def outcomes(worker_class: WorkerClass, attempts: Mapping[str, Callable[[], object]], **options: Any) -> dict[str, str]:
    """The outcome of each attempt in a process that is locked down."""
    return locked(worker_class, lambda: {name: outcome(each) for name, each in attempts.items()}, **options)[1]


def as_ordinary_user() -> None:
    """Become a user without privileges, if this one has any."""
    if ROOT:
        os.setgroups([])
        os.setresgid(ORDINARY_UID, ORDINARY_UID, ORDINARY_UID)
        os.setresuid(ORDINARY_UID, ORDINARY_UID, ORDINARY_UID)
