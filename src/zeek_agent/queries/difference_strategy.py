"""Differences queries whose last results are on disk: a worker process compares, the agent never holds a result.

A result takes the place of the stored one once its recipient has the difference, so that neither a restart of the
agent nor one of Zeek reports a change twice or not at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zeek_agent.errors import DamagedStateError, SqlError
from zeek_agent.queries.subscriptions import Subscription
from zeek_agent.results.comparison import Comparison, Reporting
from zeek_agent.results.state import ResultStateError, UnavailableError

if TYPE_CHECKING:
    from zeek_agent.database.results import DeltaFileHandle
    from zeek_agent.events.delivery_states import Delivered
    from zeek_agent.queries.delivery import Delivery
    from zeek_agent.queries.installed import Installed
    from zeek_agent.queries.result_backlog import Slot
    from zeek_agent.results.store import ResultStore

log = logging.getLogger(__name__)


@dataclass(slots=True)
class UnsavedDelta:
    """A delivered difference that could not be saved yet, and the digest of the result that it belongs to."""

    delta: DeltaFileHandle
    expected: bytes | None


class DifferenceStrategy:
    """Runs queries of everything but events, with stored results.

    `known_as` gives the keys that a query had under earlier identities of its recipient.
    """

    def __init__(
        self, delivery: Delivery, results: ResultStore, known_as: Callable[[Installed], Sequence[str]]
    ) -> None:
        self._delivery = delivery
        self._results = results
        self._known_as = known_as
        self._unsaved: dict[str, UnsavedDelta] = {}

    def restore(self, installed: Installed, delivered: Delivered | None) -> None:
        """Compare with the result that the recipient already has, also under an earlier identity."""
        key = result_key(installed)
        if not installed.durable or self._results.state(key) is not None:
            return
        for earlier in self._known_as(installed):
            if self._results.state(earlier) is not None:
                self._results.rename(earlier, key)
                return

    async def run(self, installed: Installed) -> None:
        async with installed.backlog.slot() as slot:
            if installed.query.runs_once or installed.query.subscription is Subscription.SNAPSHOTS:
                report = await self._delivery.report(installed)
                slot.hold_result(report.size_bytes)
                await self._delivery.deliver(installed, report)
                return
            try:
                await self._report_changes(installed, slot)
            except ResultStateError as error:
                raise SqlError(str(error)) from error

    async def discard(self, installed: Installed) -> None:
        """Remove the stored result of a query that is not durable and has ended."""
        key = result_key(installed)
        if unsaved := self._unsaved.pop(key, None):
            unsaved.delta.close()
        if not installed.durable and self._results.state(key) is not None:
            await asyncio.to_thread(self._results.forget, key)

    async def _report_changes(self, installed: Installed, slot: Slot) -> None:
        key = result_key(installed)
        self._results.claim(key, installed.owner)
        await self._save_earlier(key, installed)
        expected = self._results.digest(key)
        comparison = Comparison(self._results.basis(key), _reporting(installed), installed.reported)
        try:
            report = await self._delivery.report(installed, comparison=comparison)
        except DamagedStateError:
            await asyncio.to_thread(self._results.check, key)
            raise
        slot.hold_result(report.size_bytes)
        delta = report.encoded.delta if report.encoded is not None else None
        assert delta is not None
        try:
            if delta.length:
                self._results.admit(key, delta.file, delta.length, expected)
            await self._delivery.deliver(installed, report)
            installed.reported = True
            if delta.length:
                await self._save(key, installed, UnsavedDelta(delta, expected))
        finally:
            self._results.release(key)
            if key not in self._unsaved:
                delta.close()

    async def _save_earlier(self, key: str, installed: Installed) -> None:
        """Save what could not be saved after the last run: until then there is nothing to compare with."""
        unsaved = self._unsaved.pop(key, None)
        if unsaved is not None:
            try:
                await self._save(key, installed, unsaved)
            finally:
                if key not in self._unsaved:
                    unsaved.delta.close()

    async def _save(self, key: str, installed: Installed, unsaved: UnsavedDelta) -> None:
        delta = unsaved.delta
        try:
            await asyncio.to_thread(
                self._results.apply, key, delta.file, delta.length, unsaved.expected, durable=installed.durable
            )
        except UnavailableError:
            self._unsaved[key] = unsaved
            raise


def result_key(installed: Installed) -> str:
    """Key of the stored result: the query's own, or, for a second identical query, one that ends with it."""
    return installed.key if installed.durable else f"{installed.key}/{installed.query_id}"


def _reporting(installed: Installed) -> Reporting:
    subscription = installed.query.subscription
    if subscription is Subscription.SNAPSHOT_PLUS_DIFFERENCES and not installed.reported:
        return Reporting.ALL
    return Reporting.NEW if subscription is Subscription.EVENTS else Reporting.CHANGES
