"""The file in which a collector keeps its hosts: lines of JSON, of which the last one of a host counts.

Changed hosts are appended, so a collector that is killed loses at most the changes since the last write. When the file
has grown to a multiple of its content, it is written again under another name and renamed. Unlike a database it needs
no recovery before it can be read, and reading it runs nothing that a compromised collector may have put there.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from zeek_agent import ownership
from zeek_agent.collector.hosts import Host
from zeek_agent.errors import ZeekAgentError

NAME: Final = "hosts.jsonl"
FORMAT: Final = 1
"""Raised when a reader of this version would misunderstand the lines."""
GROWTH_BYTES: Final = 1024 * 1024
"""The file is written again when it has more than twice its content, and this much more."""
LINE_BYTES: Final = 65_536
"""Maximum of a line. A host has a few hundred bytes, at most some thousand."""
FILE_BYTES: Final = 256 * 1024 * 1024
"""Maximum of a file; anything larger was not written by a collector."""

_APPEND: Final = (
    os.O_WRONLY
    | os.O_APPEND
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)  # do not wait for the reader of a pipe: log lines wait for this thread
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)

log = logging.getLogger("zeek_agent.collector")


class Line(Struct, omit_defaults=True):
    """A line: a host, or the head of the file."""

    host: Host | None = None
    format: int | None = None
    evicted: int | None = None
    """Hosts removed because there were too many."""


class Content(Struct):
    """What a file contains."""

    hosts: dict[str, Host]
    evicted: int = 0
    damaged: int = 0
    """Lines that could not be read."""
    bytes: int = 0
    ends_in_line: bool = False
    """Whether the last line has no end, because writing it was interrupted."""


class HostsError(ZeekAgentError):
    """The file cannot be used; the message says why."""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Line).decode


class HostsFile:
    """Writes the file. `append` and `replace` raise OSError, and may run in another thread, one at a time."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / NAME
        self._size = 0
        self._compact_bytes = 0
        """Size when it was last written as a whole."""

    def load(self) -> Content:
        """What an earlier run has written. Raises OSError, and HostsError for a file that must not be overwritten."""
        content = read(self._path.parent)
        # A file with damaged lines is written again at once.
        self._size, self._compact_bytes = content.bytes, content.bytes
        if content.damaged or content.ends_in_line or not content.bytes:
            self._compact_bytes = -1
        if content.damaged:
            log.warning("%s has %d lines that cannot be read; they are skipped", self._path, content.damaged)
        return content

    @property
    def is_due(self) -> bool:
        """Whether the file should be written again as a whole."""
        return self._compact_bytes < 0 or self._size > 2 * self._compact_bytes + GROWTH_BYTES

    def append(self, hosts: Iterable[Host], evicted: int) -> None:
        """Add lines: all or nothing."""
        data = b"".join((*map(_line, hosts), _encode(Line(evicted=evicted)) + b"\n"))
        try:
            descriptor = os.open(self._path, _APPEND)
        except FileNotFoundError:
            self._compact_bytes = -1
            raise
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file", str(self._path))
            size = status.st_size
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
            except OSError:
                with suppress(OSError):  # the error of the write shows the cause
                    os.ftruncate(descriptor, size)
                raise
            self._size = size + len(data)
        finally:
            os.close(descriptor)

    def replace(self, hosts: Iterable[Host], evicted: int) -> None:
        """Write the whole file again: afterwards it is the new one or, after an error, the old one."""
        new = self._path.with_name(f"{NAME}.new")
        new.unlink(missing_ok=True)
        descriptor = ownership.create_log(new)
        try:
            with os.fdopen(descriptor, "wb") as out:
                size = out.write(_encode(Line(format=FORMAT, evicted=evicted)) + b"\n")
                for host in hosts:
                    size += out.write(_line(host))
                out.flush()
                os.fsync(descriptor)
            new.replace(self._path)
        except OSError:
            with suppress(OSError):
                new.unlink()
            raise
        self._size = self._compact_bytes = size


def read(directory: Path) -> Content:
    """The hosts in a log directory; empty if there is no file.

    Raises OSError, and HostsError for another format, or a file that no collector has written.
    """
    content = Content({})
    path = directory / NAME
    try:
        descriptor = ownership.read_log(path)
    except FileNotFoundError:
        directory.stat()  # raises if there is no directory, which may come back with its file
        return content
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a symbolic link, which is not followed, or a socket
            raise _foreign(path) from None
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size > FILE_BYTES:
        os.close(descriptor)
        raise _foreign(path)
    with os.fdopen(descriptor, "rb") as file:
        while raw := file.readline(LINE_BYTES):
            if not content.bytes and not _begins_file(raw):
                raise _foreign(path)
            content.bytes += len(raw)
            content.ends_in_line = not raw.endswith(b"\n")
            if not content.ends_in_line:
                _add(content, raw, directory)
    return content


def _foreign(path: Path) -> HostsError:
    return HostsError(f"{path} was not written by a collector: move it away")


def _begins_file(raw: bytes) -> bool:
    """Whether this is the first line of a collector's file. Anything else is somebody's file, not to be written over.

    Files are written under another name first, so a collector's first line is always complete.
    """
    try:
        return _decode(raw).format is not None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False


def _add(content: Content, raw: bytes, directory: Path) -> None:
    try:
        line = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        content.damaged += 1
        return
    if line.format is not None and line.format != FORMAT:
        raise HostsError(
            f"{directory / NAME} was written by a newer version of zeek-agent: use that version, or move the file away"
        )
    if line.evicted is not None:
        content.evicted = line.evicted
    if line.host is not None:
        content.hosts[line.host.id] = line.host


def _line(host: Host) -> bytes:
    return _encode(Line(host=host)) + b"\n"
