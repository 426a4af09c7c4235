"""Installs a seccomp filter that is compiled already; apart from `seccomp`, for processes that import little."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Final

from zeek_agent.containment import kernel

INSTRUCTION: Final = struct.Struct("=HBBI")
_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}
"""The number of seccomp(2), by the machine name of uname(2)."""
_SET_MODE_FILTER: Final = 1
_FLAG_TSYNC: Final = 1


def install(instructions: bytes) -> None:
    """Put all threads of this process under the filter. Requires no_new_privs. Raises OSError."""
    buffer = ctypes.create_string_buffer(instructions, len(instructions))
    count = len(instructions) // INSTRUCTION.size
    program = ctypes.create_string_buffer(struct.pack("@HP", count, ctypes.addressof(buffer)))
    thread = kernel.syscall(_SECCOMP[os.uname().machine], _SET_MODE_FILTER, _FLAG_TSYNC, program)
    if thread != 0:
        raise OSError(errno.EBUSY, f"thread {thread} has another seccomp filter")
