"""A shell's text, such as the argument of `sh -c`, as commands of words with their places in the text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

_TOKEN: Final = re.compile(
    r"""
      (?P<space>[ \t]+)
    | (?P<end>[;&|()\n`]+|\$\()
    | '(?P<single>[^']*)'?
    | "(?P<double>(?:[^"\\]|\\.)*)"?
    | \\(?P<escaped>.)
    | (?P<plain>[^\s;&|()`'"\\$]+|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPES: Final = re.compile(r'\\([\\"$`\n])')
_QUOTED: Final = re.compile(r"[^\w@%+=:,./*-]")

_ASSIGNMENT: Final = re.compile(r"[A-Za-z_]\w*\+?=")
_VARIABLE: Final = re.compile(r"\$(?:\w+|\{\w+\}|$)")


class Word(NamedTuple):
    """A word without its quotes, and where it stands in the text."""

    value: str
    start: int
    end: int


class Command(NamedTuple):
    """The words of a command, and whether its output is another one's input."""

    words: list[Word]
    piped: bool


def commands(text: str) -> Iterator[Command]:
    """The commands. An unbalanced quote reaches to the end of the text."""
    command: list[Word] = []
    parts: list[str] = []
    start = 0
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        if kind in {"space", "end"}:
            if parts:
                command.append(Word("".join(parts), start, match.start()))
                parts = []
            if kind == "end" and command:
                yield Command(command, match[0] in {"|", "|&"})
                command = []
            continue
        if not parts:
            start = match.start()
        value = match[kind] if kind is not None else ""
        parts.append(_ESCAPES.sub(r"\1", value) if kind == "double" else value)
    if parts:
        command.append(Word("".join(parts), start, len(text)))
    if command:
        yield Command(command, piped=False)


def quoted(value: str) -> str:
    """The word as it is written in a shell's text."""
    if _QUOTED.search(value) is None:
        return value
    return "'" + value.replace("'", "'\\''") + "'"


def is_assignment(word: str) -> bool:
    """Whether a word in front of a command sets a variable."""
    return _ASSIGNMENT.match(word) is not None


def is_variable(word: str) -> bool:
    """Whether a word is a variable, or the beginning of `$(…)`."""
    return _VARIABLE.fullmatch(word) is not None
