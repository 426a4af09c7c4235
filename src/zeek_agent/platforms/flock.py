"""Exclusive locks on files that no other user of the host can hold.

flock(2) needs only an open descriptor, so any user who can open a lock file can hold its lock and keep the agent from
starting. A lock file here is therefore mode 0600 and owned by the agent's user or root.

Older versions created lock files that everybody could open, and changing the mode does not revoke an open descriptor.
A lock file with a wider mode or another owner is therefore replaced by a new one, never adopted. Its lock still counts
when an agent holds it: an agent of an older version that runs now, or starts later, is excluded.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from zeek_agent.file_lock import FileLock, LockHeldError

log = logging.getLogger(__name__)

ATTEMPTS: Final = 100
"""How often a file that other processes keep replacing is tried; all of them together wait for about a second."""
ATTEMPT_PAUSE_SECONDS: Final = 0.01
"""Time for another process to finish a replacement, which takes a few system calls."""

_MODE: Final = 0o600
_LISTS_LOCKS: Final = Path("/proc/self/fdinfo").is_dir()
"""Whether the system reports which process holds a lock; otherwise every holder may be an agent."""
_OPEN_FLAGS: Final = (
    os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
)
_NOT_A_LOCK_FILE: Final = frozenset({errno.ELOOP, errno.EACCES, errno.ENXIO, errno.EISDIR})
"""Errors when opening a symbolic link, another user's file, a socket or a directory."""


def acquire_lock(path: Path, legacy_directory: Path | None = None, holder: int | None = None) -> FileLock:
    """Lock the file at `path`, which is created if it does not exist.

    `legacy_directory` is the directory that older versions locked instead: an agent that holds it is respected, and it
    is locked too where possible, which excludes older versions that start later. `holder` is the process that the lock
    names, if not this one. Raises LockHeldError when another agent holds the lock, and OSError.
    """
    lock = _acquire_at(path, os.getpid() if holder is None else holder)
    try:
        if legacy_directory is not None:
            _lock_legacy_directory(legacy_directory, path, lock)
    except BaseException:
        lock.close()
        raise
    return lock


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of the file at `path`, without taking it and without permission to open it.

    Processes of other PID namespaces are not seen. Raises OSError, but not if there is no file.
    """
    if not hasattr(os, "O_PATH"):
        return _is_held_elsewhere(path)
    try:
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        name = _lock_name(descriptor)
    finally:
        os.close(descriptor)
    locks = Path("/proc/locks").read_text().splitlines()
    return any(" FLOCK " in line and f" {name} " in line for line in locks)


def _is_held_elsewhere(path: Path) -> bool:
    """The same by taking the lock for a moment, where the system has no list of locks."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _flock(descriptor)
    finally:
        os.close(descriptor)


def lock_directory(directory: Path) -> FileLock:
    """Lock a private directory itself: no other user can hold its lock, because no other user can open it.

    Raises BlockingIOError when another process holds the lock, and OSError when it is not a directory.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not _flock(descriptor):
            raise BlockingIOError(errno.EWOULDBLOCK, "the directory is locked by another process", str(directory))
    except BaseException:
        os.close(descriptor)
        raise
    return FileLock(descriptor)


def directory_exposure(directory: Path) -> str | None:
    """Why users other than the agent's and root control the files in a directory; None when they do not.

    Raises OSError.
    """
    status = directory.stat()
    if not _is_trusted(status.st_uid):
        return f"{directory} belongs to uid {status.st_uid}"
    if status.st_mode & stat.S_IWOTH:
        return f"{directory} is writable by every user"
    return None


def group_exposure(directory: Path) -> str | None:
    """The same for the directory's group. Raises OSError."""
    status = directory.stat()
    if status.st_mode & stat.S_IWGRP:
        return f"{directory} is writable by its group (gid {status.st_gid})"
    return None


