"""Answers to requests on the control socket, which `query` and `shell` also use without a running agent."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Protocol

from zeek_agent.control import messages
from zeek_agent.control.messages import (
    Columns,
    Declarations,
    EncodedLines,
    Facts,
    Frame,
    Note,
    Pause,
    Request,
    Rows,
    Text,
)
from zeek_agent.database.database import Lane, Profile, Result, SqlDatabase
from zeek_agent.database.encodings import ControlEncoding
from zeek_agent.database.sql_connection import DIALECTS
from zeek_agent.database.time_columns import with_time_types
from zeek_agent.errors import RevokedError, ZeekAgentError
from zeek_agent.table_declarations import declare

if TYPE_CHECKING:
    from zeek_agent.control.server import AnswerFunction
    from zeek_agent.database.results import EncodedRows, ResultColumn
    from zeek_agent.queries.runner import QueryRunner
    from zeek_agent.queries.subscriptions import Query, Report


def answering(
    database: SqlDatabase,
    runner: Callable[[], QueryRunner],
    status: Callable[[], Mapping[str, Any]],
    agent: Controls | None = None,
) -> AnswerFunction:
    """A function that answers requests, given a database, a runner of repeated queries, the agent's status and, if it
    is running, the agent."""

    async def answer(request: Request, origin: str) -> AsyncGenerator[Frame | EncodedLines, None]:
        match request:
            case messages.QueryRequest():
                async for frame in _query(database, request, origin):
                    yield frame
            case messages.CompileRequest():
                yield await _compile(database, request, origin)
            case messages.SubscribeRequest():
                async with aclosing(_subscribe(database, runner(), request, origin)) as frames:
                    async for frame in frames:
                        yield frame
            case messages.StatusRequest():
                yield Facts(dict(status()))
            case messages.TablesRequest():
                yield Declarations(declare(database.tables.values()))
            case _:
                yield Text(await _controlled(_running(agent), request))

    return answer


class Controls(Protocol):
    """What only a running agent answers."""

    def metrics(self) -> str:
        """Its metrics, in Prometheus' exposition format."""
        ...

    async def reload(self) -> str:
        """Apply the configuration as it is now; says what was applied. Raises UsageError for an invalid one."""
        ...


def _running(agent: Controls | None) -> Controls:
    if agent is None:
        raise ZeekAgentError("no agent is running")
    return agent


async def _controlled(agent: Controls, request: messages.MetricsRequest | messages.ReloadRequest) -> str:
    return agent.metrics() if isinstance(request, messages.MetricsRequest) else await agent.reload()


async def _compile(database: SqlDatabase, request: messages.CompileRequest, origin: str) -> Columns:
    profile = Profile(request.profile)
    statement = await database.prepare(request.sql, profile=profile, lane=Lane.LOCAL, origin=origin)
    return _columns(statement.columns)


async def _query(
    database: SqlDatabase, request: messages.QueryRequest, origin: str
) -> AsyncGenerator[Frame | EncodedLines, None]:
    """The result of one statement."""
    profile = Profile(request.profile)
    result = await database.encoded(request.sql, ControlEncoding(), profile=profile, lane=Lane.LOCAL, origin=origin)
    yield _columns(_printed(database, request.sql, profile, result.columns))
    if isinstance(result, Result):
        yield Rows(result.rows)
    else:
        async for lines in _lines(result):
            yield lines
    for error in result.errors:
        yield Note(error)
    if result.files:
        yield Note(result.files.summary(), warning=True)


_CHANGES: Mapping[str | None, messages.ChangeName | None] = {"Add": "Add", "Delete": "Delete", None: None}


class _Subscriber:
    """Recipient of a repeated query's reports, which accepts the next one when the last was passed on."""

    profile = Profile.FULL
    durable = False
    recognizes_replays = False

    def encoding(self, report: Report) -> ControlEncoding:
        return ControlEncoding()

    def __init__(self, origin: str) -> None:
        self.identity = self.incarnation = f"{origin} {secrets.token_hex(8)}"
        self.reports: asyncio.Queue[Report | str] = asyncio.Queue(1)
        self.revoked: RevokedError | None = None
        """Why the report that was passed on last was not sent in full."""

    async def deliver(self, report: Report) -> None:
        await self.reports.put(report)
        await self.reports.join()
        revoked, self.revoked = self.revoked, None
        if revoked is not None:
            raise revoked

    async def report_error(self, query_id: str, query: Query, message: str) -> None:
        await self.reports.put(message)


async def _subscribe(
    database: SqlDatabase, runner: QueryRunner, request: messages.SubscribeRequest, origin: str
) -> AsyncGenerator[Frame | EncodedLines, None]:
    """The reports of a repeated query, each ended by `Pause`, until the generator is closed."""
    from zeek_agent.queries.subscriptions import Query, Subscription

    profile = Profile.FULL if request.dialect is None else DIALECTS[request.dialect]
    await database.prepare(request.sql, profile=profile)
    subscriber = _Subscriber(origin)
    query_id = subscriber.identity
    query = Query(request.sql, "control", request.schedule, Subscription(request.subscription), dialect=request.dialect)
    await runner.install(subscriber, query_id, query)
    installed = next((one for one in runner.installed if one.query_id == query_id), None)
    known: tuple[ResultColumn, ...] = ()
    lost = 0
    try:
        while True:
            report = await subscriber.reports.get()
            if installed is not None and installed.lost > lost:
                yield Note(f"{installed.lost - lost} events were removed from the store before they could be sent")
                lost = installed.lost
            if isinstance(report, str):
                yield Note(report)
            else:
                if report.columns != known:
                    known = report.columns
                    yield _columns(_printed(database, request.sql, profile, known))
                try:
                    if report.encoded is None:
                        yield Rows([row for _, row in report.rows], [_CHANGES[change] for change, _ in report.rows])
                    else:
                        async for lines in _lines(report.encoded):
                            yield lines
                except RevokedError as error:
                    subscriber.revoked = error
                    yield Note(str(error), warning=True)
                yield Pause()
            subscriber.reports.task_done()
    finally:
        runner.cancel(query_id)


async def _lines(rows: EncodedRows) -> AsyncIterator[EncodedLines]:
    try:
        async for batch in rows.batches():
            for frame in batch.frames:
                rows.check()
                yield EncodedLines([frame])
    finally:
        rows.close()


def _printed(
    database: SqlDatabase, sql: str, profile: Profile, columns: tuple[ResultColumn, ...]
) -> tuple[ResultColumn, ...]:
    """The columns as commands print them. osquery's tables have no times, only numbers."""
    return columns if profile is Profile.OSQUERY else with_time_types(sql, database.readable_tables, columns)


def _columns(columns: tuple[ResultColumn, ...]) -> Columns:
    return Columns([(column.name, str(column.type)) for column in columns])
