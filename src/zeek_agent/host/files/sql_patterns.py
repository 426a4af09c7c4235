"""Paths that match an SQL pattern as osquery resolves it, through the path gate.

In a LIKE pattern, `%` is any text within one component of a path; at the end of the pattern, `%%` also is everything
below. All other characters are literal, also `_`, and case counts. GLOB patterns use `*` likewise, `?` and `[…]`. A
hidden name matches only a component that begins with the dot, but `%%` also looks into hidden directories below the
first matches. It follows links to directories, and enters no directory twice.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, TypeAlias

from zeek_agent.host.files.file_rules import RefusedError
from zeek_agent.host.files.gate import Gate
from zeek_agent.host.files.globbing import RECURSED_DIRECTORIES_MAX, is_kernels, name_filter
from zeek_agent.host.files.path_handle import PathHandle
from zeek_agent.host.files.reads import Omission

CHARACTERS_MAX: Final = 8_192
"""Twice the longest path."""
PARTS_MAX: Final = 200
DEPTH_MAX: Final = 64
"""Directories below the first matches of `%%`, as in osquery."""
_TOO_MANY: Final = f"more than {RECURSED_DIRECTORIES_MAX} directories that match a pattern"
_SEPARATORS: Final = re.compile(r"(/+)")
_GLOB_WILDCARDS: Final = re.compile(r"[*?\[]")
_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP})

NameFilter: TypeAlias = Callable[[str], object]


class Entries(NamedTuple):
    """Some entries of a directory that match."""

    directory: PathHandle
    path: str
    """The directory as the pattern spells it, with the slashes that follow it."""
    names: Sequence[str]
    links: Collection[str]
    """The names that are likely to be links."""


@dataclass(frozen=True, slots=True)
class SqlPattern:
    """An absolute pattern: for each component what it matches, with the slashes before it."""

    parts: tuple[tuple[str, str | NameFilter], ...]
    recursive: bool
    directories_only: str
    """The slashes at the end, if any: then only directories match."""

    @classmethod
    def parse(cls, text: str, *, glob: bool = False) -> SqlPattern:
        """Raises RefusedError for a pattern that is relative or too long."""
        wildcard = "*" if glob else "%"
        if not text.startswith("/"):
            raise RefusedError("a pattern that does not begin with /")
        if len(text) > CHARACTERS_MAX:
            raise RefusedError(f"a pattern of more than {CHARACTERS_MAX} characters")
        _, *pieces = _SEPARATORS.split(text)
        if len(pieces) // 2 > PARTS_MAX:
            raise RefusedError(f"a pattern of more than {PARTS_MAX} parts")
        parts = list(zip(pieces[::2], pieces[1::2], strict=True))
        directories_only = parts.pop()[0] if not parts[-1][1] else ""
        component = _glob_component if glob else _like_component
        return cls(
            tuple((slashes, component(part)) for slashes, part in parts), text.endswith(wildcard * 2), directories_only
        )


def _glob_component(part: str) -> str | NameFilter:
    return name_filter(part.replace("**", "*")) if _GLOB_WILDCARDS.search(part) is not None else part


def _like_component(part: str) -> str | NameFilter:
    if "%" not in part:
        return part
    first, *middle, last = part.split("%")
    if not first and not any(middle) and not last:
        return _is_not_hidden
    return partial(_has_pieces, first, [piece for piece in middle if piece], last)


def _is_not_hidden(name: str) -> bool:
    return name[0] != "."


def _has_pieces(first: str, middle: Sequence[str], last: str, name: str) -> bool:
    """Whether a name consists of these texts in order, with any text in between; in linear time."""
    end = len(name) - len(last)
    if end < len(first) or not name.startswith(first) or not name.endswith(last) or (not first and name[0] == "."):
        return False
    position = len(first)
    for piece in middle:
        found = name.find(piece, position, end)
        if found < 0:
            return False
        position = found + len(piece)
    return True


def matching_entries(gate: Gate, pattern: SqlPattern, check: Callable[[], None]) -> Iterator[Entries]:
    """The entries that match. Directories that cannot be entered are counted in `gate.reads`."""
    return _Search(gate, pattern, check).below(gate.root, "", 0)


def directory_entries(gate: Gate, directory: PathHandle, path: str, check: Callable[[], None]) -> Iterator[Entries]:
    """All entries of an open directory; `path` is how to spell it, with a slash at its end."""
    for entries, links, _ in _chunks(gate, directory, path, None, check):
        yield Entries(directory, path, entries, links)


def _chunks(
    gate: Gate, directory: PathHandle, path: str, wanted: NameFilter | None, check: Callable[[], None]
) -> Iterator[tuple[list[str], set[str], list[str]]]:
    """Names in a directory, those of them that are likely to be links, and those that are likely to be directories."""
    try:
        typed = gate.reports_types(directory)
        for entries in gate.entries(directory, check):
            some = entries if wanted is None else [entry for entry in entries if wanted(entry.name)]
            links = {entry.name for entry in some if not typed or entry.is_symlink()}
            directories = [entry.name for entry in some if not typed or entry.is_dir(follow_symlinks=False)]
            yield [entry.name for entry in some], links, directories
    except (OSError, RefusedError) as error:
        leave_out(gate, path, error)


def leave_out(gate: Gate, path: str, error: OSError | RefusedError) -> None:
    """Count a path that cannot be read, unless it does not exist."""
    if isinstance(error, RefusedError):
        gate.reads.leave_out(error.omission, path, str(error))
    elif error.errno not in _NOT_THERE:
        gate.reads.leave_out(Omission.SKIPPED, path, error.strerror or str(error))


class _Search:
    """The search for one pattern."""

    def __init__(self, gate: Gate, pattern: SqlPattern, check: Callable[[], None]) -> None:
        self._gate = gate
        self._pattern = pattern
        self._check = check
        self._entered: set[int] = set()
        self._left = RECURSED_DIRECTORIES_MAX
        self._is_truncated = False

    def below(self, directory: PathHandle, path: str, number: int) -> Iterator[Entries]:
        """The matches of the pattern's parts from `number` on."""
        parts = self._pattern.parts
        if number == len(parts):
            yield Entries(directory, path + self._pattern.directories_only, ["."], ())
            return
        slashes, part = parts[number]
        path += slashes
        is_last = number + 1 == len(parts)
        if not is_last or self._pattern.directories_only:
            for name in self._directories(directory, path, part):
                deeper = self._opened(directory, path, name)
                if deeper is not None:
                    yield from self.below(deeper, path + name, number + 1)
        elif isinstance(part, str):
            yield Entries(directory, path, [part], [part])
        elif self._pattern.recursive:
            yield from self._recursive(directory, path, part, 0)
        else:
            for names, links, _ in _chunks(self._gate, directory, path, part, self._check):
                yield Entries(directory, path, names, links)

    def _directories(self, directory: PathHandle, path: str, part: str | NameFilter) -> Iterator[str]:
        """Names that match and are, or may link to, directories."""
        if isinstance(part, str):
            yield part
            return
        found: list[str] = []
        for _, links, directories in _chunks(self._gate, directory, path, part, self._check):
            found += sorted({*links, *directories})
            if len(found) > self._left:
                break
        yield from self._admitted(found, path)

    def _recursive(self, directory: PathHandle, path: str, wanted: NameFilter | None, depth: int) -> Iterator[Entries]:
        """The entries that match, and everything below them."""
        linked: list[str] = []
        below: list[str] = []
        for names, links, directories in _chunks(self._gate, directory, path, wanted, self._check):
            yield Entries(directory, path, names, links)
            if len(below) + len(linked) <= self._left:
                linked += links
                below += [name for name in directories if name not in links]
        if depth == DEPTH_MAX:
            return
        names = sorted((*below, *linked)) if depth == 0 else [*sorted(below), *sorted(linked)]
        for name in self._admitted(names, path):
            self._check()
            deeper = self._opened(directory, path, name)
            if deeper is not None and self._is_new(deeper) and not self._is_kernels(directory, deeper, path + name):
                yield from self._recursive(deeper, f"{path}{name}/", None, depth + 1)

    def _admitted(self, names: list[str], path: str) -> list[str]:
        """The names of directories, as many as the search may still look into."""
        if len(names) > self._left:
            if not self._is_truncated:
                self._is_truncated = True
                self._gate.reads.leave_out(Omission.TRUNCATED, path, _TOO_MANY)
            del names[self._left :]
        self._left -= len(names)
        return names

    def _opened(self, directory: PathHandle, path: str, name: str) -> PathHandle | None:
        """The directory that a name is or links to, or None."""
        try:
            handle = self._gate.walk(directory, name)
        except (OSError, RefusedError) as error:
            leave_out(self._gate, path + name, error)
            return None
        return handle if handle.status.is_directory else None

    def _is_new(self, directory: PathHandle) -> bool:
        """Whether the search has not been in a directory, as links may lead back to it."""
        identity = directory.status.device << 64 | directory.status.inode
        if identity in self._entered:
            return False
        self._entered.add(identity)
        return True

    def _is_kernels(self, directory: PathHandle, deeper: PathHandle, path: str) -> bool:
        """Whether a directory is the entrance to a file system of the kernel, which is then counted."""
        if not is_kernels(deeper) or is_kernels(directory):
            return False
        cause = "a file system of the kernel, which %% does not enter: begin the pattern there"
        self._gate.reads.leave_out(Omission.SKIPPED, path, cause)
        return True
