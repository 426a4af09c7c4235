"""Paths that match a pattern like glob(3)'s, one by one, through the path gate.

`*` matches any text, `?` one character, `[a-z]` and `[!a-z]` a class, and a backslash escapes the next character. None
of them matches a `/`, nor the dot at the beginning of a hidden file's name. A part `**` matches any number of
directories, also none, and as the last part everything below; it enters neither hidden directories nor links. Paths are
sorted by name within each directory. Their number is unlimited, but only so many names of a directory are in memory at
a time.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from zeek_agent import platforms
from zeek_agent.access import AccessPolicy, ShownFiles
from zeek_agent.host.files.file_rules import RefusedError
from zeek_agent.host.files.gate import Gate, OpenedFile, Purpose
from zeek_agent.host.files.path_handle import PathHandle
from zeek_agent.host.files.portable import PortableGate
from zeek_agent.host.files.reads import FileReads, Omission
from zeek_agent.host.files.statx import FileStatus

PATTERN_CHARACTERS_MAX: Final = 8_192
"""Twice the longest path, because each character may be escaped."""
PATTERN_PARTS_MAX: Final = 200
"""Parts of a pattern, each of which is a search nested in the previous one's."""
_SPECIAL: Final = re.compile(r"[*?\[]")
_LITERAL: Final = re.compile(r"[*?\[\\]")
_PARTS: Final = re.compile(r"/+")
_NAMES_PER_CHECK: Final = 64
"""Names between checks of the statement's limits."""
_NAMES_HELD_MAX: Final = 262_144
"""Names of one directory that are held at a time; a larger directory is read again for each further lot of them."""
_NAMES_SPARE: Final = 65_536
"""How many more are gathered before they are sorted and those that come last are dropped."""
RECURSED_DIRECTORIES_MAX: Final = 100_000
"""Directories below `**` in one search, whose names are in memory until they are entered."""
RECURSIVE: Final = "**"
_TOO_MANY: Final = f"more than {RECURSED_DIRECTORIES_MAX} directories below **"
_KERNEL_FILE_SYSTEMS: Final = frozenset(
    """binder binfmt_misc bpf cgroup cgroup2 configfs cpuset debugfs devpts efivarfs fusectl mqueue nsfs proc pstore
    resctrl rpc_pipefs securityfs selinuxfs sysfs tracefs""".split()  # noqa: SIM905
)
"""File systems without files on a disk. `**` does not enter them from another one."""
_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})


class Match:
    """A matching path and its directory, which stays open until the next match is requested."""

    __slots__ = ("_directory", "_gate", "_name", "_path", "path")

    def __init__(self, gate: Gate | PortableGate, path: str, directory: PathHandle, name: str) -> None:
        self._gate = gate
        self._path = path
        self.path = platforms.HERE.shown_path(path)
        """The path as the pattern spells it, in the form of `os.fsdecode`."""
        self._directory = directory
        self._name = name

    def open(self, purpose: Purpose) -> OpenedFile | None:
        """Open the regular file at the path; None for anything else, which is never opened.

        Raises RefusedError and OSError.
        """
        gate = self._gate
        if purpose is Purpose.HASH and self._name == "exe" and gate.is_process(self._directory):
            return gate.open_executable(self._directory)
        return gate.open_regular(gate.walk(self._directory, self._name), _absolute(self._path), purpose)


NameFilter: TypeAlias = Callable[[str], object]
_Entry: TypeAlias = tuple[str, bool, bool]
"""A name in a directory, and whether it is a link or a directory."""


class _Group(NamedTuple):
    """The matching entries of one directory."""

    directory: PathHandle
    path: str
    """The directory as the pattern spells it, with a trailing slash, or empty."""
    names: list[str]
    """Sorted; `.` is the directory itself."""
    links: Collection[str] = ()
    """The names that are likely to be links."""


def open_gate(
    access: AccessPolicy,
    reads: FileReads,
    check: Callable[[], None] = lambda: None,
    shown: ShownFiles | None = None,
) -> Gate | PortableGate:
    """The path gate of this system, for one statement. `check` is called regularly.

    `shown` are the files of the table that reads them.
    """
    return Gate(access, reads, check, shown) if hasattr(os, "O_PATH") else PortableGate(access, reads, shown)


def matching(
    gate: Gate | PortableGate, pattern: str, check: Callable[[], None] = lambda: None, *, explain: bool = True
) -> Iterator[Match]:
    """The existing paths, including dangling links. `check` is called regularly.

    Directories that may not be read have no matches; those that the gate refuses to enter are counted in `gate.reads`,
    as is, with `explain`, a pattern that matches nothing because it is written for another program.
    A relative pattern starts at the working directory.
    """
    for directory, path, names, _ in _groups(gate, pattern, check, explain=explain):
        for name in names:
            yield Match(gate, _joined_pattern(path, name), directory, name)


