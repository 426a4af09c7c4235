"""Running statements, reporting to the recipient, and saving delivery state, for both kinds of installed queries."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from zeek_agent import __version__
from zeek_agent.database.encodings import BatchesEncoding, ControlEncoding
from zeek_agent.database.results import Result
from zeek_agent.queries.installed import Installed, QueryState, clipped_statement
from zeek_agent.queries.subscriptions import Change, Report

if TYPE_CHECKING:
    from zeek_agent.database.database import ResultColumn, SqlDatabase
    from zeek_agent.database.encodings import Encoding
    from zeek_agent.database.results import EncodedRows
    from zeek_agent.events.store import EventStore
    from zeek_agent.host.files.reads import Omissions
    from zeek_agent.results.comparison import Comparison
    from zeek_agent.schema import Row

log = logging.getLogger(__name__)

SNAPSHOT_BYTES_MAX: Final = 64 * 1024 * 1024
"""Largest packed snapshot kept on disk: hundreds of thousands of rows, and still small next to the event store."""
ERROR_INTERVAL_SECONDS: Final = 60.0
"""Interval at which a query's unchanged run-time error is reported again, so that a frequent query floods no log."""


class Delivery:
    """Runs the statements of installed queries and delivers their rows."""

    def __init__(
        self, database: SqlDatabase, store: EventStore | None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._store = store
        self._monotonic = monotonic
        self._run = secrets.token_hex(4)
        self._reports = 0

    @property
    def rows_max(self) -> int:
        """How many rows a result may have."""
        return self._database.limits.rows

    async def run_statement(self, installed: Installed) -> Result:
        """The result as rows."""
        from zeek_agent.database.database import Lane

        result = await self._database.query(
            installed.query.sql,
            profile=installed.profile,
            lane=Lane.SNAPSHOTS,
            origin=installed.recipient.identity,
        )
        await self._report_omissions(installed, result)
        return result

    async def report(
        self,
        installed: Installed,
        change: Change | None = None,
        window: Mapping[str, tuple[int, int]] | None = None,
        comparison: Comparison | None = None,
    ) -> Report:
        """The result as a report in which each row has that change, encoded as the recipient wants it if possible.

        With a comparison, the rows are those that differ from the stored result, and always encoded.
        """
        from zeek_agent.database.database import Lane

        draft = self._draft(installed, _span(window) if window else None)
        encoding = installed.recipient.encoding(draft)
        arguments: dict[str, Any] = {
            "profile": installed.profile,
            "lane": Lane.EVENTS if window else Lane.SNAPSHOTS,
            "window": window,
            "origin": installed.recipient.identity,
        }
        if comparison is not None:
            arguments["comparison"] = comparison
            encoding = encoding or ControlEncoding()
        if encoding is None:
            result: Result | EncodedRows = await self._database.query(installed.query.sql, **arguments)
        else:
            result = await self._database.encoded(
                installed.query.sql, encoding, change=None if change is None else change.value, **arguments
            )
        await self._report_omissions(installed, result)
        shape = _shape(result, encoding)
        draft = replace(draft, columns=result.columns, size_bytes=result.size_bytes, shape=shape)
        if isinstance(result, Result):
            return replace(draft, rows=[(change, row) for row in result.rows])
        return replace(draft, encoded=result)

    async def _report_omissions(self, installed: Installed, result: Result | EncodedRows) -> None:
        if result.errors:
            await self.report_error(installed, f"rows omitted: {'; '.join(result.errors)}")
        await self._report_files(installed, result.files)

    def _draft(self, installed: Installed, window: tuple[int, int] | None) -> Report:
        store = self._store.id if self._store else ""
        if window is None:
            self._reports += 1
            store, window = f"{store}/{self._run}", (self._reports - 1, self._reports)
        return Report(installed.query_id, installed.query, (), stream=installed.key, store=store, window=window)

    async def deliver_rows(
        self, installed: Installed, columns: tuple[ResultColumn, ...], rows: Sequence[tuple[Change | None, Row]]
    ) -> None:
        """Deliver rows that are here."""
        await self.deliver(installed, replace(self._draft(installed, None), columns=columns, rows=rows))

    async def deliver(self, installed: Installed, report: Report) -> None:
        """Deliver a report and return once the recipient has it. Its encoded rows are closed."""
        try:
            if report.row_count or (installed.query.runs_once and installed.recipient.recognizes_replays):
                # only the end of a query that runs once is worth a report without rows
                await installed.recipient.deliver(report)
                installed.rows += report.row_count
        finally:
            report.close()

    def save_state(self, installed: Installed) -> None:
        """Save the delivery state to disk, so that changes during the recipient's absence are reported later."""
        if self._store is None or not installed.durable or installed.query.runs_once:
            return
        packed = installed.snapshot.pack() if installed.snapshot is not None else None
        if packed is not None and len(packed) > SNAPSHOT_BYTES_MAX:
            log.warning("query %s: its snapshot of %d bytes is too large to store", installed.query_id, len(packed))
            packed = None
        self._store.acknowledge(
            installed.key,
            installed.seen,
            packed,
            installed.under_way,
            owner=installed.owner,
            recent=installed.recent,
            shape=installed.under_way_shape,
        )

    async def report_error(self, installed: Installed, message: str) -> None:
        installed.errors += 1
        installed.state = QueryState.FAILING
        now = self._monotonic()
        if message == installed.last_error and now - installed.last_error_reported < ERROR_INTERVAL_SECONDS:
            return
        installed.last_error, installed.last_error_reported = message, now
        log.warning("query %s of %s failed: %s", installed.query_id, installed.recipient.identity, message)
        text = f"could not run query (statement: {clipped_statement(installed.query)} ({message}))"
        await installed.recipient.report_error(installed.query_id, installed.query, text)

    async def _report_files(self, installed: Installed, files: Omissions) -> None:
        """Report skipped files to the recipient: once, and again for each new cause.

        A stock package gets one report only, because it treats each error as a failure of the query.
        """
        from zeek_agent.database.database import Profile

        installed.files = files
        new = files.causes - installed.files_reported
        if not new or (installed.files_reported and installed.recipient.profile is Profile.STOCK):
            return
        installed.files_reported |= files.causes
        log.warning("query %s of %s: %s", installed.query_id, installed.recipient.identity, files.summary())
        text = f"could not read all files (statement: {installed.query.sql} ({files.summary()}))"
        await installed.recipient.report_error(installed.query_id, installed.query, text)


def _span(window: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    """A window as one pair of numbers, whose second grows with every new row of any table."""
    return sum(low for low, _ in window.values()), sum(high for _, high in window.values())


def _shape(result: Result | EncodedRows, encoding: Encoding | None) -> str:
    """What decides how the rows are split into batches, except for their contents."""
    limits = (encoding.batch_rows, encoding.batch_bytes) if isinstance(encoding, BatchesEncoding) else ()
    return " ".join(map(str, (result.row_count, result.size_bytes, *limits, __version__)))
