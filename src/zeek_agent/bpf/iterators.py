"""All processes, and all holders of sockets, by BPF iterators: one pass through the kernel's lists, at a tenth of the
cost of /proc.

Attributes have the names and meanings of those in `procfs`. If iterators cannot be used, `why_no_iterators` returns the
reason, and callers read /proc.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from zeek_agent import text
from zeek_agent.bpf import records
from zeek_agent.bpf.libbpf import BpfObject
from zeek_agent.bpf.probe import why_not
from zeek_agent.bpf.records import HOLDER, TASK
from zeek_agent.host.entity_id import entity_id
from zeek_agent.host.linux.boot_clock import boot_time
from zeek_agent.host.linux.containers import container_id
from zeek_agent.host.linux.procfs import STATES, Procfs, ProcfsProcess, tty_name
from zeek_agent.host.linux.stamps import TICKS, boot_id, set_or_none, start_ticks

log = logging.getLogger(__name__)

_loaded: IteratorReader | None = None

_READ_BYTES: Final = 1 << 18
"""Buffer size, so that a scan of all processes takes few system calls."""
_STATES: Final = (
    (0x402, "I"),  # TASK_UNINTERRUPTIBLE without load
    (0x01, "S"),
    (0x02, "D"),
    (0x04, "T"),
    (0x08, "t"),
    (0x10, "X"),
    (0x20, "Z"),
    (0x40, "P"),
)
"""Bits of `task_struct.__state` and `.exit_state` (include/linux/sched.h), and /proc's letters."""


@dataclass(slots=True)
class Task:
    """A process; `utime` and `stime` in seconds, sizes in bytes, `start_ticks` since boot."""

    name: str
    pid: int
    ppid: int
    pgid: int
    uid: int
    gid: int
    ruid: int
    rgid: int
    suid: int
    sgid: int
    priority: str
    nice: int
    vsize: int
    rsize: int
    utime: float
    stime: float
    disk_read: int | None
    disk_written: int | None
    exe: str | None
    cwd: str | None
    root: str | None
    state: str
    threads: int
    start_ticks: int
    loginuid: int | None
    session: int | None
    tty: str | None
    cgroup: str | None
    container_id: str | None
    netns: int | None
    entity_id: str
    exe_device: int | None
    exe_inode: int | None
    exe_mntns: int | None
    parent_entity_id: str | None = None

    @property
    def start_time(self) -> float:
        """Start in seconds since the epoch."""
        return round(round(boot_time(), 2) + self.start_ticks / TICKS, 2)

    @property
    def arguments(self) -> bytes | None:
        """As in `procfs`, read from /proc. Raises ProcessLookupError if the process is gone."""
        if self.vsize == 0:  # a kernel thread or a zombie
            return None
        try:
            with open(f"/proc/{self.pid}/cmdline", "rb", buffering=0) as file:  # noqa: PTH123  a third of its cost
                raw = file.read()
        except FileNotFoundError as error:
            raise ProcessLookupError(self.pid) from error
        if not raw or raw.endswith(b"\0\0"):  # the main thread has ended; empty arguments or padding
            with ProcfsProcess(Procfs(), self.pid) as shown:
                return shown.arguments
        return raw


class IteratorReader(ABC):
    """Decodes what iterators return."""

    @abstractmethod
    def _read(self, program: str) -> bytes:
        """The whole output of one of the iterator programs."""

    def tasks(self) -> list[Task]:
        """All processes in ascending order of pids."""
        tasks = _tasks(self._read("tasks"))
        if not tasks or tasks[0].pid != 1:  # some kernels begin after it
            tasks[:0] = _from_proc(1)
        entities = {task.pid: task for task in tasks}
        for task in tasks:
            parent = entities.get(task.ppid)
            if parent is not None and parent.start_ticks <= task.start_ticks:
                task.parent_entity_id = parent.entity_id
        return tasks

    def socket_holders(self, pids: Collection[int] | None = None) -> dict[int, list[tuple[int, int]]]:
        """Holders of sockets by inode, with their lowest descriptor, as in `procfs`."""
        holders: dict[int, dict[int, int]] = {}
        for pid, descriptor, inode in HOLDER.iter_unpack(self._read("socket_holders")):
            if pids is None or pid in pids:
                holders.setdefault(inode, {}).setdefault(pid, descriptor)
        return {inode: list(holding.items()) for inode, holding in holders.items()}


