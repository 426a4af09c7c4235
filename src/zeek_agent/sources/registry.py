"""Which sources there are for each kind of event, the best first."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from zeek_agent.sources.process_cache import ProcessCache

if TYPE_CHECKING:
    from zeek_agent.config import SourceSettings
    from zeek_agent.sources import Source


def candidates(
    settings: SourceSettings, redact: Callable[[str], str] = lambda command_line: command_line
) -> dict[str, list[Source]]:
    """Sources by kind (`processes`, `sockets`), in order of preference; only the configured one unless that is `auto`.

    They share one process cache. `redact` masks command lines before anything keeps them.
    """
    if not sys.platform.startswith("linux"):
        return {"processes": [], "sockets": []}
    cache = ProcessCache(settings.process_cache, settings.process_grace, redact=redact)
    processes, sockets = _ebpf(settings, cache)
    return {"processes": _chosen(processes, settings.processes), "sockets": _chosen(sockets, settings.sockets)}


def _ebpf(settings: SourceSettings, cache: ProcessCache) -> tuple[list[Source], list[Source]]:
    from zeek_agent.sources.bpf.monitor import Monitor
    from zeek_agent.sources.ebpf_processes import EbpfProcesses
    from zeek_agent.sources.ebpf_sockets import EbpfSockets

    monitor = Monitor(cache, settings.ring_bytes)
    return [EbpfProcesses(monitor, settings)], [EbpfSockets(monitor, settings)]


def _chosen(sources: list[Source], backend: str) -> list[Source]:
    return [source for source in sources if backend in {"auto", source.backend}]
