"""Files by path, directory or SQL pattern, as osquery's tables of files find them."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from zeek_agent.host.files.file_rules import RefusedError
from zeek_agent.host.files.gate import Gate, OpenedFile, Purpose
from zeek_agent.host.files.globbing import Match
from zeek_agent.host.files.path_handle import PathHandle
from zeek_agent.host.files.sql_patterns import Entries, SqlPattern, directory_entries, leave_out, matching_entries
from zeek_agent.host.files.statx import FileStatus

_SPECIAL_NAMES = frozenset({"", ".", ".."})


class NamedFile(NamedTuple):
    """An existing file as a statement names it. Paths are in the form of `os.fsdecode`."""

    path: str
    """As given, or, of a directory that matches a pattern, with a slash at its end."""
    directory: str
    name: str
    """The last component of the path; `.` after a slash."""
    found: FileStatus | RefusedError
    """Attributes of what the path leads to, of a broken link its own; or why a mount point is not entered."""
    may_be_link: bool
    parent: PathHandle
    """The directory that contains `entry`."""
    entry: str

    def link_text(self, gate: Gate) -> str | None:
        """The target of a symbolic link; empty for a magic one of proc(5), None for anything else."""
        if not self.may_be_link:
            return None
        try:
            if not gate.entry_status(self.parent, self.entry).is_link:
                return None
            return gate.link_text(self.parent, self.entry)
        except RefusedError:
            return ""
        except OSError:
            return None

    def open(self, gate: Gate, purpose: Purpose) -> OpenedFile | None:
        """Open a regular file or, for its hash, the executable of a process; None for anything else.

        Raises RefusedError and OSError.
        """
        return Match(gate, self.path, self.parent, self.entry).open(purpose)


@dataclass(frozen=True, slots=True)
class PathQuery:
    """A statement's constraints on paths, all of which hold; the sets are None for any value."""

    paths: frozenset[str] | None = None
    directories: frozenset[str] | None = None
    names: frozenset[str] | None = None
    """Last components of paths."""
    path_patterns: tuple[SqlPattern, ...] = field(default=())
    directory_patterns: tuple[SqlPattern, ...] = field(default=())


def may_be_hashed(gate: Gate, file: NamedFile) -> bool:
    """Whether it is a regular file, or the executable of a process in proc(5)."""
    if isinstance(file.found, RefusedError):
        return False
    return stat.S_ISREG(file.found.mode) or (file.entry == "exe" and gate.is_process(file.parent))


def named_files(gate: Gate, query: PathQuery, check: Callable[[], None]) -> Iterator[NamedFile]:
    """The files that a path, a directory or a pattern of the query names; each spelling of a path once.

    A file need not satisfy the other constraints.
    """
    ways: list[Iterable[NamedFile]] = []
    if query.paths is not None:
        ways.append(_given(gate, query.paths, check))
    else:
        ways += [_matching(gate, pattern, query.names, check) for pattern in query.path_patterns]
    names = query.names
    if query.paths is not None:
        last = frozenset(path.rpartition("/")[2] for path in query.paths)
        names = last if names is None else names & last
    if query.directories is not None:
        ways += [_in_directory(gate, directory, names, check) for directory in sorted(query.directories)]
    else:
        ways += [_in_matching(gate, pattern, names, check) for pattern in query.directory_patterns]
    if len(ways) == 1:
        yield from ways[0]
        return
    seen: set[tuple[str, str]] = set()
    for way in ways:
        for file in way:
            if (file.path, file.directory) not in seen:
                seen.add((file.path, file.directory))
                yield file


def _given(gate: Gate, paths: Iterable[str], check: Callable[[], None]) -> Iterator[NamedFile]:
    for path in sorted(paths):
        check()
        above, _, name = path.rpartition("/")
        if not path.startswith("/"):
            continue
        directory = above.rstrip("/") or "/"
        try:
            if name in _SPECIAL_NAMES:
                handle = gate.walk(gate.root, path)
                if handle.status.is_directory:
                    if not path.rstrip("/"):
                        directory, name = "", "/"
                    yield NamedFile(path, directory, name or ".", handle.status, False, handle, ".")
                continue
            parent = gate.walk(gate.root, above)
            if not parent.status.is_directory:
                continue
        except (OSError, RefusedError) as error:
            leave_out(gate, path, error)
            continue
        for entry, found in gate.statuses(parent, [name], [name]):
            if isinstance(found, OSError):
                leave_out(gate, path, found)
            else:
                yield NamedFile(path, directory, name, found, True, parent, entry)


def _matching(
    gate: Gate, pattern: SqlPattern, names: frozenset[str] | None, check: Callable[[], None]
) -> Iterator[NamedFile]:
    for entries in matching_entries(gate, pattern, check):
        yield from _marked(gate, _narrowed(entries, names))


def _marked(gate: Gate, entries: Entries) -> Iterator[NamedFile]:
    """The entries, with a slash at the end of directories' paths, also where they are reached by a link."""
    parent, path, _, links = entries
    directory = path.rstrip("/") or "/"
    for name, found in gate.statuses(parent, entries.names, links):
        whole = path if name == "." and path.endswith("/") else path + name
        if isinstance(found, OSError):
            leave_out(gate, whole, found)
        elif isinstance(found, RefusedError) or found.is_directory:
            marked = whole if whole.endswith("/") else f"{whole}/"
            yield NamedFile(marked, whole.rstrip("/") or "/", ".", found, False, parent, name)
        else:
            yield NamedFile(whole, directory, name, found, name in links, parent, name)


def _in_directory(
    gate: Gate, directory: str, names: frozenset[str] | None, check: Callable[[], None]
) -> Iterator[NamedFile]:
    """All entries of a directory, also hidden ones."""
    if not directory.startswith("/"):
        return
    try:
        handle = gate.walk(gate.root, directory)
    except (OSError, RefusedError) as error:
        leave_out(gate, directory, error)
        return
    if handle.status.is_directory:
        yield from _listed(gate, handle, directory, names, check)


def _in_matching(
    gate: Gate, pattern: SqlPattern, names: frozenset[str] | None, check: Callable[[], None]
) -> Iterator[NamedFile]:
    """All entries of the directories that match."""
    for each in _matching(gate, pattern, None, check):
        if isinstance(each.found, RefusedError):
            gate.reads.leave_out(each.found.omission, each.path, str(each.found))
        elif each.found.is_directory:
            try:
                handle = gate.walk(each.parent, each.entry)
            except (OSError, RefusedError) as error:
                leave_out(gate, each.path, error)
                continue
            if handle.status.is_directory:
                yield from _listed(gate, handle, each.path, names, check)


def _listed(
    gate: Gate, handle: PathHandle, directory: str, names: frozenset[str] | None, check: Callable[[], None]
) -> Iterator[NamedFile]:
    path = directory if directory.endswith("/") else f"{directory}/"
    for entries in directory_entries(gate, handle, path, check):
        some = _narrowed(entries, names, marked=False)
        for name, found in gate.statuses(handle, some.names, some.links):
            if isinstance(found, OSError):
                leave_out(gate, path + name, found)
            else:
                yield NamedFile(path + name, directory, name, found, name in some.links, handle, name)


def _narrowed(entries: Entries, names: frozenset[str] | None, *, marked: bool = True) -> Entries:
    """The entries whose files may have one of these last components. `marked` if those of directories are `.`."""
    if names is None or (marked and "." in names):
        return entries
    return entries._replace(names=[name for name in entries.names if name in names])
