"""Identity of the agent: a permanent id, an id of this start, and a lock that makes it the only agent here.

The agent id is kept in the state directory together with a keyed hash of the machine id, so that a cloned image gets an
id of its own. Without a machine id (some containers) the agent id is bound to the directory only.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from zeek_agent import platforms
from zeek_agent.errors import ZeekAgentError
from zeek_agent.file_lock import EXPOSURE_ADVICE, LockHeldError

log = logging.getLogger(__name__)

STATE_MODE: Final = 0o711
"""Mode of a state directory: its control socket is reachable, and each file is protected by its own mode."""

_DIGITS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Identity:
    """The agent's names in messages to Zeek."""

    agent: str
    """`H` and base62 of 16 bytes; the same across restarts."""
    instance: str
    """`I` and base62 of 16 bytes; new at each start."""


class _Stored(msgspec.Struct, frozen=True):
    id: str
    machine: str | None = None
    """Keyed hash of the machine id when the agent id was generated; None if there was none."""


def establish(
    file: Path, configured: str | None = None, machine_id: Callable[[], str | None] = platforms.HERE.machine_id
) -> Identity:
    """The identity of a starting agent: read from `file`, or generated and stored there.

    A `configured` agent id is used unchanged. If the file cannot be written, the id is only for this start, which is
    logged.
    """
    instance = new_id("I")
    if configured is not None:
        return Identity(configured, instance)
    stored = read(file)
    machine = _hashed(machine_id())
    if stored is not None and stored.machine is not None and machine is not None and stored.machine != machine:
        log.warning("%s was created on another machine; generating a new agent id", file)
        stored = None
    keep = stored or _Stored(new_id("H"), machine)
    if keep.machine is None and machine is not None:
        keep = _Stored(keep.id, machine)
    if keep != stored:
        _write(file, keep)
    return Identity(keep.id, instance)


def read(file: Path) -> _Stored | None:
    """The contents of `file`, or None; an unreadable or invalid file is logged."""
    try:
        stored = msgspec.json.decode(file.read_bytes(), type=_Stored)
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("cannot read the agent id in %s: %s", file, error.strerror)
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("%s is damaged (%s); generating a new agent id", file, error)
        return None
    if not re.fullmatch(r"H[0-9A-Za-z]{1,22}", stored.id):
        log.warning("%s contains no agent id; generating a new one", file)
        return None
    return stored


def new_id(prefix: str) -> str:
    """`prefix` and a random 16 byte number in base62."""
    number = int.from_bytes(secrets.token_bytes(16), "big")
    digits = ""
    while number:
        number, digit = divmod(number, 62)
        digits = _DIGITS[digit] + digits
    return prefix + (digits or "0")


def _hashed(machine_id: str | None) -> str | None:
    """A hash that does not reveal the machine id, as machine-id(5) requires; None if there is none."""
    if machine_id is None:
        return None
    return hmac.new(machine_id.encode(), b"zeek-agent identity", hashlib.sha256).hexdigest()[:32]


def _write(file: Path, stored: _Stored) -> None:
    """Replace the file atomically, so that a crash leaves the old or the new one."""
    import tempfile

    try:
        platforms.HERE.make_private_directory(file.parent, STATE_MODE)
        descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=".identity-")
        try:
            with os.fdopen(descriptor, "wb") as out:
                out.write(msgspec.json.encode(stored) + b"\n")
                out.flush()
                os.fsync(out.fileno())
            Path(name).replace(file)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        log.warning("cannot store the agent id in %s (%s): it is valid for this run only", file, error.strerror)


@contextmanager
def only_one(file: Path) -> Iterator[None]:
    """Lock a state directory. Raises ZeekAgentError that names the holder if another agent has locked it.

    Also raises ZeekAgentError for a directory that other users control. A directory that is not writable is not locked,
    which is logged.
    """
    directory = file.parent
    try:
        platforms.HERE.make_private_directory(directory, STATE_MODE)
        if reason := platforms.HERE.directory_exposure(directory):
            raise ZeekAgentError(f"the state directory {reason}: {EXPOSURE_ADVICE} or choose another --state-dir")
        if reason := platforms.HERE.group_exposure(directory):
            log.warning("the state directory %s, who can replace the agent's files: chmod g-w it", reason)
        lock = platforms.HERE.acquire_lock(file)
    except LockHeldError as error:
        raise ZeekAgentError(
            f"another agent{error.holder} uses {directory}; stop it or choose another --state-dir"
        ) from None
    except OSError as error:
        log.warning("cannot lock the state directory %s (%s): continuing without a lock", directory, error.strerror)
        yield
        return
    try:
        yield
    finally:
        lock.close()
