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
from zeek_agent.errors import AccessDeniedError, LimitError, SqlError, UsageError, ZeekAgentError
from zeek_agent.schema import ZeekType
from zeek_agent.terminal import responders, watch_query
from zeek_agent.terminal.console import Mode, Printer, plain
from zeek_agent.terminal.watch_lines import WatchLines
from zeek_agent.terminal.watch_query import COLUMNS, Position
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
PAGE_ROWS: Final = 20_000
"""Stored events that are read at once; fewer if `limits` of the agent permit no more."""
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
        self._seen: dict[str, int] = {}
        """The number of the last event that needs not be written any more, by table; empty before the first connection.
        """
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
        """Write events until the agent ends the connection, which is a warning. Raises UsageError and SqlError.

        Before the first events were awaited, any other ZeekAgentError is raised, too.
        """
        try:
            with closing(responder):
                self._write_events(responder)
        except (UsageError, AccessDeniedError):
            raise
        except ZeekAgentError as error:
            if not self._seen:
                raise
            self._warn(f"{error}; watching goes on when it is back")

    def _write_events(self, responder: Responder) -> None:
        uids = _users(responder)
        self.users.update({uid: name for name, uid in uids.items()})
        wanted = self._recorded(responder, watch_query.conditions(self._filters, uids.get))
        newest = self._newest(responder, wanted)
        marked = from_os(f"/* watch {secrets.token_hex(8)} */ {watch_query.statement(wanted)}")
        frames = _subscribed(self._connect(), SubscribeRequest(marked, "Events", SCHEDULE_SECONDS))
        if self._since is not None or self._seen:
            self._wait_for_first_run(responder, marked)
            newest = self._newest(responder, wanted)
            self._write_past(responder, wanted, newest)
        self._seen, self._since = dict(newest), None
        for frame in frames:
            match frame:
                case Rows():
                    self._write_rows(frame.rows, newest)
                case Note(message=message):
                    self._warn(message)

    def _recorded(self, responder: Responder, wanted: Mapping[str, str]) -> dict[str, str]:
        """Without tables that the agent does not have or does not permit. Raises UsageError if none is left."""
        asked = ", ".join(map(watch_query.literal, wanted))
        listed = responders.query(responder, f"SELECT name FROM zeek_agent_tables WHERE name IN ({asked})")[1]
        names = {name for (name,) in listed}
        kept = {table: condition for table, condition in wanted.items() if table in names}
        if not kept:
            raise UsageError(f"the agent has no table {' or '.join(wanted)}, see `zeek-agent doctor`")
        return kept

    def _newest(self, responder: Responder, tables: Iterable[str]) -> dict[str, int]:
        """The number of the newest stored event by table; 0 if there is none."""
        return {
            table: _number(responders.query(responder, f"SELECT max(seq) FROM {table}_history")[1]) or 0
            for table in tables
        }

    def _wait_for_first_run(self, responder: Responder, sql: str) -> None:
        """Events after it are reported; those before it are in the history."""
        asked = f"SELECT runs FROM zeek_agent_queries WHERE sql = {watch_query.literal(sql)} AND runs > 0"
        deadline = time.monotonic() + READY_SECONDS
        while not responders.query(responder, asked)[1]:
            if time.monotonic() > deadline:
                raise ZeekAgentError(f"the agent has not run the query within {READY_SECONDS:.0f} s")
            time.sleep(0.05)

    def _write_past(self, responder: Responder, wanted: Mapping[str, str], newest: Mapping[str, int]) -> None:
        """Write the stored events up to the newest ones that have not been written, page by page."""
        seen = {
            table: number if number <= newest[table] else 0  # another event store, which counts from 1
            for table, number in self._seen.items()
            if table in wanted
        }
        bounds = {table: (seen.get(table, 0), newest[table]) for table in wanted}
        for table, low in seen.items():
            self._report_removed(responder, table, low)
        position: Position | None = None
        rows_max = PAGE_ROWS
        while True:
            page = watch_query.past_statement(wanted, bounds, self._since, position, rows_max)
            try:
                rows = responders.query(responder, page)[1]
            except LimitError:
                if rows_max == 1:
                    raise
                rows_max = max(rows_max // 4, 1)
                continue
            for row in rows:
                event: dict[str, Any] = dict(zip(COLUMNS, row, strict=True))
                position = Position(event["time"], event["kind"], event["seq"])
                self._write(event)
            if len(rows) < rows_max:
                return

    def _report_removed(self, responder: Responder, table: str, low: int) -> None:
        """Warn if the store no longer has the next events after those that were written."""
        oldest = _number(responders.query(responder, f"SELECT min(seq) FROM {table}_history WHERE seq > {low}")[1])
        if oldest is not None and oldest > low + 1:
            self._warn(f"{oldest - low - 1} events of {table} were removed before they could be shown")

    def _write_rows(self, rows: Iterable[Sequence[Any]], written: Mapping[str, int]) -> None:
        """Write events, which are in the order of time, except those up to a number by table."""
        for row in rows:
            event = dict(zip(COLUMNS, row, strict=True))
            table, number = event["kind"], event["seq"]
            if number > written.get(table, 0):
                self._write(event)
                self._seen[table] = max(number, self._seen.get(table, 0))


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
