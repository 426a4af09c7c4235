"""The user account of worker processes, which owns no files and runs nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

from zeek_agent.containment.protections import LockdownError, WorkerAccount
from zeek_agent.text import escaped, from_os

ACCOUNT: Final = "_zeek-agent"
"""The account that an administrator or a package can create for workers."""

NUMBERS: Final = (0x7FFF_5A41, 60_898)
"""Used without that account: the first one that this user namespace maps.

Both lie in ranges that systemd's list of users and groups leaves unused, away from `nobody`, dynamic and home users
(60001 to 60513, 61184 to 65519), containers (524288 to 1879048191) and foreign users (2147352576 to 2147418111), and
from what useradd(8), FreeIPA and sssd assign.
"""

WORKER_NAME: Final = "zeek-worker"
"""The short name of workers, as in ps(1)."""

WATCHER_NAME: Final = "zeek-files"
"""The short name of the process that watches files, which has the same user."""

CHECKS: Final = 20
"""How often processes are checked: a worker of another agent has the number for a moment before it is confined."""
CHECK_PAUSE_SECONDS: Final = 0.1

_NOBODY: Final = frozenset({65_534, 65_535, 0xFFFF_FFFE, 0xFFFF_FFFF})
_SUBORDINATE: Final = ("/etc/subuid", "/etc/subgid")


def worker_account(
    account: str = ACCOUNT,
    numbers: Iterable[int] = NUMBERS,
    *,
    proc: str = "/proc",
    subordinate: Iterable[str] = _SUBORDINATE,
) -> WorkerAccount:
    """The account, or a number that no account, no other process and no user's subordinate ids have.

    Workers of an agent that was killed may still have the number. Queries the name service, so call it before any
    lockdown, once. Raises LockdownError if no such account or number is available.
    """
    import pwd

    try:
        entry = pwd.getpwnam(account)
    except KeyError:
        return _numbered(numbers, account, proc, subordinate)
    uid, gid = entry.pw_uid & 0xFFFF_FFFF, entry.pw_gid & 0xFFFF_FFFF  # `pwd` returns 4294967295 as -1
    if uid in {0, *_NOBODY} or gid in {0, *_NOBODY}:
        raise LockdownError(
            f"account {account} has uid {uid} and gid {gid}: workers need a uid and a gid that are neither root's nor "
            "nobody's"
        )
    return WorkerAccount(uid, gid, account)


def directory_owner(path: str) -> WorkerAccount:
    """The user who owns a directory, for the worker that writes to it. Raises OSError."""
    status = os.stat(path)  # noqa: PTH116 - pathlib is not needed otherwise
    return WorkerAccount(status.st_uid, status.st_gid)


def _numbered(numbers: Iterable[int], account: str, proc: str, subordinate: Iterable[str]) -> WorkerAccount:
    number = next((each for each in numbers if _is_mapped(each, proc)), None)
    if number is None:
        raise LockdownError(
            f"this user namespace maps no user for workers: create the account {account} in it (useradd --system)"
        )
    reason = _taken(number, proc, subordinate)
    if reason is not None:
        raise LockdownError(
            f"workers cannot run as uid {number}: {reason}. Create the account {account} (useradd --system)"
        )
    return WorkerAccount(number, number)


def _is_mapped(number: int, proc: str) -> bool:
    return all(
        any(first <= number < first + count for first, _, count in _ranges(f"{proc}/self/{kind}"))
        for kind in ("uid_map", "gid_map")
    )


def _ranges(path: str) -> list[list[int]]:
    with open(path, "rb") as file:  # noqa: PTH123
        return [[int(part) for part in line.split()] for line in file]


def _taken(number: int, proc: str, subordinate: Iterable[str]) -> str | None:
    """Who else has the number, if anybody has."""
    import grp
    import pwd

    with suppress(KeyError):
        return f"it is the account {escaped(from_os(pwd.getpwuid(number).pw_name))}"
    with suppress(KeyError):
        return f"it is the group {escaped(from_os(grp.getgrgid(number).gr_name))}"
    for path in subordinate:
        for owner, first, count in _subordinate(path):
            if first <= number < first + count:
                return f"{path} assigns it to {owner}"
    for attempt in range(CHECKS):
        others = [f"process {pid} ({name}) has it" for pid, name in _processes_of(number, proc)]
        if not others:
            return None
        if attempt + 1 < CHECKS:
            time.sleep(CHECK_PAUSE_SECONDS)
    return others[0]


def _subordinate(path: str) -> Iterator[tuple[str, int, int]]:
    """The entries of subuid(5). A line that is not an entry assigns nothing, as for newuidmap(1)."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        owner, _, assigned = line.partition(":")
        first, _, count = assigned.partition(":")
        with suppress(ValueError):
            yield owner, int(first), int(count)


def _processes_of(number: int, proc: str) -> Iterator[tuple[int, str]]:
    """Processes with this uid or gid, except workers of another agent, or that an earlier one left, and their programs.

    The programs of a worker are in its process group, and cannot leave it.
    """
    found: dict[int, tuple[str, int]] = {}
    workers: set[int] = set()
    for entry in os.listdir(proc):  # noqa: PTH208
        if not entry.isdigit():
            continue
        try:
            with open(f"{proc}/{entry}/status", "rb") as file:  # noqa: PTH123
                status = dict(line.split(b":\t", 1) for line in file.read().splitlines() if b":\t" in line)
        except (FileNotFoundError, ProcessLookupError):
            continue
        ids = {int(part) for kind in (b"Uid", b"Gid") for part in status[kind].split()}
        name = status[b"Name"].decode(errors="replace")
        confined = status.get(b"Seccomp", b"").strip() == b"2" and status.get(b"NoNewPrivs", b"").strip() == b"1"
        if number not in ids or status[b"State"][:1] in b"ZX":
            continue
        if confined and name in (WORKER_NAME, WATCHER_NAME):
            workers.add(int(entry))
        else:
            found[int(entry)] = name, int(status.get(b"NSpgid", b"0").split()[0]) if confined else 0
    return ((pid, name) for pid, (name, group) in found.items() if group not in workers)
