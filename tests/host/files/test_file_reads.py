"""What reading files may cost a statement, and how what it leaves out is counted."""

from __future__ import annotations

import logging

import pytest

from zeek_agent.config.sections import LimitSettings
from zeek_agent.host.files import reads as reads_module
from zeek_agent.host.files.reads import FLOOR_BYTES, FLOOR_FILES, FLOOR_LINES, Allowance, FileReads, Omission

LIMITS = LimitSettings(
    file_bytes=1_000_000, file_lines=10_000, files_bytes=4_000_000, files_lines=40_000, files_time=2.0
)
BOB, ALICE = 1000, 1001


@pytest.fixture(autouse=True)
def nothing_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads_module, "_logged", {})


def exhausted() -> FileReads:
    reads = FileReads(LIMITS)
    reads.charge(Allowance(LIMITS.files_bytes, LIMITS.files_lines))
    return reads


def test_a_file_gets_its_own_limit_and_later_ones_a_share_of_what_is_left() -> None:
    reads = FileReads(LIMITS)
    given = []
    for _ in range(8):
        given.append(reads.allowance(BOB))
        reads.charge(given[-1])
    assert given[0] == (1_000_000, 10_000)
    assert given == sorted(given, reverse=True)
    assert given[-1] == (FLOOR_BYTES, FLOOR_LINES)


def test_budgets_of_bytes_and_lines_are_independent() -> None:
    reads = FileReads(LIMITS)
    reads.charge(Allowance(LIMITS.files_bytes, 0))
    assert reads.allowance(BOB) == (FLOOR_BYTES, 10_000)


def test_when_the_budget_is_used_up_a_few_files_of_each_user_get_the_minimum() -> None:
    reads = exhausted()
    assert [reads.allowance(BOB) for _ in range(FLOOR_FILES)] == [(FLOOR_BYTES, FLOOR_LINES)] * FLOOR_FILES
    assert reads.allowance(BOB) == (0, 0)
    assert reads.allowance(ALICE) == (FLOOR_BYTES, FLOOR_LINES)
    assert [reads.allowance() for _ in range(2 * FLOOR_FILES)] == [(FLOOR_BYTES, FLOOR_LINES)] * 2 * FLOOR_FILES


def test_small_limits_are_respected() -> None:
    reads = FileReads(LimitSettings(file_bytes=10, file_lines=2, files_bytes=15, files_lines=3))
    assert reads.allowance() == (10, 2)


def test_the_time_of_reading_adds_up() -> None:
    now = iter([0.0, 0.5, 10.0, 11.75])
    reads = FileReads(LIMITS, clock=lambda: next(now))
    with reads.measure_time():
        pass
    assert reads.seconds_left == 1.5
    with reads.measure_time():
        pass
    assert reads.seconds_left == -0.25


def test_a_path_that_is_omitted_twice_counts_once_and_each_cause_has_an_example() -> None:
    reads = FileReads()
    for _ in range(2):
        reads.leave_out(Omission.REFUSED, "/a", "denied")
        reads.leave_out(Omission.REFUSED, "/b", "denied")
        reads.leave_out(Omission.SKIPPED, "/c\n", "hangs")
    found = reads.omissions()
    assert (found.refused, found.skipped, found.truncated) == (2, 1, 0)
    assert found.causes == {"refused: denied", "skipped: hangs"}
    assert found.summary() == r"files omitted: 2 refused, 1 skipped: /a refused (denied); /c\x0a skipped (hangs)"
    assert found.unread == {"/a", "/b", "/c\n"}
    assert found.all_paths


def test_paths_and_causes_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads_module, "PATHS_KEPT", 5)
    reads = FileReads()
    for number in range(100):
        reads.leave_out(Omission.REFUSED, f"/{number}", f"cause {number}")
    found = reads.omissions()
    assert found.refused == 100
    assert len(found.unread) == 5
    assert not found.all_paths
    assert len(found.causes) == reads_module.CAUSES_KEPT


def test_files_that_are_only_reported_do_not_count_as_unread(caplog: pytest.LogCaptureFixture) -> None:
    reads = FileReads()
    reads.leave_out(Omission.REPORTED, "/a", "on no list")
    assert (reads.omissions().reported, reads.omissions().unread) == (1, frozenset())
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_the_log_does_not_grow_with_the_files_that_users_make(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads_module, "_LOGGED_FILES_MAX", 10)
    caplog.set_level(logging.INFO)
    for _ in range(3):
        reads = FileReads()
        for number in range(50):
            reads.leave_out(Omission.REFUSED, f"/{number}", "denied")
        assert reads.omissions().refused == 50
    assert len(caplog.records) == 11
    assert "more than 10 files" in caplog.records[-1].getMessage()
    monkeypatch.setattr(reads_module, "_REPEAT_AFTER_SECONDS", 0.0)
    FileReads().leave_out(Omission.REFUSED, "/later", "denied")
    assert caplog.records[-1].getMessage() == "/later refused: denied"
