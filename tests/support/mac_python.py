"""This Linux's Python as far as it resembles that of macOS: `python mac_python.py ARGUMENT …` runs the agent on it.

It lacks the functions and constants that Python has on Linux and not on macOS, `sys.platform` is `darwin`, and opening
a file below /proc or /sys from the agent's code is noted. psutil is loaded before, as it has to work with this kernel.
The last line on standard output is JSON: what happened, for the test.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import mmap
import os
import pkgutil
import resource
import select
import selectors
import signal
import socket
import sys
import time
import traceback
import urllib.request  # noqa: F401 - reads its proxies on macOS by a module that only exists there
from collections.abc import Iterable
from types import ModuleType
from typing import Any, Final

import psutil

LACKING: Final[dict[ModuleType, Iterable[str]]] = {
    os: (
        *("copy_file_range", "eventfd", "eventfd_read", "eventfd_write", "fdatasync", "getrandom", "getresgid"),
        *("getresuid", "getxattr", "listxattr", "memfd_create", "pidfd_open", "pipe2", "posix_fadvise"),
        *("posix_fallocate", "removexattr", "sched_getaffinity", "sched_getparam", "sched_getscheduler", "sched_param"),
        *("sched_rr_get_interval", "sched_setaffinity", "sched_setparam", "sched_setscheduler", "setns", "setresgid"),
        *("setresuid", "setxattr", "splice", "unshare"),
        *("O_DIRECT", "O_LARGEFILE", "O_NOATIME", "O_PATH", "O_RSYNC", "O_TMPFILE", "P_PIDFD", "SCHED_BATCH"),
        *("SCHED_IDLE", "SCHED_RESET_ON_FORK", "ST_MANDLOCK", "ST_NOATIME", "ST_NODEV", "ST_NODIRATIME", "ST_NOEXEC"),
        *("ST_RELATIME", "ST_SYNCHRONOUS", "ST_WRITE", "ST_APPEND"),
    ),
    socket: ("IPPROTO_MPTCP", "IPPROTO_UDPLITE", "IP_BIND_ADDRESS_NO_PORT", "IP_TRANSPARENT"),
    select: ("epoll",),
    signal: (
        "pidfd_send_signal",
        "sigtimedwait",
        "sigwaitinfo",
        "SIGPOLL",
        "SIGPWR",
        "SIGRTMAX",
        "SIGRTMIN",
        "SIGSTKFLT",
    ),
    time: ("CLOCK_BOOTTIME", "CLOCK_TAI", "pthread_getcpuclockid"),
    resource: (
        *("prlimit", "RUSAGE_THREAD", "RLIMIT_MSGQUEUE", "RLIMIT_NICE", "RLIMIT_OFILE", "RLIMIT_RTPRIO"),
        *("RLIMIT_RTTIME", "RLIMIT_SIGPENDING"),
    ),
    fcntl: (
        *("F_ADD_SEALS", "F_EXLCK", "F_GETPIPE_SZ", "F_GETSIG", "F_GET_SEALS", "F_NOTIFY", "F_OFD_GETLK"),
        *("F_OFD_SETLK", "F_OFD_SETLKW", "F_SETPIPE_SZ", "F_SETSIG", "F_SHLCK"),
    ),
    mmap: ("MAP_DENYWRITE", "MAP_EXECUTABLE", "MAP_POPULATE", "MAP_STACK"),
}
PREFIXES: Final[dict[ModuleType, tuple[str, ...]]] = {
    os: ("CLONE_", "EFD_", "GRND_", "MFD_", "RWF_", "SPLICE_", "XATTR_"),
    socket: (
        *("AF_ALG", "AF_ASH", "AF_ATM", "AF_AX25", "AF_BRIDGE", "AF_CAN", "AF_ECONET", "AF_IRDA", "AF_KEY", "AF_LLC"),
        *("AF_NETBEUI", "AF_NETLINK", "AF_NETROM", "AF_PACKET", "AF_PPPOX", "AF_QIPCRTR", "AF_RDS", "AF_ROSE"),
        *("AF_SECURITY", "AF_TIPC", "AF_VSOCK", "AF_WANPIPE", "AF_X25", "ALG_", "CAN_", "IOCTL_VM_", "NETLINK_"),
        *("PACKET_", "PF_PACKET", "SCM_CREDENTIALS", "SO_BINDTODEVICE", "SO_DOMAIN", "SO_INCOMING_CPU", "SO_MARK"),
        *("SO_PASSCRED", "SO_PASSSEC", "SO_PEERCRED", "SO_PEERSEC", "SO_PRIORITY", "SO_PROTOCOL", "SO_VM_"),
        *("SOCK_CLOEXEC", "SOCK_NONBLOCK", "SOL_ALG", "SOL_CAN", "SOL_RDS", "SOL_TIPC", "TCP_CONGESTION", "TCP_CORK"),
        *("TCP_DEFER_ACCEPT", "TCP_INFO", "TCP_LINGER2", "TCP_QUICKACK", "TCP_SYNCNT", "TCP_USER_TIMEOUT"),
        *("TCP_WINDOW_CLAMP", "TIPC_", "VMADDR_", "VM_SOCKETS_", "MSG_CMSG_CLOEXEC", "MSG_CONFIRM", "MSG_ERRQUEUE"),
        "MSG_MORE",
    ),
    select: ("EPOLL",),
    mmap: ("MADV_DO", "MADV_HUGE", "MADV_HWPOISON", "MADV_MERGEABLE", "MADV_NOHUGE", "MADV_REMOVE", "MADV_UNMERGEABLE"),
}
ABSENT: Final = ("spwd", "ossaudiodev", "nis")
"""Modules of Python on Linux."""
KERNEL: Final = ("/proc", "/sys")

kernel_files: set[str] = set()
"""Files of Linux's kernel that the agent's code opened."""


def become_mac() -> None:
    """Remove what macOS lacks. Modules of the standard library that choose by it must be loaded (again) afterwards."""
    assert "asyncio" not in sys.modules
    for module, names in LACKING.items():
        for name in (*names, *(name for name in vars(module).copy() if name.startswith(PREFIXES.get(module, ("?",))))):
            if hasattr(module, name):
                delattr(module, name)
    for name in ABSENT:
        sys.modules[name] = None  # type: ignore[assignment]
    os.uname = lambda: os.uname_result(("Darwin", "mac.example", "24.6.0", "Darwin Kernel Version 24.6.0", "arm64"))
    sys.platform = "darwin"
    importlib.reload(selectors)
    sys.addaudithook(note_kernel_files)


def note_kernel_files(event: str, arguments: tuple[Any, ...]) -> None:
    """Note a file of the kernel that a module of the agent opens or lists itself."""
    if event not in {"open", "os.listdir", "os.scandir"} or not isinstance(arguments[0], str | bytes):
        return
    path = os.fsdecode(arguments[0])
    caller = sys._getframe(1)
    while caller is not None and caller.f_globals.get("__name__", "").split(".")[0] in {
        "os",
        "pathlib",
        "io",
        "shutil",
    }:
        caller = caller.f_back  # type: ignore[assignment]
    name = caller.f_globals.get("__name__", "") if caller is not None else ""
    if path.startswith(KERNEL) and name.startswith("zeek_agent"):
        kernel_files.add(f"{name}: {path}")


def import_all() -> list[str]:
    """Import each module of the agent; those that fail, with their errors."""
    import zeek_agent

    failed: list[str] = []
    for module in pkgutil.walk_packages(zeek_agent.__path__, "zeek_agent.", onerror=failed.append):
        if not module.name.endswith("__main__"):
            try:
                importlib.import_module(module.name)
            except Exception:  # noqa: BLE001 - the test shows all of them
                failed.append(f"{module.name}: {traceback.format_exc(limit=-2)}")
    return failed


def run_agent(arguments: list[str]) -> int:
    """Run the command; its exit code."""
    from zeek_agent.cli.program import main

    sys.argv = ["zeek-agent", *arguments]
    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    return 0


def main(arguments: list[str]) -> None:
    assert psutil.LINUX
    become_mac()
    result: dict[str, Any] = {}
    if arguments == ["import-all"]:
        result["failed"] = import_all()
    else:
        result["exit_code"] = run_agent(arguments)
    from zeek_agent import platforms

    result["platform"] = platforms.HERE.name
    result["kernel_files"] = sorted(kernel_files)
    sys.stdout.flush()
    sys.stdout.write(f"\n{json.dumps(result)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
