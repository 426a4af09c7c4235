"""Runs a command as systemd would by a unit: `python unit_sandbox.py [--writable DIR]… [UNIT] COMMAND…`.

UNIT is `--files-unit` or `--gateway-unit`, and otherwise that of the agent.

For machines on which systemd is not process 1. Mounts, capabilities and system-call filters are made from the unit's
settings by the descriptions in systemd.exec(5); the groups of system calls are those of the installed systemd. A
setting that is not known here is an error. Control groups and directories are left to the caller.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from unit import FILES_UNIT, GATEWAY_UNIT, UNIT, unit_settings

from zeek_agent.containment import kernel

ELSEWHERE = {
    *(
        "Type",
        "WatchdogSec",
        "ExecStart",
        "ExecReload",
        "Restart",
        "RestartSec",
        "RestartPreventExitStatus",
        "TimeoutStartSec",
    ),
    *("TimeoutStopSec", "KillMode", "OOMPolicy", "MemoryMax", "TasksMax", "CPUWeight", "StateDirectory", "UMask"),
    *("StateDirectoryMode", "RuntimeDirectory", "RuntimeDirectoryMode", "LogsDirectory", "WorkingDirectory"),
    *("ConfigurationDirectory", "StandardInput", "StandardOutput", "StandardError"),
}
"""The life of the service, its control group and its directories."""
OF_GATEWAY = {"DynamicUser", "PrivateUsers", "PrivateTmp", "ProtectHome", "AmbientCapabilities"}
"""Of the gateway's unit: they would hide the tests' Python and directories. It runs as root without capabilities."""
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWNET = 0x20000, 0x4000000, 0x40000000
NAMESPACES = 0x7E020080
"""All flags CLONE_NEW* of clone(2)."""
KILL_PROCESS, ALLOW, ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
NOT_EQUAL, EQUAL, MASKED_EQUAL = 1, 4, 7
PROT_WRITE, PROT_EXEC, SHM_EXEC = 2, 4, 0o100000
FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16}
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
TUNABLES = ("/proc/sys", "/proc/fs", "/proc/irq", "/proc/sysrq-trigger", "/proc/acpi", "/proc/mtrr")
KERNEL_SYMBOLS = ("/proc/kallsyms", "/proc/kcore")
KERNEL_LOGS = ("/proc/kmsg",)


class Comparison(ctypes.Structure):
    """`struct scmp_arg_cmp` of libseccomp."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


class Filter:
    """A filter of libseccomp."""

    def __init__(self, default: int) -> None:
        self._library = ctypes.CDLL("libseccomp.so.2")
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._library.seccomp_init(ctypes.c_uint32(default)))

    def add(self, action: int, name: str, *comparisons: tuple[int, int, int, int]) -> None:
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            return  # of another architecture
        array = (Comparison * max(1, len(comparisons)))(*(Comparison(*one) for one in comparisons))
        _check(
            self._library.seccomp_rule_add_array(
                self._context, ctypes.c_uint32(action), number, ctypes.c_uint(len(comparisons)), array
            ),
            f"rule for {name}",
        )

    def load(self) -> None:
        _check(self._library.seccomp_load(self._context), "seccomp_load")


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(abs(result), f"{what}: {os.strerror(abs(result))}")


