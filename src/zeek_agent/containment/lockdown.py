"""The lockdown of a worker process: the steps that drop its privileges, in the order in which they are possible.

A change of the uid clears the parent-death signal and the dumpable attribute, and seccomp denies what the other steps
call. A step that this host cannot do (an ordinary user, a kernel without Landlock) is left out and reported in
`Protections.missing`. Any other failure raises, and the process must end.
"""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from zeek_agent.containment import kernel, landlock, seccomp
from zeek_agent.containment.accounts import WORKER_NAME
from zeek_agent.containment.landlock import Grant
from zeek_agent.containment.protections import LockdownError, Protections, WorkerAccount, WorkerClass, WorkerLimits
from zeek_agent.host.program_files import ProgramError, executables
from zeek_agent.privileges import NO_PRIVILEGES, Privileges

OOM_SCORE_ADJ: Final = 700
_READS_OTHER_USERS: Final = ("CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH")
_SET_IDS: Final = kernel.capability_mask(("CAP_SETUID", "CAP_SETGID"))
_SET_BOUNDING: Final = kernel.capability_mask(("CAP_SETPCAP",))
_SECUREBITS: Final = 0x1 | 0x2 | 0x40 | 0x80
"""SECBIT_NOROOT and SECBIT_NO_CAP_AMBIENT_RAISE, both locked: uid 0 and execve(2) give no capabilities."""
_LIMITS: Final = {
    "data": "RLIMIT_DATA",
    "fsize": "RLIMIT_FSIZE",
    "core": "RLIMIT_CORE",
    "nofile": "RLIMIT_NOFILE",
}


@dataclass(slots=True)
class _Report:
    """What the steps found, for `Protections`."""

    landlock_abi: int = 0
    filtered: bool = False
    oom_score_adj: int | None = None
    missing: list[str] = field(default_factory=list)
    by_design: list[str] = field(default_factory=list)


class _Sockets(NamedTuple):
    """The declared Unix sockets, and those of them whose groups a helper may join."""

    declared: Sequence[str]
    by_group: Collection[str]