def _acquire_at(path: Path, holder: int) -> FileLock:
    for _ in range(ATTEMPTS):
        lock = _try_acquire(path, holder)
        if lock is not None:
            return lock
        time.sleep(ATTEMPT_PAUSE_SECONDS)
    raise OSError(errno.EAGAIN, "the lock file keeps being replaced", str(path))


def _try_acquire(path: Path, holder: int) -> FileLock | None:
    """One attempt; None when another process has replaced the file meanwhile."""
    try:
        descriptor = os.open(path, _OPEN_FLAGS | os.O_CREAT, _MODE)
    except OSError as error:
        if error.errno in _NOT_A_LOCK_FILE and os.path.lexists(path) and not _is_private(path.lstat()):
            _put_aside_directory(path)
            return _replace(path, path.lstat(), holder) if os.path.lexists(path) else None
        raise
    kept = False
    try:
        status = os.fstat(descriptor)
        locked = _flock(descriptor)
        if not locked:
            _refuse_if_held_by_agent(path, descriptor, status)
        elif _is_private(status):
            kept = _is_at(path, status)
            return _signed(descriptor, holder) if kept else None
        lock = _replace(path, status, holder)
        if lock is not None and locked:
            # An older version that opened the file before it was replaced finds it locked.
            lock.add(descriptor)
            kept = True
        return lock
    finally:
        if not kept:
            os.close(descriptor)


def _refuse_if_held_by_agent(path: Path, descriptor: int, status: os.stat_result) -> None:
    """Raises LockHeldError unless another user holds the lock, which a private file excludes."""
    if _is_private(status) or not _LISTS_LOCKS:
        raise LockHeldError(path, _holder(descriptor))
    pid = _agent_holding(descriptor)
    if pid is not None:
        raise LockHeldError(path, _holder(descriptor) or f" (pid {pid})")
    log.warning("%s: another user holds the lock on this file of an older version; replacing it", path)


def _replace(path: Path, replaced: os.stat_result, holder: int) -> FileLock | None:
    """Replace a file with a private lock file that is already locked; None when that file is no longer there.

    Only the process that has locked `<path>.new` may replace it, so of two that try at the same time one succeeds.
    """
    new = path.with_name(f"{path.name}.new")
    descriptor = _open_new(new)
    if descriptor is None:
        return None
    kept = False
    try:
        status = os.fstat(descriptor)
        if not _flock(descriptor) or not _is_at(new, status):
            return None
        if not _is_at(path, replaced):
            new.unlink()
            return None
        with suppress(FileNotFoundError):
            new.replace(path)
        kept = _is_at(path, status)
        return _signed(descriptor, holder) if kept else None
    finally:
        if not kept:
            os.close(descriptor)


def _put_aside_directory(path: Path) -> None:
    """Rename a directory that was created in place of a lock file: a file cannot be renamed over it."""
    if stat.S_ISDIR(path.lstat().st_mode):
        aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        path.rename(aside)
        log.warning("%s was a directory in place of a lock file: renamed to %s", path, aside.name)


def _open_new(new: Path) -> int | None:
    """Create the file that replaces a lock file, or open one left by a process that is replacing it or died doing so.

    None when the name belonged to something else, which is removed.
    """
    with suppress(FileExistsError):
        return os.open(new, _OPEN_FLAGS | os.O_CREAT | os.O_EXCL, _MODE)
    with suppress(FileNotFoundError):
        if not _is_private(new.lstat()):
            _put_aside_directory(new)
            new.unlink(missing_ok=True)
            return None
        descriptor = os.open(new, _OPEN_FLAGS)
        if _is_private(os.fstat(descriptor)):
            return descriptor
        os.close(descriptor)
    return None


def _lock_legacy_directory(directory: Path, path: Path, lock: FileLock) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    kept = False
    try:
        kept = _flock(descriptor)
        pid = _agent_holding(descriptor) if not kept and _LISTS_LOCKS else None
    except OSError as error:
        # Some network file systems cannot lock directories, so an older version has no lock there either.
        log.debug("cannot lock the directory %s: %s", directory, error.strerror)
        return
    finally:
        if not kept:
            os.close(descriptor)
    if kept:
        lock.add(descriptor)
    elif pid is not None:
        raise LockHeldError(path, f" (pid {pid})")


