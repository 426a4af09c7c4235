"""The BPF objects of event sources, loaded and attached; `run` does that before all else, so that little is missed.

Events wait in the rings until their readers start. Imports little, because every import delays the first event.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from zeek_agent import platforms
from zeek_agent.bpf.libbpf import BpfObject, without_log
from zeek_agent.bpf.probe import cgroup2, why_no_cgroup2, why_no_tracepoints, why_not
from zeek_agent.recording.periodic import raise_priority

if TYPE_CHECKING:
    from zeek_agent.config.sections import SourceSettings

log = logging.getLogger(__name__)

_MIB: Final = 1 << 20
_PROCESS_RING_BYTES_PER_CPU: Final = 2 * _MIB
_SOCKET_RING_BYTES_PER_CPU: Final = 512 << 10
"""Holds several thousand connections per CPU while the reader is busy."""
_DNS_PORT: Final = 53
RUN_ON_DEMAND: Final = "syscall"
"""The section of programs that are attached to nothing."""
_PACKET_RING_BYTES: Final = 64 << 10  # for occasional sniffers; a multiple of any page size


@dataclass(frozen=True, slots=True)
class AttachedObject:
    """A loaded object whose programs record since `attached` (boot time in ns), and the size of its ring."""

    object: BpfObject
    ring_bytes: int
    attached: int


def ring_size(configured: int, default: int) -> int:
    """The size of a ring in bytes: as configured, or `default` per CPU; a power of two of whole pages."""
    cpus = max(os.cpu_count() or 1, 2)
    wanted = max(configured or min(default * cpus, 32 * _MIB), mmap.PAGESIZE)
    return 1 << (wanted - 1).bit_length()


def attach_processes(ring_bytes: int) -> AttachedObject:
    """The object `processes`, with a ring as configured. Raises OSError."""
    size = ring_size(ring_bytes, _PROCESS_RING_BYTES_PER_CPU)

    def load(loaded: BpfObject) -> None:
        loaded.resize("records", size)
        loaded.configure(mmap.PAGESIZE.to_bytes(4, "little"))
        loaded.load()
        _attach_all(loaded)

    return _attached("processes", size, load)


def attach_sockets(name: str, settings: SourceSettings) -> AttachedObject:
    """The object `tcp`, `udp` or `packet`. Raises OSError."""
    size = _PACKET_RING_BYTES if name == "packet" else ring_size(settings.ring_bytes, _SOCKET_RING_BYTES_PER_CPU)
    own_pid = os.getpid() if settings.ignore_self else 0
    filters = (own_pid, settings.ignore_loopback, len(settings.ignore_uids))

    def load(loaded: BpfObject) -> None:
        loaded.leave_out_missing()
        loaded.resize("records", size)
        loaded.resize("ignored_uids", len(settings.ignore_uids) or 1)
        loaded.configure(struct.pack("=4I", *filters, "on_received" in loaded.programs))
        loaded.load()
        for uid in settings.ignore_uids:
            loaded.update_element("ignored_uids", struct.pack("=I", uid), bytes(4))
        (_attach_to_cgroups if name == "udp" else _attach_all)(loaded)

    return _attached(name, size, load)


def attach_dns(settings: SourceSettings) -> AttachedObject:
    """The object `dns`. Raises OSError."""
    size = ring_size(settings.ring_bytes, _SOCKET_RING_BYTES_PER_CPU)
    ports = {_DNS_PORT, *settings.dns_ports}

    def load(loaded: BpfObject) -> None:
        loaded.resize("records", size)
        loaded.resize("ignored_uids", len(settings.ignore_uids) or 1)
        own_pid = os.getpid() if settings.ignore_self else 0
        loaded.configure(struct.pack("=4I", own_pid, 0, len(settings.ignore_uids), 0))
        loaded.load()
        for uid in settings.ignore_uids:
            loaded.update_element("ignored_uids", struct.pack("=I", uid), bytes(4))
        for port in ports:
            loaded.update_element("ports", struct.pack("=I", port), bytes(4))
        _attach_to_cgroups(loaded)

    return _attached("dns", size, load)


def _attached(name: str, size: int, load: Callable[[BpfObject], None]) -> AttachedObject:
    loaded = BpfObject(name)
    try:
        load(loaded)
    except OSError:
        loaded.close()
        raise
    return AttachedObject(loaded, size, time.clock_gettime_ns(time.CLOCK_BOOTTIME))


def _attach_all(loaded: BpfObject) -> None:
    for program in loaded.programs:
        loaded.attach(program)


def _attach_to_cgroups(loaded: BpfObject) -> None:
    """Attach the control-group programs at the root group, which contains every process."""
    failure, mounted = why_no_cgroup2(), cgroup2()
    if failure is not None or mounted is None:
        raise OSError(failure)
    directory = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for program in loaded.programs:
            section = loaded.section_name(program)
            if section != RUN_ON_DEMAND:
                loaded.attach(program, directory if section.startswith("cgroup") else None)
    finally:
        os.close(directory)


class EarlyObjects:
    """Objects that a thread attaches while the rest of the agent is imported and started; a source takes its own.

    What cannot be attached is left to the source, which reports why.
    """

    def __init__(self, settings: SourceSettings) -> None:
        self._settings = settings
        self._objects: dict[str, AttachedObject] = {}
        self._thread = threading.Thread(target=self._attach, name="early-ebpf", daemon=True)
        self._thread.start()

    def take(self, name: str) -> AttachedObject | None:
        """The object, which the caller closes; None if it is not attached. Waits for those that are being attached."""
        self._thread.join()
        return self._objects.pop(name, None)

    def close(self) -> None:
        """Detach what no source has taken."""
        self._thread.join()
        while self._objects:
            self._objects.popitem()[1].object.close()

    def _attached(self, name: str) -> AttachedObject:
        if name == "processes":
            return attach_processes(self._settings.ring_bytes)
        return attach_dns(self._settings) if name == "dns" else attach_sockets(name, self._settings)

    def _attach(self) -> None:
        if platforms.HERE.key != "linux":
            return
        raise_priority()
        wanted = {kind for kind in ("processes", "sockets", "dns") if getattr(self._settings, kind) in {"auto", "ebpf"}}
        names = ["processes"] if wanted else []
        if "sockets" in wanted and why_no_tracepoints() is None:
            names += ["tcp", "udp", "packet"]
        if "dns" in wanted:
            names.append("dns")
        if not names or why_not(names) is not None:
            return
        with without_log():
            for name in names:
                try:
                    self._objects[name] = self._attached(name)
                except OSError as error:
                    log.debug("%s: not attached early: %s", name, error)
                    return