class Iterators(IteratorReader):
    """The loaded object. Any thread may ask."""

    def __init__(self) -> None:
        """Load it; each iterator is attached on first use. Raises OSError."""
        self._lock = threading.Lock()
        self._attached: set[str] = set()
        self._object = BpfObject("iterators")
        try:
            self._object.configure(struct.pack("=II", mmap.PAGESIZE, os.cpu_count() or 1))
            self._object.load()
        except OSError:
            self._object.close()
            raise

    def close(self) -> None:
        """Give the kernel's memory back."""
        self._object.close()

    def open(self, program: str) -> int:
        """A descriptor from which one pass can be read; the caller closes it. Raises OSError."""
        with self._lock:
            if program not in self._attached:
                self._object.attach(program)
                self._attached.add(program)
            return self._object.open_iterator(program)

    def _read(self, program: str) -> bytes:
        return read_all(self.open(program))


def read_all(descriptor: int) -> bytes:
    """The output of an iterator, which is closed."""
    try:
        parts = []
        while part := os.read(descriptor, _READ_BYTES):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def use(reader: IteratorReader) -> None:
    """Let tables read with this one: in a process that cannot load BPF programs."""
    global _loaded  # noqa: PLW0603
    _loaded = reader


def load_iterators() -> None:
    """Load the process-wide object, which takes a tenth of a second; if that is not possible, log why."""
    global _loaded  # noqa: PLW0603
    if _loaded is not None:
        return
    reason = why_no_iterators()
    if reason is None:
        try:
            _loaded = Iterators()
        except OSError as error:
            reason = str(error)
    if reason is not None:
        log.info("falling back to /proc for processes and sockets: %s", reason)


def loaded_iterators() -> IteratorReader | None:
    """The process-wide object, if loaded; for a single query loading it is not worth it."""
    return _loaded


def why_no_iterators() -> str | None:
    """Why `Iterators` cannot be used here; None if they can be tried."""
    return why_not(("iterators",))


class _Record(NamedTuple):
    """`struct task_record`. `describes`: a thread that describes its process, whose main thread has ended."""

    pid: int
    tgid: int
    utime: int
    stime: int
    runtime: int
    disk_read: int
    disk_written: int
    reported_utime: int
    reported_stime: int
    started: int
    vsize: int
    rsize: int
    parent: int
    group: int
    uid: int
    gid: int
    ruid: int
    rgid: int
    suid: int
    sgid: int
    loginuid: int
    session: int
    netns: int
    terminal: int
    threads: int
    priority: int
    nice: int
    state: int
    kernel: int
    name: bytes
    describes: int
    exe_inode: int
    exe_device: int
    exe_mntns: int


_Usage: TypeAlias = tuple[int, int, int, int, int]
"""Of threads: `utime`, `stime`, `runtime`, `disk_read`, `disk_written`."""
_NOTHING: Final[_Usage] = (0, 0, 0, 0, 0)


