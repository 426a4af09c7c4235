"""The process and the ends in the kernel's records of sockets."""

from __future__ import annotations

from typing import Final

from zeek_agent.bpf import records
from zeek_agent.bpf.records import SocketFlags, SocketRecord
from zeek_agent.host.entity_id import entity_id
from zeek_agent.host.internet_sockets import on_the_wire
from zeek_agent.host.linux.stamps import boot_id, start_ticks
from zeek_agent.recording.processes.process import Process
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.recording.sockets.socket_event import Flow

# As a plain number, whose bits are tested several times as fast.
_CUT: Final = SocketFlags.CUT.value


def process_of_record(cache: ProcessCache, record: SocketRecord) -> Process:
    """The socket's owner at the time of the system call."""
    ticks = start_ticks(record.started)
    process = cache.find(record.pid, record.acted, ticks)
    if process is not None and cache.doubts(process, records.comm(record.name)):
        process = cache.read(record.pid)
        if process is not None and process.start_ticks == ticks:
            process.since = record.acted
            cache.exec(process)
        else:
            process = None
    if process is None:
        return _unknown_process(record, ticks)
    process.uid, process.gid = record.uid, record.gid
    return process


def record_flow(record: SocketRecord) -> Flow:
    """The ends of a record's socket."""
    local, remote = record.local, record.remote
    if record.flags & _CUT:
        return Flow(None, local, None, remote, None, record.cookie or None, record.netns or None)
    if record.family == 4:
        local, remote = local[:4], remote[:4]
    else:
        local, remote = on_the_wire(local, remote)
    return Flow(
        record.protocol,
        local,
        record.local_port,
        remote,
        record.remote_port,
        record.cookie or None,
        record.netns or None,
        record.token or None,
    )


def _unknown_process(record: SocketRecord, ticks: int) -> Process:
    """A process that is known only from the socket record."""
    return Process(
        pid=record.pid,
        start_ticks=ticks,
        since=record.started,
        started=record.started,
        entity_id=entity_id(boot_id(), record.pid, ticks),
        name=records.comm(record.name),
        uid=record.uid,
        gid=record.gid,
    )
