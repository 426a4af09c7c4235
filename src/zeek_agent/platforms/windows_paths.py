"""Paths of Windows in the form that patterns and access rules have: `/C:/Windows/win.ini`.

`/` is not a directory there: each drive has a root. Network paths (`\\\\server\\share`) have no such form: to open
one would send the agent's credentials to a server that the asker chooses. Neither have names that Windows opens as
something else: devices, streams of a file (`name:stream`), and names with trailing dots or blanks.
"""

from __future__ import annotations

import re
from typing import Final

_DRIVE: Final = re.compile(r"([A-Za-z]):(?=/|$)")
_INNER: Final = re.compile(r"/([A-Za-z]:)(/.*)?", re.DOTALL)
_DEVICE: Final = re.compile(
    r"(?:con|prn|aux|nul|conin\$|conout\$|com[0-9\u00b9\u00b2\u00b3]|lpt[0-9\u00b9\u00b2\u00b3])(?:[ ]*[.:].*)?",
    re.IGNORECASE,
)


def inner(path: str) -> str:
    """A path or pattern with slashes, and with a slash before the drive."""
    path = path.replace("\\", "/")
    return f"/{path}" if _DRIVE.match(path) else path


def shown(path: str) -> str:
    """The form that Windows shows."""
    return (path[1:] if _INNER.fullmatch(path) else path).replace("/", "\\")


def native(path: str) -> str | None:
    """The form to open an absolute path; None if it cannot be opened by that name, `/` included."""
    found = _INNER.fullmatch(path)
    if found is None:
        return None
    parts = (found[2] or "/").split("/")[1:]
    if any(_is_alias(part) for part in parts):
        return None
    return f"{found[1]}\\" + "\\".join(filter(None, parts))


def _is_alias(name: str) -> bool:
    """Whether Windows opens something else by that name than a file that a directory lists under it."""
    if name in {"", ".", ".."}:
        return False
    return ":" in name or name[-1] in ". " or _DEVICE.fullmatch(name) is not None
