"""Lines of files that a reader ignores, such as comments, by a regular expression."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from zeek_agent.text import to_bytes


@lru_cache(maxsize=64)
def ignoring(pattern: str) -> Callable[[bytes], bool]:
    """A predicate for lines to ignore. Raises ValueError if the pattern is not an extended regular expression (RE2)."""
    import re2

    options = re2.Options()
    options.posix_syntax = options.perl_classes = options.word_boundary = True
    options.encoding = re2.Options.Encoding.LATIN1
    options.log_errors = False
    try:
        regex: Any = re2.compile(to_bytes(pattern), options)
    except re2.error as error:
        raise ValueError(f"{pattern!r} is not a valid regular expression: {error}") from error
    return lambda line: regex.search(line) is not None