def members(group: str) -> set[str]:
    """The system calls of a group, by the installed systemd."""
    output = subprocess.run(["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True)
    words = [line.split("#")[0].strip() for line in output.stdout.splitlines()[1:]]
    found: set[str] = set()
    for word in filter(None, words):
        found |= members(word) if word.startswith("@") else {word}
    return found


def _is_on(settings: dict[str, list[str]], *names: str) -> bool:
    """Whether these settings, all of them or none, are `yes`."""
    values = [settings.pop(name, ["no"]) for name in names]
    assert values in ([["yes"]] * len(names), [["no"]] * len(names)), (names, values)
    return values[0] == ["yes"]


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _read_only(path: str, *, recursive: bool = True, allowed: bool = False) -> None:
    """mount_setattr(2): the mount at this path cannot be written, or can."""
    attributes = (ctypes.c_uint64 * 4)(0 if allowed else 1, 1 if allowed else 0, 0, 0)
    flags = 0x8000 if recursive else 0
    if ctypes.CDLL(None, use_errno=True).syscall(442, -100, path.encode(), flags, attributes, 32):
        raise OSError(ctypes.get_errno(), f"mount_setattr {path}")


def _devices() -> None:
    nodes = {name: Path(f"/dev/{name}").stat().st_rdev for name in DEVICES}
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/dev")
    for name, device in nodes.items():
        os.mknod(f"/dev/{name}", 0o20666, device)
        Path(f"/dev/{name}").chmod(0o666)
    Path("/dev/shm").mkdir(0o1777)


def _mounts(settings: dict[str, list[str]], writable: Iterable[str]) -> None:
    network = CLONE_NEWNET if _is_on(settings, "PrivateNetwork") else 0
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS | CLONE_NEWUTS | network):
        raise OSError(ctypes.get_errno(), "unshare")
    _mount("--make-rslave", "/")
    if not Path("/sys/kernel/tracing/events").exists():
        _mount("-t", "tracefs", "tracefs", "/sys/kernel/tracing")  # systemd mounts it at boot
    if _is_on(settings, "PrivateDevices"):
        _devices()
    for path in writable:
        _mount("--bind", path, path)
    assert settings.pop("ProtectSystem") == ["strict"]
    assert settings.pop("ProtectHome", ["read-only"]) == ["read-only"], "part of ProtectSystem=strict"
    _read_only("/")
    _read_only("/proc", recursive=False, allowed=True)
    _read_only("/dev", recursive=False, allowed=True)
    for path in writable:
        _read_only(path, allowed=True)
    _is_on(settings, "PrivateMounts")  # there are namespaces of their own in any case
    if _is_on(settings, "ProtectKernelTunables", "ProtectControlGroups"):
        for path in filter(os.path.exists, TUNABLES):
            _mount("--bind", path, path)
            _read_only(path)
    if _is_on(settings, "ProtectKernelLogs", "ProtectKernelModules"):
        for path in filter(os.path.exists, (*KERNEL_SYMBOLS, *KERNEL_LOGS)):
            _mount("--bind", "/dev/null", path)
    _processes(settings)


def _processes(settings: dict[str, list[str]]) -> None:
    if settings.pop("ProtectProc", None) == ["invisible"]:
        assert settings.pop("ProcSubset") == ["pid"]
        _mount("-t", "proc", "-o", "hidepid=invisible,subset=pid", "proc", "/proc")


def _privileges(settings: dict[str, list[str]]) -> None:
    import resource

    kept = kernel.capability_mask(tuple(settings.pop("CapabilityBoundingSet")))
    limit = int(settings.pop("LimitNOFILE")[0])
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    nice = 20 - int(settings.pop("LimitNICE", ["0"])[0])
    if kernel.capability_sets()[0] & kernel.capability_mask(("CAP_SYS_RESOURCE",)):
        resource.setrlimit(resource.RLIMIT_NICE, (nice, nice))
    for number in range(64):
        if (kernel.bounding_set() & ~kept) >> number & 1:
            kernel.prctl(kernel.PR_CAPBSET_DROP, number)
    assert settings.pop("NoNewPrivileges") == ["yes"]
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.set_capabilities(kept)


def _restrict_arguments(settings: dict[str, list[str]]) -> None:
    """What is denied by the arguments of system calls."""
    denied = Filter(ALLOW)
    families = [FAMILIES[name] for name in settings.pop("RestrictAddressFamilies")]
    for family in set(range(64)) - set(families):
        denied.add(ERRNO | errno.EAFNOSUPPORT, "socket", (0, EQUAL, family, 0))
    assert settings.pop("RestrictNamespaces") == ["yes"]
    for name in ("unshare", "clone"):
        for flag in (1 << bit for bit in range(32) if NAMESPACES >> bit & 1):
            denied.add(ERRNO | errno.EPERM, name, (0, MASKED_EQUAL, flag, flag))
    denied.add(ERRNO | errno.EPERM, "setns")
    denied.add(ERRNO | errno.ENOSYS, "clone3")
    assert (
        settings.pop("RestrictRealtime") == settings.pop("ProtectClock") == settings.pop("ProtectHostname") == ["yes"]
    )
    for policy in (1, 2, 6):
        denied.add(ERRNO | errno.EPERM, "sched_setscheduler", (1, EQUAL, policy, 0))
    for name in ("sethostname", "setdomainname", "clock_settime", "settimeofday", "adjtimex", "syslog"):
        denied.add(ERRNO | errno.EPERM, name)
    if _is_on(settings, "RestrictSUIDSGID"):
        for bit in (0o4000, 0o2000):
            for name, argument in (("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("mkdir", 1), ("mkdirat", 2)):
                denied.add(ERRNO | errno.EPERM, name, (argument, MASKED_EQUAL, bit, bit))
        denied.add(ERRNO | errno.ENOSYS, "openat2")  # its mode lies behind a pointer
    assert settings.pop("LockPersonality") == ["yes"]
    denied.add(ERRNO | errno.EPERM, "personality", (0, NOT_EQUAL, 0, 0))
    assert settings.pop("MemoryDenyWriteExecute") == ["yes"]
    denied.add(ERRNO | errno.EPERM, "mmap", (2, MASKED_EQUAL, PROT_WRITE | PROT_EXEC, PROT_WRITE | PROT_EXEC))
    for name in ("mprotect", "pkey_mprotect"):
        denied.add(ERRNO | errno.EPERM, name, (2, MASKED_EQUAL, PROT_EXEC, PROT_EXEC))
    denied.add(ERRNO | errno.EPERM, "shmat", (2, MASKED_EQUAL, SHM_EXEC, SHM_EXEC))
    denied.load()


def _restrict_calls(settings: dict[str, list[str]]) -> None:
    """The list of permitted system calls. Others kill the process, as do those of other architectures."""
    assert settings.pop("SystemCallArchitectures") == ["native"]
    allowed = Filter(KILL_PROCESS)
    names = members("@default") | {"restart_syscall"}
    words = settings.pop("SystemCallFilter")
    denied = next((at for at, word in enumerate(words) if word.startswith("~")), len(words))
    for word in words[:denied]:
        names |= members(word) if word.startswith("@") else {word}
    for word in words[denied:]:  # in the units here, a list that begins with `~` is the last one
        names -= members(word.removeprefix("~"))
    for name in sorted(names):
        allowed.add(ALLOW, name)
    allowed.load()


def main(arguments: list[str]) -> None:
    writable = []
    while arguments[0] == "--writable":
        writable.append(arguments[1])
        arguments = arguments[2:]
    unit = UNIT
    if arguments[0] == "--files-unit":
        unit, arguments = FILES_UNIT, arguments[1:]
    elif arguments[0] == "--gateway-unit":
        unit, arguments = GATEWAY_UNIT, arguments[1:]
    elsewhere = ELSEWHERE | (OF_GATEWAY if unit == GATEWAY_UNIT else set())
    settings = {name: words for name, words in unit_settings(unit).items() if name not in elsewhere}
    os.umask(0o077)
    _mounts(settings, writable)
    _privileges(settings)
    _restrict_arguments(settings)
    _restrict_calls(settings)
    if settings:
        raise SystemExit(f"unit_sandbox: unknown settings: {', '.join(settings)}")
    os.execvp(arguments[0], arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
