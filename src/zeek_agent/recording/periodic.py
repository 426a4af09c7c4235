"""Runs a function periodically in a separate thread, and on demand."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from zeek_agent import platforms

URGENT_NICENESS: Final = -19


class Periodic:
    """Calls `work` every `interval_seconds`, less often if it takes long: the pause is at least `share` times as long.

    `work` is called by one thread at a time. `failed` is called with the reason when the thread ended by itself.
    `urgent` raises the priority, for work that reads short-lived state.
    """

    def __init__(
        self,
        work: Callable[[], None],
        interval_seconds: float,
        failed: Callable[[str], None],
        *,
        share: float = 3.0,
        urgent: bool = False,
    ) -> None:
        self._work = work
        self._interval_seconds = interval_seconds
        self._failed = failed
        self._share = share
        self._urgent = urgent
        self._lock = threading.Lock()
        self._rounds: deque[float] = deque(maxlen=2)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="periodic-source", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def now(self) -> None:
        """Call `work` now, in the caller's thread."""
        with self._lock:
            begun = time.time()
            self._work()
            self._rounds.append(begun)

    def before_last(self) -> float | None:
        """When the round before the last one began (seconds since the epoch); None until there were two."""
        rounds = self._rounds
        return rounds[0] if len(rounds) == 2 else None

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        if self._urgent:
            raise_priority()
        rest = self._interval_seconds
        try:
            while not self._ended.wait(rest):
                begun = time.monotonic()
                self.now()
                rest = max(self._interval_seconds, self._share * (time.monotonic() - begun))
        except Exception as error:  # noqa: BLE001 - whatever it is, the source has ended and must be replaced
            self._failed(f"{type(error).__name__}: {error}")


def raise_priority() -> None:
    """Raise the priority of the calling thread, if permitted."""
    with suppress(PermissionError):
        platforms.HERE.set_thread_niceness(URGENT_NICENESS)
