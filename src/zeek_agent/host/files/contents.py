"""Lines of text files, bounded per file and per statement, with private keys masked."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Final

from zeek_agent.host.files.file_rules import RefusedError
from zeek_agent.host.files.gate import OpenedFile, Purpose
from zeek_agent.host.files.globbing import Match
from zeek_agent.host.files.private_keys import HEADER_BYTES, KeyMask, has_header
from zeek_agent.host.files.reads import Allowance, FileReads, Omission

LINE_BYTES_MAX: Final = 2 << 20
"""Maximum of a line, well above any log's; the rest is omitted, and the file counted as truncated."""
_CHUNK_BYTES: Final = 1 << 18
"""Bytes per read, between checks of the limits."""


def lines(match: Match, reads: FileReads, check: Callable[[], None] = lambda: None) -> Iterator[bytes]:
    """The lines of a regular file without their ends.

    An unreadable or forbidden file yields no lines, and one that exceeds a limit only its first; `reads` counts both.
    Anything but a regular file is never opened.
    """
    try:
        opened = match.open(Purpose.CONTENTS)
        if opened is None:
            return
        with opened.file:
            yield from _Lines(opened, match.path, reads, check)
    except RefusedError as error:
        reads.leave_out(error.omission, match.path, str(error))
    except FileNotFoundError:
        return  # removed after its directory was listed
    except OSError as error:
        reads.leave_out(Omission.SKIPPED, match.path, error.strerror or str(error))


class _Lines:
    """One pass over an open file."""

    def __init__(self, opened: OpenedFile, path: str, reads: FileReads, check: Callable[[], None]) -> None:
        self._opened = opened
        self._path = path
        self._reads = reads
        self._check = check
        self._mask = KeyMask(is_log=opened.is_log)
        self._bytes = 0
        self._lines = 0
        self._seconds_left = min(reads.limits.file_time, max(reads.seconds_left, reads.limits.file_time / 10))
        self._truncated: str | None = None

    def __iter__(self) -> Iterator[bytes]:
        allowance = self._reads.allowance(self._opened.user)
        try:
            for text in self._texts(allowance.bytes):
                for line in self._masked(text):
                    if self._lines == allowance.lines:
                        self._truncated = "more lines than limits.file_lines or limits.files_lines allows"
                        return
                    self._lines += 1
                    yield line
        finally:
            self._reads.charge(Allowance(self._bytes, self._lines))
            if self._truncated is not None:
                self._reads.leave_out(Omission.TRUNCATED, self._path, self._truncated)

    def _texts(self, most: int) -> Iterator[bytes]:
        """The file in chunks of whole lines, without the last newline; a line that is too long is truncated."""
        kept = b""
        cut = False
        while chunk := self._read(most):
            whole, newline, rest = chunk.rpartition(b"\n")
            if not newline:
                kept, cut = self._beginning(kept, cut, chunk)
                continue
            first, newline, others = whole.partition(b"\n")
            yield self._beginning(kept, cut, first)[0] + newline + others
            kept, cut = rest, False
        if kept and self._truncated is None:
            yield kept

    def _beginning(self, kept: bytes, cut: bool, more: bytes) -> tuple[bytes, bool]:
        """The part of an unfinished line to keep, and whether it was truncated."""
        if cut or len(kept) + len(more) <= LINE_BYTES_MAX:
            return kept if cut else kept + more, cut
        self._reads.leave_out(Omission.TRUNCATED, self._path, f"a line is longer than {LINE_BYTES_MAX} bytes")
        return (kept + more)[:LINE_BYTES_MAX], True

    def _read(self, most: int) -> bytes:
        """The next chunk of the file, empty at its end or at a limit, which is recorded."""
        self._check()
        if self._seconds_left <= 0:
            self._truncated = "reading took longer than limits.file_time or limits.files_time allows"
            return b""
        left = most - self._bytes
        before = self._reads.seconds_left
        with self._reads.measure_time():
            chunk = self._opened.file.read(min(_CHUNK_BYTES, left) or 1)
        self._seconds_left -= before - self._reads.seconds_left
        if chunk is None:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        if chunk and not left:
            self._truncated = "larger than limits.file_bytes or limits.files_bytes allows"
            return b""
        if self._bytes == 0 and not self._opened.masks_keys and has_header(chunk[:HEADER_BYTES]):
            raise RefusedError("begins with a private key")
        self._bytes += len(chunk)
        return chunk

    def _masked(self, text: bytes) -> list[bytes]:
        lines = text.split(b"\n")
        return lines if self._mask.may_leave_alone(text) else [self._mask.line(line) for line in lines]
