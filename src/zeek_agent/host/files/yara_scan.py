"""YARA rules on the contents of files, by the library yara-python, which is an extra."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from zeek_agent.errors import SqlError
from zeek_agent.host.files.private_keys import HEADER_BYTES, KeyMask, has_header
from zeek_agent.text import from_os

if TYPE_CHECKING:
    from zeek_agent.host.files.gate import OpenedFile

RULES_BYTES_MAX: Final = 1 << 20
"""Rules are compiled in memory; published collections of one family have some ten KB."""
SCANNED_BYTES_MAX: Final = 256 << 20
"""Larger files are not scanned, which bounds the time."""
READ_BYTES_MAX: Final = 16 << 20
"""Larger files are not scanned if private keys in them have to be masked, which is done in memory."""
STRINGS_MAX: Final = 1_000
"""Found strings that a row describes."""


class YaraError(Exception):
    """Rules that do not compile, or a file that cannot be scanned; the message gives the reason."""


class Found(NamedTuple):
    """The rules that match a file; each string as `$name:offset`, with the offset in hexadecimal."""

    rules: Sequence[str]
    strings: Sequence[str]
    tags: Sequence[str]


class YaraRules:
    """Compiled rules. Raises YaraError if they do not compile, SqlError without the library."""

    def __init__(self, source: str) -> None:
        self._yara = _library()
        if len(source.encode(errors="surrogateescape")) > RULES_BYTES_MAX:
            raise YaraError(f"the rules have more than {RULES_BYTES_MAX} bytes")
        try:
            self._rules = self._yara.compile(source=source, includes=False, error_on_warning=False)
        except (self._yara.Error, UnicodeError) as error:
            raise YaraError(f"the rules do not compile: {error}") from error

    def scan(self, opened: OpenedFile, size: int, seconds: float) -> Found:
        """What matches in an open file of this size, within so many seconds.

        Private keys are treated as where lines of files are read. Raises YaraError.
        """
        in_memory = opened.masks_keys or not size  # files of proc(5) have no size, so they cannot be mapped
        most = READ_BYTES_MAX if in_memory else SCANNED_BYTES_MAX
        if size > most:
            raise YaraError(f"larger than {most} bytes, so not scanned")
        if not opened.masks_keys and has_header(opened.file.read(HEADER_BYTES) or b""):
            raise YaraError("begins with a private key")
        try:
            with _read(opened) if in_memory else _mapped(opened) as data:
                matches = self._rules.match(data=data, timeout=max(int(seconds), 1), fast=True)
        except (MemoryError, SystemError) as error:  # the latter if it runs out of memory while it makes the result
            raise YaraError("its strings occur too often for the memory of a statement") from error
        except self._yara.TimeoutError as error:
            raise YaraError("not scanned within limits.file_time") from error
        except self._yara.Error as error:
            raise YaraError(str(error)) from error
        return _found(matches)


def _library() -> Any:
    try:
        import yara
    except ImportError as error:
        raise SqlError(
            f"table yara_file: the Python package yara-python cannot be used: {error}; "
            "install it with: pip install 'zeek-agent[yara]'"
        ) from error
    yara.set_config(max_match_data=1)  # found strings are copied, and only their offsets are needed
    return yara


def _mapped(opened: OpenedFile) -> AbstractContextManager[mmap.mmap]:
    """The contents in memory. The library survives that the file becomes shorter."""
    return mmap.mmap(opened.file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)


@contextmanager
def _read(opened: OpenedFile) -> Iterator[bytes]:
    """A copy of the contents, without private keys where they have to be masked."""
    opened.file.seek(0)
    text = b""
    while len(text) < READ_BYTES_MAX and (more := opened.file.read(READ_BYTES_MAX - len(text))):
        text += more
    mask = KeyMask(is_log=opened.is_log)
    if not opened.masks_keys or mask.may_leave_alone(text):
        yield text
    else:
        yield b"\n".join(map(mask.line, text.split(b"\n")))


def _found(matches: Sequence[Any]) -> Found:
    strings = [
        f"{string.identifier}:{instance.offset:x}"
        for match in matches
        for string in match.strings
        for instance in string.instances
    ]
    return Found(
        [from_os(match.rule) for match in matches],
        strings[:STRINGS_MAX],
        [from_os(tag) for match in matches for tag in match.tags],
    )
