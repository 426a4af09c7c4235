"""Causes for which a gateway refuses something, as the labels of its metrics and in its log."""

from __future__ import annotations

from enum import StrEnum

from zeek_agent.errors import ZeekAgentError


class Cause(StrEnum):
    """Why something of an agent was refused."""

    MALFORMED = "malformed"
    """Not a message of the bus or of the API, or a value that Zeek would not read."""
    IDENTITY = "identity"
    """No valid token proves the agent's id and site; or a site speaks for a session of another one."""
    AGENT = "agent"
    """It names another agent."""
    TOPIC = "topic"
    """It is for a Zeek instance that has not addressed the agent."""
    EVENT = "event"
    """An event that is not that of the query."""
    QUERY = "query"
    """It answers a query that the agent was not sent."""
    CREDIT = "credit"
    """A batch without credit, or larger than its credit."""
    ORDER = "order"
    """A batch is missing before this one, or came twice."""
    REPLY = "reply"
    """A request whose reply would go to somebody else."""
    FLOOD = "flood"
    """It says hello, asks for gateways, or uses a session that has ended too often."""
    SESSION = "session"
    """The agent has no such session here."""
    CLONE = "clone"
    """Another instance with the agent's id has a session."""
    FULL = "full"
    """There are as many agents as the gateway accepts."""
    ZEEK_AWAY = "zeek_away"
    """The gateway has lost Zeek; the agent sends its rows again."""
    DRAINING = "draining"
    """The gateway is stopping."""
    QUERIES = "queries"
    """A query of Zeek for an agent that has as many as the gateway accepts, or that is too large for the bus."""


class RefusedError(ZeekAgentError):
    """Something of an agent is refused."""

    def __init__(self, cause: Cause, message: str) -> None:
        super().__init__(message)
        self.cause = cause
