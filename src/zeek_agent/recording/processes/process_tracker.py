"""Updates the process cache from the kernel's fork, exec and exit records, and derives starts and stops."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterable
from typing import Final

from zeek_agent import text
from zeek_agent.bpf import records
from zeek_agent.bpf.records import EXEC, EXEC_ARGUMENTS, EXEC_PATHS, EXIT, FORK, PROCESS, Flags, RecordKind
from zeek_agent.host.entity_id import entity_id
from zeek_agent.host.linux.containers import container_id
from zeek_agent.host.linux.stamps import boot_id, set_or_none, start_ticks
from zeek_agent.recording.processes.process import Process
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.recording.processes.process_changes import PendingForks, ProcessChange
from zeek_agent.recording.processes.process_event import Exit

log = logging.getLogger(__name__)

_INODE_MAX: Final = 2**63 - 1
"""The event store holds no larger integer. A user's FUSE file system can have any inode number."""


class ProcessTracker:
    """Updates a cache from one BPF object's records."""

    def __init__(self, cache: ProcessCache) -> None:
        self.cache = cache
        self._forks = PendingForks()
        self.undecoded = 0

    def apply(self, batch: Iterable[bytes]) -> list[ProcessChange]:
        """Update the cache; returns starts and stops in the kernel's order.

        A process that is forked and soon executes a program starts once, with that program. One that does not is
        reported by `settled`, or when it ends.
        """
        changes: list[ProcessChange] = []
        for record in batch:
            try:
                self._apply(record, changes)
            except (ValueError, IndexError, struct.error):
                self.undecoded += 1
                log.exception("a process record cannot be read: %s", record.hex())
        return changes

    def oldest_fork(self) -> int | None:
        """The boot time (ns) of the oldest fork that is not reported yet."""
        return self._forks.oldest()

    def has_pending(self, process: Process) -> bool:
        """Whether the fork of this process is not reported yet."""
        pending = self._forks.get(process.pid)
        return pending is not None and pending.start_ticks == process.start_ticks

    def settled(self, now: int | None) -> list[ProcessChange]:
        """Starts of processes that were forked a while ago and have not executed a program; without `now`, of all."""
        changes = []
        for process in self._forks.overdue(now):
            current = self._refreshed(process) if process.since <= self.cache.execs_lost_until else process
            changes.append(ProcessChange(current, current.since, None))
        return changes

    def _refreshed(self, process: Process) -> Process:
        """The process from /proc, if its exec record may have been lost."""
        shown = self.cache.read(process.pid)
        if shown is None or shown.start_ticks != process.start_ticks or shown.exe == process.exe:
            return process
        shown.since = process.since
        self.cache.exec(shown)
        return shown

    def _apply(self, record: bytes, changes: list[ProcessChange]) -> None:
        kind = record[0]
        if kind == RecordKind.EXEC:
            process = self._exec(record)
            changes.append(ProcessChange(process, process.since, None))
        elif kind == RecordKind.EXIT:
            self._exit(record, changes)
        else:
            self._fork(record)

    def _fork(self, record: bytes) -> None:
        process = self._described(record)
        origin_started, origin = FORK.unpack_from(record, PROCESS.size)
        copied = self.cache.find(origin, process.since, start_ticks(origin_started))
        if copied is not None:
            if not self.cache.doubts(copied, process.name):
                process.exe = copied.exe
                process.exe_device, process.exe_inode = copied.exe_device, copied.exe_inode
                process.exe_mntns = copied.exe_mntns
                process.command_line = copied.command_line
            process.cwd = copied.cwd
            process.cgroup = copied.cgroup
            process.container_id = copied.container_id
        self.cache.begin(process)
        self._forks.add(process)

    def _exec(self, record: bytes) -> Process:
        process = self._described(record)
        self._forks.remove(process.pid)
        (process.vsize, inode, device, total, size, exe_end, cwd_end, cgroup_end, filename_end, mntns) = (
            EXEC.unpack_from(record, PROCESS.size)
        )
        process.exe_device, process.exe_mntns = records.device(device), mntns or None
        process.exe_inode = inode if inode <= _INODE_MAX else None
        flags = record[2] | record[3] << 8
        paths = record[EXEC_PATHS : EXEC_PATHS + filename_end]
        arguments = record[EXEC_ARGUMENTS : EXEC_ARGUMENTS + size]
        process.exe = records.path(paths[:exe_end], flags & 7)
        process.cwd = records.path(paths[exe_end:cwd_end], flags >> 3 & 7)
        process.cgroup = records.path(paths[cwd_end:cgroup_end], Flags.EXE_CUT if flags & Flags.CGROUP_CUT else 0)
        process.container_id = container_id(process.cgroup) if process.cgroup else None
        process.command_line = self.cache.command_line(arguments, total > size)
        if flags & (Flags.EXE_CUT | Flags.CWD_CUT | Flags.CGROUP_CUT | Flags.ARGUMENTS_UNREADABLE):
            self._complete(process, paths[cgroup_end:].rstrip(b"\0"))
        earlier = self.cache.lookup(process.pid, ticks=process.start_ticks)
        if earlier is not None:
            process.keep_parent(earlier)
        self.cache.exec(process)
        return process

    def _exit(self, record: bytes, changes: list[ProcessChange]) -> None:
        utime, stime, runtime, vsize, rsize, status = EXIT.unpack_from(record, PROCESS.size)
        ended = self._described(record)
        process = self.cache.exit(ended.pid, ended.since, ended.start_ticks)
        if process is None:
            if self.cache.lookup(ended.pid, ticks=ended.start_ticks) is not None:
                return  # two threads ended at the same time, and both counted as the last
            self.cache.exec(ended)
            process = self.cache.exit(ended.pid, ended.since, ended.start_ticks) or ended
        process.uid, process.gid, process.ruid, process.rgid = ended.uid, ended.gid, ended.ruid, ended.rgid
        if self.cache.doubts(process, ended.name):
            process.exe = process.command_line = None
            process.forget_executable()
        process.name = ended.name
        if self._forks.remove(process.pid) is not None:
            changes.append(ProcessChange(process, process.since, None))
        user, system = records.processor_time(utime, stime, runtime)
        changes.append(ProcessChange(process, ended.since, Exit(status, user, system, vsize or None, rsize or None)))

    def _described(self, record: bytes) -> Process:
        (
            _,
            _,
            pid,
            time,
            started,
            parent_started,
            parent_pid,
            uid,
            gid,
            ruid,
            rgid,
            loginuid,
            session,
            netns,
            priority,
            name,
        ) = PROCESS.unpack_from(record)
        ticks = start_ticks(started)
        parent = self.cache.find(parent_pid, time, start_ticks(parent_started)) if parent_pid else None
        return Process(
            pid=pid,
            start_ticks=ticks,
            since=time,
            started=started,
            entity_id=entity_id(boot_id(), pid, ticks),
            name=records.comm(name),
            ppid=parent_pid,
            parent_entity_id=parent.entity_id if parent else None,
            parent_name=parent.name if parent else None,
            parent_exe=parent.exe if parent else None,
            uid=uid,
            gid=gid,
            ruid=ruid,
            rgid=rgid,
            exe=None,
            command_line=None,
            cwd=None,
            loginuid=set_or_none(loginuid),
            session=set_or_none(session),
            cgroup=None,
            container_id=None,
            netns=netns,
            priority=str(priority),
        )

    def _complete(self, process: Process, filename: bytes) -> None:
        """Fill in what did not fit into the record from /proc, if the process still exists."""
        shown = self.cache.read(process.pid)
        if shown is not None and shown.start_ticks == process.start_ticks:
            process.exe = process.exe or shown.exe
            process.cwd = process.cwd or shown.cwd
            process.cgroup = process.cgroup or shown.cgroup
            process.container_id = process.container_id or shown.container_id
            process.command_line = process.command_line or shown.command_line
        if process.exe is None and filename.startswith(b"/"):
            process.exe = text.from_bytes(filename)
