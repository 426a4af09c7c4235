"""Seccomp filters (seccomp(2)): the system calls of each class of workers, as classic BPF.

A filter is a list of permitted calls, some of them with conditions on their arguments. Everything else fails with
EPERM, or with ENOSYS where C libraries then fall back to another call. A call of another architecture ends the process.

A filter sees numbers only, no paths and no addresses behind pointers. Of arguments that the kernel takes as `int` it
looks at the lower 32 bits, as the kernel does.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from zeek_agent.containment import kernel, seccomp_filter
from zeek_agent.containment.protections import WorkerClass
from zeek_agent.containment.seccomp_filter import INSTRUCTION
from zeek_agent.containment.syscalls import ARCHITECTURES, NEWEST, Architecture
from zeek_agent.privileges import NO_PRIVILEGES, Privileges

_GET_ACTION_AVAIL: Final = 2
_KILL_PROCESS: Final = 0x8000_0000
_ERRNO: Final = 0x0005_0000
_ALLOW: Final = 0x7FFF_0000

_LOAD: Final = 0x20
_AND: Final = 0x54
_JUMP_EQUAL: Final = 0x15
_JUMP_AT_LEAST: Final = 0x35
_RETURN: Final = 0x06
_INSTRUCTIONS_MAX: Final = 4096

_NUMBER_AT: Final = 0
_ARCHITECTURE_AT: Final = 4
_ARGUMENTS_AT: Final = 16
"""Offsets in `struct seccomp_data`."""

Instruction = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Check:
    """One 32-bit half of an argument must have one of these values under a mask."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFF_FFFF
    high: bool = False


Condition = tuple[Check, ...]
"""All must hold."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A system call that is permitted if one of the conditions holds, and fails with `error` otherwise."""

    name: str
    conditions: tuple[Condition, ...]
    error: int = errno.EPERM


def is_one_of(argument: int, *values: int, mask: int = 0xFFFF_FFFF) -> Check:
    return Check(argument, values, mask)


def has_none_of(argument: int, bits: int) -> Check:
    return Check(argument, (0,), bits)


def is_null(argument: int) -> Condition:
    """A pointer of 64 bits."""
    return Check(argument, (0,)), Check(argument, (0,), high=True)


# What the interpreter and SQLite do with memory, time and the descriptors that they have. Frequent ones come first.
_BASE: Final = """
    read pread64 close lseek fstat write futex poll ppoll clock_gettime munmap brk madvise mremap
    readv preadv preadv2 writev pwrite64 pwritev ftruncate dup dup2 dup3 close_range pipe pipe2
    select pselect6 epoll_create1 epoll_ctl epoll_wait epoll_pwait eventfd2
    recvfrom recvmsg recvmmsg sendto sendmsg sendmmsg shutdown getsockname getpeername getsockopt
    clock_getres clock_nanosleep nanosleep gettimeofday time times getrusage getrlimit
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack pause
    restart_syscall exit exit_group
    getpid getppid gettid getuid geteuid getgid getegid getresuid getresgid getgroups getpgid getpgrp getsid
    getpriority capget uname sysinfo getrandom getcpu getcwd sched_yield sched_getaffinity membarrier rseq
    set_robust_list get_robust_list set_tid_address fadvise64
"""

# Files by path, as far as that changes nothing.
_LOOKUPS: Final = """
    newfstatat statx readlink readlinkat getdents64 stat lstat access faccessat faccessat2
"""

# Attributes of open files, which only tables read.
_ATTRIBUTES: Final = " fstatfs fgetxattr flistxattr "

_CREATIONS: Final = """
    fsync fdatasync flock fchmod rename renameat renameat2 unlink unlinkat mkdir mkdirat rmdir
"""

_OF_CLIENTS: Final = " connect setsockopt timerfd_create timerfd_settime timerfd_gettime "
"""The timers are those of systemd's event loop, which libnss_systemd and D-Bus clients use."""
_OF_PROGRAMS: Final = "vfork fork wait4 waitid arch_prctl execve"
"""No setsid and setpgid: what a program starts stays in the helper's process group, which ends with the helper."""

_PROT_WRITE_EXEC: Final = (0x2, 0x4)
_MAP_SHARED: Final = 0x01
_MAP_ANONYMOUS: Final = 0x20
_MEMORY: Final = (
    # Never both writable and executable. Shared anonymous memory would not count towards RLIMIT_DATA.
    Rule(
        "mmap",
        tuple(
            (has_none_of(2, protection), has_none_of(3, flag))
            for protection in _PROT_WRITE_EXEC
            for flag in (_MAP_SHARED, _MAP_ANONYMOUS)
        ),
    ),
    Rule("mprotect", tuple((has_none_of(2, protection),) for protection in _PROT_WRITE_EXEC)),
)

