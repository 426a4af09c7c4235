"""Packages that dpkg(1) has installed, from the files of its administrative directory.

`status` has a paragraph of `Field: value` lines for each package (deb-control(5)). While dpkg runs, files in `updates`
whose names are numbers have newer paragraphs; dpkg merges them into `status` later.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from zeek_agent.host.files.gate import Gate
from zeek_agent.host.files.globbing import matching
from zeek_agent.host.files.portable import PortableGate
from zeek_agent.host.files.whole import literal, read_whole
from zeek_agent.text import from_bytes, from_os

STATUS_BYTES_MAX: Final = 64 << 20
"""More than ten times the size on hosts with the most packages."""
PACKAGES_MAX: Final = 50_000
"""About as many as Debian has; they are in memory together."""
_PARAGRAPHS_PER_CHECK: Final = 200
_SEPARATOR: Final = re.compile(rb"\n[ \t\r]*\n")
_FIELD: Final = re.compile(
    rb"^(package|version|architecture|status|priority|section|source|installed-size|maintainer):[ \t]*([^\n]*)",
    re.IGNORECASE | re.MULTILINE,
)
_EPOCH: Final = re.compile(rb"\s*+0*+([0-9]*+):")
_SIZE: Final = re.compile(rb"[0-9]{1,18}")


class DebPackage(NamedTuple):
    """A package. Texts are empty where the field is missing; `size` is in KiB, as estimated by whoever built it."""

    name: str
    version: str
    revision: str
    architecture: str
    status: str
    priority: str
    section: str
    source: str
    size: int | None
    maintainer: str


def deb_packages(
    gate: Gate | PortableGate, directory: str, check: Callable[[], None], report: Callable[[str], None]
) -> Iterator[DebPackage]:
    """The packages that are not entirely removed; those of which only configuration files are left are included.

    `directory` is in the form of `os.fsdecode`. Files that may not be read are counted in the gate's `reads`;
    paragraphs without a name and those beyond `PACKAGES_MAX` are reported.
    """
    found: dict[tuple[bytes, bytes], dict[bytes, bytes]] = {}
    nameless = omitted = 0
    for content in _files(gate, directory, check):
        for number, paragraph in enumerate(_paragraphs(content)):
            if number % _PARAGRAPHS_PER_CHECK == 0:
                check()
            fields = {field[1].lower(): field[2].rstrip() for field in _FIELD.finditer(paragraph)}
            name = fields.get(b"package")
            if not name:
                nameless += 1
            elif len(found) < PACKAGES_MAX or (name, fields.get(b"architecture", b"")) in found:
                found[name, fields.get(b"architecture", b"")] = fields
            else:
                omitted += 1
    if nameless:
        report(f"{nameless} entries without a name in the package database {from_os(directory)}")
    if omitted:
        report(f"{omitted} packages beyond the first {PACKAGES_MAX} in the package database {from_os(directory)}")
    for fields in found.values():
        status = fields.get(b"status", b"").split()
        if status and status[-1] != b"not-installed":
            yield _package(fields, status)


def _files(gate: Gate | PortableGate, directory: str, check: Callable[[], None]) -> Iterator[bytes]:
    """The contents of `status` and of what updates it, in order."""
    for name in ("status", "updates/[0-9]*"):
        for match in matching(gate, f"{literal(directory.rstrip('/'))}/{name}", check, explain=False):
            if name == "status" or match.path.rpartition("/")[2].isdecimal():
                content = read_whole(match, gate.reads, STATUS_BYTES_MAX, check)
                if content is not None:
                    yield content


def _paragraphs(content: bytes) -> Iterator[bytes]:
    start = 0
    for separator in _SEPARATOR.finditer(content):
        if separator.start() > start:
            yield content[start : separator.start()]
        start = separator.end()
    if content[start:].strip():
        yield content[start:]


def _package(fields: dict[bytes, bytes], status: list[bytes]) -> DebPackage:
    def text(name: bytes) -> str:
        return from_bytes(fields.get(name, b""))

    version = _without_zero_epoch(fields.get(b"version", b""))
    size = _SIZE.fullmatch(fields.get(b"installed-size", b""))
    return DebPackage(
        text(b"package"),
        from_bytes(version),
        from_bytes(version.rpartition(b"-")[2]) if b"-" in version else "",
        text(b"architecture"),
        from_bytes(b" ".join(status)),
        text(b"priority"),
        text(b"section"),
        text(b"source"),
        None if size is None else int(size[0]),
        text(b"maintainer"),
    )


def _without_zero_epoch(version: bytes) -> bytes:
    """As dpkg writes it: the epoch 0 is left out, unless the rest has a colon too."""
    epoch = _EPOCH.match(version)
    if epoch is None or epoch[1] or b":" in version[epoch.end() :]:
        return version
    return version[epoch.end() :]
