"""How far an event table has been recorded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Past:
    """How far an event table has been recorded, as far as that is not too old to be kept.

    `cursor` is that of the last row, None when no row is left; `until` is when recording ended (seconds since the
    epoch). Both None: nothing yet.
    """

    cursor: str | None = None
    until: float | None = None
