"""Splits a command line of Windows, which is one text, into arguments.

By the rules of the C run-time library and CommandLineToArgvW, which nearly all programs apply: blanks separate
arguments unless they are quoted, and backslashes are special only before a quote.
"""

from __future__ import annotations

import re
from typing import Final

_BACKSLASHES: Final = re.compile(r"\\+")


def split_command_line(line: str) -> list[str]:
    """The arguments, the program's name first. Every text is a valid command line."""
    line = line.lstrip(" \t")
    if not line:
        return []
    program, rest = _program(line)
    arguments = [program]
    position = 0
    while True:
        while position < len(rest) and rest[position] in " \t":
            position += 1
        if position == len(rest):
            return arguments
        argument, position = _argument(rest, position)
        arguments.append(argument)


def _program(line: str) -> tuple[str, str]:
    """The program's name, in which a backslash is never special, and the rest of the line."""
    if line.startswith('"'):
        name, _, rest = line[1:].partition('"')
        return name, rest
    end = next((position for position, character in enumerate(line) if character in " \t"), len(line))
    return line[:end], line[end:]


def _argument(line: str, position: int) -> tuple[str, int]:
    """The argument that begins here, and the position after it."""
    pieces: list[str] = []
    is_quoted = False
    while position < len(line):
        character = line[position]
        if (run := _BACKSLASHES.match(line, position)) is not None:
            backslashes, position = len(run[0]), run.end()
            if line[position : position + 1] != '"':
                pieces.append("\\" * backslashes)
                continue
            pieces.append("\\" * (backslashes // 2))
            if backslashes % 2:
                pieces.append('"')
                position += 1
        elif character == '"':
            position += 1
            if is_quoted and line[position : position + 1] == '"':
                pieces.append('"')
                position += 1
            else:
                is_quoted = not is_quoted
        elif character in " \t" and not is_quoted:
            break
        else:
            pieces.append(character)
            position += 1
    return "".join(pieces), position
