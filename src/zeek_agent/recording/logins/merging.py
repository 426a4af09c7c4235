"""Merges what several sources say about one login into one event.

A statement joins an event of the same process, kind and outcome that lies within seconds, contradicts it in nothing,
and in which its source has not said the same already: so the second wrong password in a connection is a second event,
whichever sources there are. An event is complete `SETTLE_SECONDS` after its first statement. Statements that come later
are still recognized, for `REMEMBERED_SECONDS`, and change nothing.

Each row carries the positions of the logs up to which all events are in rows, and what was said about it. After a
restart, the logs are read from these positions on, and the rows of the last seconds are remembered again.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from zeek_agent.recording.logins.login_event import LoginEvent
from zeek_agent.recording.logins.observation import Observation

SETTLE_SECONDS: Final = 2.0
"""journald exposes an entry within half a second; files are read once a second."""
REMEMBERED_SECONDS: Final = 15.0
"""Time in which all sources have spoken: PAM delays a refusal by seconds, and a log's rotation its reader."""
REMEMBERED_MAX: Final = 4_000
"""Bounds events that are not complete, and those that are remembered."""
_WITHIN_SECONDS: Final = 5.0
"""Distance of statements about one event: files have whole seconds, and PAM delays a refusal by two or three."""
_ANNOUNCEMENTS: Final = frozenset({"invalid", "tried"})
_ANNOUNCED_SECONDS: Final = 30.0
"""Time to wait for the attempt, in which a person types a password."""
_CONNECTION_SECONDS: Final = 600.0
_CONNECTIONS_MAX: Final = 10_000
"""Connections with a refusal, whose end is none, and open sessions, whose end has the facts of their beginning."""
_FILLED: Final = (
    *("user", "uid", "target_user", "tty", "remote_addr", "remote_port", "pid", "process", "session", "entity_id"),
    *("method", "command", "reason"),
)
_COMPARED: Final = ("user", "uid", "target_user", "remote_addr", "remote_port", "session", "entity_id")


_Key = TypeVar("_Key", int, str)


@dataclass(slots=True, eq=False)
class _Event:
    """An event, with the first statement about it as far as others have completed it."""

    facts: Observation
    begun: float
    """When the first statement came, by the clock of the merger."""
    said: set[tuple[str, str]] = field(default_factory=set)
    digests: set[str] = field(default_factory=set)
    pids: set[int] = field(default_factory=set)
    beginning: Observation | None = None
    """For the end of a session: what is known of its beginning."""
    before: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    """By source: the number of the first statement about it, and the position before that."""

    def is_readable_again(self) -> bool:
        return all(source in self.before for source, _ in self.said)

    def is_complete(self, now: float) -> bool:
        """Whether all sources have spoken. A name that does not exist is reported before the attempt itself."""
        announced = all(statement in _ANNOUNCEMENTS for _, statement in self.said)
        return not 0 <= now - self.begun < (_ANNOUNCED_SECONDS if announced else SETTLE_SECONDS)


