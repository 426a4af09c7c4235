"""What a table may use in addition to reading what the agent's other tables read: its declared privileges.

A table without a declaration runs in the process of the statement. One that declares privileges runs in a helper
process that has exactly these; see "Tables with privileges" in docs/security.md.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Privileges:
    """The privileges that a table declares. Raises ValueError or TypeError for a declaration that cannot be meant."""

    unix_sockets: tuple[str, ...] = ()
    """Paths of sockets that belong to root."""
    programs: tuple[str, ...] = ()
    """Absolute paths of programs that belong to root and that nobody else can replace."""
    network: bool = False
    """Outgoing connections and datagrams over IPv4 and IPv6."""
    user_database: bool = False
    """The name service's daemons (nscd, sssd, nslcd, systemd-userdbd), which listen on Unix sockets."""
    other_users: bool = False
    """Other users' processes and files, as in a snapshot worker. Excludes `programs` and `network`."""

    def __post_init__(self) -> None:
        for name in ("network", "user_database", "other_users"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, not {getattr(self, name)!r}")
        for name in ("unix_sockets", "programs"):
            paths = getattr(self, name)
            if not isinstance(paths, tuple) or not all(isinstance(path, str) for path in paths):
                raise TypeError(f"{name} must be a tuple of paths, not {paths!r}")
            for path in paths:
                if not path.startswith("/"):
                    raise ValueError(f"{name}: not an absolute path: {path!r}")
                if "\0" in path or path.startswith("//") or path != posixpath.normpath(path) or path == "/":
                    raise ValueError(f"{name}: not a plain path to a file, without `..`, `//` or a final `/`: {path!r}")
        if self.other_users and (self.programs or self.network):
            raise ValueError("a table that reads other users' files may use neither programs nor the network")

    @property
    def any_unix_socket(self) -> bool:
        return bool(self.unix_sockets) or self.user_database

    def texts(self) -> Iterator[str]:
        """Each privilege in words."""
        if self.user_database:
            yield "the user database (name service)"
        for path in self.unix_sockets:
            yield f"the Unix socket {path}"
        for path in self.programs:
            yield f"the program {path}"
        if self.network:
            yield "the network"
        if self.other_users:
            yield "other users' processes and files"


NO_PRIVILEGES: Final = Privileges()
