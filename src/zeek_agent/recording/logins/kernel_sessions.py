"""New login sessions that the kernel assigned (sessionid in proc(5)), from process events and /proc."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from zeek_agent.host.accounts.local_accounts import LocalAccounts
from zeek_agent.host.linux.boot_clock import boot_time
from zeek_agent.recording.logins.observation import Action, Observation
from zeek_agent.recording.processes.process import Process
from zeek_agent.recording.processes.process_cache import ProcessCache
from zeek_agent.recording.processes.process_event import ProcessEvent

_SESSIONS_MAX: Final = 10_000
_LOGIN_PROGRAMS: Final = ("sshd", "login", "gdm-", "lightdm", "sddm", "xrdp")
_OPENING_PROGRAMS: Final = (*_LOGIN_PROGRAMS, "cron", "(systemd)", "systemd", "su", "sudo", "atd")
"""Names of processes that open a session for their child."""
_DEPTH_MAX: Final = 8
NAME: Final = "kernel"


class KernelSessions:
    """Finds the first process of each session, and its end."""

    def __init__(self, cache: ProcessCache, accounts: LocalAccounts) -> None:
        self._cache = cache
        self._accounts = accounts
        self._seen: OrderedDict[int, None] = OrderedDict()
        self._floor = -1
        self._leaders: OrderedDict[tuple[int, str | None], Observation] = OrderedDict()

    def start(self, missed_since: float | None) -> list[Observation]:
        """Note the sessions that exist. Returns those that began since nobody recorded."""
        first: dict[int, Process] = {}
        for process in self._running():
            if process.session is not None and (
                process.session not in first or process.started < first[process.session].started
            ):
                first[process.session] = process
        found = []
        for session, process in first.items():
            self._note(session)
            begun = boot_time() + process.started / 1e9
            statement = self._begin(begun, session, process.loginuid, process, None)
            if missed_since is not None and begun >= missed_since:
                found.append(statement)
        self._floor = max(first, default=self._floor)
        return found

    def changed(self, rows: Iterable[ProcessEvent]) -> list[Observation]:
        """What rows of process events say about sessions."""
        found = []
        for row in rows:
            if row.state == "stopped":
                if self._leaders and (ended := self._leaders.pop((row.pid, row.entity_id), None)) is not None:
                    found.append(_end(row.time, ended))
            elif row.session is not None and row.session > self._floor and row.session not in self._seen:
                self._note(row.session)
                process = self._cache.lookup(row.pid)
                found.append(self._begin(row.time, row.session, row.loginuid, process, row))
        return found

    def _running(self) -> list[Process]:
        return [process for process in map(self._cache.read, self._pids()) if process is not None]

    def _pids(self) -> list[int]:
        from zeek_agent.host.linux.procfs import Procfs

        return Procfs("/proc").pids()

    def _note(self, session: int) -> None:
        self._seen[session] = None
        if len(self._seen) > _SESSIONS_MAX:
            self._floor = max(self._floor, self._seen.popitem(last=False)[0])

    def _begin(
        self, at: float, session: int, loginuid: int | None, process: Process | None, row: ProcessEvent | None
    ) -> Observation:
        """The beginning of a session, with the process that opened it."""
        pid = row.pid if row is not None else process.pid if process is not None else 0
        entity = row.entity_id if row is not None else process.entity_id if process is not None else None
        name = row.name if row is not None else process.name if process is not None else None
        ppid = row.ppid if row is not None else process.ppid if process is not None else None
        leader = self._leader(session, ppid)
        other: int | None = None
        if leader is not None:
            other, pid, entity, name = pid, leader.pid, leader.entity_id, leader.name
        elif row is not None and row.ppid not in {None, 0, 1} and _opens_sessions(row.parent_name):
            other, pid, entity, name = pid, row.ppid or 0, row.parent_entity_id, row.parent_name
        is_certain = leader is not None or other is not None
        if not is_certain and ppid not in {None, 0, 1}:
            other = ppid
        action: Action = "login" if (name or "").startswith(_LOGIN_PROGRAMS) else "session_opened"
        statement = Observation(
            at,
            NAME,
            "session",
            action,
            user=None if loginuid is None else self._accounts.name(loginuid),
            uid=loginuid,
            pid=pid or None,
            other_pid=other,
            process=name,
            session=session,
            entity_id=entity or None,
            merges_by_user=not is_certain,
        )
        self._leaders[pid, entity] = statement
        if len(self._leaders) > _SESSIONS_MAX:
            self._leaders.popitem(last=False)
        return statement

    def _leader(self, session: int, ppid: int | None) -> Process | None:
        """The oldest ancestor in the session, as /proc has it: it set the session for itself before it forked."""
        leader = None
        for _ in range(_DEPTH_MAX):
            process = self._cache.read(ppid) if ppid else None
            if process is None or process.session != session:
                return leader
            leader, ppid = process, process.ppid
        return leader


def _opens_sessions(name: str | None) -> bool:
    return name is not None and name.lower().startswith(_OPENING_PROGRAMS)


def _end(at: float, begun: Observation) -> Observation:
    return Observation(
        at,
        NAME,
        "ended",
        "logout" if begun.action == "login" else "session_closed",
        user=begun.user,
        uid=begun.uid,
        pid=begun.pid,
        other_pid=begun.other_pid,
        process=begun.process,
        session=begun.session,
        entity_id=begun.entity_id,
    )
