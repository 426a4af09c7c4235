"""Repositories that packages are installed from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from zeek_agent.host.files.contents import lines
from zeek_agent.host.files.gate import Gate
from zeek_agent.host.files.globbing import matching, open_gate
from zeek_agent.host.files.portable import PortableGate
from zeek_agent.host.files.whole import literal
from zeek_agent.host.packages import repositories
from zeek_agent.host.packages.repositories import AptSource
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import WITHOUT_NAMESPACES, osquery_table
from zeek_agent.text import from_bytes, from_os

apt_sources = osquery_table(
    "apt_sources",
    "package repositories of apt",
    description=(
        "One row per repository and suite of binary packages in `/etc/apt/sources.list` and "
        "`/etc/apt/sources.list.d`, in both formats, whose release file apt has fetched. Passwords in URIs are masked."
    ),
    columns=[
        Column("name", "text", "the URI without its scheme, a blank, and the suite"),
        Column("source", "text", "path of the file that configures it"),
        Column("base_uri", "text", "the URI"),
        Column("release", "text", "code name, from the release file like the rest"),
        Column("version", "text", "version of the distribution", collation="version_dpkg"),
        Column("maintainer", "text", "origin"),
        Column("components", "text", "components that the repository has"),
        Column("architectures", "text", "architectures that it has"),
        WITHOUT_NAMESPACES,
    ],
    opens_files=True,
    examples=["SELECT name, release, maintainer FROM apt_sources"],
)

yum_sources = osquery_table(
    "yum_sources",
    "package repositories of yum and dnf",
    description=(
        "One row per repository in `/etc/yum.conf` and in the directory of repositories, `/etc/yum.repos.d` unless "
        "`/etc/yum.conf` names another one. What a file does not set is empty. Passwords in URLs are masked."
    ),
    columns=[
        Column("name", "text", "name"),
        Column("source", "text", "path of the file that configures it"),
        Column("baseurl", "text", "URLs"),
        Column("mirrorlist", "text", "URL of a list of mirrors"),
        Column("metalink", "text", "URL of a metalink"),
        Column("enabled", "text", "whether it is used, as in the file: mostly `1` or `0`"),
        Column("gpgcheck", "text", "whether signatures of packages are checked"),
        Column("gpgkey", "text", "URLs of keys"),
        WITHOUT_NAMESPACES,
    ],
    opens_files=True,
    examples=["SELECT name, baseurl FROM yum_sources WHERE enabled = '1' AND gpgcheck = '0'"],
)


@apt_sources.snapshot
def sources_of_apt(wanted: Constraints) -> Iterator[Row]:
    gate = open_gate(wanted.context.access, wanted.context.reads, wanted.check)
    mask = wanted.context.access.masker.line
    for file, source in _apt_sources(wanted, gate):
        wanted.check()
        fields = _release(wanted, gate, source)
        if fields is not None:
            uri = mask(from_bytes(source.uri))
            name = f"{uri.partition('://')[2]} {from_bytes(source.suite)}"
            names = (b"codename", b"version", b"origin", b"components", b"architectures")
            yield name, file, uri, *(from_bytes(fields.get(field, b"")) for field in names), None


def _apt_sources(wanted: Constraints, gate: Gate | PortableGate) -> Iterator[tuple[str, AptSource]]:
    """All configured sources with the path of their file."""
    for patterns, parse in (
        (repositories.SOURCE_LISTS, repositories.sources_in_list),
        (repositories.SOURCES_DEB822, repositories.sources_in_deb822),
    ):
        for pattern in patterns:
            for path, content in _contents(wanted, gate, pattern):
                yield from ((path, source) for source in parse(content))


def _release(wanted: Constraints, gate: Gate | PortableGate, source: AptSource) -> dict[bytes, bytes] | None:
    """The fields of the release file that apt has fetched; None without one."""
    for name in source.release_files:
        for _, content in _contents(wanted, gate, literal(repositories.RELEASES + name)):
            return repositories.release_fields(content)
    return None


@yum_sources.snapshot
def sources_of_yum(wanted: Constraints) -> Iterator[Row]:
    gate = open_gate(wanted.context.access, wanted.context.reads, wanted.check)
    mask = wanted.context.access.masker.line
    directory = repositories.YUM_REPOSITORIES
    for pattern in (repositories.YUM_CONFIGURATION, None):
        for file, content in _contents(wanted, gate, pattern or f"{literal(directory)}/*.repo"):
            for section, options in repositories.yum_sections(content):
                if section == b"main":
                    directory = os.fsdecode(options.get(b"reposdir", b"")).rstrip("/") or directory
                    continue
                name, *others = (mask(from_bytes(options.get(name.encode(), b""))) for name in repositories.YUM_OPTIONS)
                yield name, file, *others, None


def _contents(wanted: Constraints, gate: Gate | PortableGate, pattern: str) -> Iterator[tuple[str, Iterable[bytes]]]:
    """Paths and lines of the files that match."""
    for match in matching(gate, pattern, wanted.check, explain=False):
        yield from_os(match.path), lines(match, wanted.context.reads, wanted.check)


TABLES = (apt_sources, yum_sources)
