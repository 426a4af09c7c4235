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
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, NamedTuple

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
    uid: int
    gid: int
    ruid: int
    rgid: int
    priority: str
    vsize: int
    rsize: int
    utime: float
    stime: float
    exe: str | None
    cwd: str | None
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
        if raw.endswith(b"\0\0"):  # empty arguments or padding, which takes more to tell
            with ProcfsProcess(Procfs(), self.pid) as shown:
                return shown.arguments
        return raw or None


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
        holders: dict[int, list[tuple[int, int]]] = {}
        for pid, descriptor, inode in HOLDER.iter_unpack(self._read("socket_holders")):
            holding = holders.get(inode)
            if holding is None:
                holders[inode] = [(pid, descriptor)]
            elif holding[-1][0] != pid:
                holding.append((pid, descriptor))
        if pids is None:
            return holders
        kept = ((inode, [holder for holder in holding if holder[0] in pids]) for inode, holding in holders.items())
        return {inode: holding for inode, holding in kept if holding}


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
    """`struct task_record`."""

    pid: int
    tgid: int
    utime: int
    stime: int
    runtime: int
    reported_utime: int
    reported_stime: int
    started: int
    vsize: int
    rsize: int
    parent: int
    uid: int
    gid: int
    ruid: int
    rgid: int
    loginuid: int
    session: int
    netns: int
    terminal: int
    threads: int
    priority: int
    state: int
    kernel: int
    name: bytes


def _tasks(raw: bytes) -> list[Task]:
    found: list[tuple[_Record, list[str | None]]] = []
    of_threads: dict[int, tuple[int, int, int]] = {}
    at = 0
    while at < len(raw):
        record = _Record._make(TASK.unpack_from(raw, at))
        at += TASK.size
        if record.pid == record.tgid:
            paths = []
            for _ in range(3):
                path, at = _path(raw, at)
                paths.append(path)
            found.append((record, paths))
        else:
            utime, stime, runtime = of_threads.get(record.tgid, (0, 0, 0))
            of_threads[record.tgid] = (utime + record.utime, stime + record.stime, runtime + record.runtime)
    return [_task(record, of_threads.get(record.pid, (0, 0, 0)), *paths) for record, paths in found]


def _path(raw: bytes, at: int) -> tuple[str | None, int]:
    """The path that begins at `at`, and the position after it. None for an empty or truncated path."""
    if raw[at] == 0:
        return (None if raw[at + 1] else "/"), at + 2
    end = raw.index(b"\0\0", at) + 1
    return records.path(raw[at:end], raw[end + 1]), end + 2


def _task(
    record: _Record, of_threads: tuple[int, int, int], exe: str | None, cwd: str | None, cgroup: str | None
) -> Task:
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
        uid=record.uid,
        gid=record.gid,
        ruid=record.ruid,
        rgid=record.rgid,
        priority=str(record.priority),
        vsize=record.vsize,
        rsize=record.rsize,
        utime=utime,
        stime=stime,
        exe=exe,
        cwd=cwd,
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
