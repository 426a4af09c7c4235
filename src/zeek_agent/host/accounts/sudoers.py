"""Lines of sudoers(5), with the files that they include."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from zeek_agent.host.files.system_files import system_lines

SUDOERS: Final = Path("/etc/sudoers")
NESTED_MAX: Final = 128
"""As in sudo."""
_COMMENT: Final = re.compile(rb"#(?!include(?:dir)?[ \t]|\d)")
"""A number after `#` is a user's id."""
_INCLUDED: Final = frozenset({b"#include", b"@include"})
_INCLUDED_DIRECTORIES: Final = frozenset({b"#includedir", b"@includedir"})


class SudoLine(NamedTuple):
    """A line with those that continue it: its first word, and the rest."""

    file: Path
    header: bytes
    details: bytes


def sudo_lines(
    report: Callable[[str], None], file: Path = SUDOERS, including: tuple[str, ...] = ()
) -> Iterator[SudoLine]:
    """All lines but comments, each include followed by the lines of what it includes.

    `report` is called with a sentence about each file that cannot be read. `including` are the real paths of the
    files that lead to it.
    """
    real = os.path.realpath(file)
    if real in including or len(including) >= NESTED_MAX:
        report(f"{file} is included by itself, or in more than {NESTED_MAX} files")
        return
    for text in _joined(system_lines(file, report)):
        words = text.split(None, 1)
        header, details = words[0], words[1] if len(words) > 1 else b""
        if header not in _INCLUDED and header not in _INCLUDED_DIRECTORIES:
            yield SudoLine(file, header, details)
        elif details:
            yield SudoLine(file, header, details)
            target = file.parent / os.fsdecode(details.strip(b'"'))
            targets = [target] if header in _INCLUDED else _in_directory(target, report)
            for included in targets:
                yield from sudo_lines(report, included, (*including, real))


def _joined(lines: Iterator[bytes]) -> Iterator[bytes]:
    """The lines other than comments, with those that continue them."""
    begun = b""
    for raw in lines:
        line = raw.strip()
        if not line or (not begun and _COMMENT.match(line)):
            continue
        if line.endswith(b"\\"):
            begun += line[:-1]
            continue
        yield begun + line
        begun = b""
    if begun.strip():
        yield begun


def _in_directory(directory: Path, report: Callable[[str], None]) -> list[Path]:
    """The files that sudo reads there: those without a dot in their names, and without a tilde at the end."""
    try:
        names = sorted(entry.name for entry in os.scandir(directory) if entry.is_file())
    except OSError as error:
        report(f"{directory} cannot be read: {error.strerror or error}")
        return []
    return [directory / name for name in names if "." not in name and not name.endswith("~")]
