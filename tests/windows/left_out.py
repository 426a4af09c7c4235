"""Tests of shared code that do not pass on Windows or under Wine, by name, and why.

They run all the same, so that `make test-windows` reports one that passes again. A name without parameters is that of
all of a test's parameters.
"""

from __future__ import annotations

LEFT_OUT_SECONDS = 30.0
"""Time for a test that is not expected to pass."""

_BACKSLASH = "expects doubled backslashes, which Windows' paths do not have"
_TERMINAL = "imports termios: starts an agent on a terminal"

FILES: dict[str, str] = {
    "tests/collector/test_collector_hosts.py": "makes named pipes of POSIX",
    "tests/collector/test_collector_process.py": "the collector's own process exists on Linux only",
    "tests/collector/test_collector_summary.py": _TERMINAL,
    "tests/collector/test_log_writer.py": "needs resource limits and a terminal of POSIX",
    "tests/control/test_control.py": "tests Unix sockets and their groups; tests/platforms has the pipe",
    "tests/events/test_events_migrations.py": _TERMINAL,
    "tests/results/test_result_store.py": _TERMINAL,
}
"""Files that cannot be imported."""

TESTS: dict[str, str] = {
    "tests/zeek/test_zeek_batches.py::test_cells_are_written_as_from_json_takes_them": _BACKSLASH,
    "tests/zeek/test_zeek_data.py::test_cells_are_written_as_their_type": _BACKSLASH,
    "tests/zeek/test_zeek_data.py::test_any_host_bytes_are_escaped_reversibly": _BACKSLASH,
}


def reason_for(test: str) -> str | None:
    """Why a test or file is left out; None if it has to pass."""
    return FILES.get(test) or TESTS.get(test) or TESTS.get(test.partition("[")[0])
