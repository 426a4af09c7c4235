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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, TypeAlias, TypeVar

from zeek_agent.recording.logins.auth_messages import AMBIGUOUS
from zeek_agent.recording.logins.login_event import LoginEvent
from zeek_agent.recording.logins.observation import Observation
from zeek_agent.text import to_bytes

SETTLE_SECONDS: Final = 2.0
"""journald exposes an entry within half a second; files are read once a second."""
_DELAYED_SECONDS: Final = 5.0
"""The same for a refusal that audit reports before the delay of PAM, and the log after it."""
REMEMBERED_SECONDS: Final = 15.0
"""Time in which all sources have spoken: PAM delays a refusal by seconds, and a log's rotation its reader."""
REMEMBERED_MAX: Final = 4_000
"""Bounds events that are not complete, and those that are remembered."""
_EXCESS_MAX: Final = 1_000
"""Events beyond that, so that many are completed at a time."""
_WITHIN_SECONDS: Final = 5.0
"""Distance of statements about one event: files have whole seconds, and PAM delays a refusal by two or three."""
_ANNOUNCEMENTS: Final = frozenset({"invalid", "tried"})
_LOGS: Final = frozenset({"journal", "syslog"})
_ANNOUNCED_SECONDS: Final = 30.0
"""Time to wait for the attempt, in which a person types a password."""
_CONNECTION_SECONDS: Final = 600.0
_CONNECTIONS_MAX: Final = 10_000
"""Connections with a refusal, whose end is none, and open sessions, whose end has the facts of their beginning."""
_CANDIDATES_MAX: Final = 64
"""Events with the same process or user among which one is searched that a statement joins, the newest."""
_NAME_BYTES: Final = 32
"""Length of names in wtmp, btmp and audit records, which cut off longer ones."""
_COMMAND_CHARACTERS_MAX: Final = 4_096
_PIECE_CHARACTERS: Final = 958
"""Length of a part of a command that sudo divides within a word, including the user's name; it prefers blanks."""
_FILLED: Final = (
    *("user", "uid", "target_user", "tty", "remote_addr", "remote_port", "pid", "process", "session", "entity_id"),
    *("method", "command", "reason"),
)
_COMPARED: Final = ("user", "uid", "target_user", "remote_addr", "remote_port", "session", "entity_id")


_Key = TypeVar("_Key", int, bytes)
_LateStatement: TypeAlias = tuple[str, str, str, str]
"""The event's key, the statement's source, kind and digest."""
_Index: TypeAlias = "dict[_Key, dict[int, _Event]]"


@dataclass(slots=True, eq=False)
class _Event:
    """An event, with the first statement about it as far as others have completed it."""

    facts: Observation
    begun: float
    """When the first statement came, by the clock of the merger."""
    said: set[tuple[str, str]] = field(default_factory=set)
    digests: set[str] = field(default_factory=set)
    pids: set[int] = field(default_factory=set)
    key: str | None = None
    """Identifies it once its row is written."""
    has_log_command: bool = False
    """Whether the command is that of a log, which resolves paths and quotes arguments."""
    beginning: Observation | None = None
    """For the end of a session: what is known of its beginning."""
    before: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    """By source: the number of the first statement about it, and the position before that."""

    def is_readable_again(self) -> bool:
        return all(source in self.before for source, _ in self.said)

    def is_complete(self, now: float) -> bool:
        """Whether all sources have spoken. A name that does not exist is reported before the attempt itself."""
        settle = SETTLE_SECONDS
        if all(statement in _ANNOUNCEMENTS for _, statement in self.said):
            settle = _ANNOUNCED_SECONDS
        elif self.facts.awaits_log and not self._was_logged():
            settle = _DELAYED_SECONDS
        return not 0 <= now - self.begun < settle

    def _was_logged(self) -> bool:
        return any(source in _LOGS and statement not in _ANNOUNCEMENTS for source, statement in self.said)


