"""Process and socket events from differences between snapshots of /proc and sock_diag(7), without any privilege.

An unprivileged agent sees less of other users' processes: those fields are null.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Final

from zeek_agent import platforms
from zeek_agent.host.internet_sockets import TCP, UDP
from zeek_agent.host.linux import inet_diag, procfs
from zeek_agent.host.linux.boot_clock import boot_time
from zeek_agent.host.linux.host_sockets import sockets_by_namespace
from zeek_agent.recording.processes.process_event import PROCESSES_EVENTS
from zeek_agent.recording.processes.process_lifecycle import ProcessLifecycle
from zeek_agent.recording.snapshot_source import SnapshotSource
from zeek_agent.recording.sockets.socket_changes import WANTED_STATES, SocketChanges
from zeek_agent.recording.sockets.socket_event import SOCKETS_EVENTS
from zeek_agent.recording.sockets.socket_owners import SocketOwners, living_owners

_PROC: Final = "/proc"
_PROTOCOLS: Final = (TCP, UDP)


class ProcessSnapshots(SnapshotSource):
    """Processes that appeared, disappeared, or changed their executable."""

    kind = "processes"
    shortcoming = "processes that live for less than two intervals are missed"

    def probe(self) -> str | None:
        try:
            procfs.Procfs(_PROC).pids()
        except OSError as error:
            return f"cannot list processes: {error}"
        return None

    def _begin(self) -> None:
        self._procfs = procfs.Procfs(_PROC)
        self._life = ProcessLifecycle(self._cache, self._exclusions, _PROC)
        self._cache.seed()
        self._known = self._present()
        self._life.find_missed(self.missed, self._begun)

    def _present(self) -> dict[int, tuple[int, str | None]]:
        """Start (in ticks) and executable of each process."""
        present: dict[int, tuple[int, str | None]] = {}
        for process in self._procfs.processes():
            with suppress(ProcessLookupError):  # it has ended
                present[process.pid] = process.start_ticks, process.exe
        return present

    def _compare(self) -> None:
        now = platforms.HERE.boot_nanoseconds()
        before, self._known = self._known, self._present()
        for pid, (started, _) in before.items():
            if pid not in self._known or self._known[pid][0] != started:
                self._life.exit(pid, now, None)
        for pid, present in self._known.items():
            known = before.get(pid)
            if known is None or known[0] != present[0]:
                self._life.appear(pid)
            elif present[1] is None:  # it is about to end, or is no longer readable
                self._known[pid] = known
            elif known[1] != present[1]:
                self._life.exec(pid, now, self._life.read(pid))
        rows = self._life.collect(now, boot_time())
        self.counters.received += len(rows)
        if rows:
            self._sink(PROCESSES_EVENTS, rows)


class SocketSnapshots(SnapshotSource):
    """TCP connections and listeners, connected and bound UDP sockets that appeared or disappeared."""

    kind = "sockets"
    shortcoming = "connections that live for less than two intervals, ICMP and packet sockets are missed"

    def probe(self) -> str | None:
        try:
            next(inet_diag.list_sockets(_PROTOCOLS), None)
        except OSError as error:
            return f"cannot list sockets: {error}"
        return None

    def _begin(self) -> None:
        self._procfs = procfs.Procfs(_PROC)
        owners, fed = SocketOwners(_PROC), self._settings.processes != "off"
        self._changes = SocketChanges(
            lambda inodes: living_owners(owners, self._cache, inodes, fed), self._exclusions, attribution_timeout=0.0
        )
        self._namespaces: set[int | None] = set()
        for netns, found in sockets_by_namespace(_PROC, self._procfs.pids(), _PROTOCOLS, WANTED_STATES):
            self._changes.seed(netns, found, time.time())
            self._namespaces.add(netns)

    def _compare(self) -> None:
        before, self._namespaces = self._namespaces, set()
        for netns, found in sockets_by_namespace(_PROC, self._procfs.pids(), _PROTOCOLS, WANTED_STATES):
            self._changes.update(netns, found, time.time())
            self._namespaces.add(netns)
        for netns in before - self._namespaces:
            self._changes.forget(netns, time.time())
        rows = self._changes.collect(time.time())
        self.counters.received += len(rows)
        if rows:
            self._sink(SOCKETS_EVENTS, rows)
