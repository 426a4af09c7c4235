"""The errors that people and Zeek get to see. Each message says what was tried, on what, and what to do."""

from typing import Final

from zeek_agent.text import clipped

MESSAGE_CHARACTERS: Final = 2_000
"""An error's message may repeat what a peer or a table said, is kept as the last error and put into others."""


class ZeekAgentError(Exception):
    """Something failed; the message is complete and fit for an operator. Ends the program with exit code 1.

    A message of more than `MESSAGE_CHARACTERS` is cut.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(clipped(message, MESSAGE_CHARACTERS))


class UsageError(ZeekAgentError):
    """The user asked for something that cannot be: a flag, a configuration value, a file. Exit code 2."""


class SqlError(ZeekAgentError):
    """A statement could not be compiled or run."""


class UnknownTableError(SqlError):
    """A statement reads a table that there is not; `table` is its name."""

    def __init__(self, message: str, table: str) -> None:
        super().__init__(message)
        self.table = table


class AccessDeniedError(SqlError):
    """A statement touches a table, file, function or pragma that it may not use."""


class LimitError(SqlError):
    """A statement ran into a limit on time, rows or size."""
