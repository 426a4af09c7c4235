"""Acknowledgements by script: the extension of version 1 of the API that our Zeek package supports.

The script acknowledges each batch (`frames`) with the number of the last one that its handlers have processed, and
recognizes a repeated batch by stream, store and window.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zeek_agent.queries.subscriptions import Report
    from zeek_agent.zeek import protocol


class Acknowledgements:
    """The acknowledgements of the reports in flight, by query."""

    def __init__(self) -> None:
        self._reports: dict[str, _Awaited] = {}

    def expect(self, report: Report) -> None:
        """Accept acknowledgements for this report until `stop_expecting`."""
        self._reports[report.query_id] = _Awaited(report)

    def stop_expecting(self, report: Report) -> None:
        """Stop accepting acknowledgements: the delivery succeeded or failed."""
        self._reports.pop(report.query_id, None)

    def accept(self, ack: protocol.RowsAck) -> bool:
        """Record an acknowledgement. Returns False if no report is waiting for it, for example of a cancelled query."""
        awaited = self._reports.get(ack.query_id)
        if awaited is None or (awaited.report.stream, awaited.report.window[1]) != (ack.stream, ack.high):
            return False
        if ack.index > awaited.index:
            awaited.index = ack.index
            awaited.progress.set()
        return True

    def index(self, report: Report) -> int:
        """The number of the last acknowledged batch; -1 for none."""
        return self._reports[report.query_id].index

    async def wait(self, report: Report, index: int, seconds: float) -> None:
        """Wait until the batch `index` is acknowledged. Raises TimeoutError after `seconds` without progress."""
        awaited = self._reports[report.query_id]
        while awaited.index < index:
            awaited.progress.clear()
            async with asyncio.timeout(seconds):
                await awaited.progress.wait()


@dataclass(slots=True)
class _Awaited:
    report: Report
    index: int = -1
    progress: asyncio.Event = field(default_factory=asyncio.Event)
