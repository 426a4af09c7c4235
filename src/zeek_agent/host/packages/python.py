"""Python packages, from the metadata that installers leave next to them (PEP 376 and 427, and setuptools' eggs)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from zeek_agent.host.files.contents import lines
from zeek_agent.host.files.gate import Gate
from zeek_agent.host.files.globbing import listing, matching
from zeek_agent.host.files.portable import PortableGate
from zeek_agent.host.files.statx import FileStatus
from zeek_agent.host.files.whole import literal
from zeek_agent.text import from_bytes, from_os

_SUFFIXES: Final = {".dist-info": "METADATA", ".egg-info": "PKG-INFO"}
"""Of the directories that have metadata, and the file that has it."""
_FIELD: Final = re.compile(rb"(Name|Version|Summary|Author|License):[ \t]*(.*)", re.DOTALL)
_HEADER_LINES_MAX: Final = 2_000
"""More than metadata has before the blank line that ends it, with license texts."""
_NAMED: Final = re.compile(r"(.+?)-([^-]+?)(?:-py[0-9.]+)?")


class PythonPackage(NamedTuple):
    """A package; fields that its metadata lacks are None. `path` is that of the directory with the metadata."""

    name: str | None
    version: str | None
    summary: str | None
    author: str | None
    license: str | None
    path: str


def python_packages(
    gate: Gate | PortableGate, site: str, where: str, check: Callable[[], None]
) -> Iterator[PythonPackage]:
    """The packages in a directory.

    `site` is in the form of `os.fsdecode`, `where` a pattern of directories below it, with a final slash, or empty;
    `**` does not match hidden directories. Where metadata may not be read, which the gate's `reads` count, name and
    version are those in the name of its directory.
    """
    for path, status in listing(gate, f"{literal(site.rstrip('/'))}/{where}*-info", check):
        stem, suffix = _split(path)
        if suffix not in _SUFFIXES or not isinstance(status, FileStatus) or not status.is_directory:
            continue
        fields = _metadata(gate, f"{path}/{_SUFFIXES[suffix]}", check)
        if not fields and (named := _NAMED.fullmatch(stem)) is not None:
            fields = {"Name": from_os(named[1]), "Version": from_os(named[2])}
        yield PythonPackage(
            fields.get("Name"),
            fields.get("Version"),
            fields.get("Summary"),
            fields.get("Author"),
            fields.get("License"),
            from_os(path),
        )


def _split(path: str) -> tuple[str, str]:
    """The name of a directory, and its suffix."""
    stem, dot, suffix = path.rpartition("/")[2].rpartition(".")
    return stem, dot + suffix


def _metadata(gate: Gate | PortableGate, path: str, check: Callable[[], None]) -> dict[str, str]:
    """The fields in the header of a file of metadata; of a repeated one, the first."""
    fields: dict[str, str] = {}
    for match in matching(gate, literal(path), check, explain=False):
        for number, line in enumerate(lines(match, gate.reads, check)):
            if not line.strip() or number == _HEADER_LINES_MAX:
                break
            found = _FIELD.fullmatch(line)
            if found is not None:
                fields.setdefault(found[1].decode(), from_bytes(found[2].strip()))
    return fields