def _tasks(raw: bytes) -> list[Task]:
    found: list[tuple[_Record, list[str | None]]] = []
    of_threads: dict[int, _Usage] = {}
    describing: dict[int, tuple[_Record, list[str | None]]] = {}
    at = 0
    while at < len(raw):
        record = _Record._make(TASK.unpack_from(raw, at))
        at += TASK.size
        is_process = record.pid == record.tgid
        if is_process or record.describes:
            paths = []
            for _ in range(4):
                path, at = _path(raw, at)
                paths.append(path)
            if is_process:
                found.append((record, paths))
            else:
                describing.setdefault(record.tgid, (record, paths))
        if not is_process:
            utime, stime, runtime, read, written = of_threads.get(record.tgid, _NOTHING)
            of_threads[record.tgid] = (
                utime + record.utime,
                stime + record.stime,
                runtime + record.runtime,
                read + record.disk_read,
                written + record.disk_written,
            )
    if describing:
        found = [_described(record, paths, describing) for record, paths in found]
    return [_task(record, of_threads.get(record.pid, _NOTHING), paths) for record, paths in found]


def _described(
    ended: _Record, paths: list[str | None], describing: Mapping[int, tuple[_Record, list[str | None]]]
) -> tuple[_Record, list[str | None]]:
    """A process as the oldest living thread describes it, if its main thread has ended."""
    if ended.vsize or ended.pid not in describing:
        return ended, paths
    thread, paths = describing[ended.pid]
    whole = ("pid", "utime", "stime", "runtime", "disk_read", "disk_written", "reported_utime", "reported_stime")
    return thread._replace(**{name: getattr(ended, name) for name in whole}), paths


def _path(raw: bytes, at: int) -> tuple[str | None, int]:
    """The path that begins at `at`, and the position after it. None for an empty or truncated path."""
    if raw[at] == 0:
        return (None if raw[at + 1] else "/"), at + 2
    end = raw.index(b"\0\0", at) + 1
    return records.path(raw[at:end], raw[end + 1]), end + 2


def _task(record: _Record, of_threads: _Usage, paths: Sequence[str | None]) -> Task:
    exe, cwd, root, cgroup = paths
    ticks = start_ticks(record.started)
    utime, stime = records.processor_time(
        record.utime + of_threads[0],
        record.stime + of_threads[1],
        record.runtime + of_threads[2],
        record.reported_utime,
        record.reported_stime,
    )
    return Task(
        name=_kernel_name(record) if record.kernel else records.comm(record.name),
        pid=record.pid,
        ppid=record.parent,
        pgid=record.group,
        uid=record.uid,
        gid=record.gid,
        ruid=record.ruid,
        rgid=record.rgid,
        suid=record.suid,
        sgid=record.sgid,
        priority=str(record.priority),
        nice=record.nice,
        vsize=record.vsize,
        rsize=record.rsize,
        utime=utime,
        stime=stime,
        disk_read=None if record.disk_read < 0 else record.disk_read + of_threads[3],
        disk_written=None if record.disk_read < 0 else record.disk_written + of_threads[4],
        exe=exe,
        cwd=cwd,
        root=root,
        state=_state(record.state),
        threads=record.threads,
        start_ticks=ticks,
        loginuid=set_or_none(record.loginuid),
        session=set_or_none(record.session),
        tty=tty_name(record.terminal) if record.terminal else None,
        cgroup=cgroup,
        container_id=container_id(cgroup) if cgroup else None,
        netns=record.netns or None,
        entity_id=entity_id(boot_id(), record.pid, ticks),
        exe_device=records.device(record.exe_device) if record.exe_inode else None,
        exe_inode=record.exe_inode or None,
        exe_mntns=record.exe_mntns or None,
    )


def _kernel_name(record: _Record) -> str:
    """The full name of a kernel thread, which can be longer than its task's name."""
    try:
        with open(f"/proc/{record.pid}/comm", "rb") as file:  # noqa: PTH123
            return text.from_bytes(file.read().rstrip(b"\n"))
    except FileNotFoundError:
        return records.comm(record.name)


def _from_proc(pid: int) -> list[Task]:
    try:
        with ProcfsProcess(Procfs(), pid) as shown:
            return [Task(**{name: getattr(shown, name) for name in Task.__dataclass_fields__})]
    except ProcessLookupError:
        return []


def _state(bits: int) -> str:
    letter = next((letter for mask, letter in _STATES if bits & mask == mask), "R")
    return STATES[letter]
