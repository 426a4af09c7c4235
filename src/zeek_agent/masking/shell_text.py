"""A shell's text, such as the argument of `sh -c`, as commands of words with their places in the text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
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
RESERVED: Final = frozenset({"if", "then", "else", "elif", "while", "until", "do", "!", "{", "time", "coproc"})
"""Words in front of a command."""
_VARIABLE: Final = re.compile(r"\$(?:\w+|\{\w+\}|$)")


class Word(NamedTuple):
    """A word without its quotes, and where it stands in the text."""

    value: str
    start: int
    end: int


class Command(NamedTuple):
    """The words of a command, and what is between it and the previous one: `|`, `;`, `$(`, …"""

    words: list[Word]
    before: str

    @property
    def reads_pipe(self) -> bool:
        """Whether the previous command's output is its input."""
        return "|" in self.before and "||" not in self.before


def commands(text: str) -> Iterator[Command]:
    """The commands. An unbalanced quote reaches to the end of the text."""
    command: list[Word] = []
    parts: list[str] = []
    before: list[str] = []
    start = 0
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        if kind in {"space", "end"}:
            if parts:
                command.append(Word("".join(parts), start, match.start()))
                parts = []
            if kind == "end" and command:
                yield Command(command, "".join(before))
                command, before = [], []
            if kind == "end":
                before.append(match[0])
            continue
        if not parts:
            start = match.start()
        value = match[kind] if kind is not None else ""
        parts.append(_ESCAPES.sub(r"\1", value) if kind == "double" else value)
    if parts:
        command.append(Word("".join(parts), start, len(text)))
    if command:
        yield Command(command, "".join(before))


def feeding(found: Sequence[Command], number: int) -> Iterator[int]:
    """The commands whose output is the input of a command: through pipes, and all of a group `(a; b) | c`."""
    if not found[number].reads_pipe:
        return
    depth = _closed(found, number)
    for index in range(number - 1, -1, -1):
        if not (is_end := found[index].words[0].value in {"}", "fi", "done"}):
            yield index
        opened = found[index].before.count("(") + (found[index].words[0].value in {"{", "if", "for", "while"})
        depth = max(depth - opened, 0)
        if depth or (is_end and not opened):
            depth += found[index].before.count(")")
        elif not found[index].reads_pipe:
            return
        else:
            depth = _closed(found, index)


def _closed(found: Sequence[Command], number: int) -> int:
    """How many groups end in front of a command."""
    return found[number].before.count(")") + (number > 0 and found[number - 1].words[0].value in {"}", "fi", "done"})


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
