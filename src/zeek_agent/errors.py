"""Errors shown to users and sent to Zeek. Each message tells what was tried, on what, and what to do."""

from typing import Final

from zeek_agent.text import clipped

MESSAGE_CHARACTERS: Final = 2_000
"""An error's message may contain text from a peer or a table, and is stored and repeated in other messages."""


class ZeekAgentError(Exception):
    """Something failed; the message is a complete text for an operator. Ends the program with exit code 1.

    A message of more than `MESSAGE_CHARACTERS` is truncated.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(clipped(message, MESSAGE_CHARACTERS))


class UsageError(ZeekAgentError):
    """The user gave something invalid: a flag, a configuration value, a file. Exit code 2."""


class SqlError(ZeekAgentError):
    """A statement could not be compiled or run."""


class UnknownTableError(SqlError):
    """A statement reads a table that does not exist; `table` is its name, empty if only the message is known."""

    def __init__(self, message: str, table: str = "") -> None:
        super().__init__(message)
        self.table = table


class DamagedStateError(SqlError):
    """The stored result of a query is damaged."""


class AccessDeniedError(SqlError):
    """A statement uses a forbidden table, file, function or pragma."""


class RevokedError(SqlError):
    """The access rules changed before all rows of a result were sent."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or "the access rules were changed before all rows were sent: run the statement again")


class WorkerUnavailableError(SqlError):
    """No worker process could be started for a statement, which is not the statement's fault."""


class LimitError(SqlError):
    """A statement exceeded a limit on time, rows or size."""
