"""The capabilities that each event source needs to work fully, if it runs as root without any other privilege."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from zeek_agent.host.linux.capabilities import Capability

_EBPF: Final = (Capability.BPF, Capability.PERFMON)
_AUDIT: Final = (Capability.AUDIT_READ, Capability.AUDIT_CONTROL)
_OWNERS: Final = (Capability.SYS_PTRACE, Capability.DAC_READ_SEARCH)
"""To find the process of another user that holds a socket, by its directory /proc/PID/fd."""

REQUIRED: Final[Mapping[tuple[str, str], tuple[Capability, ...]]] = {
    ("processes", "ebpf"): (*_EBPF, Capability.SYS_PTRACE),
    ("processes", "proc_connector"): (Capability.NET_ADMIN, Capability.SYS_PTRACE),
    ("processes", "audit"): (*_AUDIT, Capability.SYS_PTRACE),
    ("processes", "snapshots"): (Capability.SYS_PTRACE,),
    ("sockets", "ebpf"): (*_EBPF, Capability.NET_ADMIN, *_OWNERS),
    ("dns", "ebpf"): (*_EBPF, Capability.NET_ADMIN),
    ("sockets", "inet_diag"): (Capability.NET_ADMIN, *_OWNERS),
    ("sockets", "audit"): _AUDIT,
    ("sockets", "snapshots"): _OWNERS,
    ("translations", "conntrack"): (Capability.NET_ADMIN,),
    ("system_logs", "journal"): (),
    ("system_logs", "syslog"): (Capability.DAC_READ_SEARCH,),
    ("files", "fanotify"): (),
    ("logins", "combined"): (),
    ("logins", "journal"): (),
    ("logins", "syslog"): (Capability.DAC_READ_SEARCH,),
    ("logins", "audit"): _AUDIT,
    ("logins", "wtmp"): (),
    ("logins", "kernel"): (),
}
"""By kind and backend. CAP_SYS_PTRACE: executables and sockets of other users' processes that the kernel's events do
not name, such as those that were running before. CAP_DAC_READ_SEARCH: log files that belong to a syslog daemon's user.
CAP_AUDIT_CONTROL: rules of its own. CAP_NET_ADMIN for the process connector: before Linux 6.6.
File events come from a process of its own, which has CAP_SYS_ADMIN. `combined` reads what the other
backends of its kind read, as far as they can."""
