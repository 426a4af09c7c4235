"""The registry of event sources: the kinds of event, and the backends that record each.

A new kind is an entry of `KINDS` and a setting with its name in `config.SourceSettings`; everything else is derived
from these and from the sources themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from zeek_agent import platforms
from zeek_agent.masking.masker import Masker
from zeek_agent.platforms import Platform
from zeek_agent.recording.processes.process_cache import ProcessCache

if TYPE_CHECKING:
    from zeek_agent.config.sections import SourceSettings
    from zeek_agent.host.portable.system import PortableSystem
    from zeek_agent.recording.bpf_monitor import BpfMonitor
    from zeek_agent.recording.bpf_objects import EarlyObjects
    from zeek_agent.recording.dns.remote_names import RemoteNames
    from zeek_agent.recording.files.file_watcher_link import FileWatchers
    from zeek_agent.recording.processes.process import LivingProcesses
    from zeek_agent.recording.source import Source
    from zeek_agent.recording.windows.windows_host import WindowsHost


def _may_read_all(_: str) -> bool:
    return True


@dataclass(frozen=True)
class SourceContext:
    """The objects that all sources of an agent share: the settings, the process cache and the masker."""

    settings: SourceSettings
    cache: ProcessCache
    masker: Masker
    early: EarlyObjects | None = None
    watchers: FileWatchers | None = None
    may_read: Callable[[str], bool] = _may_read_all
    group: str = "linux"
    """The platform's group."""
    state: Path | None = None
    """The state directory; None for one in which nothing is kept."""

    @cached_property
    def system(self) -> PortableSystem:
        """The system's readers, if it is not Linux."""
        from zeek_agent.host.portable.system import portable_system

        return portable_system(self.group)

    @cached_property
    def windows(self) -> WindowsHost:
        """What the sources of Windows' event logs share."""
        from zeek_agent.recording.windows.windows_host import this_host

        state = platforms.HERE.system_state if self.state is None else self.state
        return this_host(state / "event-logs", self.masker, self.settings.process_cache)

    @cached_property
    def names(self) -> RemoteNames:
        """The names that processes looked up."""
        from zeek_agent.recording.dns.remote_names import RemoteNames

        return RemoteNames()

    @cached_property
    def monitor(self) -> BpfMonitor:
        """The reader of BPF rings, which keeps process and socket events in order."""
        from zeek_agent.recording.bpf_monitor import BpfMonitor

        return BpfMonitor(self.cache, self.settings.ring_bytes, self.early)


def _processes(shared: SourceContext) -> list[Source]:
    from zeek_agent.recording.audit.audit import AuditProcesses
    from zeek_agent.recording.processes.ebpf_processes import EbpfProcesses
    from zeek_agent.recording.processes.proc_connector import ProcConnector
    from zeek_agent.recording.snapshots import ProcessSnapshots

    cache, settings = shared.cache, shared.settings
    return [
        EbpfProcesses(shared.monitor, settings),
        ProcConnector(cache, settings),
        AuditProcesses(cache, settings),
        ProcessSnapshots(cache, settings),
    ]


def _translations(_: SourceContext) -> list[Source]:
    from zeek_agent.recording.sockets.conntrack import Conntrack

    return [Conntrack()]


def _dns(shared: SourceContext) -> list[Source]:
    from zeek_agent.recording.dns.ebpf_dns import EbpfDns

    return [EbpfDns(shared.monitor, shared.settings, shared.names)]


def _sockets(shared: SourceContext) -> list[Source]:
    from zeek_agent.recording.audit.audit import AuditSockets
    from zeek_agent.recording.snapshots import SocketSnapshots
    from zeek_agent.recording.sockets.ebpf_sockets import EbpfSockets
    from zeek_agent.recording.sockets.socket_polling import SocketPolling

    cache, settings = shared.cache, shared.settings
    return [
        EbpfSockets(shared.monitor, settings, shared.names),
        SocketPolling(cache, settings),
        AuditSockets(cache, settings),
        SocketSnapshots(cache, settings),
    ]


def _system_logs(shared: SourceContext) -> list[Source]:
    from zeek_agent.recording.system_log.journal import Journal
    from zeek_agent.recording.system_log.syslog import Syslog

    return [Journal(shared.settings, masker=shared.masker), Syslog(shared.settings, masker=shared.masker)]


def _files(shared: SourceContext) -> list[Source]:
    from zeek_agent.recording.files.fanotify_files import FanotifyFiles
    from zeek_agent.recording.files.file_watcher_link import Activated

    return [FanotifyFiles(shared.monitor, shared.settings, shared.watchers or Activated(), shared.may_read)]


def _logins(shared: SourceContext) -> list[Source]:
    from zeek_agent.recording.logins.logins import BACKENDS, Logins

    return [Logins(backend, shared.cache, shared.settings, shared.masker) for backend in BACKENDS]


