"""Paths of Windows in the form that patterns and access rules have: `/C:/Windows/win.ini`.

`/` is not a directory there: each drive has a root. Network paths (`\\\\server\\share`) have no such form: to open
one would send the agent's credentials to a server that the asker chooses. Neither have names that Windows opens as
something else: devices, streams of a file (`name:stream`), and names with trailing dots or blanks.
"""

from __future__ import annotations

import posixpath
import re
from typing import Final

_DRIVE: Final = re.compile(r"([A-Za-z]):(?=/|$)")
_INNER: Final = re.compile(r"/([A-Za-z]:)(/.*)?", re.DOTALL)
_PREFIX: Final = re.compile(r"^\\(?:\\|\?)\?\\(?=[A-Za-z]:(?:\\|$))")
"""Of a path that is passed on as it is: `\\\\?\\C:\\x`, in the kernel's form `\\??\\C:\\x`."""
_FORBIDDEN: Final = frozenset('<>"|?*')
"""No file system of Windows has them in names; `\\??\\` is the kernel's own directory of devices."""
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


def link_target(directory: str, target: str) -> str | None:
    """The path of a link's target; None if it is not on a drive, or is nothing that may be opened by its name.

    `directory` is that of the link, as `inner` has it. Links of a directory to a drive have the prefix `\\\\?\\`.
    """
    target = _PREFIX.sub("", target)
    path = inner(target)
    is_inner = _INNER.fullmatch(path) is not None
    if path.startswith("//") or (":" in target and not is_inner) or not _FORBIDDEN.isdisjoint(target):
        return None
    found = _INNER.fullmatch(directory)
    if path.startswith("/") and found is not None and not is_inner:
        path = f"/{found[1]}{path}"
    path = posixpath.normpath(posixpath.join(directory, path))
    return None if native(path) is None else path


def _is_alias(name: str) -> bool:
    """Whether Windows opens something else by that name than a file that a directory lists under it."""
    if name in {"", ".", ".."}:
        return False
    return ":" in name or name[-1] in ". " or _DEVICE.fullmatch(name) is not None
