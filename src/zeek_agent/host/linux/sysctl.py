"""Kernel parameters: their values in /proc/sys, and those that sysctl.d(5) configures."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from zeek_agent.text import from_bytes, from_os, to_bytes

CONFIGURATION: Final = (
    "etc/sysctl.conf",
    "run/sysctl.d",
    "etc/sysctl.d",
    "usr/local/lib/sysctl.d",
    "usr/lib/sysctl.d",
    "lib/sysctl.d",
)
"""Files and directories of files named `*.conf`, in the order in which osquery reads them; the last value counts."""
VALUE_BYTES_MAX: Final = 65_536
_CONFIGURATION_BYTES_MAX: Final = 1 << 20
_SECRETS: Final = frozenset({"stable_secret", "tcp_fastopen_key", "tcp_fastopen_backup_key"})
"""Files with keys."""


class KernelParameter(NamedTuple):
    """A parameter by its name with dots; the value is None for a secret, and empty if it cannot be read."""

    name: str
    value: str | None

    @property
    def subsystem(self) -> str:
        return self.name.partition(".")[0]


def parameters(
    root: Path, subsystem: str | None = None, check: Callable[[], None] = lambda: None
) -> Iterator[KernelParameter]:
    """All parameters in a directory such as /proc/sys, or those of one subsystem, which is a directory in it."""
    for entry in _entries(root):
        if stat.S_ISDIR(entry.mode) and subsystem in (None, entry.name):
            yield from _below(root / entry.file, f"{entry.name}.", entry.device, check)


def parameter(root: Path, name: str) -> KernelParameter | None:
    """The parameter with that name. Raises no error for a name that none has."""
    parts = os.fsdecode(to_bytes(name)).split(".")
    if "\0" in name or any(part in ("", "..") or "/" in part for part in parts):
        return None
    place = root
    try:
        status = place.lstat()
        device = status.st_dev
        for part in parts:
            place /= part
            status = place.lstat()
            if status.st_dev != device:
                return None  # another mount, such as the automounter's, is not entered
    except OSError:  # perhaps a dot is part of a component, as in the names of VLANs
        return next((found for found in parameters(root, from_os(parts[0])) if found.name == name), None)
    return KernelParameter(name, _value(place, status.st_mode)) if stat.S_ISREG(status.st_mode) else None


class _Entry(NamedTuple):
    file: str
    name: str
    mode: int
    device: int


def _entries(directory: Path) -> list[_Entry]:
    found = []
    with suppress(OSError), os.scandir(directory) as entries:  # an interface may just have vanished
        for entry in entries:
            with suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                found.append(_Entry(entry.name, from_os(entry.name), status.st_mode, status.st_dev))
    return sorted(found)


def _below(directory: Path, prefix: str, device: int, check: Callable[[], None]) -> Iterator[KernelParameter]:
    """The parameters below a directory, except those on other mounts, such as the automounter's binfmt_misc."""
    check()
    for entry in _entries(directory):
        place = directory / entry.file
        if stat.S_ISREG(entry.mode):
            yield KernelParameter(prefix + entry.name, _value(place, entry.mode))
        elif stat.S_ISDIR(entry.mode) and entry.device == device:
            yield from _below(place, f"{prefix}{entry.name}.", device, check)


def _value(place: Path, mode: int) -> str | None:
    if place.name in _SECRETS:
        return None
    if not mode & (stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH):
        return ""
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return from_bytes(os.read(descriptor, VALUE_BYTES_MAX).strip(b" \t\r\n\v\f"))
        finally:
            os.close(descriptor)
    except OSError:
        return ""  # no permission, or a parameter of absent hardware


def configured(root: Path = Path("/")) -> dict[str, str]:
    """The values in configuration files, by the parameters' names as written there."""
    values: dict[str, str] = {}
    for name in CONFIGURATION:
        place = root / name
        files = sorted(place.glob("*.conf")) if place.is_dir() else [place]
        for file in files:
            values.update(_assignments(file))
    return values


def _assignments(file: Path) -> Iterator[tuple[str, str]]:
    try:
        if not file.is_file():
            return
        with file.open("rb") as opened:
            text = opened.read(_CONFIGURATION_BYTES_MAX)
    except OSError:
        return
    for line in text.split(b"\n"):
        parts = [part.strip() for part in line.strip().split(b"=")]
        if len(parts) == 2 and all(parts) and not parts[0].startswith((b"#", b";")):
            yield from_bytes(parts[0]), from_bytes(parts[1])
