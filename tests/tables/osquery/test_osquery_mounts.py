"""osquery's table mounts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from asking_sql import ask_sql, rows_of
from mounting import SilentFuse, in_mount_namespace, mount, needs_fuse

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")


@pytest.fixture
def proc(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A proc(5) in which each process that reads it is process 1."""
    place = tmp_path_factory.mktemp("proc")
    (place / "1").symlink_to("/proc/self")
    return str(place)


STAT = {
    "blocks_size": "%s",
    "blocks": "%b",
    "blocks_free": "%f",
    "blocks_available": "%a",
    "inodes": "%c",
    "inodes_free": "%d",
}
"""Formats of stat(1) with -f."""


def test_a_mount_has_the_columns_that_findmnt_and_stat_show(tmp_path: Path, proc: str) -> None:
    place = tmp_path / "with space"
    place.mkdir()

    def scene() -> tuple[Any, Any, Any, Any]:
        before = rows_of(f"SELECT * FROM mounts WHERE path = '{place}'", proc=proc)
        mount("a source", place, "tmpfs", data="size=8m,nr_inodes=100,mode=700")
        (place / "file").write_bytes(b"x" * 100_000)
        rows = rows_of(f"SELECT * FROM mounts WHERE path = '{place}'", proc=proc)
        command = ["findmnt", "--noheadings", "--raw", "--output", "SOURCE,TARGET,FSTYPE,OPTIONS", place]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        command = ["stat", "-f", "--printf", " ".join(STAT.values()), str(place)]
        space = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return before, rows, shown, space

    before, rows, shown, space = in_mount_namespace(scene)
    assert before == []
    (row,) = rows
    texts = [row[name].replace(" ", "\\x20") for name in ("device", "path", "type", "flags")]
    assert texts == shown
    assert row["device_alias"] == "a source"
    assert {name: str(row[name]) for name in STAT} == dict(zip(STAT, space, strict=True))


def test_all_mounts_are_listed_in_order(tmp_path: Path, proc: str) -> None:
    def scene() -> tuple[list[str], list[str]]:
        mount("one", tmp_path, "tmpfs")
        mount("two", tmp_path, "tmpfs")
        shown = subprocess.run(["cat", "/proc/self/mounts"], capture_output=True, text=True, check=True).stdout
        return [row["device"] for row in rows_of("SELECT device FROM mounts", proc=proc)], shown.splitlines()

    found, shown = in_mount_namespace(scene)
    assert found == [line.split()[0] for line in shown]
    assert found[-2:] == ["one", "two"]


def test_the_alias_of_a_device_has_no_links(tmp_path: Path, proc: str) -> None:
    link = Path(f"/dev/zeek-agent-test-{os.getpid()}")

    def scene() -> Any:
        link.symlink_to("null")
        mount(link, tmp_path, "tmpfs")
        return rows_of(f"SELECT device, device_alias FROM mounts WHERE path = '{tmp_path}'", proc=proc)

    try:
        assert in_mount_namespace(scene) == [{"device": str(link), "device_alias": "/dev/null"}]
    finally:
        link.unlink()


def test_mounts_are_those_of_process_1_not_of_a_service(tmp_path: Path) -> None:
    shown = [line.split()[:2] for line in Path("/proc/1/mounts").read_text().splitlines()]
    place = next((path for _, path in shown if path.startswith("/dev/")), None)
    if place is None:
        pytest.skip("nothing is mounted in /dev")

    def scene() -> tuple[list[Any], Any]:
        mount("protection", tmp_path, "tmpfs")
        mount("protection", place, "ramfs")
        found = rows_of("SELECT device, path FROM mounts")
        return [list(row.values()) for row in found], rows_of(f"SELECT blocks FROM mounts WHERE path = '{place}'")

    found, over = in_mount_namespace(scene)
    assert found == shown
    assert {row["blocks"] for row in over} == {0}


@needs_fuse
def test_a_file_system_that_hangs_is_not_asked(tmp_path: Path, proc: str) -> None:
    fuse = SilentFuse()

    def scene() -> tuple[Any, int]:
        fuse.mount(tmp_path, subtype="sshfs")
        answer = ask_sql(f"SELECT type, blocks, inodes FROM mounts WHERE path = '{tmp_path}'", proc=proc)
        return answer.rows, answer.files.skipped

    rows, skipped = in_mount_namespace(scene, fuse=fuse, seconds=30)
    assert rows == [{"type": "fuse.sshfs", "blocks": 0, "inodes": 0}]
    assert skipped == 1
    assert fuse.requests == []


def test_the_space_is_read_only_if_a_statement_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    statvfs = os.statvfs

    def counted(descriptor: int) -> os.statvfs_result:
        asked.append(descriptor)
        return statvfs(descriptor)

    monkeypatch.setattr(os, "statvfs", counted)
    rows_of("SELECT path, type, flags FROM mounts")
    assert asked == []
    assert len(rows_of("SELECT blocks FROM mounts WHERE path = '/proc'")) == len(asked) == 1