class LoginMerger:
    """Not thread-safe. `observe` takes statements, `settled` returns rows."""

    def __init__(self) -> None:
        self._pending: list[_Event] = []
        self._remembered: OrderedDict[int, _Event] = OrderedDict()
        self._by_pid: dict[int, list[_Event]] = {}
        self._by_user: dict[str, list[_Event]] = {}
        self._loose: dict[str, list[_Event]] = {}
        """Events whose process is not known for certain."""
        self._positions: dict[str, str | None] = {}
        self._known: set[str] = set()
        self._observed = 0
        self._refused: OrderedDict[int, float] = OrderedDict()
        self._sessions: OrderedDict[int, Observation] = OrderedDict()

    def observe(self, statement: Observation, now: float, position: str | None = None, part: int = 0) -> None:
        """Note a statement; `position` is that after it in its source, for one that can be resumed.

        `part` distinguishes several statements of one entry.
        """
        before = self._positions.get(statement.source)
        digest = None if position is None else _digest(statement.source, position, f"{statement.statement} {part}")
        if position is not None:
            self._positions[statement.source] = position
        if digest is not None and digest in self._known:
            return
        event = self._matching(statement)
        if event is not None:
            self._join(event, statement, now)
        elif statement.statement == "left" and self._was_refused(statement):
            return
        else:
            event = self._begin(statement, now)
        if digest is not None:
            event.digests.add(digest)
            self._observed += 1
            event.before.setdefault(statement.source, (self._observed, before))

    def passed(self, source: str, position: str) -> None:
        """Note that a source was read up to there."""
        self._positions[source] = position

    def positions(self) -> dict[str, str]:
        """From where on the logs have to be read again."""
        return self._low_positions([None])[0]

    def settled(self, now: float, *, at_end: bool = False) -> list[LoginEvent]:
        """Rows of events that are complete, in the order in which they began; also others `at_end`.

        Then those are left of which all that was said can be read again after a restart, maybe with more.
        """
        early = max(len(self._pending) - REMEMBERED_MAX, 0)
        done = [
            event
            for number, event in enumerate(self._pending)
            if number < early or event.is_complete(now) or (at_end and not event.is_readable_again())
        ]
        finished = set(map(id, done))
        self._pending = [event for event in self._pending if id(event) not in finished]
        positions = self._low_positions(done)
        rows = [self._row(event, at) for event, at in zip(done, positions, strict=True)]
        self._forget(now)
        return rows

    def resume(self, cursors: Sequence[str | None], now: float) -> Mapping[str, str]:
        """Continue after rows with these cursors, the newest first. Returns the positions by source."""
        positions: Mapping[str, str] = {}
        for number, cursor in enumerate(cursors):
            stored = _loaded(cursor)
            if stored is None:
                continue
            if not number:
                positions = stored.positions
            event = _Event(stored.facts, now, set(stored.said), set(stored.digests), set(stored.pids))
            self._remember(event)
        self._positions = dict(positions)
        return positions

    def _matching(self, statement: Observation) -> _Event | None:
        pids = {pid for pid in (statement.pid, statement.other_pid) if pid is not None}
        for pid in pids:
            for event in self._by_pid.get(pid, ()):
                if self._fits(event, statement):
                    return event
        by_user = self._loose if pids and not statement.merges_by_user else self._by_user
        for event in by_user.get(statement.user or "", ()):
            if self._fits(event, statement):
                return event
        return None

    def _was_refused(self, statement: Observation) -> bool:
        """Whether an attempt in the connection that ends now was reported already."""
        refused = self._refused.get(statement.pid or 0)
        return refused is not None and statement.time - refused < _CONNECTION_SECONDS

    def _fits(self, event: _Event, statement: Observation) -> bool:
        facts = event.facts
        if _is_refused_su(facts, statement) or _is_refused_su(statement, facts):
            return (statement.source, statement.statement) not in event.said
        if facts.succeeded != statement.succeeded or facts.ends != statement.ends:
            return False
        if not statement.ends and statement.action is not None and facts.family != statement.family:
            return False
        waits = facts.pid is not None and facts.pid == statement.pid and not event.said - _announced(event)
        if abs(facts.time - statement.time) > (_CONNECTION_SECONDS if waits else _WITHIN_SECONDS):
            return False
        if (statement.source, statement.statement) in event.said and not statement.repeats:
            return False
        return all(
            getattr(facts, name) in (None, getattr(statement, name)) or getattr(statement, name) is None
            for name in _COMPARED
            if name != "entity_id" or facts.pid == statement.pid
        )

    def _join(self, event: _Event, statement: Observation, now: float) -> None:
        facts = event.facts
        if event.said == _announced(event) and statement.statement not in _ANNOUNCEMENTS:
            event.begun = now  # other sources report the attempt only now
        named = facts.user
        if _is_refused_su(statement, facts):
            facts.action, facts.user, facts.uid = statement.action, statement.user, statement.uid
            facts.target_user = statement.target_user
        if facts.merges_by_user and not statement.merges_by_user and statement.pid is not None:
            facts.pid, facts.process, facts.entity_id = statement.pid, statement.process, statement.entity_id
            facts.merges_by_user = False
        left_out = set() if facts.pid in {None, statement.pid} else {"entity_id", "process"}
        if statement.statement == "left":
            left_out.add("reason")  # the connection ended because the attempts had failed
        for name in _FILLED:
            if getattr(facts, name) is None and name not in left_out:
                setattr(facts, name, getattr(statement, name))
        if statement.action in {"login", "logout"}:
            facts.action = statement.action
        facts.verified = facts.verified or statement.verified
        event.said.add((statement.source, statement.statement))
        self._add_pids(event, statement)
        if facts.user != named:
            _remove(self._by_user, named or "", event)
            _remove(self._loose, named or "", event)
            self._add_user(event)

    def _begin(self, statement: Observation, now: float) -> _Event:
        event = _Event(statement, now, {(statement.source, statement.statement)})
        self._pending.append(event)
        self._remember(event)
        if statement.ends and statement.pid is not None:
            event.beginning = self._sessions.pop(statement.pid, None)
        return event

    def _complete_end(self, event: _Event) -> None:
        """Give the end of a session the facts of its beginning, if it is that of the same process and user."""
        end, begin = event.facts, event.beginning
        if begin is None or end.user not in {None, begin.user}:
            return
        if begin.entity_id != end.entity_id and None not in (begin.entity_id, end.entity_id):
            return
        for name in (
            "user",
            "uid",
            "target_user",
            "tty",
            "remote_addr",
            "remote_port",
            "session",
            "entity_id",
            "process",
        ):
            if getattr(end, name) is None:
                setattr(end, name, getattr(begin, name))

    def _remember(self, event: _Event) -> None:
        self._remembered[id(event)] = event
        self._known |= event.digests
        facts = event.facts
        for pid in event.pids:
            self._by_pid.setdefault(pid, []).append(event)
        self._add_pids(event, facts)
        self._add_user(event)
        if facts.pid is not None and not facts.succeeded:
            self._refused[facts.pid] = facts.time
            self._refused.move_to_end(facts.pid)
            if len(self._refused) > _CONNECTIONS_MAX:
                self._refused.popitem(last=False)
        if facts.pid is not None and facts.succeeded and not facts.ends:
            self._sessions[facts.pid] = facts
            self._sessions.move_to_end(facts.pid)
            if len(self._sessions) > _CONNECTIONS_MAX:
                self._sessions.popitem(last=False)

    def _add_user(self, event: _Event) -> None:
        user = event.facts.user
        if user:
            self._by_user.setdefault(user, []).append(event)
            if not event.pids or event.facts.merges_by_user:
                self._loose.setdefault(user, []).append(event)

    def _add_pids(self, event: _Event, statement: Observation) -> None:
        for pid in (statement.pid, statement.other_pid):
            if pid is not None and pid not in event.pids:
                event.pids.add(pid)
                self._by_pid.setdefault(pid, []).append(event)

    def _forget(self, now: float) -> None:
        pending = {id(event) for event in self._pending}
        while self._remembered:
            key, event = next(iter(self._remembered.items()))
            if key in pending:
                break
            if 0 <= now - event.begun < REMEMBERED_SECONDS and len(self._remembered) <= REMEMBERED_MAX:
                break
            del self._remembered[key]
            self._known -= event.digests
            for pid in event.pids:
                _remove(self._by_pid, pid, event)
            _remove(self._by_user, event.facts.user or "", event)
            _remove(self._loose, event.facts.user or "", event)

    def _low_positions(self, done: Sequence[_Event | None]) -> list[dict[str, str]]:
        """For each of these events, from where on the logs have to be read again once its row is stored."""
        low = {source: (self._observed + 1, at) for source, at in self._positions.items()}

        def lower(event: _Event) -> None:
            for source, before in event.before.items():
                if source not in low or before[0] < low[source][0]:
                    low[source] = before

        for waiting in self._pending:
            lower(waiting)
        found: list[dict[str, str]] = []
        for event in reversed(done):
            found.append({source: at for source, (_, at) in low.items() if at is not None})
            if event is not None:
                lower(event)
        found.reverse()
        return found

    def _row(self, event: _Event, positions: Mapping[str, str]) -> LoginEvent:
        self._complete_end(event)
        facts = event.facts
        self._known |= event.digests
        return LoginEvent(
            facts.time,
            facts.action or "session_opened",
            facts.user,
            facts.uid,
            facts.target_user,
            facts.tty,
            facts.remote_addr,
            facts.remote_port,
            facts.pid,
            facts.process,
            facts.session,
            facts.entity_id,
            facts.method,
            facts.command,
            "success" if facts.succeeded else "failure",
            facts.reason,
            ",".join(sorted({source for source, _ in event.said})),
            facts.verified,
            _stored(event, positions),
        )


