"""Follows the lines that a program writes for as long as it runs."""

from __future__ import annotations

import os
import selectors
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Final

from zeek_agent.text import from_bytes

_READ_BYTES: Final = 65_536
_READS_PER_TURN: Final = 64
"""Reads before `settle`, so that a flood does not delay rows."""
_TICK_SECONDS: Final = 0.5
_STOP_SECONDS: Final = 5.0
"""Time for the program to end on SIGTERM."""
_COMPLAINT_BYTES_MAX: Final = 1_000
"""Of the last lines on standard error, for the reason why the program ended."""


class LineBuffer:
    """Joins the pieces of lines. Of a line longer than `bytes_max` nothing is kept; it is counted."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._pieces: list[bytes] = []
        self._size = 0
        self.too_long = 0

    def lines(self, chunk: bytes) -> Iterator[bytes]:
        """The lines that this piece of the output completes, without their newlines."""
        first, *others = chunk.split(b"\n")
        self._append(first)
        for piece in others:
            if self._size > self._bytes_max:
                self.too_long += 1
            else:
                yield b"".join(self._pieces)
            self._pieces, self._size = [], 0
            self._append(piece)

    def _append(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._bytes_max:
            self._pieces.clear()
        elif piece:
            self._pieces.append(piece)


class ProgramLines:
    """Runs a program in a session of its own and calls `receive` with each line of its output.

    `settle` is called after each turn of reading, and twice a second; both by one thread at a time. `ended` is called
    with the reason if the program ends before `stop`, or the thread fails.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        receive: Callable[[bytes], None],
        settle: Callable[[], None],
        ended: Callable[[str], None],
        line_bytes_max: int,
    ) -> None:
        self._command = command
        self._receive = receive
        self._settle = settle
        self._ended = ended
        self._buffer = LineBuffer(line_bytes_max)
        self._complaint = b""
        self.lock = threading.Lock()
        """Held while lines are received and settled."""
        self._is_stopping = False
        self._wake, self._waker = -1, -1
        self._thread = threading.Thread(target=self._run, name=os.path.basename(command[0]), daemon=True)  # noqa: PTH119
        self.read_until: float | None = None
        """When its output had been read completely (seconds since the epoch)."""

    @property
    def too_long(self) -> int:
        """Lines longer than `line_bytes_max`."""
        return self._buffer.too_long

    @property
    def pid(self) -> int:
        """Process id of the program."""
        return self._process.pid

    def start(self) -> None:
        """Raises OSError if the program cannot be executed."""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
        )
        self._wake, self._waker = os.pipe()
        output, complaints = self._streams()
        self._output, self._complaints = _selector(output), _selector(complaints)
        self._thread.start()

    def drain(self) -> None:
        """Read what the program has written, in the caller's thread."""
        with self.lock:
            if not self._streams()[0].closed:
                self._read_turn()
                self._settle()

    def stop(self) -> None:
        """End the program, and read the rest of its output."""
        self._is_stopping = True
        if self._process.poll() is None:
            self._process.terminate()
        self._thread.join(_STOP_SECONDS)
        if self._thread.is_alive():
            self._process.kill()
            self._thread.join(_STOP_SECONDS)
        if self._thread.is_alive():  # a descendant has the pipe open
            os.write(self._waker, b"x")
            self._thread.join()
        self._close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise OSError(f"{self._command[0]} (process {self.pid}) cannot be ended") from None

    def _close(self) -> None:
        for opened in (self._output, self._complaints, *self._streams()):
            opened.close()
        for descriptor in (self._wake, self._waker):
            if descriptor >= 0:
                os.close(descriptor)
        self._wake = self._waker = -1

    def _streams(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        return self._process.stdout, self._process.stderr

    def _run(self) -> None:
        try:
            reason = self._read_lines()
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody reads the program any more
            reason = f"{type(error).__name__}: {error}"
            self._process.kill()
        if not self._is_stopping:
            self._ended(reason)

    def _read_lines(self) -> str:
        """Read until the program ends. Returns the reason."""
        output, complaints = self._streams()
        with _selector(output, complaints, self._wake) as selector:
            while True:
                ready = [key.fileobj for key, _ in selector.select(_TICK_SECONDS)]
                if self._wake in ready:
                    return "stopped"
                with self.lock:
                    if complaints in ready and not self._read_complaints():
                        selector.unregister(complaints)
                    is_open = self._read_turn()
                    self._settle()
                if not is_open:
                    return self._reason()

    def _read_turn(self) -> bool:
        """Handle what the program has written, up to a limit. Returns False at the end of the output."""
        for _ in range(_READS_PER_TURN):
            begun = time.time()
            if not self._output.select(0):
                self.read_until = begun
                return True
            chunk = os.read(self._streams()[0].fileno(), _READ_BYTES)
            if not chunk:
                return False
            for line in self._buffer.lines(chunk):
                self._receive(line)
        return True

    def _read_complaints(self) -> bool:
        """Keep the end of standard error. Returns False at its end."""
        for _ in range(_READS_PER_TURN):
            if not self._complaints.select(0):
                break
            chunk = os.read(self._streams()[1].fileno(), _READ_BYTES)
            self._complaint = (self._complaint + chunk)[-_COMPLAINT_BYTES_MAX:]
            if not chunk:
                return False
        return True

    def _reason(self) -> str:
        try:
            status = self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait(_STOP_SECONDS)
        self._read_complaints()
        complaint = " ".join(from_bytes(self._complaint).split())
        return f"{self._command[0]} ended with status {status}" + (f" ({complaint})" if complaint else "")


def _selector(*files: IO[bytes] | int) -> selectors.BaseSelector:
    selector = selectors.DefaultSelector()
    for file in files:
        selector.register(file, selectors.EVENT_READ)
    return selector
