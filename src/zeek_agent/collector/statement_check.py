"""Whether statements run on an agent, and the class of the reason why one does not."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

from zeek_agent.errors import AccessDeniedError, SqlError, UnknownTableError


class Verdict(StrEnum):
    """Whether a statement runs; the value is the heading of its class."""

    RUNS = "runs"
    NO_TABLE = "no such table"
    NO_COLUMN = "no such column"
    NO_VALUE = "no value for a required column"
    NO_FUNCTION = "unknown function"
    SYNTAX = "syntax error"
    PLATFORM = "other platform"
    DENIED = "denied"
    OTHER = "other error"


_MESSAGES: Final = (
    (Verdict.NO_TABLE, re.compile(r"no such table")),
    (Verdict.NO_COLUMN, re.compile(r"no such column|has no column|cannot join using column")),
    (Verdict.NO_VALUE, re.compile(r"^table \S+: (?:a value for .* is required|parameter \S+ is required)")),
    (
        Verdict.NO_FUNCTION,
        re.compile(r"no such function|wrong number of arguments to function|^function \S* may not be used"),
    ),
    (
        Verdict.SYNTAX,
        re.compile(
            r"syntax error|incomplete input|unrecognized token|there is no statement|only one statement"
            r"|misuse of aggregate|do not have the same number of result columns"
        ),
    ),
)
"""What SQLite and the agent write, whichever process compiled the statement."""


def verdict(error: SqlError) -> Verdict:
    """The class of a statement's failure."""
    if isinstance(error, UnknownTableError):
        return Verdict.NO_TABLE
    message = str(error)
    found = next((verdict for verdict, pattern in _MESSAGES if pattern.search(message)), None)
    if found is not None:
        return found
    return Verdict.DENIED if isinstance(error, AccessDeniedError) else Verdict.OTHER
