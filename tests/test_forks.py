"""A forked child ends where it is, and never goes on with the tests."""

from __future__ import annotations

import ast
import signal
import sys
from pathlib import Path

import pytest
from children import child, exit_code, fork
from places import ROOT

FORKS = {("os", "fork"), ("os", "forkpty"), ("pty", "fork")}


def forks(path: Path) -> list[str]:
    """Where a file calls the system's own fork, or imports it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = {(node.value.id, node.attr)}
        elif isinstance(node, ast.ImportFrom):
            names = {(str(node.module), one.name) for one in node.names}
        else:
            continue
        if names & FORKS:
            found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def test_tests_fork_by_their_helper() -> None:
    places = {file: forks(file) for file in (ROOT / "tests").rglob("*.py") if "kernels" not in file.parts}
    (helper,) = [file for file in places if file.name == "children.py"]
    assert len(places.pop(helper)) == 2
    assert [place for found in places.values() for place in found] == []


@pytest.mark.parametrize("way_out", [AssertionError, KeyboardInterrupt, SystemExit, pytest.skip.Exception])
def test_a_child_that_raises_ends(way_out: type[BaseException], capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise way_out("its reason")

    assert exit_code(fork(fail)) == 1
    assert "its reason" in capfd.readouterr().err


def test_a_child_gives_its_exit_code() -> None:
    assert exit_code(fork(lambda: 5)) == 5
    assert exit_code(fork(lambda: sys.stdout.write("") and None)) == 0
    assert exit_code(fork(lambda: signal.raise_signal(signal.SIGKILL))) == -signal.SIGKILL


def test_a_child_that_fails_to_begin_is_an_error() -> None:
    def fail() -> None:
        raise OSError

    with pytest.raises(AssertionError, match="the child failed"), child(fail):
        pytest.fail("not reached")