def _portable_processes(shared: SourceContext) -> list[Source]:
    from zeek_agent.recording.portable_snapshots import PortableProcessSnapshots

    return [PortableProcessSnapshots(shared.cache, shared.settings, shared.system)]


def _portable_sockets(shared: SourceContext) -> list[Source]:
    from zeek_agent.recording.portable_snapshots import PortableSocketSnapshots

    return [PortableSocketSnapshots(shared.cache, shared.settings, shared.system)]


def _darwin_processes(shared: SourceContext) -> list[Source]:
    from zeek_agent.recording.processes.eslogger import Eslogger

    living = _living_processes(shared.group)
    return [Eslogger(shared.settings, shared.masker, living=living), *_portable_processes(shared)]


def _darwin_system_logs(shared: SourceContext) -> list[Source]:
    from zeek_agent.recording.system_log.unified_log import UnifiedLog

    return [UnifiedLog(shared.settings, shared.masker)]


def _event_logs(kind: str, after: BackendFactory = lambda _: []) -> BackendFactory:
    """The sources of Windows' event logs for a kind of event, and then those of `after`."""

    def create(shared: SourceContext) -> list[Source]:
        from zeek_agent.recording.windows.backends import EVENT_LOGS

        return [*EVENT_LOGS[kind](shared.windows, shared.settings), *after(shared)]

    return create


BackendFactory: TypeAlias = Callable[[SourceContext], "list[Source]"]
"""Creates the sources of one kind, in order of preference."""

KINDS: Final[Mapping[str, BackendFactory]] = {
    "processes": _processes,
    "translations": _translations,
    "dns": _dns,
    "sockets": _sockets,
    "system_logs": _system_logs,
    "files": _files,
    "logins": _logins,
}
"""The kinds of event, in the order in which their sources are started, with their backends on Linux."""

_PORTABLE: Final[Mapping[str, BackendFactory]] = {"processes": _portable_processes, "sockets": _portable_sockets}
_BACKENDS: Final[Mapping[str, Mapping[str, BackendFactory]]] = {
    "linux": KINDS,
    "darwin": {**_PORTABLE, "processes": _darwin_processes, "system_logs": _darwin_system_logs},
    "windows": {
        "processes": _event_logs("processes", _portable_processes),
        "dns": _event_logs("dns"),
        "sockets": _event_logs("sockets", _portable_sockets),
        "system_logs": _event_logs("system_logs"),
        "logins": _event_logs("logins"),
    },
}
"""The backends by the platform's group. Kinds of event that are not there cannot be recorded on it."""


def candidates(
    settings: SourceSettings,
    masker: Masker | None = None,
    *,
    early: EarlyObjects | None = None,
    watchers: FileWatchers | None = None,
    may_read: Callable[[str], bool] = _may_read_all,
    state: Path | None = None,
    platform: Platform = platforms.HERE,
) -> dict[str, list[Source]]:
    """Sources by kind, in order of preference; unless the setting is `auto`, only the one that it names.

    `masker` masks secrets in command lines before they are stored anywhere. `early` has objects that are attached
    already. `watchers` starts processes that watch files; the default connects to systemd's unit. `may_read` says of a
    path whether access rules permit its contents. `state` is the agent's state directory.
    """
    masker = masker or Masker()
    cache = ProcessCache(
        settings.process_cache, settings.process_grace, masker=masker, living=_living_processes(platform.group)
    )
    shared = SourceContext(settings, cache, masker, early, watchers, may_read, platform.group, state)
    backends = _BACKENDS[platform.group]
    return {
        kind: _chosen(backends[kind](shared) if kind in backends else [], getattr(settings, kind)) for kind in KINDS
    }


def _living_processes(group: str) -> LivingProcesses | None:
    """How the cache reads processes; None on Linux, where that is its default."""
    if group == "linux":
        return None
    from zeek_agent.host.portable.system import portable_system
    from zeek_agent.recording.processes.portable_reader import PortableReader

    return PortableReader(portable_system(group).processes)


def _chosen(sources: list[Source], backend: str) -> list[Source]:
    return [source for source in sources if backend in {"auto", source.backend}]


def unknown_backends(settings: SourceSettings, platform: Platform = platforms.HERE) -> dict[str, list[str]]:
    """The kinds whose setting names a backend of another platform, with the backends of this one."""
    from zeek_agent.config.sections import SourceSettings

    named = [kind for kind in KINDS if getattr(settings, kind) not in {"auto", "off"}]
    present = candidates(SourceSettings(), platform=platform) if named else {}
    backends = {kind: [source.backend for source in present[kind]] for kind in named}
    return {kind: known for kind, known in backends.items() if getattr(settings, kind) not in known}