def lock_down(
    worker_class: WorkerClass,
    *,
    parent: int,
    account: WorkerAccount | None = None,
    limits: WorkerLimits | None = None,
    privileges: Privileges = NO_PRIVILEGES,
    group_sockets: Collection[str] = (),
    log_directory: str | None = None,
    readable: Sequence[str] = (),
) -> Protections:
    """Confine this process, which must have a single thread; irreversible. Returns what holds.

    `parent` is the pid of the process that forked this one: the worker dies with it. `account` is the user to become,
    where the agent has the privilege; only the collector may run as uid 0. The collector writes below `log_directory`
    and reads there and in `readable`. A helper joins the groups of those declared sockets that are in `group_sockets`
    and that only a group may connect to; it refuses to start if there are others. Raises LockdownError or OSError: the
    process must then end.
    """
    if os.listdir("/proc/self/task") != [str(os.getpid())]:  # noqa: PTH208
        raise LockdownError("the lockdown needs a process with a single thread")
    if (worker_class is WorkerClass.COLLECTOR) != (log_directory is not None):
        raise LockdownError("a log directory is for the collector, which needs one")
    report = _Report()
    confined = worker_class is not WorkerClass.SNAPSHOTS and not privileges.other_users
    filter_code = _seccomp_filter(worker_class, privileges, report)
    sockets = _Sockets(privileges.unix_sockets, group_sockets)
    wanted = () if confined else _READS_OTHER_USERS
    with _grants(worker_class, privileges, log_directory, readable) as grants:
        time.tzset()  # reads the time zone before opening files is denied
        kernel.set_name(WORKER_NAME)
        _set_limits(limits or WorkerLimits())
        _set_oom_score(report)
        _drop_privileges(worker_class, account, sockets, wanted, report)
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        if confined:
            _restrict_files(grants, privileges, report)
        else:
            report.by_design.append("Landlock: it would confine CAP_SYS_PTRACE to the worker itself")
    if filter_code is not None:
        seccomp.install(filter_code)
        report.filtered = True
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    die_with(parent)
    return _read_back(worker_class, wanted, report)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends. Raises LockdownError if it has ended already.

    Later changes of the uid clear this. A child does not inherit it, so it is also for `preexec_fn` of programs.
    """
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise LockdownError(f"the parent, process {parent}, has ended")


def _seccomp_filter(
    worker_class: WorkerClass, privileges: Privileges, report: _Report
) -> list[seccomp.Instruction] | None:
    try:
        machine = seccomp.architecture()
        seccomp.require(machine)
    except seccomp.Unavailable as unavailable:
        report.missing.append(f"seccomp: {unavailable}")
        return None
    return seccomp.compiled(seccomp.rules(worker_class, privileges, os.getpid()), machine)


@contextmanager
def _grants(
    worker_class: WorkerClass, privileges: Privileges, log_directory: str | None, readable: Sequence[str]
) -> Iterator[list[Grant]]:
    """The files that the worker may use; programs are those that were checked, whatever has their names later."""
    with ExitStack() as opened:
        if worker_class is WorkerClass.EVENTS:
            grants = []
        elif log_directory is not None:
            grants = [Grant(log_directory, landlock.WRITE), *(Grant(path, landlock.READ) for path in readable)]
        else:
            grants = [Grant("/", landlock.READ)]
            for program in privileges.programs:
                try:
                    files = opened.enter_context(executables(program))
                except (ProgramError, OSError) as error:
                    raise LockdownError(f"program {program} cannot be used: {error}") from error
                grants += [
                    Grant(path, landlock.EXECUTE | landlock.READ_FILE, descriptor) for path, descriptor in files.items()
                ]
        yield grants


def _set_limits(limits: WorkerLimits) -> None:
    import resource

    wanted = {"data": limits.data_bytes, "fsize": limits.file_bytes, "core": 0, "nofile": limits.open_files}
    for name, value in wanted.items():
        if value is not None:
            number = getattr(resource, _LIMITS[name])
            _, hard = resource.getrlimit(number)
            most = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(number, (most, most))


def _read_limits() -> dict[str, int]:
    import resource

    return {name: resource.getrlimit(getattr(resource, number))[0] for name, number in _LIMITS.items()}


def _set_oom_score(report: _Report) -> None:
    """Have the kernel end this process before others when memory runs out."""
    try:
        descriptor = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
        try:
            score = max(int(os.read(descriptor, 16)), OOM_SCORE_ADJ)
            os.pwrite(descriptor, b"%d" % score, 0)
        finally:
            os.close(descriptor)
    except OSError as error:
        report.missing.append(f"oom_score_adj: {error.strerror}")
    else:
        report.oom_score_adj = score


def _drop_privileges(
    worker_class: WorkerClass,
    account: WorkerAccount | None,
    sockets: _Sockets,
    wanted: tuple[str, ...],
    report: _Report,
) -> None:
    effective, permitted, _ = kernel.capability_sets()
    kept = kernel.capability_mask(wanted) & permitted
    if effective & _SET_BOUNDING:
        dropped = kernel.bounding_set() & ~kept
        for number in range(64):
            if dropped >> number & 1:
                kernel.prctl(kernel.PR_CAPBSET_DROP, number)
        kernel.prctl(kernel.PR_SET_SECUREBITS, _SECUREBITS)
    elif permitted:
        report.missing.append("bounding set: the agent lacks CAP_SETPCAP")
    if effective & _SET_IDS == _SET_IDS:
        _become(worker_class, account, sockets, report)
    else:
        reason = "the agent does not run as root" if os.getuid() else "the agent lacks CAP_SETUID or CAP_SETGID"
        report.missing.append(f"own user: {reason}, so the worker runs as the agent's user, uid {os.getuid()}")
    kernel.set_capabilities(kept)
    kernel.prctl(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL)
    kernel.prctl(kernel.PR_SET_KEEPCAPS, 0)
    if missing := set(wanted) - set(kernel.capability_names(kept)):
        report.missing.append(f"the agent lacks {' and '.join(sorted(missing))}, so others' processes stay hidden")


def _become(worker_class: WorkerClass, account: WorkerAccount | None, sockets: _Sockets, report: _Report) -> None:
    if account is None:
        raise LockdownError(f"a worker of class {worker_class} needs an account to run as")
    if worker_class is not WorkerClass.COLLECTOR and 0 in (account.uid, account.gid):
        raise LockdownError(f"a worker of class {worker_class} may not run as root")
    kernel.prctl(kernel.PR_SET_KEEPCAPS, 1)
    os.setgroups(_groups(account, sockets, report) if worker_class is WorkerClass.HELPER else [])
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    if account.uid == 0:
        report.by_design.append("own user: the log directory belongs to root")


def _groups(account: WorkerAccount, sockets: _Sockets, report: _Report) -> list[int]:
    """The groups that the declared Unix sockets admit and that others do not need to be in; never root's."""
    groups: list[int] = []
    for path in sockets.declared:
        try:
            status = os.stat(path)  # noqa: PTH116
        except FileNotFoundError:
            continue
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != 0:
            raise LockdownError(f"{path} is not a socket of root's")
        if status.st_mode & stat.S_IWOTH:
            continue
        if status.st_mode & stat.S_IWGRP and status.st_gid not in (0, account.gid):
            if path not in sockets.by_group:
                raise LockdownError(
                    f"only the group {status.st_gid} may connect to {path}: permit it with access.privileges_allow"
                )
            groups.append(status.st_gid)
        elif status.st_gid != account.gid:
            report.missing.append(f"{path}: only root can connect to it, so it has to be connected before the lockdown")
    return sorted(set(groups))


