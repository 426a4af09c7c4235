"""Types of file contents, by libmagic(3) through ctypes."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

from zeek_agent.errors import ZeekAgentError
from zeek_agent.host.program_files import UntrustedFileError, open_roots_file
from zeek_agent.text import from_bytes

DATABASES: Final = ("/usr/share/file/magic.mgc", "/usr/share/misc/magic.mgc")
"""Where distributions have the compiled database."""
DESCRIPTION: Final = 0
MIME_TYPE: Final = 0x10
MIME_ENCODING: Final = 0x400
_LIBRARY: Final = "libmagic.so.1"


class LibmagicError(ZeekAgentError):
    """The library or its database is missing, or it failed on a file."""


class Libmagic:
    """The library with its database loaded, which takes 8 MB of memory that is shared with other processes."""

    def __init__(self) -> None:
        self._library = _load()
        self._cookie = self._library.magic_open(DESCRIPTION)
        if not self._cookie:
            raise LibmagicError("libmagic: magic_open failed")
        try:
            database = _database()
            if self._library.magic_load(self._cookie, os.fsencode(database)) != 0:
                raise LibmagicError(f"libmagic cannot load {database}: {self._error()}")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._library.magic_close(self._cookie)

    def type_of(self, descriptor: int, form: int) -> str:
        """The type of an open file: its `DESCRIPTION`, `MIME_TYPE` or `MIME_ENCODING`. Raises LibmagicError."""
        self._library.magic_setflags(self._cookie, form)
        os.lseek(descriptor, 0, os.SEEK_SET)
        found = self._library.magic_descriptor(self._cookie, descriptor)
        if found is None:
            raise LibmagicError(f"libmagic: {self._error()}")
        return from_bytes(found)

    def _error(self) -> str:
        return from_bytes(self._library.magic_error(self._cookie) or b"unknown error")


def _load() -> Any:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise LibmagicError(f"{_LIBRARY} cannot be loaded (Debian: libmagic1; Fedora: file-libs): {error}") from error
    library.magic_open.restype = ctypes.c_void_p
    library.magic_open.argtypes = [ctypes.c_int]
    library.magic_close.restype = None
    library.magic_close.argtypes = [ctypes.c_void_p]
    library.magic_load.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.magic_setflags.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.magic_descriptor.restype = ctypes.c_char_p
    library.magic_descriptor.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.magic_error.restype = ctypes.c_char_p
    library.magic_error.argtypes = [ctypes.c_void_p]
    return library


def _database() -> str:
    """The first database that exists and that only root can have written, because the library trusts it.

    Raises LibmagicError.
    """
    for path in DATABASES:
        with suppress(FileNotFoundError):
            try:
                os.close(open_roots_file(path))
            except UntrustedFileError as error:
                raise LibmagicError(f"libmagic's database is not used: {error}") from error
            return path
    raise LibmagicError(f"libmagic's database is missing: none of {', '.join(DATABASES)} exists (Debian: libmagic-mgc)")
