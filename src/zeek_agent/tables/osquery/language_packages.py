"""Packages of programming languages."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Final, TypeAlias

from zeek_agent.access import ShownFiles
from zeek_agent.host.files.whole import literal
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints
from zeek_agent.tables.osquery._declaration import WITHOUT_NAMESPACES, osquery_table
from zeek_agent.tables.osquery._paths import NAMESPACE_COLUMNS
from zeek_agent.tables.osquery._user_files import in_time, wanted_homes
from zeek_agent.text import from_os, to_bytes

if TYPE_CHECKING:
    from zeek_agent.host.files.gate import Gate
    from zeek_agent.host.files.portable import PortableGate
    from zeek_agent.host.packages.npm import NodePackage
    from zeek_agent.host.packages.python import PythonPackage

_Sites: TypeAlias = "Callable[[Gate | PortableGate, Callable[[], None]], Iterable[tuple[str, str]]]"
PYTHON_SITES: Final = (
    *(f"{place}/python*/{name}-packages" for place in ("/usr/lib", "/usr/local/lib") for name in ("dist", "site")),
    *(f"{place}/python*/site-packages" for place in ("/usr/lib64", "/usr/local/lib64")),
    *(f"/opt/conda/lib/python*/{name}-packages" for name in ("dist", "site")),
    *(f"/opt/{name}/lib/python*/site-packages" for name in ("miniconda3", "anaconda3")),
)
_PYTHON_VERSIONS: Final = (
    *(".pyenv/versions", ".asdf/installs/python", ".local/share/uv/tools", ".local/share/mise/installs/python"),
    *(".local/share/pipx/venvs", ".local/pipx/venvs", ".cache/pypoetry/virtualenvs"),
    *(".virtualenvs", ".local/share/virtualenvs"),
    *(f"{name}/envs" for name in ("miniforge3", "miniconda3", "anaconda3", "mambaforge")),
)
"""Directories of homes with interpreters or environments, one in each subdirectory."""
_PYTHON_LIBRARIES: Final = (
    ".local/lib/python*",
    *(f"{name}/lib/python*" for name in ("miniforge3", "miniconda3", "anaconda3", "mambaforge")),
)
NODE_SITES: Final = (
    *(".npm-global/lib", ".nvm/versions/node/*/lib", ".asdf/installs/nodejs/*/lib"),
    *(".local/share/fnm/node-versions/*/installation/lib", ".local/share/mise/installs/node/*/lib"),
    ".volta/tools/image/node/*/lib",
)
"""Directories of homes."""
NODE_SITES_OF_SYSTEM: Final = ("/usr/lib", "/usr/local/lib")
HOMES: Final = "/home/*"
NODE_DEPTH_MAX: Final = 100
_PYTHON_METADATA: Final = ShownFiles(("/**/*.dist-info/METADATA", "/**/*.egg-info/PKG-INFO"))
_NODE_MANIFESTS: Final = ShownFiles(("/**/node_modules/**/package.json",))

python_packages = osquery_table(
    "python_packages",
    "packages of Python",
    description=(
        "Packages of the system's interpreters, which have uid 0, and in the home directories of the accounts in "
        "`/etc/passwd`, or of those that `uid` names. Where the metadata may not be read, only name and version are "
        "shown, as they are in the name of its directory."
    ),
    columns=[
        Column("name", "text", "name of the package"),
        Column("uid", "int", "user in whose home it is; 0 for packages of the system"),
        Column("version", "text", "version", collation="version"),
        Column("summary", "text", "summary in one line; null without one"),
        Column("author", "text", "author; null without one"),
        Column("license", "text", "license; null without one"),
        Column("path", "text", "directory with its metadata"),
        Column("directory", "text", "directory that was searched, or the one that the statement names"),
        WITHOUT_NAMESPACES,
    ],
    decisive=["uid", "directory"],
    opens_files=True,
    examples=[
        "SELECT name, version, path FROM python_packages WHERE name = 'pip'",
        "SELECT u.username, p.name FROM osquery_users AS u JOIN python_packages AS p USING (uid)",
    ],
)


@python_packages.snapshot
def python(wanted: Constraints) -> Iterator[Row]:
    from zeek_agent.host.files.globbing import open_gate
    from zeek_agent.host.packages.python import python_packages as packages_in

    gate = open_gate(wanted.context.access, wanted.context.reads, wanted.check, _PYTHON_METADATA)

    def search(sites: _Sites, check: Callable[[], None]) -> Iterator[tuple[str, PythonPackage]]:
        for directory, where in sites(gate, check):
            yield from ((directory, package) for package in packages_in(gate, directory, where, check))

    for uid, home, sites in _python_sites(wanted):
        found = search(sites, wanted.check) if home is None else in_time(wanted, home, partial(search, sites))
        for directory, package in found:
            yield (
                package.name,
                uid,
                package.version,
                package.summary,
                package.author,
                package.license,
                package.path,
                from_os(directory),
                None,
            )


def _python_sites(wanted: Constraints) -> Iterator[tuple[int, str | None, _Sites]]:
    """Uids, each with a home directory if it is a user's, and a search for directories.

    The search yields patterns of directories below each that have packages. Only in a directory that the statement
    names, packages are searched everywhere: elsewhere these would be copies inside of other packages, among ten
    thousands of directories.
    """
    directories = _asked_directories(wanted)
    if directories is not None:
        yield 0, None, lambda gate, check: ((directory, "**/") for directory in directories)
        return
    uids = wanted.integers("uid")
    if uids is None or 0 in uids:
        yield 0, None, lambda gate, check: ((found, "") for found in _directories(gate, PYTHON_SITES, check))
    for account, home in wanted_homes(wanted):
        yield account.uid, home, partial(_python_sites_of_user, literal(home))


def _python_sites_of_user(
    place: str, gate: Gate | PortableGate, check: Callable[[], None]
) -> Iterator[tuple[str, str]]:
    environments = [f"{place}/{name}/*/lib/python*/site-packages" for name in _PYTHON_VERSIONS]
    yield from ((directory, "") for directory in _directories(gate, environments, check))
    libraries = [f"{place}/{name}" for name in _PYTHON_LIBRARIES]
    yield from ((directory, "*/") for directory in _directories(gate, libraries, check))


npm_packages = osquery_table(
    "npm_packages",
    "packages of Node.js",
    description=(
        "Packages that are installed globally, by the system or by users in `/home`, with the packages inside of them. "
        "Where a `package.json` may not be read, only the name is shown, as it is in the name of its directory."
    ),
    columns=[
        Column("name", "text", "name of the package"),
        Column("version", "text", "version", collation="version"),
        Column("description", "text", "description; null without one"),
        Column("author", "text", "author; null without one"),
        Column("license", "text", "license, or the URL of its text; null without one"),
        Column("homepage", "text", "home page; null without one"),
        Column("path", "text", "its `package.json`"),
        Column("directory", "text", "directory with the `node_modules` that was searched, or the one that is named"),
        Column("depth", "int", "packages in which it is"),
        Column("max_depth", "int", f"greatest depth, {NODE_DEPTH_MAX} unless it is given; -1: any", hidden=True),
        *NAMESPACE_COLUMNS,
    ],
    decisive=["directory", "max_depth"],
    opens_files=True,
    examples=[
        "SELECT name, version, path FROM npm_packages WHERE depth = 0",
        "SELECT name, version FROM npm_packages WHERE directory = '/home/me/project' AND max_depth = 1",
    ],
)


@npm_packages.snapshot
def node(wanted: Constraints) -> Iterator[Row]:
    from zeek_agent.host.files.globbing import open_gate
    from zeek_agent.host.packages.npm import node_packages

    gate = open_gate(wanted.context.access, wanted.context.reads, wanted.check, _NODE_MANIFESTS)

    def search(
        patterns: Iterable[str] | None, depth: int, check: Callable[[], None]
    ) -> Iterator[tuple[str, NodePackage]]:
        asked = _asked_directories(wanted) or ()
        for directory in asked if patterns is None else _directories(gate, patterns, check):
            yield from ((directory, package) for package in node_packages(gate, directory, depth, check))

    for given in wanted.integers("max_depth") or [NODE_DEPTH_MAX]:
        depth = NODE_DEPTH_MAX if given == -1 else min(given, NODE_DEPTH_MAX)
        if _asked_directories(wanted) is not None:
            found = search(None, depth, wanted.check)
        else:
            found = chain(
                search(NODE_SITES_OF_SYSTEM, depth, wanted.check),
                *(
                    in_time(wanted, home, partial(search, [f"{literal(home)}/{site}" for site in NODE_SITES], depth))
                    for home in (path.rstrip("/") for path in _directories(gate, [HOMES], wanted.check))
                ),
            )
        for directory, package in found:
            *fields, found_depth = package
            yield *fields, from_os(directory), found_depth, given, None, None


def _asked_directories(wanted: Constraints) -> list[str] | None:
    """The directories that the statement names, in the form of `os.fsdecode`; relative ones are left out."""
    asked = wanted.equal("directory")
    if asked is None:
        return None
    return [os.fsdecode(to_bytes(one)) for one in sorted(map(str, asked)) if one.startswith("/")]


def _directories(gate: Gate | PortableGate, patterns: Iterable[str], check: Callable[[], None]) -> Iterator[str]:
    """The directories that match, with a final slash, as osquery has them."""
    from zeek_agent.host.files.globbing import listing
    from zeek_agent.host.files.statx import FileStatus

    for pattern in patterns:
        for path, status in listing(gate, pattern, check):
            if isinstance(status, FileStatus) and status.is_directory:
                yield f"{path}/"


TABLES = (python_packages, npm_packages)
