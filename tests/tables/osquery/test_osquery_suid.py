"""osquery's table suid_bin."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from asking_sql import ask_sql, rows_of
from mounting import SilentFuse, in_mount_namespace, mount, needs_fuse

from zeek_agent.config.sections import LimitSettings
from zeek_agent.host.files import set_id_programs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes other users' programs")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is searched, and no other."""
    monkeypatch.setattr(set_id_programs, "DIRECTORIES", (str(tmp_path),))
    return tmp_path


def program(path: Path, mode: int, uid: int = 0, gid: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    os.chown(path, uid, gid)
    path.chmod(mode)
    return path


def test_the_programs_are_those_that_find_lists(place: Path) -> None:
    modes = [special | usual for special in (0, 0o1000, 0o2000, 0o4000, 0o6000, 0o7000) for usual in (0, 0o644, 0o755)]
    for number, mode in enumerate(modes):
        directory = place / str(number % 3) / "below" / str(number % 2)
        program(directory / f"{mode:o}", mode, uid=number % 4, gid=number % 5)
        (directory / f"{mode:o} link").symlink_to(f"{mode:o}")
        (directory / f"{mode:o} directory").mkdir()
        (directory / f"{mode:o} directory").chmod(mode)
    command = ["find", place, "-perm", "/6000", "-type", "f", "-printf", "%p\t%u\t%g\t%m\n"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    expected = []
    for line in sorted(lines):
        path, user, group, mode = line.split("\t")
        bits = "S" * (mode[-4] in "467") + "G" * (mode[-4] in "267")
        expected.append({"path": path, "username": user, "groupname": group, "permissions": bits})
    found = rows_of("SELECT * FROM suid_bin ORDER BY path")
    assert [row for row in found if not Path(row["path"]).is_symlink()] == expected
    assert len(expected) == len(found) / 2 == 12


def test_passwd_is_found_in_both_directories_that_lead_to_it() -> None:
    for directory in ("/usr/bin", "/bin"):
        row = {"path": f"{directory}/passwd", "username": "root", "groupname": "root", "permissions": "S"}
        assert rows_of(f"SELECT * FROM suid_bin WHERE path = '{directory}/passwd'") == [row]


def test_programs_appear_and_vanish(place: Path) -> None:
    one = program(place / "deep/.er/one", 0o4755)
    two = program(place / "two", 0o2755, uid=54_321, gid=54_322)
    program(place / "both", 0o6755)
    program(place / "sticky", 0o1755)
    (place / "link").symlink_to("both")
    (place / "linked").symlink_to("deep")
    (place / "directory").mkdir()
    (place / "directory").chmod(0o2755)
    os.mkfifo(place / "fifo")
    (place / "fifo").chmod(0o4755)
    rows = rows_of("SELECT * FROM suid_bin ORDER BY path")
    assert [tuple(row.values()) for row in rows] == [
        (f"{place}/both", "root", "root", "SG"),
        (str(one), "root", "root", "S"),
        (f"{place}/link", "root", "root", "SG"),
        (str(two), "54321", "54322", "G"),
    ]
    one.chmod(0o755)
    two.unlink()
    assert {row["path"] for row in rows_of("SELECT path FROM suid_bin")} == {f"{place}/both", f"{place}/link"}


@pytest.mark.skipif(__file__.startswith("/tmp/"), reason="a mount on /tmp would hide the agent")
def test_a_program_in_tmp_is_found() -> None:
    def scene() -> Any:
        mount("tmpfs", "/tmp", "tmpfs")
        program(Path("/tmp/x/\udcff"), 0o4755)
        return rows_of("SELECT path FROM suid_bin WHERE path LIKE '/tmp/%'")

    assert in_mount_namespace(scene) == [{"path": "/tmp/x/\uefff"}]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("path = '/usr/bin/passwd'", ["/usr/bin"]),
        ("path LIKE '/USR/Bin/p%'", ["/usr/bin"]),
        ("path LIKE '/usr/%bin/p%'", ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"]),
        ("path LIKE '/bin_'", ["/bin"]),
        ("path LIKE '%passwd' AND permissions LIKE 'S%'", set_id_programs.DIRECTORIES),
    ],
)
def test_a_statement_for_some_paths_searches_their_directories(
    where: str, expected: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[str] = []

    def counted(gate: Any, check: Any, directories: Any) -> Any:
        searched.extend(directories)
        return iter(())

    monkeypatch.setattr(set_id_programs, "set_id_programs", counted)
    assert rows_of(f"SELECT * FROM suid_bin WHERE {where}") == []
    assert searched == list(expected)


def test_directories_that_are_too_many_or_too_deep_are_counted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_id_programs, "DIRECTORIES_MAX", 3)
    for number in range(5):
        program(place / str(number) / "file", 0o4755)
    answer = ask_sql("SELECT path FROM suid_bin")
    assert len(answer.rows) == 3
    assert answer.files.truncated == 1
    monkeypatch.undo()
    monkeypatch.setattr(set_id_programs, "DIRECTORIES", (str(place),))
    program(place.joinpath(*["x"] * 120) / "file", 0o4755)
    answer = ask_sql("SELECT path FROM suid_bin")
    assert len(answer.rows) == 5
    assert answer.files.refused == 1


def test_the_search_ends_with_the_time_for_files(place: Path) -> None:
    for number in range(5):
        program(place / str(number) / "file", 0o4755)
    program(place / "first", 0o4755)
    answer = ask_sql("SELECT path FROM suid_bin", limits=LimitSettings(files_time=1e-9))
    assert answer.rows == [{"path": f"{place}/first"}]
    assert answer.files.causes == {"truncated: reading took longer than limits.files_time allows"}
    assert answer.files.truncated == 1


@needs_fuse
def test_a_file_system_that_hangs_is_not_entered(place: Path) -> None:
    fuse = SilentFuse()
    program(place / "one", 0o4755)
    (place / "hangs").mkdir()

    def scene() -> tuple[int, int]:
        fuse.mount(place / "hangs")
        answer = ask_sql("SELECT path FROM suid_bin")
        return len(answer.rows), answer.files.skipped

    assert in_mount_namespace(scene, fuse=fuse, seconds=30) == (1, 1)
    assert fuse.requests == []
