"""Shared by all tests: what needs root or Zeek is skipped by name where they are not; the summary names the soaks.

With `--quick`, as in `make test`, tests marked `long` are left out, and property tests try fewer examples.

A shell starts its background jobs with SIGINT ignored, which programs under test would inherit: it works again here.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import signal
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from zeek_agent import platforms

hypothesis.settings.register_profile("shared machine", deadline=None)  # which is of the clock on the wall
hypothesis.settings.register_profile("quick", deadline=None, max_examples=25)
hypothesis.settings.load_profile("shared machine")


class _AgentsLoops(asyncio.DefaultEventLoopPolicy):
    """Tests run in the event loop that the agent has on Windows."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return platforms.HERE.new_event_loop()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out the tests marked `long`")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.quick:
        hypothesis.settings.load_profile("quick")
    if platforms.HERE.key == "win32":
        asyncio.set_event_loop_policy(_AgentsLoops())
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


LEFT_OUT = pytest.StashKey[int]()
"""How many long tests were left out."""


@pytest.hookimpl(trylast=True)  # after the selection by `-m` and `-k`
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.quick:
        left_out = long_tests(items)
        config.stash[LEFT_OUT] = len(left_out)
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    without_root = pytest.mark.skip(reason="needs root")
    without_zeek = pytest.mark.skip(reason="needs zeek on PATH")
    for item in items:
        if item.get_closest_marker("root") and platforms.HERE.user_id() != 0:
            item.add_marker(without_root)
        if item.get_closest_marker("zeek") and shutil.which("zeek") is None:
            item.add_marker(without_zeek)
    items.sort(key=lambda item: turn(item.nodeid))


def long_tests(items: Sequence[pytest.Item]) -> dict[pytest.Item, None]:
    """The tests marked `long`, but for the first `kept` sets of a test's parameters."""
    found: dict[pytest.Item, None] = {}
    kept: Counter[str] = Counter()
    for item in items:
        if (marker := item.get_closest_marker("long")) is not None:
            name = item.nodeid.partition("[")[0]
            kept[name] += 1
            if kept[name] > marker.kwargs.get("kept", 0):
                found[item] = None
    return found


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Each worker of xdist has collected the same tests; this process has not."""
    left_out = getattr(node, "workeroutput", {}).get("left_out", 0)
    node.config.stash[LEFT_OUT] = max(left_out, node.config.stash.get(LEFT_OUT, 0))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, 0)


PROGRAM = re.compile(r"[\w.+-]+")
"""The name of a program, rather than of a file."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    """Skip a test that compares with a program which this machine does not have."""
    try:
        return (yield)
    except FileNotFoundError as error:
        program = error.filename
        if not isinstance(program, str) or not PROGRAM.fullmatch(program) or shutil.which(program) is not None:
            raise
        pytest.skip(f"needs {program} on PATH")


ALONE = {
    **dict.fromkeys(
        (
            "bpf",
            "recording/audit",
            "recording/processes",
            "recording/sockets/test_fallback_sockets.py",
            "recording/test_early_objects.py",
            "recording/test_exclusions.py",
            "recording/test_required_capabilities.py",
            "system/test_restart_gaps.py",
            "system/test_system_events.py",
            "system/test_system_statements.py::test_a_hung_mount_that_is_allowed_stops_only_the_statements_that_enter_it",
            "system/test_system_statements.py::test_the_daemon_of_a_hung_mount_that_ends_gives_the_places_back",
            "host/linux/test_executables.py",
            "host/files/test_path_gate.py",
            "host/files/test_path_gate_matrix.py",
            "host/files/test_path_gate_roots.py",
        ),
        "machine",
    ),
    "package": "zeek",
}
"""Tests of which only one runs at a time: they audit the machine, fill its buffers, hang mounts, or capture packets.

While an audit rule is set, the kernel asks a FUSE file system at each look-up of a path, and some tests let FUSE hang.
"""

LONG = (
    "test_cli.py",
    "recording",
    "system",
    "containment",
    "recipes",
    "terminal",
    "queries",
    "events",
    "zeek",
    "database",
)
"""What comes next because it takes long: at the end, no process has much left to do when others have nothing."""


def turn(nodeid: str) -> int:
    """When a test runs; tests of the same turn run as they were collected."""
    if group(nodeid) is not None:
        return 0
    name = Path(nodeid.partition("::")[0]).parts[1]
    return 1 + LONG.index(name) if name in LONG else 1 + len(LONG)


def group(nodeid: str) -> str | None:
    """The tests among which this one runs alone, if any."""
    file, _, name = nodeid.partition("::")
    _, *path = file.split("/")
    places = ["/".join(path[:length]) for length in range(1, len(path) + 1)]
    return next((ALONE[place] for place in (*places, f"{places[-1]}::{name}") if place in ALONE), None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n` a worker gets a file at a time, or all tests of a group."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid) or nodeid.partition("::")[0]

    return ByFile(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """One line for each soak that ran, or else for what was left out."""
    if config.option.markexpr != "soak":
        if left_out := config.stash.get(LEFT_OUT, 0):
            terminalreporter.write_line(f"long tests: {left_out:,} were left out, `make test-all` runs them")
        terminalreporter.write_line("soaks: not part of this run, see `make soak`")
        return
    outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    seconds: Counter[str] = Counter()
    figures: defaultdict[str, list[str]] = defaultdict(list)
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.getreports(outcome):
            name = report.nodeid.partition("[")[0]
            outcomes[name][outcome] += 1
            seconds[name] += getattr(report, "duration", 0.0)  # a module that cannot be imported has none
            figures[name] += [f"; {what}: {figure}" for what, figure in getattr(report, "user_properties", ())]
    for name, counts in outcomes.items():
        told = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
        terminalreporter.write_line(f"soak: {name}: {told} in {seconds[name]:.0f} s{''.join(figures[name])}")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Handlers and levels that a test sets, as the agent and its commands do, end with it."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    levels = {logger: logger.level for logger in _loggers()}
    yield
    logging.captureWarnings(False)
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    for logger in _loggers():
        if logger.level != (before := levels.get(logger, logging.NOTSET)):
            logger.setLevel(before)


def _loggers() -> list[logging.Logger]:
    known = logging.Logger.manager.loggerDict.values()
    return [logging.getLogger(), *(logger for logger in known if isinstance(logger, logging.Logger))]
