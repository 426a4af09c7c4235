"""A recipient's share of processor time."""

from __future__ import annotations

from pathlib import Path

import pytest
from workers import contained

from zeek_agent.config.sections import LimitSettings
from zeek_agent.containment.cpu_share import BURST_SECONDS, CpuShare


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_time_that_was_saved_is_used_without_waiting() -> None:
    share = CpuShare(0.25, Clock())
    assert share.is_full
    share.use(BURST_SECONDS)
    assert (share.wait_seconds, share.is_full) == (0.0, False)


def test_who_used_more_waits_until_it_is_earned_again() -> None:
    clock = Clock()
    share = CpuShare(0.25, clock)
    share.use(BURST_SECONDS + 1.0)
    assert share.wait_seconds == pytest.approx(4.0)
    clock.now += 4.0
    assert share.wait_seconds == 0.0
    clock.now += BURST_SECONDS / 0.25
    assert share.is_full


async def test_statements_are_charged_to_their_own_recipient(tmp_path: Path) -> None:
    sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 300000) SELECT count(*) FROM n"
    async with contained(tmp_path, limits=LimitSettings(cpu=0.001)) as database:
        await database.query(sql, origin="ws://busy")
        await database.query("SELECT 1", origin="ws://idle")
        shares = database.pool._shares
        assert not shares["ws://busy"].is_full
        used = {recipient: BURST_SECONDS - share._saved for recipient, share in shares.items()}
    assert used["ws://busy"] > used["ws://idle"] >= 0