def listing(
    gate: Gate | PortableGate, pattern: str, check: Callable[[], None] = lambda: None
) -> Iterator[tuple[str, FileStatus | RefusedError | OSError]]:
    """The same paths with the attributes of their targets (see `Gate.status`), or the error of reading those."""
    for directory, path, names, links in _groups(gate, pattern, check):
        for number, (name, found) in enumerate(gate.statuses(directory, names, links)):
            if number % _NAMES_PER_CHECK == 0:
                check()
            yield platforms.HERE.shown_path(_joined_pattern(path, name)), found


def _groups(
    gate: Gate | PortableGate, pattern: str, check: Callable[[], None], *, explain: bool = True
) -> Iterator[_Group]:
    found = False
    for group in _search(gate, pattern, check):
        found = found or bool(group.names)
        yield group
    cause = None if found or not explain else misunderstanding(pattern)
    if cause is not None:
        gate.reads.leave_out(Omission.REFUSED, pattern[:PATTERN_CHARACTERS_MAX], cause)


def misunderstanding(pattern: str) -> str | None:
    """Why a pattern that matches nothing probably means something else; None if it seems to be right."""
    if not pattern:
        return "an empty pattern, which matches nothing"
    for regex, cause in _MISUNDERSTOOD:
        if regex.search(pattern) is not None:
            return cause
    if not platforms.HERE.inner_path(pattern).startswith("/"):
        return f"does not begin with {platforms.HERE.path_start}, and nothing matches in the agent's working directory"
    return None


_MISUNDERSTOOD: Final = (
    (re.compile(r"(?<!\\)\{[^{}]*,[^{}]*\}"), "braces are not expanded: use _pattern IN ('…', '…')"),
    (re.compile(r"^~"), "~ is not expanded: write the directory, such as /home/*"),
    (re.compile(r"\$[A-Z_a-z{]"), "variables are not expanded: write the path"),
    (re.compile(r"%"), "% is not a wildcard here: use *, or ** for any number of directories"),
    (re.compile(r"\[[^]/]*(?:/|$)"), "[ without ] stands for itself; a class does not contain /"),
    (re.compile(r"^\s|\s$"), "begins or ends with a blank"),
)
"""What other programs understand differently, and what to write here."""


