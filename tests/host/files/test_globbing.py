"""Globs, compared with the shell's."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zeek_agent.access import AccessPolicy
from zeek_agent.errors import LimitError
from zeek_agent.host.files import globbing
from zeek_agent.host.files.gate import Gate
from zeek_agent.host.files.reads import FileReads


def matching(pattern: str, check: Callable[[], None] = lambda: None) -> Iterator[str]:
    return (match.path for match in globbing.matching(Gate(AccessPolicy(), FileReads()), pattern, check))


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a.conf", "b.conf", "B.txt", ".hidden", "[x]", "back\\slash", "star*", "grün", "z-"):
        (tmp_path / name).touch()
    for directory in ("one", "two", ".dot"):
        (tmp_path / directory / "deep").mkdir(parents=True)
        (tmp_path / directory / "inside").touch()
        (tmp_path / directory / "deep" / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "link").symlink_to("one")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/raw\xff")).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "pattern",
    [
        "*",
        ".*",
        "*.conf",
        "?.conf",
        "[ab].conf",
        "[!a].conf",
        "[^a].conf",
        "[a-z]*",
        "[[]x]",
        "\\[x\\]",
        "star\\*",
        "gr?n",
        "*/inside",
        "*/*/file",
        ".d*/*",
        "one/deep",
        "*/",
        "one//deep",
        "link/*",
        "dangling",
        "none*",
        "no/such",
        "a.conf/*",
    ],
)
def test_a_pattern_matches_like_in_a_shell(tree: Path, pattern: str) -> None:
    code = f'shopt -s nullglob; for f in {pattern}; do [ -e "$f" -o -L "$f" ] && printf \'%s\\0\' "$f"; done; true'
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    output = subprocess.run([bash, "-c", code], capture_output=True, check=True, env=environment).stdout
    expected = {os.fsdecode(name).replace("//", "/") for name in output.split(b"\0")[:-1]} - {".", ".."}
    assert set(matching(pattern)) == expected


def test_paths_are_absolute_when_the_pattern_is_and_come_in_order(tree: Path) -> None:
    assert list(matching(f"{tree}/*.conf")) == [f"{tree}/a.conf", f"{tree}/b.conf"]
    assert list(matching("/")) == ["/"]


def test_names_of_any_bytes_are_found(tree: Path) -> None:
    assert [os.fsencode(path) for path in matching("raw?")] == [b"raw\xff"]


def test_nothing_is_cut_off(tmp_path: Path) -> None:
    for number in range(1500):
        (tmp_path / f"{number}").touch()
    assert len(list(matching(f"{tmp_path}/*"))) == 1500


def test_an_empty_pattern_or_one_with_a_nul_matches_nothing() -> None:
    assert list(matching("")) == []
    assert list(matching("/etc/\0*")) == []


def test_paths_come_before_the_whole_tree_is_read(tree: Path) -> None:
    found = matching("*/*")
    assert next(found)


def test_a_long_walk_is_ended_by_its_check(tree: Path) -> None:
    def out_of_time() -> None:
        raise LimitError

    with pytest.raises(LimitError):
        list(matching("/*/*/*", out_of_time))


def test_a_pattern_of_many_stars_takes_no_longer(tmp_path: Path) -> None:
    (tmp_path / ("a" * 200)).touch()
    begin = time.process_time()
    assert list(matching(f"{tmp_path}/{'*a' * 30}*b")) == []
    assert time.process_time() - begin < 1
