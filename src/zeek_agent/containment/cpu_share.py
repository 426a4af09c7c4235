"""A recipient's share of processor time, as a token bucket: what is not used is saved, up to a bound."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

BURST_SECONDS: Final = 20.0
"""Processor time that may be saved: a recipient that installs many queries at once is not delayed for it."""


class CpuShare:
    """Processor seconds that a recipient's statements may use; `share` are earned per second."""

    def __init__(self, share: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._monotonic = monotonic
        self._saved = BURST_SECONDS
        self._counted_at = monotonic()

    def use(self, seconds: float) -> None:
        """Count processor time that was used. More may be used than was saved: later statements wait for it."""
        self._count()
        self._saved -= seconds

    @property
    def wait_seconds(self) -> float:
        """How long the next statement has to wait; 0 if it need not."""
        self._count()
        return max(0.0, -self._saved / self._share)

    @property
    def is_full(self) -> bool:
        """Whether nothing was used lately, so that a new one would be the same."""
        self._count()
        return self._saved >= BURST_SECONDS

    def _count(self) -> None:
        now = self._monotonic()
        self._saved = min(BURST_SECONDS, self._saved + (now - self._counted_at) * self._share)
        self._counted_at = now
