"""The common part of sources that compare snapshots.

What exists for less than an interval is missed, and end times are accurate to an interval.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from typing import TYPE_CHECKING

from zeek_agent.recording.exclusions import Exclusions
from zeek_agent.recording.periodic import Periodic
from zeek_agent.recording.source import Sink, Source

if TYPE_CHECKING:
    from zeek_agent.config.sections import SourceSettings
    from zeek_agent.recording.processes.process_cache import ProcessCache


class SnapshotSource(Source):
    """Compares snapshots at an interval."""

    backend = "snapshots"

    def __init__(self, cache: ProcessCache, settings: SourceSettings) -> None:
        super().__init__()
        self._cache = cache
        self._settings = settings
        self._exclusions = Exclusions(settings)
        self._periodic: Periodic | None = None
        self._begun = 0.0

    def start(self, sink: Sink) -> None:
        self._sink = sink
        self._begun = time.time()
        self._begin()
        self._periodic = self._rounds = Periodic(self._compare, self._settings.snapshot_interval, self.failed)
        self._periodic.start()

    def stop(self) -> None:
        if self._periodic is not None:
            periodic, self._periodic = self._periodic, None
            periodic.stop()
            periodic.now()

    def recording_since(self) -> float | None:
        return self._begun

    def recorded_until(self) -> float | None:
        """What the last comparison found may have happened since the one before."""
        return max(self._begun, self._rounds.before_last() or 0.0)

    def drain(self) -> None:
        """Compare now instead of waiting for the interval."""
        if self._periodic is not None:
            self._periodic.now()

    @abstractmethod
    def _begin(self) -> None:
        """Take the first snapshot."""

    @abstractmethod
    def _compare(self) -> None:
        """Take a snapshot, and pass the changes to the sink."""
