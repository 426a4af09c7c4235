"""Paths that match a pattern, as glob(3) finds them, one by one, through the path gate.

`*` matches any text, `?` one character, `[a-z]` and `[!a-z]` a class, a backslash takes the next character as it is.
None of them matches a `/`, nor the dot that a hidden file's name begins with. Paths come in the order of their names
within each directory; there is no limit to their number, and of a directory's names only so many are held at a time.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from zeek_agent.access import AccessPolicy
from zeek_agent.host.files.file_rules import RefusedError
from zeek_agent.host.files.gate import Gate, OpenedFile, Purpose
from zeek_agent.host.files.path_handle import PathHandle
from zeek_agent.host.files.portable import PortableGate
from zeek_agent.host.files.reads import FileReads, Omission
from zeek_agent.host.files.statx import FileStatus

PATTERN_MAX: Final = 8_192
"""Characters of a pattern: twice those of the longest path, as each of them may have a backslash."""
PARTS_MAX: Final = 200
"""Parts of a pattern, each of which is a search inside that for the one before it."""
_SPECIAL: Final = re.compile(r"[*?\[]")
_PARTS: Final = re.compile(r"/+")
_CHECK_EVERY: Final = 64
_NAMES_TOGETHER: Final = 262_144
"""Names of one directory that are held at a time; a larger directory is read again for each further lot of them."""
_NAMES_BEYOND: Final = 65_536
"""How many more are gathered before they are sorted and those that come last are dropped."""
_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})


class Match:
    """A matching path with its directory, which stays open until the next match is requested."""

    __slots__ = ("_directory", "_gate", "_name", "path")

    def __init__(self, gate: Gate | PortableGate, path: str, directory: PathHandle, name: str) -> None:
        self._gate = gate
        self.path = path
        """As the pattern spells it, in the form of `os.fsdecode`."""
        self._directory = directory
        self._name = name

    def open(self, purpose: Purpose) -> OpenedFile | None:
        """Open the regular file that the path leads to; None when it leads to anything else, which is never opened.

        Raises RefusedError and OSError.
        """
        gate = self._gate
        if purpose is Purpose.HASH and self._name == "exe" and gate.is_process(self._directory):
            return gate.open_executable(self._directory)
        return gate.open_regular(gate.walk(self._directory, self._name), _absolute(self.path), purpose)


_Entry: TypeAlias = tuple[str, bool, bool]
"""A name in a directory, and whether it is a link or a directory."""


class _Group(NamedTuple):
    """Those entries of one directory that match."""

    directory: PathHandle
    path: str
    """Of the directory as the pattern spells it, with a slash at its end, or empty."""
    names: list[str]
    """In order; `.` is the directory itself, as `path` has it."""
    links: Collection[str] = ()
    """Which of them are likely to be links."""


def open_gate(access: AccessPolicy, reads: FileReads, check: Callable[[], None] = lambda: None) -> Gate | PortableGate:
    """The path gate of this system, for one statement. `check` is called now and then."""
    return Gate(access, reads, check) if hasattr(os, "O_PATH") else PortableGate(access, reads)


def matching(gate: Gate | PortableGate, pattern: str, check: Callable[[], None] = lambda: None) -> Iterator[Match]:
    """The existing paths, dangling links included. `check` is called now and then.

    Directories that may not be read have no matches; those that the gate refuses to enter are counted in `gate.reads`.
    A relative pattern starts at the working directory.
    """
    for directory, path, names, _ in _groups(gate, pattern, check):
        for name in names:
            yield Match(gate, _spelt(path, name), directory, name)


def listing(
    gate: Gate | PortableGate, pattern: str, check: Callable[[], None] = lambda: None
) -> Iterator[tuple[str, FileStatus | RefusedError | OSError]]:
    """The same paths with the attributes of what they lead to (see `Gate.status`), or why those are not known."""
    for directory, path, names, links in _groups(gate, pattern, check):
        for number, (name, found) in enumerate(gate.statuses(directory, names, links)):
            if number % _CHECK_EVERY == 0:
                check()
            yield _spelt(path, name), found


def _groups(gate: Gate | PortableGate, pattern: str, check: Callable[[], None]) -> Iterator[_Group]:
    if not pattern or "\0" in pattern:
        return
    # Patterns may come from columns such as a program's path, so one that is too long must not end the statement.
    if len(pattern) > PATTERN_MAX:
        cause = f"a pattern of more than {PATTERN_MAX} characters"
        gate.reads.leave_out(Omission.REFUSED, pattern[:PATTERN_MAX], cause)
        return
    parts = [part for part in _PARTS.split(pattern) if part]
    if len(parts) > PARTS_MAX:
        gate.reads.leave_out(Omission.REFUSED, pattern, f"a pattern of more than {PARTS_MAX} parts")
        return
    absolute = pattern.startswith("/")
    try:
        start = gate.root if absolute else gate.working_directory()
    except (OSError, RefusedError) as error:
        _leave_out(gate, pattern, error)
        return
    walk = _Walk(gate, check, directories_only=pattern.endswith("/"))
    yield from walk.below(start, "/" if absolute else "", parts)


class _Walk:
    """The search for one pattern."""

    def __init__(self, gate: Gate | PortableGate, check: Callable[[], None], *, directories_only: bool) -> None:
        self._gate = gate
        self._check = check
        self._directories_only = directories_only

    def below(self, directory: PathHandle, path: str, parts: list[str]) -> Iterator[_Group]:
        """What matches the pattern's `parts` below a directory."""
        for number, part in enumerate(parts, 1):
            rest = parts[number:]
            if _SPECIAL.search(part) is not None:
                yield from self._wildcard(directory, path, part, rest)
                return
            name = _unescaped(part)
            if not rest and not self._directories_only:
                yield from self._literal(directory, path, name)
                return
            deeper = self._directory(directory, name, path + name)
            if deeper is None:
                return
            directory, path = deeper, f"{path}{name}/"
        yield _Group(directory, path, ["."])

    def _wildcard(self, directory: PathHandle, path: str, part: str, rest: list[str]) -> Iterator[_Group]:
        """What matches a part with wildcards, and the parts after it."""
        for entries in self._entries(directory, path, part):
            if not rest and not self._directories_only:
                links = {name for name, is_link, _ in entries if is_link}
                yield _Group(directory, path, [name for name, _, _ in entries], links)
            else:
                yield from self._deeper(directory, path, entries, rest)

    def _deeper(self, directory: PathHandle, path: str, entries: list[_Entry], rest: list[str]) -> Iterator[_Group]:
        """What matches the pattern's `rest` below those entries that lead to directories."""
        for number, (name, is_link, is_directory) in enumerate(entries):
            if number % _CHECK_EVERY == 0:
                self._check()
            if is_link:
                deeper = self._directory(directory, name, path + name)
            elif is_directory:
                deeper = self._subdirectory(directory, name, path + name)
            else:
                continue
            if deeper is not None:
                yield from self.below(deeper, f"{path}{name}/", rest)

    def _subdirectory(self, directory: PathHandle, name: str, path: str) -> PathHandle | None:
        """The directory with that name, which is most likely not a link, or None."""
        try:
            handle = self._gate.enter(directory, name)
        except (OSError, RefusedError) as error:
            _leave_out(self._gate, path, error)
            return None
        return handle if handle.status.is_directory else self._directory(directory, name, path)

    def _literal(self, directory: PathHandle, path: str, name: str) -> Iterator[_Group]:
        """The last part of a pattern, without wildcards, if it is there."""
        try:
            self._gate.entry_status(directory, name)
        except OSError as error:
            _leave_out(self._gate, path + name, error)
            return
        except RefusedError:
            pass  # reported when its attributes or contents are read
        yield _Group(directory, path, [name])

    def _directory(self, directory: PathHandle, name: str, path: str) -> PathHandle | None:
        """The directory that a name leads to, or None."""
        try:
            handle = self._gate.walk(directory, name)
        except (OSError, RefusedError) as error:
            _leave_out(self._gate, path, error)
            return None
        return handle if handle.status.is_directory else None

    def _entries(self, directory: PathHandle, path: str, part: str) -> Iterator[list[_Entry]]:
        """Entries of a directory that match one part of a pattern, in sorted chunks.

        Their types come from getdents(2), so that checking them touches no mount point. Where the file system does
        not report them, each may be either.
        """
        last: str | None = ""
        while last is not None:
            try:
                found, last = self._lot(directory, part, last)
            except (OSError, RefusedError) as error:
                _leave_out(self._gate, path, error)
                return
            yield found

    def _lot(self, directory: PathHandle, part: str, after: str) -> tuple[list[_Entry], str | None]:
        """The matches whose names come first after a name, and the last of them unless there are no more.

        Raises RefusedError and OSError.
        """
        matches = _matcher(part)
        hidden = part.startswith((".", "\\."))
        typed = self._gate.reports_types(directory)
        found: list[_Entry] = []
        last: str | None = None
        for entries in self._gate.entries(directory, self._check):
            found += [
                (name, not typed or entry.is_symlink(), not typed or entry.is_dir(follow_symlinks=False))
                for entry in entries
                if (name := entry.name) > after
                and (last is None or name < last)
                and matches(name)
                and (hidden or name[0] != ".")
            ]
            if len(found) >= _NAMES_TOGETHER + _NAMES_BEYOND:
                last = _shortened(found)
        if len(found) > _NAMES_TOGETHER:
            last = _shortened(found)
        found.sort()
        return found, last