class LoginMerger:
    """Not thread-safe. `observe` takes statements, `settled` returns rows."""

    def __init__(self, masked: Callable[[str], str] = str) -> None:
        """`masked` masks secrets in a command."""
        self._masked = masked
        self._pending: list[_Event] = []
        self._remembered: OrderedDict[int, _Event] = OrderedDict()
        self._by_pid: _Index[int] = {}
        self._by_user: _Index[bytes] = {}
        self._loose: _Index[bytes] = {}
        """Events whose process is not known for certain."""
        self._positions: dict[str, str | None] = {}
        self._known: set[str] = set()
        self._observed = 0
        self._late: list[_LateStatement] = []
        """Statements about events whose rows are written; the next row has them."""
        self._refused: OrderedDict[int, Observation] = OrderedDict()
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
        if statement.statement == "command" and self._has_ended(statement):
            return
        if statement.statement == "continued":
            event = self._continue(statement)
            if event is None:
                return
        elif (event := self._matching(statement)) is not None:
            self._join(event, statement, now)
        elif statement.statement == "left" and self._was_refused(statement):
            return
        else:
            event = self._begin(statement, now)
        if digest is not None:
            event.digests.add(digest)
            if event.key is not None:
                self._known.add(digest)
                self._late.append((event.key, statement.source, statement.statement, digest))
            self._observed += 1
            event.before.setdefault(statement.source, (self._observed, before))

    @property
    def is_full(self) -> bool:
        """Whether rows have to be taken before more statements."""
        return len(self._pending) >= REMEMBERED_MAX + _EXCESS_MAX

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
        events: dict[str, _Event] = {}
        late: list[_LateStatement] = []
        for number, cursor in enumerate(cursors):
            stored = _loaded(cursor)
            if stored is None:
                continue
            if not number:
                positions = stored.positions
            event = _Event(stored.facts, now, set(stored.said), set(stored.digests), set(stored.pids))
            event.key = _event_key(stored.facts)
            events[event.key] = event
            late += stored.late
            self._remember(event)
        for key, source, statement, digest in late:
            if key in events:
                events[key].said.add((source, statement))
                events[key].digests.add(digest)
                self._known.add(digest)
        self._positions = dict(positions)
        return positions

    def _matching(self, statement: Observation) -> _Event | None:
        pids = {pid for pid in (statement.pid, statement.other_pid) if pid is not None}
        for pid in pids:
            for event in _newest(self._by_pid, pid):
                if self._fits(event, statement):
                    return event
        by_user = self._loose if pids and not statement.merges_by_user else self._by_user
        for event in _newest(by_user, _name_key(statement.user)):
            if self._fits(event, statement):
                return event
        return None

    def _continue(self, statement: Observation) -> _Event | None:
        """Append to the last command of the same process, or user where the log has no process."""
        if statement.pid is not None:
            found = _newest(self._by_pid, statement.pid)
        else:
            found = _newest(self._by_user, _name_key(statement.user))
        for event in reversed(found):
            facts = event.facts
            if (statement.source, "command") in event.said and facts.pid == statement.pid:
                if event.has_log_command and facts.command and statement.command:
                    blank = "" if _is_divided(facts.command.rpartition(" ")[2], statement.user or "") else " "
                    joined = self._masked(f"{facts.command}{blank}{statement.command}")
                    facts.command = joined[:_COMMAND_CHARACTERS_MAX]
                return event
        return None

    def _has_ended(self, statement: Observation) -> bool:
        """Whether sudo repeats its command with the exit status (`log_exit_status`), after the end of the session."""
        return any(
            event.facts.action == "session_closed" and _agree("entity_id", event.facts.entity_id, statement.entity_id)
            for event in _newest(self._by_pid, statement.pid or 0)
        )

    def _was_refused(self, statement: Observation) -> bool:
        """Whether an attempt in the connection that ends now was reported already."""
        refused = self._refused.get(statement.pid or 0)
        return (
            refused is not None
            and statement.time - refused.time < _CONNECTION_SECONDS
            and _agree("remote_port", refused.remote_port, statement.remote_port)
        )

    def _fits(self, event: _Event, statement: Observation) -> bool:
        facts = event.facts
        is_said = not statement.repeats and (statement.source, statement.statement) in event.said
        if is_said or not _agree("remote_port", facts.remote_port, statement.remote_port):
            return False
        if _is_refused_su(facts, statement) or _is_refused_su(statement, facts):
            return (statement.source, statement.statement) not in event.said
        if facts.succeeded != statement.succeeded or facts.ends != statement.ends:
            return False
        if not statement.ends and statement.action is not None and facts.family != statement.family:
            return False
        waits = facts.pid is not None and facts.pid == statement.pid and not event.said - _announced(event)
        if abs(facts.time - statement.time) > (_CONNECTION_SECONDS if waits else _WITHIN_SECONDS):
            return False
        return all(
            _agree(name, getattr(facts, name), getattr(statement, name))
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
        _join_values(facts, statement)
        left_out = set() if facts.pid in {None, statement.pid} else {"entity_id", "process"}
        if statement.statement == "left":
            left_out.add("reason")  # the connection ended because the attempts had failed
        for name in _FILLED:
            if getattr(facts, name) is None and name not in left_out:
                setattr(facts, name, getattr(statement, name))
        self._join_command(event, statement)
        event.said.add((statement.source, statement.statement))
        self._add_pids(event, statement)
        if facts.user != named:
            _remove(self._by_user, _name_key(named), event)
            _remove(self._loose, _name_key(named), event)
            self._add_user(event)

    def _join_command(self, event: _Event, statement: Observation) -> None:
        """Prefer the command of a log, unless its message can be read in two ways."""
        facts = event.facts
        if statement.statement == "command" and statement.command is not None:
            facts.command, event.has_log_command = statement.command, True
        if facts.reason == AMBIGUOUS and facts.succeeded and facts.command is not None:
            facts.reason = None

    def _begin(self, statement: Observation, now: float) -> _Event:
        event = _Event(statement, now, {(statement.source, statement.statement)})
        event.has_log_command = statement.statement == "command" and statement.command is not None
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
            self._by_pid.setdefault(pid, {})[id(event)] = event
        self._add_pids(event, facts)
        self._add_user(event)
        if facts.pid is not None and not facts.succeeded:
            self._refused[facts.pid] = facts
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
            key = _name_key(user)
            self._by_user.setdefault(key, {})[id(event)] = event
            if not event.pids or event.facts.merges_by_user:
                self._loose.setdefault(key, {})[id(event)] = event

    def _add_pids(self, event: _Event, statement: Observation) -> None:
        for pid in (statement.pid, statement.other_pid):
            if pid is not None and pid not in event.pids:
                event.pids.add(pid)
                self._by_pid.setdefault(pid, {})[id(event)] = event

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
            _remove(self._by_user, _name_key(event.facts.user), event)
            _remove(self._loose, _name_key(event.facts.user), event)

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
        event.key = _event_key(facts)
        late, self._late = self._late, []
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
            _stored(event, positions, late),
        )


