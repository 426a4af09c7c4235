"""Superblocks of block devices, by libblkid through ctypes."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, Final

from zeek_agent.errors import ZeekAgentError
from zeek_agent.text import from_bytes

_LIBRARY: Final = "libblkid.so.1"
_LABEL, _UUID, _TYPE = 1 << 1, 1 << 3, 1 << 5
_VALUES: Final = (b"UUID", b"TYPE", b"LABEL")


class LibblkidError(ZeekAgentError):
    """The library is missing."""


def probe(descriptor: int, size: int) -> tuple[str, str, str]:
    """UUID, type and label of the file system, swap area or container on an open device; empty if there is none.

    `size` is in bytes. Raises LibblkidError.
    """
    return _probed(_load(), descriptor, size)


def _probed(library: Any, descriptor: int, size: int) -> tuple[str, str, str]:
    blkid = library.blkid_new_probe()
    if not blkid:
        raise MemoryError
    try:
        if library.blkid_probe_set_device(blkid, descriptor, 0, size) != 0:
            return "", "", ""
        library.blkid_probe_enable_superblocks(blkid, 1)
        library.blkid_probe_set_superblocks_flags(blkid, _LABEL | _UUID | _TYPE)
        if library.blkid_do_safeprobe(blkid) != 0:
            return "", "", ""
        uuid, kind, label = (_value(library, blkid, name) for name in _VALUES)
        return uuid, kind, label
    finally:
        library.blkid_free_probe(blkid)


def _value(library: Any, blkid: int, name: bytes) -> str:
    value = ctypes.c_char_p()
    if library.blkid_probe_lookup_value(blkid, name, ctypes.byref(value), None) != 0:
        return ""
    return from_bytes(value.value or b"")


@cache
def _load() -> Any:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise LibblkidError(f"{_LIBRARY} cannot be loaded (Debian: libblkid1): {error}") from error
    library.blkid_new_probe.restype = ctypes.c_void_p
    library.blkid_free_probe.restype = None
    library.blkid_free_probe.argtypes = [ctypes.c_void_p]
    library.blkid_probe_set_device.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    library.blkid_probe_enable_superblocks.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.blkid_probe_set_superblocks_flags.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.blkid_do_safeprobe.argtypes = [ctypes.c_void_p]
    library.blkid_probe_lookup_value.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p]
    return library