def _flock(descriptor: int) -> bool:
    """Take the descriptor's lock; False when another one holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_trusted(uid: int) -> bool:
    return uid in {0, os.geteuid()}


def _is_private(status: os.stat_result) -> bool:
    """Whether no other user can have opened the file. With a second link it would also be some other file."""
    return (
        stat.S_ISREG(status.st_mode)
        and _is_trusted(status.st_uid)
        and not status.st_mode & 0o077
        and status.st_nlink == 1
    )


def _is_at(path: Path, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.lstat(), status)
    except FileNotFoundError:
        return False


def _signed(descriptor: int, holder: int) -> FileLock:
    """The lock, after writing its holder to the file: process id and time."""
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d %d\n" % (holder, int(time.time())), 0)
    except OSError as error:  # a full disk; the lock is valid all the same
        log.warning("cannot write the process id to a lock file: %s", error.strerror)
    return FileLock(descriptor)


def _holder(descriptor: int) -> str:
    """` (pid 123, since 2026-01-01 12:00:00 UTC)`, or empty until the holder has written it."""
    with suppress(ValueError, OSError):
        pid, since = os.pread(descriptor, 64, 0).split()
        at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(int(since)))
        return f" (pid {int(pid)}, since {at})"
    return ""


def _agent_holding(descriptor: int) -> int | None:
    """The process that holds the lock on an open file, if it can be an agent; None when it is another user's.

    Any user can lock a file that they can read, and pass the descriptor to a set-user-ID root program. They cannot open
    root's file for writing, though, as an agent does. Nobody can open a directory for writing; there a process counts
    if all its user ids are the agent's user or root and it executes Python: a program like sudo has all its user ids
    root while it waits for the password of the user who passed it the descriptor.
    """
    name = _lock_name(descriptor)
    directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
    for pid in _trusted_processes():
        # The process may end meanwhile.
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
                info = entry.read_text(errors="replace")
                flags = int(_field(info, "flags") or "0", 8)
                held = any(
                    "FLOCK" in line and f" {name} " in line for line in re.findall(r"^lock:.*", info, re.MULTILINE)
                )
                if held and (_runs_python(pid) if directory else flags & os.O_ACCMODE != os.O_RDONLY):
                    return pid
    return None


def _runs_python(pid: int) -> bool:
    """Whether the process executes a Python interpreter, as agents do, or the same executable as this process."""
    executable = Path(f"/proc/{pid}/exe")
    return executable.readlink().name.startswith(("python", "pypy")) or executable.samefile("/proc/self/exe")


def _trusted_processes() -> Iterator[int]:
    """Processes whose real, effective, saved and file system user are all the agent's user or root."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                uids = re.search(rb"^Uid:\s+(.*)$", (entry / "status").read_bytes(), re.MULTILINE)
                if uids is not None and all(_is_trusted(int(uid)) for uid in uids[1].split()):
                    yield int(entry.name)


def _lock_name(descriptor: int) -> str:
    """The kernel's name of the file in lists of locks. It has the mount's device, which may differ from `st_dev`."""
    info = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    status = os.fstat(descriptor)
    major, minor = os.major(status.st_dev), os.minor(status.st_dev)
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        mount, _, device, *_ = line.split()
        if mount.decode() == _field(info, "mnt_id"):
            major, minor = map(int, device.split(b":"))
    return f"{major:02x}:{minor:02x}:{_field(info, 'ino') or status.st_ino}"


def _field(info: str, name: str) -> str | None:
    """A field of a file in /proc/PID/fdinfo; `ino` exists since Linux 5.14."""
    found = re.search(rf"^{name}:\s+(\S+)", info, re.MULTILINE)
    return found[1] if found else None
