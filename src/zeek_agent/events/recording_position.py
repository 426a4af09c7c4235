"""The recording position of an event table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RecordingPosition:
    """Recording position of an event table, unless it is older than the retention.

    `cursor` is that of the last row, None if no row is left; `until` is the end of recording (seconds since the
    epoch). Both are None if nothing was recorded. `cursors` are those of the last rows, the newest first.
    """

    cursor: str | None = None
    until: float | None = None
    cursors: Sequence[str | None] = ()