def _shortened(found: list[_Entry]) -> str:
    """Keep those whose names come first; the last of them."""
    found.sort()
    del found[_NAMES_TOGETHER:]
    return found[-1][0]


def _spelt(path: str, name: str) -> str:
    return path if name == "." and path.endswith("/") else path + name


def _leave_out(gate: Gate | PortableGate, path: str, error: OSError | RefusedError) -> None:
    """Count a directory that could not be entered; a missing one, or another kind of file, is not an omission."""
    if isinstance(error, RefusedError):
        gate.reads.leave_out(error.omission, path, str(error))
    elif error.errno not in _NOT_THERE:
        gate.reads.leave_out(Omission.SKIPPED, path, error.strerror or str(error))


def _absolute(path: str) -> str:
    return path if path.startswith("/") else str(Path.cwd() / path)


def _unescaped(part: str) -> str:
    return re.sub(r"\\(.)", r"\1", part) if "\\" in part else part


@lru_cache(maxsize=256)
def _matcher(part: str) -> Callable[[str], object]:
    """Whether a name matches one part of a pattern, in time linear in the name's length."""
    return re.compile(fnmatch.translate(_as_fnmatch(part))).match


def _as_fnmatch(part: str) -> str:
    """The pattern in fnmatch's dialect: `[^…]` as `[!…]`, and what follows a backslash in a class of its own."""
    return re.sub(r"\\(.)|\[\^", lambda match: f"[{match[1]}]" if match[1] else "[!", part)
