"""Paths that match a pattern, as glob(3) finds them, one by one, through the path gate.

`*` matches any text, `?` one character, `[a-z]` and `[!a-z]` a class, a backslash takes the next character as it is.
None of them matches a `/`, nor the dot that a hidden file's name begins with. Paths come in the order of their names
within each directory; there is no limit to their number, and no more than one directory's names are held at a time.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from zeek_agent.access import AccessPolicy
from zeek_agent.host.files.gate import Gate, OpenedFile, Purpose, RefusedError
from zeek_agent.host.files.place import Place
from zeek_agent.host.files.portable import PortableGate
from zeek_agent.host.files.reads import FileReads, Omission
from zeek_agent.host.files.statx import Status

_SPECIAL: Final = re.compile(r"[*?\[]")
_PARTS: Final = re.compile(r"/+")
_CHECK_EVERY: Final = 64
_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})


class Match:
    """A path that matches, held by the directory that it lies in until the next match is asked for."""

    __slots__ = ("_directory", "_gate", "_name", "path")

    def __init__(self, gate: Gate | PortableGate, path: str, directory: Place, name: str) -> None:
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


class _Group(NamedTuple):
    """Those entries of one directory that match."""

    directory: Place
    path: str
    """Of the directory as the pattern spells it, with a slash at its end, or empty."""
    names: list[str]
    """In order; `.` stands for the directory itself, as `path` has it."""
    links: Collection[str] = ()
    """Which of them are likely to be links."""


def open_gate(access: AccessPolicy, reads: FileReads) -> Gate | PortableGate:
    """The path gate of this system, for one statement."""
    return Gate(access, reads) if hasattr(os, "O_PATH") else PortableGate(access, reads)


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
) -> Iterator[tuple[str, Status | RefusedError | OSError]]:
    """The same paths with the attributes of what they lead to (see `Gate.status`), or why those are not known."""
    for directory, path, names, links in _groups(gate, pattern, check):
        for number, (name, found) in enumerate(gate.statuses(directory, names, links)):
            if number % _CHECK_EVERY == 0:
                check()
            yield _spelt(path, name), found


def _groups(gate: Gate | PortableGate, pattern: str, check: Callable[[], None]) -> Iterator[_Group]:
    if not pattern or "\0" in pattern:
        return
    absolute = pattern.startswith("/")
    try:
        start = gate.root if absolute else gate.working_directory()
    except (OSError, RefusedError) as error:
        _leave_out(gate, pattern, error)
        return
    parts = [part for part in _PARTS.split(pattern) if part]
    walk = _Walk(gate, check, directories_only=pattern.endswith("/"))
    yield from walk.below(start, "/" if absolute else "", parts)


class _Walk:
    """The search for one pattern."""

    def __init__(self, gate: Gate | PortableGate, check: Callable[[], None], *, directories_only: bool) -> None:
        self._gate = gate
        self._check = check
        self._directories_only = directories_only

    def below(self, directory: Place, path: str, parts: list[str]) -> Iterator[_Group]:
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

    def _wildcard(self, directory: Place, path: str, part: str, rest: list[str]) -> Iterator[_Group]:
        """What matches a part with wildcards, and the parts after it."""
        entries = self._entries(directory, path, part)
        if not rest and not self._directories_only:
            links = {name for name, is_link, _ in entries if is_link}
            yield _Group(directory, path, [name for name, _, _ in entries], links)
            return
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

    def _subdirectory(self, directory: Place, name: str, path: str) -> Place | None:
        """The directory that a name stands for which is most likely no link, or None."""
        try:
            place = self._gate.enter(directory, name)
        except (OSError, RefusedError) as error:
            _leave_out(self._gate, path, error)
            return None
        return place if place.status.is_directory else self._directory(directory, name, path)

    def _literal(self, directory: Place, path: str, name: str) -> Iterator[_Group]:
        """The last part of a pattern, without wildcards, if it is there."""
        try:
            self._gate.entry_status(directory, name)
        except OSError as error:
            _leave_out(self._gate, path + name, error)
            return
        except RefusedError:
            pass  # whoever asks for its attributes or contents is told
        yield _Group(directory, path, [name])

    def _directory(self, directory: Place, name: str, path: str) -> Place | None:
        """The directory that a name leads to, or None."""
        try:
            place = self._gate.walk(directory, name)
        except (OSError, RefusedError) as error:
            _leave_out(self._gate, path, error)
            return None
        return place if place.status.is_directory else None

    def _entries(self, directory: Place, path: str, part: str) -> list[tuple[str, bool, bool]]:
        """Names in a directory that match one part of a pattern, in order, and whether they are links or directories.

        Their types come from getdents(2), so that to look at them touches no mount point. Where the file system does
        not tell them, each may be either.
        """
        matches = _matcher(part)
        hidden = part.startswith((".", "\\."))
        found: list[tuple[str, bool, bool]] = []
        try:
            typed = self._gate.gives_types(directory)
            for entries in self._gate.entries(directory, self._check):
                found += [
                    (name, not typed or entry.is_symlink(), not typed or entry.is_dir(follow_symlinks=False))
                    for entry in entries
                    if matches(name := entry.name) and (hidden or name[0] != ".")
                ]
        except OSError as error:
            _leave_out(self._gate, path, error)
            return []
        found.sort()
        return found


def _spelt(path: str, name: str) -> str:
    return path if name == "." and path.endswith("/") else path + name


def _leave_out(gate: Gate | PortableGate, path: str, error: OSError | RefusedError) -> None:
    """Count what could not be entered; what is not there, or is no directory, is no omission."""
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
