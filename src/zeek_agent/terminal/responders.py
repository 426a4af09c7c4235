"""Queries of the host through a running agent's control socket, or else in this process."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from zeek_agent import paths
from zeek_agent.control import messages
from zeek_agent.control.messages import (
    Columns,
    ControlClient,
    Declarations,
    Facts,
    Frame,
    NoAgentError,
    Note,
    ProfileName,
    Request,
    Rows,
    Text,
)
from zeek_agent.errors import SqlError, ZeekAgentError
from zeek_agent.schema import Row, ZeekType
from zeek_agent.table import Table
from zeek_agent.table_declarations import declared
from zeek_agent.terminal.suggestions import as_in_osquery, with_suggestion
from zeek_agent.text import from_os

if TYPE_CHECKING:
    from zeek_agent.config.declarations import Config

_F = TypeVar("_F", bound=Frame)


class Responder(Protocol):
    """Answers requests. Closing the iterator of an answer aborts it."""

    @property
    def notice(self) -> str | None:
        """What users should know about the answers so far: that no agent is running, how old the events are.

        None if a running agent answers.
        """
        ...

    @property
    def place(self) -> str:
        """Who answers, for the shell's greeting."""
        ...

    def responses(self, request: Request) -> Generator[Frame, None, None]:
        """The frames of the answer. Raises ZeekAgentError."""
        ...

    def close(self) -> None: ...


class AgentResponder:
    """Sends requests to a running agent; each request has its own connection, so that it can be aborted."""

    notice: str | None = None

    def __init__(self, client: ControlClient) -> None:
        self._path = client.path
        self.place = f"the running agent on {client.path}"
        self._client: ControlClient | None = client

    def responses(self, request: Request) -> Generator[Frame, None, None]:
        client, self._client = self._client or ControlClient(self._path), None
        complete = False
        try:
            yield from client.responses(request)
            complete = True
        finally:
            if complete and self._client is None:
                self._client = client
            else:
                client.close()

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


def connect(config: Config) -> AgentResponder:
    """A responder of the running agent. Raises NoAgentError if none is running, ZeekAgentError if it is unreachable."""
    refusal: ZeekAgentError | None = None
    sockets = paths.locate_for_commands(config).sockets
    for path in sockets:
        try:
            return AgentResponder(ControlClient(path))
        except NoAgentError:
            continue
        except ZeekAgentError as error:
            refusal = error
    raise refusal or NoAgentError(f"no agent is running (nothing listens on {' or '.join(map(str, sockets))})")


def open_responder(config: Config, origins: Mapping[str, str]) -> Responder:
    """A responder of the running agent, or else in this process, with a warning if a running agent is unreachable."""
    reason = "no agent is running"
    try:
        return connect(config)
    except NoAgentError:
        pass
    except ZeekAgentError as error:
        sys.stderr.write(f"zeek-agent: {error}; continuing without it\n")
        reason = "the agent is not used"
    from zeek_agent.terminal.local_responder import LocalResponder

    return LocalResponder(config, origins, reason)


def query(
    responder: Responder, sql: str, profile: ProfileName = "full"
) -> tuple[list[tuple[str, ZeekType]], list[Row], list[Note]]:
    """Columns, rows, and notes of omitted data. Raises SqlError, which names the nearest name for an unknown one."""
    columns: list[tuple[str, ZeekType]] = []
    rows: list[Row] = []
    notes: list[Note] = []
    for frame in explained(responder, messages.QueryRequest(from_os(sql), profile)):
        match frame:
            case Columns():
                columns = typed_columns(frame)
            case Rows():
                rows.extend(frame.rows)
            case Note():
                notes.append(frame)
    return columns, rows, notes


def explained(
    responder: Responder, request: messages.QueryRequest | messages.SubscribeRequest
) -> Generator[Frame, None, None]:
    """The frames of the answer to a statement. Raises SqlError, which names the nearest name for an unknown one."""
    try:
        with closing(responder.responses(request)) as frames:
            yield from frames
    except SqlError as error:
        in_osquery = "osquery" in (getattr(request, "profile", None), getattr(request, "dialect", None))

        def known() -> list[Table]:
            return as_in_osquery(tables(responder)) if in_osquery else tables(responder)

        raise type(error)(with_suggestion(str(error), request.sql, known)) from None


def typed_columns(frame: Columns) -> list[tuple[str, ZeekType]]:
    """Names and types of result columns."""
    return [(name, ZeekType.parse(kind)) for name, kind in frame.columns]


def tables(responder: Responder) -> list[Table]:
    """The declarations of all tables, by name."""
    frame = _only(responder.responses(messages.TablesRequest()), Declarations)
    return sorted(declared(frame.tables), key=lambda table: table.name)


def status(responder: Responder) -> dict[str, Any]:
    """The status of the agent."""
    return _only(responder.responses(messages.StatusRequest()), Facts).facts


def metrics(responder: Responder) -> str:
    """The metrics of the agent, in Prometheus' exposition format."""
    return _only(responder.responses(messages.MetricsRequest()), Text).text


def reload(responder: Responder) -> str:
    """Have the agent apply its configuration; what it says of it. Raises UsageError for an invalid configuration."""
    return _only(responder.responses(messages.ReloadRequest()), Text).text


def _only(frames: Iterator[Frame], kind: type[_F]) -> _F:
    for frame in frames:
        if isinstance(frame, kind):
            return _drained(frame, frames)
    raise ZeekAgentError(f"the agent's reply contains no {kind.__name__.lower()}; is it a different version?")


def _drained(frame: _F, frames: Iterator[Frame]) -> _F:
    """The frame, after reading the rest of the answer, so that the connection can be used again."""
    for _ in frames:
        pass
    return frame
