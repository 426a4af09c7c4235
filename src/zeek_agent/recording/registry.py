"""Which sources there are for each kind of event, the best first."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from zeek_agent.recording.processes.process_cache import ProcessCache

if TYPE_CHECKING:
    from zeek_agent.config import SourceSettings
    from zeek_agent.recording.source import Source


def candidates(
    settings: SourceSettings, redact: Callable[[str], str] = lambda command_line: command_line
) -> dict[str, list[Source]]:
    """Sources by kind (`processes`, `translations`, `sockets`, `system_logs`), in order of preference; only the
    configured one unless that is `auto`.

    Those of processes and sockets share one process cache. `redact` masks command lines before anything keeps them.
    """
    if not sys.platform.startswith("linux"):
        return {"processes": [], "translations": [], "sockets": [], "system_logs": []}
    from zeek_agent.recording.sockets.conntrack import Conntrack

    cache = ProcessCache(settings.process_cache, settings.process_grace, redact=redact)
    processes, sockets = _ebpf(settings, cache)
    for fallback in (_kernel_notices, _audit, _snapshots):
        of_processes, of_sockets = fallback(settings, cache)
        processes.append(of_processes)
        sockets.append(of_sockets)
    return {
        "processes": _chosen(processes, settings.processes),
        "translations": _chosen([Conntrack()], settings.translations),
        "sockets": _chosen(sockets, settings.sockets),
        "system_logs": _chosen(_system_logs(settings), settings.system_logs),
    }


def _ebpf(settings: SourceSettings, cache: ProcessCache) -> tuple[list[Source], list[Source]]:
    from zeek_agent.recording.bpf_monitor import Monitor
    from zeek_agent.recording.processes.ebpf_processes import EbpfProcesses
    from zeek_agent.recording.sockets.ebpf_sockets import EbpfSockets

    monitor = Monitor(cache, settings.ring_bytes)
    return [EbpfProcesses(monitor, settings)], [EbpfSockets(monitor, settings)]


def _kernel_notices(settings: SourceSettings, cache: ProcessCache) -> tuple[Source, Source]:
    from zeek_agent.recording.processes.proc_connector import ProcConnector
    from zeek_agent.recording.sockets.socket_polling import SocketPolling

    return ProcConnector(cache, settings), SocketPolling(cache, settings)


def _audit(settings: SourceSettings, cache: ProcessCache) -> tuple[Source, Source]:
    from zeek_agent.recording.audit.audit import AuditProcesses, AuditSockets

    return AuditProcesses(cache, settings), AuditSockets(cache, settings)


def _snapshots(settings: SourceSettings, cache: ProcessCache) -> tuple[Source, Source]:
    from zeek_agent.recording.snapshots import ProcessSnapshots, SocketSnapshots

    return ProcessSnapshots(cache, settings), SocketSnapshots(cache, settings)


def _system_logs(settings: SourceSettings) -> list[Source]:
    from zeek_agent.recording.system_log.journal import Journal
    from zeek_agent.recording.system_log.syslog import Syslog

    return [Journal(settings), Syslog(settings)]


def _chosen(sources: list[Source], backend: str) -> list[Source]:
    return [source for source in sources if backend in {"auto", source.backend}]
