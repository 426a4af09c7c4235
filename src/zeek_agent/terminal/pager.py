"""A pager for results that are longer than the terminal: `$PAGER`, or less(1)."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Final, TextIO

DEFAULT: Final = "less"
LESS: Final = "FRX"
"""Options of less(1) unless `$LESS` has others: end at once if it fits, show colours, leave the text on the screen."""


class Pager:
    """Runs a program on texts that are longer than the terminal, and writes all others."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = tuple(command)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Pager | None:
        """The pager that `$PAGER` names, by default less(1); None if it is empty, `cat`, or not installed."""
        try:
            command = shlex.split(environment.get("PAGER", DEFAULT))
        except ValueError:  # unbalanced quotes
            return None
        if not command or command == ["cat"] or shutil.which(command[0]) is None:
            return None
        return cls(command)

    def show(self, text: str, out: TextIO) -> int:
        """Show a text on the terminal `out`. Returns the pager's exit code; 0 if it did not run."""
        code = None if text.count("\n") < shutil.get_terminal_size().lines else self._run(text)
        if code is None:
            out.write(text)
            out.flush()
        return code or 0

    def _run(self, text: str) -> int | None:
        """Run the pager and return its exit code; None if it cannot be started. Ctrl-C is for the pager meanwhile."""
        environment = {**os.environ, "LESS": os.environ.get("LESS", LESS)}
        before = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            encoded = text.encode(errors="surrogateescape")
            return subprocess.run(self.command, input=encoded, env=environment, check=False).returncode
        except OSError:
            return None
        finally:
            signal.signal(signal.SIGINT, before)


def unusable(environment: Mapping[str, str]) -> str:
    """Why the environment names no pager."""
    named = environment.get("PAGER")
    if named is None:
        return f"{DEFAULT} is not installed; set PAGER to another program"
    return f"PAGER is {named!r}, which is not the command line of an installed pager"