@dataclass(frozen=True, slots=True)
class _StoredEvent:
    positions: Mapping[str, str]
    facts: Observation
    said: Sequence[tuple[str, str]]
    digests: Sequence[str]
    pids: Sequence[int]


def _stored(event: _Event, positions: Mapping[str, str]) -> str:
    """The column `cursor` of an event's row."""
    facts = event.facts
    compared = {name: value for name in _COMPARED if (value := getattr(facts, name)) is not None}
    fields = [
        dict(positions),
        [facts.time, facts.action, facts.succeeded, facts.merges_by_user, facts.pid, compared],
        sorted(event.said),
        sorted(event.digests),
        sorted(event.pids),
    ]
    return json.dumps(fields, separators=(",", ":"))


def _loaded(cursor: str | None) -> _StoredEvent | None:
    """What `_stored` wrote; None for anything else."""
    try:
        positions, (time, action, succeeded, by_user, pid, compared), said, digests, pids = json.loads(cursor or "")
        facts = Observation(
            time, "", "", action, succeeded, pid=pid, merges_by_user=by_user,
            **{name: compared[name] for name in _COMPARED if name in compared},
        )  # fmt: skip
        return _StoredEvent(dict(positions), facts, [(source, what) for source, what in said], digests, pids)
    except (ValueError, TypeError):
        return None


def _digest(source: str, position: str, statement: str) -> str:
    """Identifies a statement of a log among those of some seconds."""
    return hashlib.blake2b(f"{source} {position} {statement}".encode(), digest_size=8).hexdigest()


def _announced(event: _Event) -> set[tuple[str, str]]:
    """What was said about an attempt before it was made."""
    return {(source, statement) for source, statement in event.said if statement in _ANNOUNCEMENTS}


def _is_refused_su(su: Observation, refusal: Observation) -> bool:
    """Whether btmp reports that `su` failed, with the name of the user to become."""
    if su.action != "su" or su.succeeded or refusal.succeeded or refusal.source != "btmp":
        return False
    return su.pid == refusal.pid and su.target_user == refusal.user and abs(su.time - refusal.time) < _WITHIN_SECONDS


def _remove(index: dict[_Key, list[_Event]], key: _Key, event: _Event) -> None:
    events = index.get(key)
    if events is not None and event in events:
        events.remove(event)
        if not events:
            del index[key]
