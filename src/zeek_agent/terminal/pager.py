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

    def show(self, text: str, out: TextIO) -> None:
        """Show a text on the terminal `out`."""
        if text.count("\n") < shutil.get_terminal_size().lines or not self._run(text):
            out.write(text)
            out.flush()

    def _run(self, text: str) -> bool:
        """Whether the pager could be started. Ctrl-C is for the pager while it runs."""
        environment = {**os.environ, "LESS": os.environ.get("LESS", LESS)}
        before = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            subprocess.run(self.command, input=text, text=True, env=environment, check=False)
        except OSError:
            return False
        finally:
            signal.signal(signal.SIGINT, before)
        return True
