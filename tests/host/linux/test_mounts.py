"""The mount table: as the kernel prints it, whatever names mounts have, and never older than the last change."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from mounting import bind, in_mount_namespace, mount, overlay, unmount

from zeek_agent.host.files.statx import status_at, status_of
from zeek_agent.host.linux.mounts import OWN_MOUNTINFO, Mount, MountTable, mounts, parse_mountinfo

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def mounted_at(place: str | Path) -> Mount:
    *_, found = [each for each in mounts() if each.mount_point == str(place)]
    return found


def test_a_line_of_mountinfo_is_taken_apart() -> None:
    text = rb"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue" + b"\n"
    assert list(parse_mountinfo(text)) == [Mount(36, "98:0", "/mnt1", "/mnt 2", "ext3", parent=35)]


@pytest.mark.root
@pytest.mark.parametrize("name", ["a b", "new\nline", "return\rhere", "tab\t", "back\\slash", "#", "\udcff", "grün"])
def test_a_mount_point_may_have_any_name(tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    place.mkdir()

    def scene() -> Mount:
        mount("x", place, "tmpfs")
        return mounted_at(place)

    assert in_mount_namespace(scene).kind == "tmpfs"


@pytest.mark.root
def test_the_root_of_a_mount_that_shows_something_deleted_is_the_name_that_it_had(tmp_path: Path) -> None:
    for name in ("file", "shown"):
        (tmp_path / name).touch()
    (tmp_path / "directory" / "inner").mkdir(parents=True)
    (tmp_path / "place").mkdir()

    def scene() -> list[str]:
        mount("x", tmp_path / "place", "tmpfs")
        (tmp_path / "place" / "secret").touch()
        (tmp_path / "place" / "directory").mkdir()
        bind(tmp_path / "place" / "secret", tmp_path / "shown")
        bind(tmp_path / "place" / "directory", tmp_path / "directory" / "inner")
        (tmp_path / "place" / "secret").unlink()
        (tmp_path / "place" / "directory").rmdir()
        return [mounted_at(tmp_path / "shown").root, mounted_at(tmp_path / "directory" / "inner").root]

    assert in_mount_namespace(scene) == ["/secret", "/directory"]


@pytest.mark.root
def test_an_overlay_names_its_layers(tmp_path: Path) -> None:
    layers = [tmp_path / name for name in ("plain", "sp ace", "with:colon", "with,comma", "back\\slash", "new\nline")]
    for layer in (*layers, tmp_path / "place"):
        layer.mkdir()

    def scene() -> tuple[str, ...]:
        overlay(tmp_path / "place", *layers)
        return mounted_at(tmp_path / "place").layers

    assert in_mount_namespace(scene) == tuple(map(str, layers))
    options = "lowerdir+=/a,lowerdir+=/b,datadir+=/c,upperdir=/d,workdir=/e"
    (newer,) = parse_mountinfo(f"1 2 0:3 / /place rw - overlay overlay rw,{options}".encode())
    assert newer.layers == ("/a", "/b", "/c", "/d")


@pytest.mark.root
def test_the_table_is_read_again_only_when_a_mount_is_added_or_removed(tmp_path: Path) -> None:
    def scene() -> None:
        table = MountTable()
        before = table.current()
        assert table.current() is before
        mount("x", tmp_path, "tmpfs")
        number = status_at(-100, str(tmp_path)).mount
        with_it = table.current()
        assert with_it.by_id[number].mount_point == str(tmp_path)
        assert number not in before.by_id
        assert table.current() is with_it
        unmount(tmp_path)
        assert number not in table.current().by_id

    in_mount_namespace(scene)


@pytest.mark.root
def test_a_number_that_is_used_again_stands_for_the_new_mount(tmp_path: Path) -> None:
    places = [tmp_path / "one", tmp_path / "two"]
    for place in places:
        place.mkdir()

    def scene() -> int:
        table = MountTable()
        numbers = []
        for _ in range(20):
            for place in places:
                mount("x", place, "tmpfs")
                descriptor = os.open(place, os.O_PATH)
                number = status_of(descriptor).mount
                assert table.current().by_id[number].mount_point == str(place)
                os.close(descriptor)
                unmount(place)
                numbers.append(number)
        return len(numbers) - len(set(numbers))

    assert in_mount_namespace(scene) > 0


def test_the_agents_own_table_lists_what_the_kernel_does() -> None:
    lines = Path(OWN_MOUNTINFO).read_bytes().rstrip(b"\n").split(b"\n")
    assert [each.id for each in mounts()] == [int(line.split()[0]) for line in lines]


def test_ecryptfs_lies_on_the_directory_that_it_encrypts() -> None:
    (mount,) = parse_mountinfo(b"1 2 0:3 / /home/a/Private rw - ecryptfs /home/a/.Private\\040dir rw,ecryptfs_sig=0")
    assert mount.layers == ("/home/a/.Private dir",)
