"""`zeek-agent watch`: events of the running agent as they are recorded, one line each."""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TextIO

import msgspec

from zeek_agent.control.messages import Frame, NoAgentError, Note, Rows, SubscribeRequest
from zeek_agent.database.times import ago, timestamp
from zeek_agent.errors import SqlError, UsageError, ZeekAgentError
from zeek_agent.schema import ZeekType
from zeek_agent.terminal import responders, watch_query
from zeek_agent.terminal.console import Mode, Printer, plain
from zeek_agent.terminal.watch_lines import WatchLines
from zeek_agent.terminal.watch_query import COLUMNS
from zeek_agent.text import from_os

if TYPE_CHECKING:
    from zeek_agent.terminal.responders import Responder
    from zeek_agent.terminal.watch_query import Filters

SCHEDULE_SECONDS: Final = 0.25
FRAMES_MAX: Final = 64
"""Frames of about 256 KB that may wait to be written; more wait in the agent, which disconnects a client in time."""
RECONNECT_SECONDS: Final = 1.0
READY_SECONDS: Final = 10.0
"""How long the agent may take for the first run of the query."""
_TIME: Final = ZeekType.parse("time")
_ANY: Final = ZeekType.parse("text")


def run(
    connect: Callable[[], Responder],
    filters: Filters,
    out: TextIO,
    warn: Callable[[str], None],
    *,
    json: bool,
    since: float | None,
) -> None:
    """Write events to a stream, as text or as one JSON object per line, until an interrupt."""
    if json:
        Watch(connect, filters, partial(_write_json, out), warn, since=since).run()
        return
    printer = Printer.for_stream(out, Mode.TABLE, os.environ)
    lines = WatchLines(width=printer.width, color=printer.color)

    def write(event: Mapping[str, Any]) -> None:
        out.writelines(f"{line}\n" for line in lines.lines(event, watch.users))
        out.flush()

    watch = Watch(connect, filters, write, warn, since=since)
    watch.run()


def start_time(text: str) -> float:
    """A time in seconds since the epoch, from a duration before now or a time in UTC. Raises UsageError."""
    for parse in (partial(ago, time.time), timestamp):
        with contextlib.suppress(SqlError):
            found = parse(text)
            if found is not None and not text.strip().replace(".", "").isdigit():
                return found
    raise UsageError(f"--since: expected a duration such as 10min or a time such as 2026-11-28T03:20:00Z, got {text!r}")


def _write_json(out: TextIO, event: Mapping[str, Any]) -> None:
    shown = {
        name: plain(_TIME if name == "time" else _ANY, value) for name, value in event.items() if value is not None
    }
    out.write(msgspec.json.encode(shown).decode() + "\n")
    out.flush()


