"""Landlock (landlock(7)): which files a worker may use, by path.

A domain cannot be left, and holds for everything that the process does and starts. It also confines ptrace(2) and with
it CAP_SYS_PTRACE to the domain, so workers that read other users' processes cannot be in one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from zeek_agent.containment import kernel

_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1
_RULESET: Final = struct.Struct("=QQQ")
_PATH_BENEATH: Final = struct.Struct("=Qi")

EXECUTE: Final = 1 << 0
WRITE_FILE: Final = 1 << 1
READ_FILE: Final = 1 << 2
READ_DIR: Final = 1 << 3
REMOVE_DIR: Final = 1 << 4
REMOVE_FILE: Final = 1 << 5
MAKE_DIR: Final = 1 << 7
MAKE_REG: Final = 1 << 8
TRUNCATE: Final = 1 << 14
READ: Final = READ_FILE | READ_DIR
WRITE: Final = READ | WRITE_FILE | TRUNCATE | MAKE_REG | MAKE_DIR | REMOVE_FILE | REMOVE_DIR
"""No symbolic or hard links, devices, pipes or sockets, and no renames to another directory."""
_OF_FILES: Final = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
"""The rights that a rule on something other than a directory may have."""

_FILE_RIGHTS: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""All rights over files, by the version that introduced the last of them."""
BIND_TCP: Final = 1 << 0
CONNECT_TCP: Final = 1 << 1
_NETWORK_VERSION: Final = 4
_ABSTRACT_UNIX_SOCKETS: Final = 1 << 0
_SIGNALS: Final = 1 << 1
_SCOPE_VERSION: Final = 6


class Grant(NamedTuple):
    """Rights over a file, or over a directory and everything below it."""

    path: str
    rights: int
    descriptor: int | None = None
    """The open file, where it must not be looked up again by its path."""


class Unavailable(Exception):  # noqa: N818 - a state of the host, not a fault
    """This kernel has no Landlock, or does not let the agent use it."""


def version() -> int:
    """The version (ABI) of the kernel's Landlock. Raises Unavailable."""
    try:
        return kernel.syscall(_CREATE_RULESET, None, 0, _VERSION)
    except OSError as error:
        reasons = {
            errno.ENOSYS: "the kernel is built without Landlock",
            errno.EOPNOTSUPP: "Landlock is not enabled: add it to the kernel's parameter lsm=",
            errno.EPERM: "a sandbox around the agent refuses Landlock's system calls",
        }
        if error.errno not in reasons:
            raise
        raise Unavailable(reasons[error.errno]) from error


def restrict(abi: int, grants: Sequence[Grant], *, network: int = 0) -> None:
    """Deny this thread all file rights that Landlock knows except `grants`, and TCP except the rights in `network`.

    Signals, and connections to abstract Unix sockets, reach only processes in the same domain. A kernel with an older
    version restricts less. Requires no_new_privs or CAP_SYS_ADMIN. Raises OSError.
    """
    handled = _FILE_RIGHTS[max(known for known in _FILE_RIGHTS if known <= abi)]
    handled_network = (BIND_TCP | CONNECT_TCP) & ~network if abi >= _NETWORK_VERSION else 0
    scoped = _ABSTRACT_UNIX_SOCKETS | _SIGNALS if abi >= _SCOPE_VERSION else 0
    # An older kernel knows a shorter structure and accepts a longer one whose other bytes are 0.
    attributes = _RULESET.pack(handled, handled_network, scoped)
    ruleset = kernel.syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for grant in grants:
            _add(ruleset, grant, handled)
        kernel.syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _add(ruleset: int, grant: Grant, handled: int) -> None:
    descriptor = os.open(grant.path, os.O_PATH | os.O_CLOEXEC) if grant.descriptor is None else os.dup(grant.descriptor)
    try:
        possible = handled if stat.S_ISDIR(os.fstat(descriptor).st_mode) else handled & _OF_FILES
        rule = ctypes.create_string_buffer(_PATH_BENEATH.pack(grant.rights & possible, descriptor))
        kernel.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)
