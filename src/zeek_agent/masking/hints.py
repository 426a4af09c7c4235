"""A cheap decision which command lines, and which of their arguments, might hold a secret and are examined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import re2

from zeek_agent.masking.programs import PROGRAMS
from zeek_agent.masking.text_rules import HINT, OPTION_HINT

EXAMINED_BYTES: Final = 65_536
HINTS_MAX: Final = 256
"""Of a line that is longer or has more hints, the rest is masked if it might hold a secret, so that no line is slow."""
_NAMED: Final = sorted(
    {
        name
        for program in PROGRAMS
        if program.secrets or program.positional or program.follows or program.last_with
        for name in program.names.split()
    }
)
_NAMES: Final = "|".join(map(re2.escape, _NAMED))
_NAMED_PROGRAM: Final = rf"(?:^|[\x00\s/\\;&|(`'\"=])(?:{_NAMES}|(?i:(?:{_NAMES})\.exe))"


def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 32 << 20
    return re2.compile(pattern.encode(), options)


_LINE: Final = _compiled(rf"{HINT}|{OPTION_HINT}|{_NAMED_PROGRAM}[\s\x00'\"]")
_ARGUMENT: Final = _compiled(rf"{HINT}|{_NAMED_PROGRAM}[\s'\"]")


def might_hold_secret(raw: bytes) -> bool:
    """Whether arguments, separated by NULs, have to be examined. Most have not."""
    return _LINE.search(raw) is not None


def hinted(arguments: Sequence[str]) -> frozenset[int]:
    """The indexes of arguments that might hold a secret, whatever the program."""
    raw = "\0".join(arguments).encode()
    found: list[int] = []
    index = position = 0
    for match in _ARGUMENT.finditer(raw):
        end = match.end() - 1
        index += raw.count(b"\0", position, end)
        position = end
        found.append(index)
    return frozenset(found)


def examined(arguments: Sequence[str]) -> int:
    """How many arguments are examined: all, unless they are too long or have too many hints."""
    if sum(map(len, arguments)) <= HINTS_MAX:  # a hint has more than one character
        return len(arguments)
    raw = "\0".join(arguments).encode()
    limit = examined_bytes(raw)
    return len(arguments) if limit == len(raw) else raw.count(b"\0", 0, limit)


def examined_bytes(raw: bytes) -> int:
    """How much of a line is examined."""
    for number, match in enumerate(_ARGUMENT.finditer(raw)):
        if number == HINTS_MAX or match.end() > EXAMINED_BYTES:
            return min(int(match.start()), EXAMINED_BYTES)
    return min(len(raw), EXAMINED_BYTES)