_F_DUPFD, _F_GETFD, _F_SETFD, _F_GETFL, _F_SETFL, _F_GETLK, _F_SETLK, _F_SETLKW = range(8)
_F_OFD_GETLK, _F_OFD_SETLK, _F_OFD_SETLKW = 36, 37, 38
_F_DUPFD_CLOEXEC, _F_GETPIPE_SZ, _F_GET_SEALS = 1030, 1032, 1034
_DESCRIPTORS: Final = (
    # No F_SETOWN, F_SETSIG and F_NOTIFY, which send signals, and no leases.
    Rule(
        "fcntl",
        (
            (
                is_one_of(
                    1,
                    *(_F_DUPFD, _F_GETFD, _F_SETFD, _F_GETFL, _F_SETFL, _F_GETLK, _F_SETLK, _F_SETLKW),
                    *(_F_OFD_GETLK, _F_OFD_SETLK, _F_OFD_SETLKW, _F_DUPFD_CLOEXEC, _F_GETPIPE_SZ, _F_GET_SEALS),
                ),
            ),
        ),
    ),
    # TCGETS (isatty), TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX, NS_GET_USERNS.
    Rule("ioctl", ((is_one_of(1, 0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451, 0xB701),),)),
)

_PRCTL: Final = Rule(
    "prctl",
    (
        (
            is_one_of(
                0,
                *(kernel.PR_SET_NAME, kernel.PR_GET_NAME, kernel.PR_GET_DUMPABLE, kernel.PR_GET_SECCOMP),
                *(kernel.PR_CAPBSET_READ, kernel.PR_GET_NO_NEW_PRIVS, kernel.PR_SET_VMA),
            ),
        ),
        (is_one_of(0, kernel.PR_SET_DUMPABLE), *is_null(1)),
        (is_one_of(0, kernel.PR_SET_PDEATHSIG), is_one_of(1, 9)),
    ),
)
_READ_LIMITS: Final = Rule("prlimit64", ((is_one_of(0, 0), *is_null(2)),))

_WRITING: Final = (
    os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | getattr(os, "O_TMPFILE", 0)
) & ~getattr(os, "O_DIRECTORY", 0)
_OPENED_TO_READ: Final = tuple(
    Rule(name, ((has_none_of(flags, _WRITING),),)) for name, flags in (("openat", 2), ("open", 1))
)
_OPENED: Final = (Rule("openat", ((),)), Rule("open", ((),)))

_CLONE_THREAD: Final = 0x0001_0000
_CLONE_NEW: Final = 0x0002_0000 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000
"""Namespaces: mount, cgroup, UTS, IPC, user, process, network."""
_THREADS: Final = Rule("clone", ((is_one_of(0, _CLONE_THREAD, mask=_CLONE_THREAD | _CLONE_NEW),),))
_PROCESSES: Final = Rule("clone", ((has_none_of(0, _CLONE_NEW),),))

_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_SOCK_STREAM, _SOCK_DGRAM, _SOCK_RAW, _SOCK_TYPE = 1, 2, 3, 0xF
_NETLINK_ROUTE, _NETLINK_SOCK_DIAG = 0, 4
_NETLINK: Final[Condition] = (
    is_one_of(0, _AF_NETLINK),
    is_one_of(1, _SOCK_RAW, mask=_SOCK_TYPE),
    is_one_of(2, _NETLINK_ROUTE, _NETLINK_SOCK_DIAG),
)
_UNIX: Final[Condition] = (is_one_of(0, _AF_UNIX),)
_INTERNET: Final[Condition] = (
    is_one_of(0, _AF_INET, _AF_INET6),
    is_one_of(1, _SOCK_STREAM, _SOCK_DGRAM, mask=_SOCK_TYPE),
)

_AT_EMPTY_PATH: Final = 0x1000
_FALLBACKS: Final = tuple(Rule(name, (), errno.ENOSYS) for name in ("openat2", "clone3"))
"""The filter cannot see their flags, which lie behind a pointer."""


def rules(worker_class: WorkerClass, privileges: Privileges = NO_PRIVILEGES, pid: int = 0) -> list[Rule]:
    """What a worker of that class may call. It may send signals to `pid` only, which is its own."""
    named = _BASE
    if worker_class is WorkerClass.EVENTS:
        # Newer C libraries implement fstat(3) by newfstatat(2) with an empty path.
        special = [Rule("newfstatat", ((is_one_of(3, _AT_EMPTY_PATH),),))]
    elif worker_class is WorkerClass.COLLECTOR:
        named += _LOOKUPS + _CREATIONS
        special = [*_OPENED, _THREADS, Rule("socketpair", (_UNIX,))]
    elif worker_class is WorkerClass.SNAPSHOTS:
        named += _LOOKUPS + _ATTRIBUTES
        special = [*_OPENED_TO_READ, _THREADS, Rule("socket", (_NETLINK,))]
    else:
        named += _LOOKUPS + _ATTRIBUTES
        sockets = [_NETLINK]
        sockets += [_UNIX] if privileges.any_unix_socket else []
        sockets += [_INTERNET] if privileges.network else []
        if len(sockets) > 1:
            named += _OF_CLIENTS
        if privileges.programs:
            named += _OF_PROGRAMS
        special = [*_OPENED_TO_READ, _PROCESSES if privileges.programs else _THREADS, Rule("socket", tuple(sockets))]
    own_signals = [Rule(name, ((is_one_of(0, pid),),)) for name in ("kill", "tgkill")]
    always = [*_MEMORY, *_DESCRIPTORS, _PRCTL, _READ_LIMITS, *own_signals, *_FALLBACKS]
    return [*special, *(Rule(name, ((),)) for name in named.split()), *always]


