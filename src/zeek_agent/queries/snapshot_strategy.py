"""Snapshot queries: each run delivers the result, or its difference from the last one delivered."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from zeek_agent.queries.differences import ResultSnapshot
from zeek_agent.queries.subscriptions import Change, Subscription
from zeek_agent.results.state import may_be_unread

if TYPE_CHECKING:
    from zeek_agent.events.delivery_states import Delivered
    from zeek_agent.host.files.reads import Omissions
    from zeek_agent.queries.delivery import Delivery
    from zeek_agent.queries.installed import Installed
    from zeek_agent.queries.result_backlog import Slot
    from zeek_agent.schema import Row

log = logging.getLogger(__name__)


class SnapshotStrategy:
    """Runs queries of all tables but event tables."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery

    def restore(self, installed: Installed, delivered: Delivered | None) -> None:
        """Load the result that the recipient already has, to compare the first one with."""
        if delivered is None or delivered.snapshot is None:
            return
        try:
            installed.snapshot = ResultSnapshot.unpack(delivered.snapshot)
        except ValueError as error:
            log.warning("query %s starts over: %s", installed.query_id, error)

    async def run(self, installed: Installed) -> None:
        async with installed.backlog.slot() as slot:
            await self._report(installed, slot)

    async def _report(self, installed: Installed, slot: Slot) -> None:
        """Deliver a result, or its difference from the last one delivered."""
        if installed.query.runs_once or installed.query.subscription is Subscription.SNAPSHOTS:
            report = await self._delivery.report(installed)
            slot.hold_result(report.size_bytes)
            await self._delivery.deliver(installed, report)
            return
        result = await self._delivery.run_statement(installed)
        slot.hold_result(result.size_bytes)
        columns = result.columns
        files = result.files
        snapshot = ResultSnapshot(
            tuple((column.name, str(column.type)) for column in columns), result.rows, files.unread
        )
        del result  # its rows are no longer needed, and delivering may take long
        before = installed.snapshot if installed.snapshot and installed.snapshot.columns == snapshot.columns else None
        if before is not None and not _reports_all(installed):
            _hold_unread(before, snapshot, files)
        if before == snapshot and installed.reported:
            return
        await self._delivery.deliver_rows(installed, columns, _changes(installed, before, snapshot))
        installed.snapshot, installed.reported = snapshot, True
        if before != snapshot:
            self._delivery.save_state(installed)


def _reports_all(installed: Installed) -> bool:
    """Whether the next report is the whole result."""
    return installed.query.subscription is Subscription.SNAPSHOT_PLUS_DIFFERENCES and not installed.reported


def _hold_unread(before: ResultSnapshot, now: ResultSnapshot, files: Omissions) -> None:
    """Keep rows of files that could be read before and now cannot: the files may still exist."""
    newly = not files.unread <= before.unread
    if files.unread:
        now.keep_unread(before, may_be_unread(files.unread, newly, files.all_paths))
    now.unread = files.unread & before.unread


def _changes(
    installed: Installed, before: ResultSnapshot | None, now: ResultSnapshot
) -> list[tuple[Change | None, Row]]:
    subscription = installed.query.subscription
    if _reports_all(installed):
        return [(None, row) for row in now.all_rows()]
    if before is None:
        return []
    new: list[tuple[Change | None, Row]] = [(Change.ADD, row) for row in before.added_rows(now)]
    if subscription is Subscription.EVENTS:
        return new
    return [*((Change.DELETE, row) for row in before.removed_rows(now)), *new]