def _search(gate: Gate | PortableGate, pattern: str, check: Callable[[], None]) -> Iterator[_Group]:
    if not pattern or "\0" in pattern:
        return
    # Patterns may come from columns such as a program's path, so one that is too long must not end the statement.
    if len(pattern) > PATTERN_CHARACTERS_MAX:
        cause = f"a pattern of more than {PATTERN_CHARACTERS_MAX} characters"
        gate.reads.leave_out(Omission.REFUSED, pattern[:PATTERN_CHARACTERS_MAX], cause)
        return
    pattern = platforms.HERE.inner_path(pattern)
    parts = [part for part in _PARTS.split(pattern) if part]
    if len(parts) > PATTERN_PARTS_MAX:
        gate.reads.leave_out(Omission.REFUSED, pattern, f"a pattern of more than {PATTERN_PARTS_MAX} parts")
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
        self._directories_left = RECURSED_DIRECTORIES_MAX

    def below(self, directory: PathHandle, path: str, parts: list[str]) -> Iterator[_Group]:
        """The matches of the pattern's `parts` below a directory."""
        for number, part in enumerate(parts, 1):
            rest = parts[number:]
            if part == RECURSIVE:
                parts = [part, *(later for later in rest if later != ".")]
                yield from self._recursive(directory, path, parts, frozenset({0}))
                return
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
        """The matches of a part with wildcards and the parts after it."""
        for entries in self._entries(directory, path, name_filter(part)):
            if not rest and not self._directories_only:
                links = {name for name, is_link, _ in entries if is_link}
                yield _Group(directory, path, [name for name, _, _ in entries], links)
            else:
                yield from self._search_below(directory, path, entries, rest)

    def _search_below(
        self, directory: PathHandle, path: str, entries: list[_Entry], rest: list[str]
    ) -> Iterator[_Group]:
        """The matches of the pattern's `rest` below the entries that are, or link to, directories."""
        for number, (name, is_link, is_directory) in enumerate(entries):
            if number % _NAMES_PER_CHECK == 0:
                self._check()
            if is_link:
                deeper = self._directory(directory, name, path + name)
            elif is_directory:
                deeper = self._subdirectory(directory, name, path + name)
            else:
                continue
            if deeper is not None:
                yield from self.below(deeper, f"{path}{name}/", rest)

    def _recursive(
        self, directory: PathHandle, path: str, parts: Sequence[str], states: frozenset[int]
    ) -> Iterator[_Group]:
        """The matches of a pattern with `**` below a directory; each path once, in whatever ways it matches.

        `states` are the places in the pattern that have been reached: parts[state] is next.
        """
        steps = _Steps(parts, states)
        for entries in self._entries(directory, path, steps.lead_on):
            if not self._directories_only:
                last = [name for name, _, _ in entries if steps.ends_at(name)]
                yield _Group(directory, path, last, {name for name, is_link, _ in entries if is_link})
            below = [entry for entry in entries if (entry[1] or entry[2]) and steps.go_below(entry[0])]
            if len(below) > self._directories_left:
                self._gate.reads.leave_out(Omission.TRUNCATED, path, _TOO_MANY)
                del below[self._directories_left :]
            self._directories_left -= len(below)
            del entries
            for name, is_link, is_directory in below:
                yield from self._recurse(directory, path, (name, is_link, is_directory), steps)

    def _recurse(self, directory: PathHandle, path: str, entry: _Entry, steps: _Steps) -> Iterator[_Group]:
        """The matches below an entry, which may be a directory or a link."""
        self._check()
        name, is_link, is_directory = entry
        explicit, implied = steps.after(name)
        deeper = self._real_directory(directory, name, path + name) if is_directory else None
        states = explicit | implied
        if deeper is None and is_link and (explicit or steps.ends_explicitly_at(name)):
            deeper, states = self._directory(directory, name, path + name), explicit
        if deeper is None:
            return
        if self._directories_only and steps.ends_at(name):
            yield _Group(deeper, f"{path}{name}/", ["."])
        if not explicit and is_kernels(deeper) and not is_kernels(directory):
            cause = "a file system of the kernel, which ** does not enter: begin the pattern there"
            self._gate.reads.leave_out(Omission.SKIPPED, path + name, cause)
        elif states:
            yield from self._recursive(deeper, f"{path}{name}/", steps.parts, states)

    def _real_directory(self, directory: PathHandle, name: str, path: str) -> PathHandle | None:
        """The directory with that name, or None for anything else, such as a link."""
        try:
            handle = self._gate.enter(directory, name)
        except (OSError, RefusedError) as error:
            _leave_out(self._gate, path, error)
            return None
        return handle if handle.status.is_directory else None

    def _subdirectory(self, directory: PathHandle, name: str, path: str) -> PathHandle | None:
        """The directory with that name, which is most likely not a link, or None."""
        try:
            handle = self._gate.enter(directory, name)
        except (OSError, RefusedError) as error:
            _leave_out(self._gate, path, error)
            return None
        return handle if handle.status.is_directory else self._directory(directory, name, path)

    def _literal(self, directory: PathHandle, path: str, name: str) -> Iterator[_Group]:
        """The last part of a pattern, without wildcards, if it exists."""
        try:
            self._gate.entry_status(directory, name)
        except OSError as error:
            _leave_out(self._gate, path + name, error)
            return
        except RefusedError:
            pass  # reported when its attributes or contents are read
        yield _Group(directory, path, [name])

    def _directory(self, directory: PathHandle, name: str, path: str) -> PathHandle | None:
        """The directory that a name is or links to, or None."""
        try:
            handle = self._gate.walk(directory, name)
        except (OSError, RefusedError) as error:
            _leave_out(self._gate, path, error)
            return None
        return handle if handle.status.is_directory else None

    def _entries(self, directory: PathHandle, path: str, wanted: NameFilter) -> Iterator[list[_Entry]]:
        """Entries of a directory whose names are wanted, in sorted chunks.

        Their types are those of getdents(2), so that checking them touches no mount point. If the file system does not
        report types, each may be a link or a directory.
        """
        last: str | None = ""
        while last is not None:
            try:
                found, last = self._lot(directory, wanted, last)
            except (OSError, RefusedError) as error:
                _leave_out(self._gate, path, error)
                return
            yield found

    def _lot(self, directory: PathHandle, wanted: NameFilter, after: str) -> tuple[list[_Entry], str | None]:
        """The first matches in order after a name, and the last of them unless there are no more.

        Raises RefusedError and OSError.
        """
        typed = self._gate.reports_types(directory)
        found: list[_Entry] = []
        last: str | None = None
        for entries in self._gate.entries(directory, self._check):
            found += [
                (name, not typed or entry.is_symlink(), not typed or entry.is_dir(follow_symlinks=False))
                for entry in entries
                if (name := entry.name) > after and (last is None or name < last) and wanted(name)
            ]
            if len(found) >= _NAMES_HELD_MAX + _NAMES_SPARE:
                last = _shortened(found)
        if len(found) > _NAMES_HELD_MAX:
            last = _shortened(found)
        found.sort()
        return found, last


