"""What /etc/shadow says of passwords and their age (shadow(5)), without their hashes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from zeek_agent.host.files.system_files import system_lines
from zeek_agent.text import from_bytes

SHADOW: Final = Path("/etc/shadow")
_ALGORITHM: Final = re.compile(rb"\$(\w+)\$")
_NUMBER: Final = re.compile(rb"[0-9]{1,18}")


class PasswordState(NamedTuple):
    """An entry of shadow(5). Days are counted from the epoch; a value that the file does not have is None."""

    user: str
    status: str
    """`active`, `locked`, `empty`, or `not_set` (`!!`)."""
    algorithm: str
    """The identifier of crypt(5), such as `y` or `6`; empty without one, as for a locked password."""
    last_change: int | None
    min_days: int | None
    max_days: int | None
    warning_days: int | None
    inactive_days: int | None
    expire: int | None
    flag: int | None


def password_states(report: Callable[[str], None], file: Path = SHADOW) -> Iterator[PasswordState]:
    """The entries in the order of the file; `report` is called with a sentence if the file cannot be read."""
    for line in system_lines(file, report):
        fields = line.split(b":", 8)
        if len(fields) < 2 or not fields[0] or fields[0].startswith((b"#", b"+", b"-")):
            continue
        found = _ALGORITHM.match(fields[1])
        numbers = [int(field) if _NUMBER.fullmatch(field) else None for field in fields[2:]]
        yield PasswordState(
            from_bytes(fields[0]),
            _status(fields[1]),
            from_bytes(found[1]) if found else "",
            *numbers,
            *[None] * (7 - len(numbers)),
        )


def _status(password: bytes) -> str:
    if not password:
        return "empty"
    if password == b"!!":
        return "not_set"
    return "locked" if password.startswith((b"!", b"*", b"x")) else "active"
