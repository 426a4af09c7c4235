"""Answers to requests on the control socket, which `query` and `shell` also use without a running agent."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from zeek_agent.control import messages
from zeek_agent.control.messages import Columns, Declarations, Facts, Frame, Note, Pause, Request, Rows
from zeek_agent.database.database import Database, Lane, Profile

if TYPE_CHECKING:
    from zeek_agent.control.server import AnswerFunction
    from zeek_agent.database.database import ResultColumn
    from zeek_agent.queries.runner import QueryRunner
    from zeek_agent.queries.subscriptions import Query, Report


def answering(
    database: Database, runner: Callable[[], QueryRunner], status: Callable[[], Mapping[str, Any]]
) -> AnswerFunction:
    """A function that answers requests, given a database, a runner of repeated queries and the agent's status."""

    async def answer(request: Request, origin: str) -> AsyncGenerator[Frame, None]:
        match request:
            case messages.QueryRequest():
                result = await database.query(
                    request.sql, profile=Profile(request.profile), lane=Lane.LOCAL, origin=origin
                )
                yield _columns(result.columns)
                yield Rows(result.rows)
                for error in result.errors:
                    yield Note(error)
                if result.files:
                    yield Note(result.files.summary(), warning=True)
            case messages.SubscribeRequest():
                async with aclosing(_subscribe(database, runner(), request, origin)) as frames:
                    async for frame in frames:
                        yield frame
            case messages.StatusRequest():
                yield Facts(dict(status()))
            case messages.TablesRequest():
                yield Declarations(messages.declare(database.tables.values()))

    return answer


_CHANGES: Mapping[str | None, messages.ChangeName | None] = {"Add": "Add", "Delete": "Delete", None: None}


class _Subscriber:
    """Recipient of a repeated query's reports, which accepts the next one when the last was passed on."""

    profile = Profile.FULL
    durable = False
    recognizes_replays = False

    def __init__(self, origin: str) -> None:
        self.identity = self.incarnation = f"{origin} {secrets.token_hex(8)}"
        self.reports: asyncio.Queue[Report | str] = asyncio.Queue(1)

    async def deliver(self, report: Report) -> None:
        await self.reports.put(report)
        await self.reports.join()

    async def report_error(self, query_id: str, query: Query, message: str) -> None:
        await self.reports.put(message)


async def _subscribe(
    database: Database, runner: QueryRunner, request: messages.SubscribeRequest, origin: str
) -> AsyncGenerator[Frame, None]:
    """The reports of a repeated query, each ended by `Pause`, until the generator is closed."""
    from zeek_agent.queries.subscriptions import Query, Subscription

    await database.prepare(request.sql, profile=Profile.FULL)
    subscriber = _Subscriber(origin)
    query_id = subscriber.identity
    query = Query(request.sql, "control", request.schedule, Subscription(request.subscription))
    await runner.install(subscriber, query_id, query)
    known: tuple[ResultColumn, ...] = ()
    try:
        while True:
            report = await subscriber.reports.get()
            if isinstance(report, str):
                yield Note(report)
            else:
                if report.columns != known:
                    known = report.columns
                    yield _columns(known)
                yield Rows([row for _, row in report.rows], [_CHANGES[change] for change, _ in report.rows])
                yield Pause()
            subscriber.reports.task_done()
    finally:
        runner.cancel(query_id)


def _columns(columns: tuple[ResultColumn, ...]) -> Columns:
    return Columns([(column.name, str(column.type)) for column in columns])