def _shortened(found: list[_Entry]) -> str:
    """Keep those whose names sort first, and return the last of them."""
    found.sort()
    del found[_NAMES_HELD_MAX:]
    return found[-1][0]


def _joined_pattern(path: str, name: str) -> str:
    return path if name == "." and path.endswith("/") else path + name


def _leave_out(gate: Gate | PortableGate, path: str, error: OSError | RefusedError) -> None:
    """Count a directory that could not be entered, unless it does not exist or is not a directory."""
    if isinstance(error, RefusedError):
        gate.reads.leave_out(error.omission, path, str(error))
    elif error.errno not in _NOT_THERE:
        gate.reads.leave_out(Omission.SKIPPED, path, error.strerror or str(error))


def _absolute(path: str) -> str:
    return path if path.startswith("/") else f"{platforms.HERE.inner_path(str(Path.cwd()))}/{path}"


def _unescaped(part: str) -> str:
    return re.sub(r"\\(.)", r"\1", part) if "\\" in part else part


def literal(path: str) -> str:
    """A pattern that only this path matches."""
    if platforms.HERE.has_root:
        return _LITERAL.sub(r"\\\g<0>", path)
    return _SPECIAL.sub(r"[\g<0>]", path)  # a backslash separates directories


def is_kernels(directory: PathHandle) -> bool:
    """Whether a directory is in a file system of the kernel, without files on a disk."""
    return directory.mount.kind in _KERNEL_FILE_SYSTEMS


@lru_cache(maxsize=256)
def name_filter(part: str) -> NameFilter:
    """Whether a name matches one part of a pattern other than `**`. Hidden names match only parts with the dot."""
    if _SPECIAL.search(part) is None:
        return _unescaped(part).__eq__
    matches = _matcher(part)
    if part.startswith((".", "\\.")):
        return matches
    return lambda name: name[0] != "." and matches(name)


class _Steps:
    """What the names in a directory lead to, at some places in a pattern with `**`."""

    def __init__(self, parts: Sequence[str], states: frozenset[int]) -> None:
        self.parts = parts
        reached = set(states)
        for state in sorted(states):  # `**` also matches no directory
            while parts[state] == RECURSIVE and state + 1 < len(parts):
                state += 1
                reached.add(state)
        self._implied = frozenset(state for state in reached if parts[state] == RECURSIVE)
        self._explicit = [(state, name_filter(parts[state])) for state in sorted(reached - self._implied)]
        self._end = len(parts) - 1

    def lead_on(self, name: str) -> bool:
        """Whether the name matches, or is one that `**` looks into."""
        return bool(self._implied and name[0] != ".") or any(matches(name) for _, matches in self._explicit)

    def ends_explicitly_at(self, name: str) -> bool:
        return any(state == self._end and matches(name) for state, matches in self._explicit)

    def ends_at(self, name: str) -> bool:
        """Whether the whole pattern matches with this name."""
        return (self._end in self._implied and name[0] != ".") or self.ends_explicitly_at(name)

    def go_below(self, name: str) -> bool:
        """Whether there may be matches below the name, if it is a directory."""
        explicit, implied = self.after(name)
        return bool(explicit or implied) or self.ends_at(name)

    def after(self, name: str) -> tuple[frozenset[int], frozenset[int]]:
        """The places that are reached below the name: by a part that matches it, and by `**`."""
        explicit = frozenset(state + 1 for state, matches in self._explicit if state < self._end and matches(name))
        return explicit, self._implied if name[0] != "." else frozenset()


@lru_cache(maxsize=256)
def _matcher(part: str) -> Callable[[str], object]:
    """Whether a name matches one part of a pattern, in time linear in the name's length."""
    flags = re.IGNORECASE if platforms.HERE.ignores_case else 0
    return re.compile(fnmatch.translate(_as_fnmatch(part)), flags).match


def _as_fnmatch(part: str) -> str:
    """The pattern in fnmatch's syntax: `[^…]` as `[!…]`, and an escaped character as a class."""
    return re.sub(r"\\(.)|\[\^", lambda match: f"[{match[1]}]" if match[1] else "[!", part)
