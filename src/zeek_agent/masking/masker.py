"""Masks secrets in the arguments of programs.

Most command lines hold no secret: one search of the whole line decides that, and only a line that might hold one is
examined argument by argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from zeek_agent import text
from zeek_agent.masking.arguments import kind_of, masked_command, masked_script, program_name
from zeek_agent.masking.command_line import CommandLine
from zeek_agent.masking.hints import examined, examined_bytes, might_hold_secret
from zeek_agent.masking.text_rules import MASK, Spans, masked_text


class Masker:
    """Masks command lines by the rules of this package and, in addition, by regular expressions. Thread-safe.

    `patterns` matches what is masked in the arguments joined by blanks. `enabled`: whether the package's rules apply.
    """

    def __init__(self, patterns: Any | None = None, *, enabled: bool = True) -> None:
        self._patterns = patterns
        self._enabled = enabled

    def adopt(self, other: Masker) -> None:
        """Mask by the rules of another one from now on."""
        self._patterns, self._enabled = other._patterns, other._enabled

    def command_line(self, raw: bytes, *, cut: bool = False) -> CommandLine:
        """Arguments, each with its NUL, masked. `cut`: there are more, and the last one is incomplete."""
        raw = raw.removesuffix(b"\0")
        line = text.from_bytes(raw)
        if self._enabled and (cut or might_hold_secret(raw)):
            line = "\0".join(_masked(line.split("\0"), cut))
        if self._patterns is not None and self._patterns.search(line.replace("\0", " ")) is not None:
            line = "\0".join(_masked_by_pattern(line.split("\0"), self._patterns))
        return CommandLine(line, cut)

    def line(self, line: str) -> str:
        """A command line of which only the joined text is known, masked."""
        if self._enabled:
            raw = text.to_bytes(line)
            if might_hold_secret(raw.replace(b" ", b"\0")) or might_hold_secret(raw):
                line = _masked_line(raw)
        return line if self._patterns is None else _masked_by_pattern([line], self._patterns)[0]


def _masked(arguments: list[str], cut: bool) -> list[str]:
    count = examined(arguments)
    rest = arguments[count:]
    if rest and might_hold_secret("\0".join([*rest, ""]).encode()):
        rest = [MASK] * len(rest)
    if " " in arguments[0] and count:  # a title, by which a program replaced its arguments
        arguments = [_masked_line(text.to_bytes(arguments[0])), *arguments[1:]]
    return masked_command(arguments[:count], cut=cut and not rest) + rest


def _masked_line(raw: bytes) -> str:
    limit = examined_bytes(raw)
    line = text.from_bytes(raw[:limit])
    line = masked_text(line, kind_of(program_name(line.partition(" ")[0])), joined=True)
    if "  " not in line:  # else there are empty arguments, which a shell would skip
        line = masked_script(line, 0)
    return " ".join(masked_command(line.split(" "))) + (MASK if limit < len(raw) else "")


def _masked_by_pattern(arguments: Sequence[str], patterns: Any) -> list[str]:
    """The arguments with all matches in the joined line masked, in each argument that a match touches."""
    starts = list(accumulate((len(argument) + 1 for argument in arguments), initial=0))
    spans = [Spans() for _ in arguments]
    index = 0
    for match in patterns.finditer(" ".join(arguments)):
        start, end = match.span()
        while starts[index + 1] <= start:
            index += 1
        at = index
        while at < len(arguments) and starts[at] < end:
            spans[at].add(max(start - starts[at], 0), min(end - starts[at], len(arguments[at])))
            at += 1
    return [found.applied(argument) for found, argument in zip(spans, arguments, strict=True)]
