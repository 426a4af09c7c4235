"""A program on a pseudo-terminal."""

from __future__ import annotations

import os
import re
import select
import time
from collections.abc import Mapping, Sequence
from typing import Final

from children import fork_in_terminal

PASTE_MODE: Final = r"\x1b\[\?2004[hl]\r?"
"""What readline writes before and after each line, so that terminals mark pasted text."""
POLL_SECONDS: Final = 0.2


class Terminal:
    """A program on a pseudo-terminal, in a child process."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.pid, self.descriptor = fork_in_terminal(lambda: os.execvpe(command[0], command, environment))
        self.seen = ""

    def type(self, keys: str) -> None:
        os.write(self.descriptor, keys.encode())

    def expect(self, pattern: str, seconds: float = 20) -> str:
        """Wait until the output after what was expected before matches; that part."""
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self.seen, re.DOTALL)):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.seen!r}"
            if select.select([self.descriptor], [], [], POLL_SECONDS)[0]:
                self.seen = re.sub(PASTE_MODE, "", self.seen + self._read())
        self.seen = self.seen[match.end() :]
        return match[0]

    def wait_until_raw(self, seconds: float = 20) -> None:
        """Wait until the program reads keys itself: the terminal does not show what is typed."""
        import termios  # which Windows lacks

        deadline = time.monotonic() + seconds
        while termios.tcgetattr(self.descriptor)[3] & termios.ECHO:
            assert time.monotonic() < deadline, f"it does not read: {self.seen!r}"
            time.sleep(POLL_SECONDS)

    def wait(self) -> int:
        """Wait until the program ends; the exit code."""
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        os.close(self.descriptor)

    def _read(self) -> str:
        try:
            return os.read(self.descriptor, 65536).decode()
        except OSError as error:  # what Linux says once the other side has ended
            raise AssertionError(f"the program ended: {self.seen}") from error