class Watch:
    """Writes events of a running agent, and continues where it was when the agent is started again."""

    def __init__(
        self,
        connect: Callable[[], Responder],
        filters: Filters,
        write: Callable[[Mapping[str, Any]], None],
        warn: Callable[[str], None],
        *,
        since: float | None = None,
    ) -> None:
        """`connect` gives a connection to the agent or raises NoAgentError; `write` gets an event by the names of
        COLUMNS. `since` is in seconds since the epoch."""
        self._connect = connect
        self._filters = filters
        self._write = write
        self._warn = warn
        self._since = since
        self._last: dict[str, int] = {}
        """The number of the last event written, by table."""
        self.users: dict[int, str] = {}
        """Names by uid, as of the last connection to the agent."""

    def run(self) -> None:
        """Write events until an interrupt. Raises ZeekAgentError if there is no agent, or for invalid filters."""
        self._follow(self._connect())
        while True:
            time.sleep(RECONNECT_SECONDS)
            with contextlib.suppress(NoAgentError):
                self._follow(self._connect())

    def _follow(self, responder: Responder) -> None:
        """Write events until the agent ends the connection, which is a warning. Raises UsageError and SqlError."""
        try:
            with closing(responder):
                self._write_events(responder)
        except AgentGoneError as error:
            self._warn(f"{error}; watching goes on when it is back")

    def _write_events(self, responder: Responder) -> None:
        uids = _users(responder)
        self.users.update({uid: name for name, uid in uids.items()})
        wanted = self._recorded(responder, watch_query.conditions(self._filters, uids.get))
        marked = from_os(f"/* watch {secrets.token_hex(8)} */ {watch_query.statement(wanted)}")
        frames = _subscribed(self._connect(), SubscribeRequest(marked, "Events", SCHEDULE_SECONDS))
        if self._since is not None or self._last:
            self._wait_for_first_run(responder, marked)
            self._write_rows(responders.query(responder, self._past(responder, wanted))[1], {})
        written = dict(self._last)
        for frame in frames:
            match frame:
                case Rows():
                    self._write_rows(frame.rows, written)
                case Note(message=message):
                    self._warn(message)

    def _recorded(self, responder: Responder, wanted: Mapping[str, str]) -> dict[str, str]:
        """Without tables that the agent does not have or does not permit. Raises UsageError if none is left."""
        names = {name for (name,) in responders.query(responder, "SELECT name FROM zeek_agent_tables")[1]}
        kept = {table: condition for table, condition in wanted.items() if table in names}
        if not kept:
            raise UsageError(f"the agent has no table {' or '.join(wanted)}, see `zeek-agent doctor`")
        return kept

    def _wait_for_first_run(self, responder: Responder, sql: str) -> None:
        """Events after it are reported; those before it are in the history."""
        asked = f"SELECT runs FROM zeek_agent_queries WHERE sql = {watch_query.literal(sql)} AND runs > 0"
        deadline = time.monotonic() + READY_SECONDS
        while not responders.query(responder, asked)[1]:
            if time.monotonic() > deadline:
                raise ZeekAgentError(f"the agent has not run the query within {READY_SECONDS:.0f} s")
            time.sleep(0.05)

    def _past(self, responder: Responder, wanted: Mapping[str, str]) -> str:
        """A statement for the events before the first run that have not been written."""
        after = dict(self._last)
        for table in wanted:
            newest = _number(responders.query(responder, f"SELECT max(seq) FROM {table}_history")[1])
            if newest is not None and newest < after.get(table, 0):  # another event store, which counts from 1
                after[table] = self._last[table] = 0
        since = None if self._last else self._since
        return watch_query.statement(wanted, history=True, after=after, since=since)

    def _write_rows(self, rows: Iterable[Sequence[Any]], written: Mapping[str, int]) -> None:
        """Write events, which are in the order of time, except those up to a number by table."""
        for row in rows:
            event = dict(zip(COLUMNS, row, strict=True))
            table, number = event["kind"], event["seq"]
            if number > written.get(table, 0):
                self._last[table] = max(number, self._last.get(table, 0))
                self._write(event)


def _users(responder: Responder) -> dict[str, int]:
    """Ids of users by name; the table has them as text, as in Zeek Agent v2."""
    rows: list[Any] = responders.query(responder, "SELECT name, uid FROM users")[1]
    return {name: int(uid) for name, uid in rows if name is not None and uid is not None}


def _number(rows: Sequence[Sequence[Any]]) -> int | None:
    """The only value of a result."""
    ((value,),) = rows
    return None if value is None else int(value)


class AgentGoneError(ZeekAgentError):
    """The agent ended the subscription."""


def _subscribed(responder: Responder, request: SubscribeRequest) -> Iterator[Frame]:
    """The frames of a subscription, which is made at once. Raises AgentGoneError at its end."""
    frames: queue.Queue[Frame | ZeekAgentError] = queue.Queue(FRAMES_MAX)

    def read() -> None:
        try:
            for frame in responders.explained(responder, request):
                frames.put(frame)
            frames.put(AgentGoneError("the agent ended the subscription"))
        except SqlError as error:
            frames.put(error)
        except ZeekAgentError as error:
            frames.put(AgentGoneError(str(error)))

    threading.Thread(target=read, name="subscription", daemon=True).start()
    return _unqueued(frames)


def _unqueued(frames: queue.Queue[Frame | ZeekAgentError]) -> Iterator[Frame]:
    while True:
        frame = frames.get()
        if isinstance(frame, ZeekAgentError):
            raise frame
        yield frame
