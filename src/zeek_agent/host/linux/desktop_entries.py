"""Desktop entries of programs that are started at login, by the specifications of freedesktop.org."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

_GROUP: Final = b"[Desktop Entry]"
_FALSE: Final = b"false"
_TRUE: Final = b"true"
_KEYS: Final = frozenset({b"Exec", b"Hidden", b"Name", b"X-GNOME-Autostart-enabled"})


class DesktopEntry(NamedTuple):
    """The name and command line as they are written, and whether the program is started."""

    name: bytes
    command: bytes
    is_enabled: bool


def desktop_entry(lines: Iterable[bytes]) -> DesktopEntry:
    """The entry in a file; empty where it has no value."""
    values: dict[bytes, bytes] = {}
    in_group = False
    for raw in lines:
        line = raw.strip()
        if line.startswith(b"["):
            in_group = line == _GROUP
        elif in_group:
            key, _, value = line.partition(b"=")
            if (key := key.rstrip()) in _KEYS:
                values.setdefault(key, value.lstrip())
    is_hidden = values.get(b"Hidden", b"").lower() == _TRUE
    is_off = values.get(b"X-GNOME-Autostart-enabled", b"").lower() == _FALSE
    return DesktopEntry(values.get(b"Name", b""), values.get(b"Exec", b""), not (is_hidden or is_off))
