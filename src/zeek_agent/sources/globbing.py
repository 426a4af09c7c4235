"""Paths that match a pattern, as glob(3) finds them, one by one.

`*` matches any text, `?` one character, `[a-z]` and `[!a-z]` a class, a backslash takes the next character as it is.
None of them matches a `/`, nor the dot that a hidden file's name begins with. Paths come in the order of their names
within each directory; there is no limit to their number, and no more than one directory's names are held at a time.
"""

# ruff: noqa: PTH112
# Globs run over whole file systems.

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Final

_SPECIAL: Final = re.compile(r"[*?\[]")
_PARTS: Final = re.compile(r"/+")
_CHECK_EVERY: Final = 256


def matching(pattern: str, check: Callable[[], None] = lambda: None) -> Iterator[str]:
    """The existing paths, dangling links included, in the form of `os.fsdecode`. `check` is called now and then.

    Directories that may not be read have no matches. A relative pattern starts at the working directory.
    """
    if not pattern or "\0" in pattern:
        return
    root = "/" if pattern.startswith("/") else ""
    parts = [part for part in _PARTS.split(pattern) if part]
    yield from _below(root, parts, check, directories=pattern.endswith("/"))


def _below(path: str, parts: list[str], check: Callable[[], None], *, directories: bool) -> Iterator[str]:
    """What matches the pattern's `parts` below `path`, which ends with a slash or is empty."""
    if not parts:
        yield path
        return
    part, rest = parts[0], parts[1:]
    for name in _names(path, part, check):
        if rest:
            yield from _below(f"{path}{name}/", rest, check, directories=directories)
        elif not directories:
            yield path + name
        elif os.path.isdir(path + name):
            yield f"{path}{name}/"


def _names(directory: str, part: str, check: Callable[[], None]) -> list[str]:
    """The names in a directory that match one part of a pattern."""
    if _SPECIAL.search(part) is None:
        name = re.sub(r"\\(.)", r"\1", part)
        return [name] if os.path.lexists(directory + name) else []
    matches = _matcher(part)
    hidden = part.startswith((".", "\\."))
    names = []
    try:
        with os.scandir(directory or ".") as entries:
            for number, entry in enumerate(entries):
                if number % _CHECK_EVERY == 0:
                    check()
                if matches(entry.name) and (hidden or not entry.name.startswith(".")):
                    names.append(entry.name)
    except OSError:
        return []
    return sorted(names)


@lru_cache(maxsize=256)
def _matcher(part: str) -> Callable[[str], object]:
    """Whether a name matches one part of a pattern, in time linear in the name's length."""
    return re.compile(fnmatch.translate(_as_fnmatch(part))).match


def _as_fnmatch(part: str) -> str:
    """The pattern in fnmatch's dialect: `[^…]` as `[!…]`, and what follows a backslash in a class of its own."""
    return re.sub(r"\\(.)|\[\^", lambda match: f"[{match[1]}]" if match[1] else "[!", part)
