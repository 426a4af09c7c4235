"""Whole files through the path gate, for formats that have no lines: metadata of packages and programs."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from io import FileIO
from typing import Final

from zeek_agent.host.files.file_rules import RefusedError
from zeek_agent.host.files.gate import Purpose
from zeek_agent.host.files.globbing import Match
from zeek_agent.host.files.reads import Allowance, FileReads, Omission

_WILDCARDS: Final = str.maketrans({character: f"\\{character}" for character in "*?[\\"})
_CHUNK_BYTES: Final = 1 << 18


def literal(path: str) -> str:
    """The pattern that matches only this path."""
    return path.translate(_WILDCARDS)


def read_whole(
    match: Match, reads: FileReads, bytes_max: int, check: Callable[[], None] = lambda: None
) -> bytes | None:
    """The contents of a regular file; None if it may not be read, has more than `bytes_max` or is too much for the
    statement, which `reads` counts, or if it is not a regular file.
    """
    try:
        opened = match.open(Purpose.CONTENTS)
        if opened is None:
            return None
        with opened.file as file:
            most = min(bytes_max, reads.allowance(opened.user).bytes)
            if os.fstat(file.fileno()).st_size > most:
                raise RefusedError(f"larger than {most} bytes", Omission.SKIPPED)
            return _read(file, most, reads, check)
    except RefusedError as error:
        reads.leave_out(error.omission, match.path, str(error))
    except FileNotFoundError:
        pass  # removed after its directory was listed
    except OSError as error:
        reads.leave_out(Omission.SKIPPED, match.path, error.strerror or str(error))
    return None


def _read(file: FileIO, most: int, reads: FileReads, check: Callable[[], None]) -> bytes:
    """Raises RefusedError for a file that has grown meanwhile, or when the statement's time for reading is over."""
    content = bytearray()
    try:
        while True:
            check()
            if reads.seconds_left <= 0:
                raise RefusedError("reading took longer than limits.files_time allows", Omission.SKIPPED)
            with reads.measure_time():
                chunk = file.read(_CHUNK_BYTES)
            if chunk is None:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            if not chunk:
                return bytes(content)
            content += chunk
            if len(content) > most:
                raise RefusedError(f"larger than {most} bytes", Omission.SKIPPED)
    finally:
        reads.charge(Allowance(len(content), 0))
