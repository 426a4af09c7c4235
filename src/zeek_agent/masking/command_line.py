"""The arguments of a process, as they are kept and shown."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

_encode = msgspec.json.Encoder().encode


class CommandLine(NamedTuple):
    """Masked arguments, separated by NULs. `cut`: there are more, and the last one is incomplete."""

    arguments: str
    cut: bool = False

    @property
    def cmdline(self) -> str:
        """The arguments joined by blanks, with an ellipsis if there are more."""
        line = self.arguments.replace("\0", " ")
        return f"{line} …" if self.cut else line

    @property
    def argv(self) -> list[str] | None:
        """The arguments; None if they are not all known."""
        return None if self.cut else self.arguments.split("\0")

    @property
    def stored_argv(self) -> str | None:
        """`argv` as the event store holds it: empty if it is `cmdline` split at its blanks, else as JSON."""
        if self.cut:
            return None
        return "" if " " not in self.arguments else _encode(self.arguments.split("\0")).decode()