def _restrict_files(grants: Sequence[Grant], privileges: Privileges, report: _Report) -> None:
    try:
        abi = landlock.version()
    except landlock.Unavailable as unavailable:
        report.missing.append(f"Landlock: {unavailable}")
        return
    landlock.restrict(abi, grants, network=landlock.CONNECT_TCP if privileges.network else 0)
    report.landlock_abi = abi


def _read_back(worker_class: WorkerClass, wanted: tuple[str, ...], report: _Report) -> Protections:
    """What holds now, from the kernel. Raises LockdownError if a step had no effect."""
    effective, permitted, inheritable = kernel.capability_sets()
    protections = Protections(
        worker_class=worker_class,
        uid=os.getuid(),
        gid=os.getgid(),
        groups=tuple(sorted(os.getgroups())),
        capabilities=kernel.capability_names(permitted),
        bounding=kernel.capability_names(kernel.bounding_set()),
        no_new_privileges=kernel.prctl(kernel.PR_GET_NO_NEW_PRIVS) == 1,
        seccomp=kernel.prctl(kernel.PR_GET_SECCOMP),
        landlock_abi=report.landlock_abi,
        limits=_read_limits(),
        oom_score_adj=report.oom_score_adj,
        dumpable=kernel.prctl(kernel.PR_GET_DUMPABLE) != 0,
        missing=tuple(report.missing),
        by_design=tuple(report.by_design),
    )
    faults = {
        "capabilities": not set(protections.capabilities) <= set(wanted) or effective != permitted or inheritable != 0,
        "uid": len(set(os.getresuid())) != 1 or len(set(os.getresgid())) != 1,
        "no_new_privs": not protections.no_new_privileges,
        "seccomp": report.filtered and protections.seccomp != 2,
        "core dumps": protections.dumpable or protections.limits["core"] != 0,
    }
    if any(faults.values()):
        raise LockdownError(f"the lockdown had no effect on {', '.join(name for name in faults if faults[name])}")
    return protections
