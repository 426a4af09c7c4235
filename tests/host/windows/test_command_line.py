"""Command lines of Windows are split as the C run-time library does."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeek_agent.host.windows.command_line import split_command_line


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("x.exe a  b\tc", ["x.exe", "a", "b", "c"]),
        (r'"C:\Program Files\x.exe" "a b" c', [r"C:\Program Files\x.exe", "a b", "c"]),
        (r'x "a\\b" a\\\b "c\\" d', ["x", r"a\\b", r"a\\\b", "c\\", "d"]),
        (r'x a\"b "c\"d"', ["x", 'a"b', 'c"d']),
        (r'x a\\"b c" d', ["x", "a\\b c", "d"]),
        ('x "" a""b "c""d"', ["x", "", "ab", 'c"d']),
        ('x "never closed', ["x", "never closed"]),
        (r'"C:\x"a b', [r"C:\x", "a", "b"]),
        ("", []),
        ("  \t ", []),
    ],
)
def test_arguments(line: str, arguments: list[str]) -> None:
    assert split_command_line(line) == arguments


@given(st.lists(st.text(st.characters(exclude_characters="\0")), max_size=6))
def test_arguments_that_python_would_pass_are_read_back(arguments: list[str]) -> None:
    """`list2cmdline` quotes arguments by the same rules."""
    assert split_command_line(subprocess.list2cmdline(["x.exe", *arguments])) == ["x.exe", *arguments]


@given(st.text())
def test_each_command_line_has_arguments(line: str) -> None:
    assert all(isinstance(argument, str) for argument in split_command_line(line))


def test_a_long_line_of_backslashes_is_read_at_once() -> None:
    assert split_command_line("x " + "\\a" * 200_000)[1] == "\\a" * 200_000
