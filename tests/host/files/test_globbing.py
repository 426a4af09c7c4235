"""Globs, compared with the shell's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mounting import in_mount_namespace, mount

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


@pytest.mark.parametrize(
    "pattern",
    [
        "**",
        "**/*",
        "**/inside",
        "**/deep/*",
        "**/deep/file",
        "one/**",
        "one/**/file",
        "**/**/file",
        "**/*e*/**/f*",
        "o*/**/deep/*",
        "**/.hidden",
        "**/.dot/*",
        ".dot/**",
        ".*/**/file",
        "link/**",
        "**/link/*",
        "**/dangling",
        "**/loop/a",
        "loop/**/b",
        "**/[x]",
        "**/\\[x\\]",
        "**/no/such",
        "**/deep/",
        "**.conf",
        "a**",
    ],
)
def test_two_stars_match_any_number_of_directories_like_in_a_shell(tree: Path, pattern: str) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    (tree / "loop" / "a" / "b").mkdir(parents=True)
    (tree / "loop" / "a" / "b" / "back").symlink_to("../..")
    code = f"shopt -s nullglob globstar; for f in {pattern}; do printf '%s\\0' \"$f\"; done; true"
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    output = subprocess.run([bash, "-c", code], capture_output=True, check=True, env=environment).stdout
    expected = {os.fsdecode(name) for name in output.split(b"\0")[:-1]}
    if not pattern.endswith("/"):  # bash lists the directory itself, with a slash, where ** matches nothing
        expected = {name for name in expected if not name.endswith("/")}
    found = list(matching(pattern))
    assert set(found) == expected
    assert len(found) == len(set(found))


def test_recursion_comes_in_order_and_one_directory_at_a_time(tree: Path) -> None:
    found = list(matching(f"{tree}/**/*e*"))
    names = ["one", "one/deep", "one/inside", "one/deep/file", "two/deep", "two/inside", "two/deep/file"]
    assert [path.removeprefix(f"{tree}/") for path in found] == names


def test_recursion_ends_at_a_number_of_directories_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(globbing, "RECURSED_DIRECTORIES_MAX", 10)
    for number in range(8):
        (tmp_path / f"{number}" / "below").mkdir(parents=True)
    reads = FileReads()
    found = [match.path for match in globbing.matching(Gate(AccessPolicy(), reads), f"{tmp_path}/**")]
    assert len(found) == 16
    assert reads.omissions().truncated > 0
    assert "directories below **" in reads.omissions().summary()


def test_a_tree_that_is_too_deep_is_counted(tmp_path: Path) -> None:
    path = tmp_path
    for _ in range(120):
        path /= "d"
        path.mkdir()
    reads = FileReads()
    found = [match.path for match in globbing.matching(Gate(AccessPolicy(), reads), f"{tmp_path}/**")]
    assert 80 < len(found) < 120
    assert "directories deep" in reads.omissions().summary()


@pytest.mark.root
def test_recursion_enters_the_kernels_file_systems_only_if_it_begins_there(tmp_path: Path) -> None:
    for name in ("proc", "self"):
        (tmp_path / name).mkdir()
    (tmp_path / "self" / "comm").touch()

    def scene() -> tuple[list[str], str, bool]:
        mount("proc", tmp_path / "proc", "proc")
        reads = FileReads()
        found = [match.path for match in globbing.matching(Gate(AccessPolicy(), reads), f"{tmp_path}/**/self/comm")]
        omissions = reads.omissions()
        return found, omissions.summary(), f"{tmp_path}/proc" in omissions.unread

    found, summary, is_unread = in_mount_namespace(scene)
    assert found == [f"{tmp_path}/self/comm"]
    assert "does not enter: begin the pattern there" in summary
    assert is_unread
    assert "/proc/self/comm" in set(matching("/proc/self/**/comm"))


def test_a_long_recursion_is_ended_by_its_check(tree: Path) -> None:
    def out_of_time() -> None:
        raise LimitError

    with pytest.raises(LimitError):
        list(matching("/usr/**", out_of_time))


@pytest.mark.parametrize(
    ("pattern", "cause"),
    [
        ("/etc/{hosts,group}", "braces are not expanded: use _pattern IN"),
        ("~/.ssh/authorized_keys", "~ is not expanded: write the directory"),
        ("$HOME/x", "variables are not expanded"),
        ("/home/${USER}/x", "variables are not expanded"),
        ("/etc/%.conf_", "% is not a wildcard here: use \\*, or \\*\\*"),
        ("/etc/[a-z", "stands for itself"),
        ("/etc/x[a/b]", "a class does not contain /"),
        (" /etc/hosts", "begins or ends with a blank"),
        ("no/such/file", "does not begin with /"),
        ("", "an empty pattern"),
    ],
)
def test_a_pattern_that_cannot_match_is_explained(tree: Path, pattern: str, cause: str) -> None:
    reads = FileReads()
    assert list(globbing.matching(Gate(AccessPolicy(), reads), pattern)) == []
    assert re.search(cause, reads.omissions().summary())
    assert reads.omissions().refused == 1
    reads = FileReads()
    assert list(globbing.listing(Gate(AccessPolicy(), reads), pattern)) == []
    assert reads.omissions().refused == 1


@pytest.mark.parametrize("pattern", ["{a,b}", "~", "100%", "[x", "$HOME", "/etc/no-such-file", "/etc/no*such", "/x{1}"])
def test_a_pattern_that_matches_or_could_match_is_not_explained(tree: Path, pattern: str) -> None:
    if not pattern.startswith("/"):
        (tree / pattern).touch()
    reads = FileReads()
    found = [match.path for match in globbing.matching(Gate(AccessPolicy(), reads), pattern)]
    assert found == ([] if pattern.startswith("/") else [pattern])
    assert not reads.omissions()


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