@dataclass(frozen=True, slots=True)
class _StoredEvent:
    positions: Mapping[str, str]
    facts: Observation
    said: Sequence[tuple[str, str]]
    digests: Sequence[str]
    pids: Sequence[int]
    late: Sequence[_LateStatement]


def _join_values(facts: Observation, statement: Observation) -> None:
    """Take what is more exact: a time with fractions of a second, a name that is not cut off, what kind of session."""
    if facts.time.is_integer() and 0 <= statement.time - facts.time < 1:
        facts.time = statement.time
    elif not statement.time.is_integer():
        facts.time = min(facts.time, statement.time)
    for name in ("user", "target_user"):
        known, other = getattr(facts, name), getattr(statement, name)
        if known is not None and other is not None and len(other) > len(known) and _agree(name, known, other):
            setattr(facts, name, other)
    if statement.action in {"login", "logout"}:
        facts.action = statement.action
    facts.awaits_log = facts.awaits_log or statement.awaits_log
    facts.verified = facts.verified or statement.verified


def _event_key(facts: Observation) -> str:
    return _digest(facts.action or "", str(facts.time), str(facts.pid))


def _stored(event: _Event, positions: Mapping[str, str], late: Sequence[_LateStatement]) -> str:
    """The column `cursor` of an event's row."""
    facts = event.facts
    compared = {name: value for name in _COMPARED if (value := getattr(facts, name)) is not None}
    fields = [
        dict(positions),
        [facts.time, facts.action, facts.succeeded, facts.merges_by_user, facts.pid, compared],
        sorted(event.said),
        sorted(event.digests),
        sorted(event.pids),
        late,
    ]
    return json.dumps(fields, separators=(",", ":"))


def _loaded(cursor: str | None) -> _StoredEvent | None:
    """What `_stored` wrote; None for anything else."""
    try:
        positions, (time, action, succeeded, by_user, pid, compared), said, digests, pids, *more = json.loads(
            cursor or ""
        )
        facts = Observation(
            time, "", "", action, succeeded, pid=pid, merges_by_user=by_user,
            **{name: compared[name] for name in _COMPARED if name in compared},
        )  # fmt: skip
        late = [(key, source, what, digest) for key, source, what, digest in (more[0] if more else ())]
        return _StoredEvent(dict(positions), facts, [(source, what) for source, what in said], digests, pids, late)
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


def _name_key(user: str | None) -> bytes:
    """A name as far as all sources have it."""
    return to_bytes(user or "")[:_NAME_BYTES]


def _agree(name: str, one: str | float | None, other: str | float | None) -> bool:
    """Whether two values of a column do not contradict each other; some sources cut long names off."""
    if one is None or other is None or one == other:
        return True
    if name not in {"user", "target_user"}:
        return False
    shorter, longer = sorted((to_bytes(str(one)), to_bytes(str(other))), key=len)
    return len(shorter) == _NAME_BYTES and longer.startswith(shorter)


def _is_divided(word: str, user: str) -> bool:
    """Whether a word may go on in the next message of sudo."""
    longest = max(_PIECE_CHARACTERS - len(user), 1)
    return bool(word) and len(word) % longest == 0


def _newest(index: _Index[_Key], key: _Key) -> list[_Event]:
    """The newest events under a key, oldest first."""
    events = index.get(key)
    return list(islice(reversed(events.values()), _CANDIDATES_MAX))[::-1] if events else []


def _remove(index: _Index[_Key], key: _Key, event: _Event) -> None:
    events = index.get(key)
    if events is not None and events.pop(id(event), None) is not None and not events:
        del index[key]
