"""Files in which shells keep the commands of a user."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

HISTORY_FILES: Final = (
    *(".bash_history", ".zsh_history", ".zhistory", ".history", ".sh_history", ".ash_history"),
    ".bash_sessions/*.history",
)
"""Patterns relative to the home directory."""
_BASH_TIME: Final = re.compile(rb"#([0-9]{1,18})")
_ZSH_TIME: Final = re.compile(rb": {0,10}([0-9]{1,11}):[0-9]+;(.*)", re.DOTALL)


class ShellCommand(NamedTuple):
    """A command; `time` is in seconds since the epoch, 0 if the shell does not record it."""

    time: int
    command: bytes


def shell_commands(lines: Iterable[bytes]) -> Iterator[ShellCommand]:
    """The commands in a history of bash, where a line with the time may precede each, of zsh, or of another shell."""
    time: int | None = None
    for line in lines:
        command = line.strip()
        stamp = _BASH_TIME.fullmatch(command)
        if time is not None:
            yield ShellCommand(time, command)
            time = None
        elif stamp is not None:
            time = int(stamp[1])
        elif (found := _ZSH_TIME.fullmatch(command)) is not None:
            yield ShellCommand(int(found[1]), found[2])
        else:
            yield ShellCommand(0, command)
