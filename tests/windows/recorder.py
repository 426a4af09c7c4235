"""Runs pytest with a plugin that notes each test's outcome in a file, at once, and passes over those noted there.

    python tests/windows/recorder.py [OPTION …] [FILE …]

So a run whose process ends in the middle can be continued. `ZEEK_AGENT_OUTCOMES` names the file, whose lines are JSON.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from left_out import LEFT_OUT_SECONDS, reason_for

RECORD = Path(os.environ["ZEEK_AGENT_OUTCOMES"])
SECONDS = float(os.environ["ZEEK_AGENT_TEST_SECONDS"])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    noted = {one["test"] for one in map(json.loads, RECORD.read_text(encoding="utf-8").splitlines())}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in noted])
    items[:] = [item for item in items if item.nodeid not in noted]
    for item in items:
        seconds = LEFT_OUT_SECONDS if reason_for(item.nodeid) else SECONDS
        item.add_marker(pytest.mark.timeout(seconds), append=False)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _note(report.nodeid, "not imported", str(report.longrepr))
    elif report.skipped:
        _note(report.nodeid, "skipped", _reason(report))


def pytest_runtest_logstart(nodeid: str) -> None:
    _note(nodeid, "begun")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        _note(report.nodeid, "failed", report.longreprtext)
    elif report.skipped:
        _note(report.nodeid, "skipped", _reason(report))
    elif report.when == "call":
        _note(report.nodeid, "passed")


def pytest_runtest_logfinish(nodeid: str) -> None:
    """What a test that cannot pass here leaves open must not be reported in the next one."""
    if reason_for(nodeid):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


def _reason(report: Any) -> str:
    """What skip() was given; the report has the file and line before it."""
    found = report.longrepr
    return str(found[2] if isinstance(found, tuple) else found).removeprefix("Skipped: ")


def _note(test: str, outcome: str, reason: str = "") -> None:
    with RECORD.open("a", encoding="utf-8", newline="\n") as record:
        record.write(json.dumps({"test": test, "outcome": outcome, "reason": reason[-4_000:]}) + "\n")


if __name__ == "__main__":
    sys.exit(pytest.main(sys.argv[1:], plugins=[sys.modules[__name__]]))