_OF_FILE_WATCHER: Final = _LOOKUPS + " fanotify_mark open_by_handle_at name_to_handle_at openat2 fstatfs statfs "


def file_watcher_rules() -> list[Rule]:
    """What the process that watches files may call.

    The flags of openat2(2) and open_by_handle_at(2) are left to Landlock, which permits no writing.
    """
    read_by_handle = Rule("open_by_handle_at", ((has_none_of(2, _WRITING),),))
    named = [Rule(name, ((),)) for name in (_BASE + _OF_FILE_WATCHER).split() if name != "open_by_handle_at"]
    no_clone3 = Rule("clone3", (), errno.ENOSYS)
    always = [*_MEMORY, *_DESCRIPTORS, _PRCTL, _READ_LIMITS, no_clone3]
    return [read_by_handle, *_OPENED_TO_READ, _THREADS, *named, *always]


class Unavailable(Exception):  # noqa: N818 - a state of the host, not a fault
    """This kernel has no seccomp filters, or there is none for its architecture."""


def architecture(machine: str | None = None, pointer_bytes: int = struct.calcsize("P")) -> Architecture:
    """The architecture of this process. Raises Unavailable if its system calls are not listed here."""
    name = machine or os.uname().machine
    if name not in ARCHITECTURES or pointer_bytes != 8:
        raise Unavailable(f"no table of system calls for {name} with pointers of {pointer_bytes} bytes")
    return ARCHITECTURES[name]


def compiled(permitted: Iterable[Rule], machine: Architecture) -> list[Instruction]:
    """The filter. Calls that the architecture does not have are left out."""
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_EQUAL, 1, 0, machine.audit),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    if machine.other_abi is not None:
        code += [(_JUMP_AT_LEAST, 0, 1, machine.other_abi), (_RETURN, 0, 0, _KILL_PROCESS)]
    for rule in permitted:
        if (number := machine.numbers.get(rule.name)) is not None:
            body = list(_body(rule))
            code += [(_JUMP_EQUAL, 0, _offset(len(body)), number), *body]
    code += [
        (_JUMP_AT_LEAST, 0, 1, NEWEST + 1),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    ]
    if len(code) > _INSTRUCTIONS_MAX:
        raise ValueError(f"a filter of {len(code)} instructions is too long for the kernel")
    return code


def packed(code: Sequence[Instruction]) -> bytes:
    """A filter as `seccomp_filter.install` needs it."""
    return b"".join(INSTRUCTION.pack(*instruction) for instruction in code)


def install(code: Sequence[Instruction]) -> None:
    """Put all threads of this process under the filter. Requires no_new_privs. Raises OSError."""
    seccomp_filter.install(packed(code))


def require(machine: Architecture) -> None:
    """Raises Unavailable if the kernel has no filters that can end a process (Linux 4.14)."""
    try:
        kernel.syscall(machine.seccomp, _GET_ACTION_AVAIL, 0, struct.pack("=I", _KILL_PROCESS))
    except OSError as error:
        reasons = {
            errno.ENOSYS: "the kernel has no seccomp filters",
            errno.EINVAL: "the kernel has no seccomp filters",
            errno.EOPNOTSUPP: "the kernel is older than 4.14",
            errno.EPERM: "a sandbox around the agent refuses seccomp(2)",
        }
        if error.errno not in reasons:
            raise
        raise Unavailable(reasons[error.errno]) from error


def _body(rule: Rule) -> Iterator[Instruction]:
    """The instructions for one system call, all of whose paths return."""
    for condition in rule.conditions:
        blocks = [_check(check) for check in condition]
        left = sum(map(len, blocks)) + 1
        for block in blocks:
            left -= len(block)
            # The last comparison of a check skips the rest of its condition.
            kind, met, _, value = block[-1]
            yield from block[:-1]
            yield kind, met, _offset(left), value
        yield _RETURN, 0, 0, _ALLOW
        if not condition:
            return
    yield _RETURN, 0, 0, _ERRNO | rule.error


def _check(check: Check) -> list[Instruction]:
    code: list[Instruction] = [(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * check.argument + 4 * check.high)]
    if check.mask != 0xFFFF_FFFF:
        code.append((_AND, 0, 0, check.mask))
    last = len(check.values) - 1
    code += [(_JUMP_EQUAL, _offset(last - at), 0, value) for at, value in enumerate(check.values)]
    return code


def _offset(instructions: int) -> int:
    if instructions > 255:
        raise ValueError("a jump in a filter is too long")
    return instructions
