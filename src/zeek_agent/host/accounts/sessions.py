"""Login sessions that exist now: by logind's state files, by utmp, and by the session ids of processes."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zeek_agent.host.accounts import accounting
from zeek_agent.host.accounts.local_accounts import LocalAccounts
from zeek_agent.host.linux.procfs import Procfs
from zeek_agent.text import from_bytes

LOGIND: Final = Path("/run/systemd/sessions")
_STATE_BYTES_MAX: Final = 65_536


@dataclass(slots=True)
class LoginSession:
    """A session. None: not known. `pid` is the oldest process of it, or the one that opened it."""

    session: int | None = None
    user: str | None = None
    uid: int | None = None
    tty: str | None = None
    remote_addr: str | None = None
    remote_host: str | None = None
    service: str | None = None
    type: str | None = None
    login_time: float | None = None
    pid: int | None = None
    process: str | None = None
    entity_id: str | None = None
    sources: tuple[str, ...] = ()


def login_sessions(
    proc: str = "/proc",
    *,
    logind: Path = LOGIND,
    utmp: Path = accounting.UTMP,
    accounts: LocalAccounts | None = None,
    check: Callable[[], None] = lambda: None,
) -> list[LoginSession]:
    """The sessions that exist now, each once."""
    accounts = accounts or LocalAccounts()
    by_process = _by_process(proc, check)
    by_session = {one.session: one for one in by_process.values() if one.session is not None}
    sessions = list(by_session.values())
    for stated in _stated(logind):
        known = by_session.get(stated.session) if stated.session is not None else None
        if known is None:
            sessions.append(stated)
        else:
            _complete(known, stated)
    pids = frozenset(Procfs(proc).pids())
    for record in _recorded(utmp):
        process = by_process.get(record.pid or 0)
        known = process or next((one for one in sessions if one.tty == record.tty and one.user == record.user), None)
        if known is not None:
            _complete(known, record)
        elif (record.pid or 0) in pids:  # utmp keeps sessions that ended in a crash
            sessions.append(record)
    for one in sessions:
        if one.user is None and one.uid is not None:
            one.user = accounts.name(one.uid)
        if one.uid is None and one.user is not None:
            one.uid = accounts.uid(one.user)
    return sessions


def _by_process(proc: str, check: Callable[[], None]) -> dict[int, LoginSession]:
    """The session of each process that belongs to one; all processes of a session share an object."""
    found: dict[int, LoginSession] = {}
    by_number: dict[int, LoginSession] = {}
    started: dict[int, int] = {}
    for process in Procfs(proc).processes():
        check()
        try:
            number = process.session
            if number is None:
                continue
            session = by_number.setdefault(number, LoginSession(number, uid=process.loginuid, sources=("proc",)))
            if session.pid is None or process.start_ticks < started[number]:
                started[number] = process.start_ticks
                session.pid, session.process, session.entity_id = process.pid, process.name, process.entity_id
                session.login_time = process.start_time
            session.tty = session.tty or (process.tty or "").removeprefix("/dev/") or None
            found[process.pid] = session
        except ProcessLookupError:
            continue
    return found


def _stated(directory: Path) -> Iterator[LoginSession]:
    """Sessions of systemd-logind, as in its state files."""
    try:
        files = sorted(directory.iterdir())
    except OSError:
        return
    for file in files:
        if file.suffix == ".ref" or file.name.startswith("."):
            continue
        try:
            with file.open("rb") as stream:
                state = _state(stream.read(_STATE_BYTES_MAX))
        except OSError:
            continue
        if state.get("STATE") == "closing" or not state.get("USER"):
            continue
        number = state.get("AUDIT") or file.name
        began = state.get("REALTIME", "")
        yield LoginSession(
            session=int(number) if number.isdecimal() else None,
            user=state.get("USER"),
            uid=int(state["UID"]) if state.get("UID", "").isdecimal() else None,
            tty=state.get("TTY") or None,
            remote_addr=accounting.address(state.get("REMOTE_HOST")),
            remote_host=state.get("REMOTE_HOST") or None,
            service=state.get("SERVICE") or None,
            type=state.get("TYPE") or None,
            login_time=int(began) / 1e6 if began.isdecimal() else None,
            pid=int(state["LEADER"]) if state.get("LEADER", "").isdecimal() else None,
            sources=("logind",),
        )


def _state(raw: bytes) -> dict[str, str]:
    """`NAME=value` lines; values may be quoted as in a shell."""
    state = {}
    for line in from_bytes(raw).splitlines():
        name, is_assignment, value = line.partition("=")
        if is_assignment and not name.startswith("#"):
            try:
                state[name] = "".join(shlex.split(value)) if value[:1] in {'"', "'"} else value
            except ValueError:
                continue
    return state


def _recorded(file: Path) -> Iterator[LoginSession]:
    try:
        records = accounting.read_utmp(file)
    except OSError:
        return
    for record in records:
        yield LoginSession(
            user=record.user,
            tty=record.line or None,
            remote_addr=record.remote_addr or accounting.address(record.host),
            remote_host=record.host or None,
            login_time=record.time,
            pid=record.pid or None,
            sources=("utmp",),
        )


def _complete(known: LoginSession, other: LoginSession) -> None:
    """Add what another source knows. The login time of logind and utmp is better than a process's start."""
    if other.login_time is not None:
        known.login_time = other.login_time
    for name in ("user", "uid", "tty", "remote_addr", "remote_host", "service", "type", "pid"):
        if getattr(known, name) is None:
            setattr(known, name, getattr(other, name))
    known.sources += other.sources
