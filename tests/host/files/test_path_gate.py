"""Ways around the path gate that were tried on it: each shows what is not read, and what still is.

Scenes run as root in a mount namespace of their own; hostile processes are nobody's where the test does not say
otherwise. `test_path_gate_matrix.py` has the same generated, with links exchanged while files are opened.
"""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from asking import READS_ALL, Agent, ask
from file_scenes import DEFAULT, KEY, allowing, hashes, lines, listed, read_anyhow, sha256, tmpfs, write
from mounting import (
    CLONE_NEWNS,
    CLONE_NEWUSER,
    NOBODY,
    Counter,
    SilentFuse,
    become,
    bind,
    change_root,
    exchange,
    in_mount_namespace,
    mount,
    needs_fuse,
    overlay,
    process,
    start,
    static_program,
    unmount,
)
from waiting import until_sync

from zeek_agent.access import AccessPolicy, Contents
from zeek_agent.config.sections import AccessSettings, LimitSettings
from zeek_agent.errors import LimitError
from zeek_agent.host.files import gate as gate_module
from zeek_agent.host.files import globbing, mount_rules
from zeek_agent.host.files.file_rules import RefusedError
from zeek_agent.host.files.reads import FLOOR_FILES, FLOOR_LINES, FileReads, Omissions
from zeek_agent.table import Constraints, Table, TableContext
from zeek_agent.tables.file_hashes import file_hashes
from zeek_agent.tables.files import files_columns, files_lines, files_list
from zeek_agent.text import to_bytes

pytestmark = [pytest.mark.root, pytest.mark.skipif(sys.platform != "linux", reason="mount namespaces are Linux's")]

ALONE = CLONE_NEWUSER | CLONE_NEWNS


# Other mount namespaces


def test_a_secret_that_a_user_binds_over_his_file_in_a_namespace_of_his_own_is_not_read(tmp: Path) -> None:
    file = write(tmp / "mine", "mine\n", owner=NOBODY)

    def scene() -> tuple[list[Any], dict[str, Any], Omissions, list[str]]:
        with process(lambda: bind("/etc/shadow", file), user=NOBODY, namespaces=ALONE) as pid:
            way = f"/proc/{pid}/root{file}"
            assert Path(way).read_bytes() == Path("/etc/shadow").read_bytes()
            reads = FileReads()
            return read_anyhow(way), listed(way, reads=reads), reads.omissions(), lines(file, READS_ALL)

    read, attributes, omissions, own = in_mount_namespace(scene)
    assert (read, attributes, own) == ([], {}, ["mine"])
    assert omissions.refused == 1
    assert "magic link" in omissions.summary()


@pytest.mark.parametrize("way", ["root", "cwd", "task/{pid}/root", "task/{pid}/cwd"])
def test_no_directory_is_entered_by_a_magic_link(tmp: Path, way: str) -> None:
    write(tmp / "file", "content\n")

    def scene() -> tuple[list[Any], dict[str, Any]]:
        with process(lambda: os.chdir(tmp)) as pid:
            place = f"/proc/{pid}/{way.format(pid=pid)}"
            below = f"{place}/file" if "cwd" in way else f"{place}{tmp}/file"
            assert Path(below).read_text() == "content\n"
            return read_anyhow(below, f"{place}/*"), {**listed(below), **listed(f"{place}/*")}

    assert in_mount_namespace(scene) == ([], {})
    assert lines(tmp / "file", READS_ALL) == ["content"]


def test_a_mount_that_the_agents_own_table_does_not_list_is_refused_also_by_a_link(tmp: Path) -> None:
    (tmp / "hidden").mkdir()
    write(tmp / "open", "open\n")

    def prepare() -> None:
        mount("x", tmp / "hidden", "tmpfs")
        write(tmp / "hidden" / "secret", "secret\n")

    def scene() -> tuple[list[str], list[str]]:
        with process(prepare, namespaces=CLONE_NEWNS) as pid:
            (tmp / "link").symlink_to(f"/proc/{pid}/root{tmp}/hidden/secret")
            return lines(f"{tmp}/*", READS_ALL), sorted(listed(f"{tmp}/*/*"))

    assert in_mount_namespace(scene) == (["open"], [])


# The kernel's file systems elsewhere


@contextmanager
def proc_elsewhere(place: Path, how: str) -> Iterator[str]:
    """A directory that shows a process with a secret in its environment and command line, by a proc mount elsewhere."""
    with subprocess.Popen(["sleep", "60", "0"], env={"SECRET": "hunter2"}) as running:
        try:
            process_directory = f"{place}/{running.pid}"
            if how == "bound":
                bind("/proc", place, recursive=True)
            elif how == "mounted":
                mount("proc", place, "proc")
            elif how == "bound process":
                bind(f"/proc/{running.pid}", place)
                process_directory = str(place)
            elif how == "bound file":
                for name in ("environ", "cmdline", "exe", "status"):
                    (place / name).touch()
                bind(f"/proc/{running.pid}/environ", place / "environ")
                bind(f"/proc/{running.pid}/cmdline", place / "cmdline")
                bind(f"/proc/{running.pid}/status", place / "status")
                process_directory = str(place)
            until_sync(lambda: b"hunter2" in Path(process_directory, "environ").read_bytes())
            yield process_directory
        finally:
            running.kill()


@pytest.mark.parametrize("how", ["bound", "mounted", "bound process", "bound file"])
def test_proc_mounted_elsewhere_is_treated_as_if_it_were_at_proc(tmp: Path, how: str) -> None:
    place = tmp / "host" / "proc"
    place.mkdir(parents=True)

    def scene() -> tuple[list[Any], list[str]]:
        with proc_elsewhere(place, how) as directory:
            names = ("environ", "cmdline", "fd/*", "task/*/environ", "task/*/cmdline")
            secret = read_anyhow(*(f"{directory}/{name}" for name in names))
            return secret, [line.split()[0] for line in lines(f"{directory}/status")][:1]

    assert in_mount_namespace(scene) == ([], ["Name:"])


def test_the_environment_is_not_read_through_a_chroots_proc(tmp: Path) -> None:
    (tmp / "chroot" / "proc").mkdir(parents=True)

    def scene() -> list[Any]:
        mount("proc", tmp / "chroot" / "proc", "proc")
        with process(partial(os.chroot, tmp / "chroot")) as pid:
            inside = f"{tmp}/chroot/proc/{pid}"
            return read_anyhow(f"{inside}/environ", f"/proc/{pid}/root/proc/{pid}/environ")

    assert in_mount_namespace(scene) == []


@pytest.mark.parametrize("name", ["cmdline", "environ", "auxv", "mem", "task/{pid}/cmdline", "task/{pid}/environ"])
def test_command_lines_and_memory_are_not_read_from_proc(name: str) -> None:
    file = f"/proc/{os.getpid()}/{name.format(pid=os.getpid())}"
    assert read_anyhow(file) == []
    assert read_anyhow(f"/proc/self/{name.format(pid=os.getpid())}") == []
    assert file in listed(file)


@pytest.mark.parametrize("kind", ["deleted file", "memfd"])
def test_links_to_the_descriptors_of_a_process_are_not_followed(tmp: Path, kind: str) -> None:
    write(tmp / "secret", "secret\n", mode=0o600)
    (tmp / "users").mkdir()
    (tmp / "users" / "open").write_text("open\n")

    def prepare() -> None:
        if kind == "memfd":
            descriptor = os.memfd_create("secret")
        else:
            descriptor = os.open(tmp / "secret", os.O_RDWR)
            (tmp / "secret").unlink()
        os.write(descriptor, b"secret\n")
        os.dup2(descriptor, 50)

    def scene() -> tuple[list[Any], dict[str, Any]]:
        with process(prepare) as pid:
            assert Path(f"/proc/{pid}/fd/50").read_text() == "secret\n"
            (tmp / "users" / "link").symlink_to(f"/proc/{pid}/fd/50")
            (tmp / "users" / "longer").symlink_to("link")
            direct = read_anyhow(f"/proc/{pid}/fd/50", f"/proc/{pid}/fd/*")
            return direct + lines(f"{tmp}/users/*", READS_ALL), listed(f"{tmp}/users/l*")

    read, attributes = in_mount_namespace(scene)
    assert read == ["open"]
    assert [row["type"] for row in attributes.values()] == ["other", "other"]


def test_the_memory_layout_of_roots_processes_is_not_revealed() -> None:
    """The agent may see it, other users may not: /proc/PID/stat shows those who may not trace a process no address."""
    with process(lambda: None) as pid:
        directory = f"/proc/{pid}"
        begin = Path(f"{directory}/maps").read_text().partition("-")[0]
        code_begin = Path(f"{directory}/stat").read_text().rpartition(")")[2].split()[23]
        for access in (DEFAULT, READS_ALL):
            ways = [f"{directory}{each}" for each in ("/*", f"/task/{pid}/*")]
            told = [text for way in ways for text in lines(way, access)]
            assert f"Pid:\t{pid}" in told
            assert [text for text in told if begin in text or code_begin in text.split()] == []
            names = ("stat", "maps", "smaps", "smaps_rollup", "numa_maps", f"task/{pid}/stat")
            assert [hashes(f"{directory}/{name}", access) for name in names] == [[]] * len(names)
        assert list(Path(directory, "map_files").iterdir())
        reads = FileReads()
        assert listed(f"{directory}/map_f*/*", reads=reads) == {}
        assert reads.omissions().refused == 1


def test_the_environment_of_a_job_that_waits_is_not_read() -> None:
    assert AccessPolicy().contents("/var/spool/cron/crontabs/root") is Contents.PRIVATE
    assert AccessPolicy().contents("/var/spool/cron/atjobs/a0001") is not Contents.PRIVATE


def test_own_descriptors_by_dev_are_not_followed_either(tmp: Path) -> None:
    with (write(tmp / "secret", "secret\n")).open() as file:
        (tmp / "link").symlink_to(f"/dev/fd/{file.fileno()}")
        for way in (f"/dev/fd/{file.fileno()}", "/dev/stdin", f"/proc/thread-self/fd/{file.fileno()}", tmp / "link"):
            assert read_anyhow(way) == []


@pytest.mark.parametrize(
    ("kind", "usual"), [("debugfs", "/sys/kernel/debug"), ("tracefs", "/sys/kernel/tracing"), ("devtmpfs", "/dev")]
)
def test_other_file_systems_of_the_kernel_are_denied_elsewhere_too(tmp: Path, kind: str, usual: str) -> None:
    place = tmp / "elsewhere"
    place.mkdir()
    name = f"zeek-agent-test-{os.getpid()}"

    def scene() -> tuple[int, list[Any]]:
        mount("x", place, kind)
        if kind == "devtmpfs":
            (place / name).write_text("secret\n")
        try:
            files = [path for path, row in listed(f"{place}/*").items() if row["type"] == "file"]
            return len(files), read_anyhow(*files)
        finally:
            (place / name).unlink(missing_ok=True)

    if kind not in Path("/proc/filesystems").read_text().split():
        pytest.skip(f"this kernel has no {kind}")
    count, read = in_mount_namespace(scene)
    assert count > 0
    assert read == []


def test_sysfs_elsewhere_is_read_as_at_sys(tmp: Path) -> None:
    place = tmp / "elsewhere"
    place.mkdir()

    def scene() -> tuple[list[str], list[str]]:
        mount("x", place, "sysfs")
        return lines(f"{place}/kernel/mm/*/enabled"), lines("/sys/kernel/mm/*/enabled")

    elsewhere, usual = in_mount_namespace(scene)
    assert elsewhere == usual


def test_devices_and_other_files_in_dev_are_not_read() -> None:
    assert read_anyhow("/dev/*") == []
    assert listed("/dev/null")["/dev/null"]["type"] == "char"
    shared = Path("/dev/shm/zeek-agent-test")
    shared.write_text("secret\n")
    try:
        assert read_anyhow(shared) == []
    finally:
        shared.unlink()


# Executables


@pytest.mark.parametrize("deleted", [False, True])
def test_the_executable_of_a_process_is_hashed_also_by_a_pattern(tmp: Path, *, deleted: bool) -> None:
    def scene() -> tuple[list[list[str]], list[Any]]:
        program = executable(tmp / "program")
        child = start(program)
        if deleted:
            program.unlink()
        (tmp / "link").symlink_to(f"/proc/{child}/exe")
        patterns = [f"/proc/{child}/exe", "/proc/[0-9]*/exe", f"/proc/{child}/task/*/exe"]
        return [hashes(pattern) for pattern in patterns], lines(f"/proc/{child}/exe", READS_ALL) + read_anyhow(
            tmp / "link"
        )

    found, read = in_mount_namespace(scene)
    assert [sha256(static_program()) in each for each in found] == [True, True, True]
    assert read == []


@pytest.mark.parametrize("name", ["id_rsa", "server.key", ".env"])
def test_a_program_that_is_named_like_a_secret_does_not_hide_its_hash(tmp: Path, name: str) -> None:
    def scene() -> tuple[list[str], list[str]]:
        executable(tmp / name)
        return hashes(tmp / name), hashes(f"/proc/{start(tmp / name)}/exe")

    assert in_mount_namespace(scene) == ([], [sha256(static_program())])


def test_the_executable_that_the_configuration_denies_is_not_hashed(tmp: Path) -> None:
    def scene() -> tuple[list[str], str]:
        executable(tmp / "program")
        reads = FileReads()
        policy = AccessPolicy(AccessSettings(paths_deny=(str(tmp / "*"),)))
        return hashes(f"/proc/{start(tmp / 'program')}/exe", access=policy, reads=reads), reads.omissions().summary()

    found, omissions = in_mount_namespace(scene)
    assert found == []
    assert "denied by access.paths_deny" in omissions


def test_the_executable_of_a_memfd_is_hashed() -> None:
    def scene() -> list[str]:
        descriptor = os.memfd_create("program", 0)
        os.write(descriptor, static_program())
        return hashes(f"/proc/{start(f'/proc/self/fd/{descriptor}')}/exe")

    assert in_mount_namespace(scene) == [sha256(static_program())]


def executable(file: Path) -> Path:
    write(file, "", 0o755).write_bytes(static_program())
    return file


@pytest.mark.parametrize("kind", ["tmpfs", "bind", "overlay"])
@pytest.mark.parametrize("namespaces", [CLONE_NEWNS, ALONE], ids=["mount namespace", "user and mount namespace"])
def test_the_executable_of_a_process_in_another_mount_namespace_is_hashed(
    tmp: Path, kind: str, namespaces: int
) -> None:
    place = tmp / "place"
    place.mkdir()
    executable(tmp / "source" / "program")

    def prepare() -> None:
        if kind == "tmpfs":
            mount("x", place, "tmpfs")
            executable(place / "program")
        elif kind == "bind":
            bind(tmp / "source", place)
        else:
            overlay(place, tmp / "source")
        (tmp / "pid").write_text(str(start(place / "program")))

    def scene() -> tuple[list[str], str]:
        with process(prepare, namespaces=namespaces):
            reads = FileReads()
            return hashes(f"/proc/{(tmp / 'pid').read_text()}/exe", reads=reads), reads.omissions().summary()

    found, omissions = in_mount_namespace(scene)
    if kind == "overlay" and namespaces == ALONE:  # nobody can tell what it lies on
        assert found == []
        assert "type overlay that may be on top of another one, which may hang" in omissions
    else:
        assert found == [sha256(static_program())]


def test_the_agents_own_overlay_is_recognized_in_every_namespace(tmp: Path) -> None:
    (tmp / "place").mkdir()
    executable(tmp / "source" / "program")

    def prepare() -> None:
        (tmp / "pid").write_text(str(start(tmp / "place" / "program")))

    def scene() -> list[str]:
        overlay(tmp / "place", tmp / "source")
        with process(prepare, namespaces=ALONE):
            return hashes(f"/proc/{(tmp / 'pid').read_text()}/exe")

    assert in_mount_namespace(scene) == [sha256(static_program())]


@needs_fuse
@pytest.mark.parametrize(
    ("way", "user"), [("mount", 0), ("chroot", 0), ("mount", NOBODY), ("chroot", NOBODY), ("overlay", NOBODY)]
)
def test_an_executable_on_fuse_in_another_namespace_is_not_touched(tmp: Path, way: str, user: int) -> None:
    fuse = SilentFuse(static_program())
    below, place = tmp / "below", tmp / "place"
    below.mkdir()
    place.mkdir()
    tmp.chmod(0o777)
    (tmp / "place.empty").mkdir()

    def prepare() -> None:
        fuse.mount(below)
        if way == "overlay":
            overlay(place, below)
            child = start(place / "program")
        elif way == "chroot":
            child = start("/program", chroot=below)
        else:
            child = start(below / "program")
        (tmp / "pid").write_text(str(child))

    def scene() -> tuple[list[str], int]:
        os.mknod(tmp / "fuse", 0o20666, os.makedev(10, 229))
        (tmp / "fuse").chmod(0o666)
        bind(tmp / "fuse", "/dev/fuse")
        admitting_mount_points = allowing("/**", filesystems_allow=(str(below), str(place), "/"))
        with process(prepare, user=user, namespaces=ALONE if user else CLONE_NEWNS):
            fuse.fall_silent()
            reads = FileReads()
            found = hashes(f"/proc/{(tmp / 'pid').read_text()}/exe", admitting_mount_points, reads)
            return found, reads.omissions().skipped

    assert in_mount_namespace(scene, fuse=fuse, seconds=30) == ([], 1)
    assert fuse.requests == []


# File systems that hang


def asked_of_all(directory: str | Path, access: AccessPolicy = READS_ALL) -> dict[str, Any]:
    """What each table tells of all that is in a directory, and how many paths it left out."""
    tables = {"list": files_list, "lines": files_lines, "columns": files_columns, "hashes": file_hashes}
    found: dict[str, Any] = {}
    for name, table in tables.items():
        reads = FileReads()
        parameters = ["$0:text"] if table is files_columns else []
        rows = ask(table, f"{directory}/*", *parameters, access=access, reads=reads)
        found[name] = (sorted({Path(row["path"]).name for row in rows}), reads.omissions().skipped)
    return found


@needs_fuse
@pytest.mark.parametrize("mode", [0o40755, 0o100644], ids=["directory", "file"])
def test_a_file_system_that_hangs_is_listed_and_counted_but_not_touched(tmp: Path, mode: int) -> None:
    fuse = SilentFuse()
    write(tmp / "users" / "open", "open\n")
    write(tmp / "users" / "way", "").unlink()
    place = tmp / "users" / "hangs"
    place.mkdir() if mode & 0o40000 else place.touch()

    def scene() -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
        fuse.mount(place, mode=mode, subtype="sshfs")
        below = read_anyhow(place, f"{place}/x", f"{place}/*", f"{place}/../open")
        return asked_of_all(tmp / "users"), listed(place), below

    found, attributes, below = in_mount_namespace(scene, fuse=fuse, seconds=30)
    assert found["list"] == (["hangs", "open"], 1)
    assert found["lines"] == found["columns"] == found["hashes"] == (["open"], 1)
    assert [attributes[str(place)][name] for name in ("uid", "mode", "size", "mtime")] == [None] * 4
    assert below == []
    assert fuse.requests == []


@needs_fuse
@pytest.mark.parametrize("renamed", [False, True])
def test_a_mount_point_of_fuse_is_not_even_looked_up(
    tmp: Path, monkeypatch: pytest.MonkeyPatch, *, renamed: bool
) -> None:
    """Where system calls are audited, the kernel asks FUSE for the capabilities of what they look up, and waits."""
    looked_up: list[str] = []
    opened, attributes = os.open, gate_module.status_at

    def open_noted(path: Any, *arguments: Any, **more: Any) -> int:
        looked_up.append(str(path))
        return opened(path, *arguments, **more)

    def status_noted(directory: int, name: str, *arguments: Any) -> Any:
        looked_up.append(name)
        return attributes(directory, name, *arguments)

    fuse = SilentFuse()
    write(tmp / "users" / "open", "open\n")
    (tmp / "users" / "hangs").mkdir()

    def scene() -> tuple[dict[str, Any], list[str]]:
        asked_of_all(tmp / "users")
        fuse.mount(tmp / "users" / "hangs")
        asked_of_all(tmp / "users")
        if renamed:
            (tmp / "users").rename(tmp / "other")
        monkeypatch.setattr(os, "open", open_noted)
        monkeypatch.setattr(gate_module, "status_at", status_noted)
        place = tmp / ("other" if renamed else "users")
        read_anyhow(f"{place}/hangs", f"{place}/hangs/x", f"{place}/*/x")
        return asked_of_all(place), [name for name in looked_up if "hangs" in name]

    found, touched = in_mount_namespace(scene, fuse=fuse, seconds=30)
    assert found["list"] == (["hangs", "open"], 1)
    assert touched == []
    assert fuse.requests == []


@needs_fuse
@pytest.mark.parametrize("stacked", [False, True])
def test_a_mount_point_of_fuse_in_a_renamed_directory_is_not_even_looked_up(
    tmp: Path, monkeypatch: pytest.MonkeyPatch, *, stacked: bool
) -> None:
    """The user renames after the mounts were read, of which the kernel does not notify."""
    looked_up: list[str] = []
    opened, attributes = os.open, gate_module.status_at

    def open_noted(path: Any, *arguments: Any, **more: Any) -> int:
        looked_up.append(str(path))
        return opened(path, *arguments, **more)

    def status_noted(directory: int, name: str, *arguments: Any) -> Any:
        looked_up.append(name)
        return attributes(directory, name, *arguments)

    fuse = SilentFuse()
    for name in ("one", "other"):
        (tmp / "users" / name / "inner").mkdir(parents=True)

    def scene() -> tuple[list[str], list[str]]:
        os.chown(tmp / "users", NOBODY, NOBODY)
        if stacked:
            mount("below", tmp / "users" / "other" / "inner", "tmpfs")
        fuse.mount(tmp / "users" / "other" / "inner")
        gate = gate_module.Gate(DEFAULT, FileReads())
        users = gate.walk(gate.root, str(tmp / "users"))
        exchange(os.fsencode(tmp / "users" / "one"), os.fsencode(tmp / "users" / "other"))
        monkeypatch.setattr(os, "open", open_noted)
        monkeypatch.setattr(gate_module, "status_at", status_noted)
        directory = gate.walk(users, "one")
        causes = []
        for look_up in (gate.enter, gate.entry_status, gate.status):
            try:
                look_up(directory, "inner")
            except RefusedError as refused:
                causes.append(str(refused))
        causes += [str(found) for _, found in gate.statuses(directory, ["inner"], ())]
        return causes, [name for name in looked_up if name == "inner"]

    causes, touched = in_mount_namespace(scene, fuse=fuse, seconds=30)
    assert touched == []
    assert causes == 4 * ["on a fuse file system, which may hang (access.filesystems_allow permits it)"]
    assert fuse.requests == []


@needs_fuse
@pytest.mark.parametrize("renamed", [False, True])
def test_a_file_system_of_one_user_alone_is_listed_too(tmp: Path, *, renamed: bool) -> None:
    fuse = SilentFuse()
    write(tmp / "users" / "open", "open\n")
    (tmp / "elsewhere" / "hangs").mkdir(parents=True)
    (tmp / "users" / "hangs").mkdir()

    def scene() -> dict[str, Any]:
        fuse.mount(tmp / "elsewhere" / "hangs" if renamed else tmp / "users" / "hangs", uid=NOBODY, private=True)
        listed(tmp)
        if renamed:  # which the kernel does not tell whoever waits for changes of the mounts
            write(tmp / "elsewhere" / "open", "open\n")
            exchange(os.fsencode(tmp / "elsewhere"), os.fsencode(tmp / "users"))
        return asked_of_all(tmp / "users")

    found = in_mount_namespace(scene, fuse=fuse, seconds=30)
    assert found["list"] == (["hangs", "open"], 1)
    assert found["hashes"] == (["open"], 1)
    assert fuse.requests == []


@needs_fuse
def test_no_link_leads_into_a_file_system_that_hangs(tmp: Path) -> None:
    fuse = SilentFuse()
    write(tmp / "users" / "open", "open\n")
    for name in ("hangs", "again", "overlay"):
        (tmp / name).mkdir()
    for number, target in enumerate(("hangs", "hangs/x", "hangs/x/y", "hangs/..", "again/x", "overlay", "overlay/x")):
        (tmp / "users" / f"link{number}").symlink_to(tmp / target)

    def scene() -> dict[str, Any]:
        fuse.mount(tmp / "hangs")
        bind(tmp / "hangs", tmp / "again")
        return asked_of_all(tmp / "users")

    found = in_mount_namespace(scene, fuse=fuse, seconds=30)
    assert found["list"] == (["link0", "link1", "link2", "link3", "link4", "link5", "link6", "open"], 0)
    assert found["lines"] == found["columns"] == found["hashes"] == (["open"], 5)
    assert fuse.requests == []


@needs_fuse
def test_an_overlay_over_a_file_system_that_hangs_is_not_touched_either(tmp: Path) -> None:
    fuse = SilentFuse(static_program())
    write(tmp / "users" / "open", "open\n")
    (tmp / "below").mkdir()
    (tmp / "users" / "overlay").mkdir()
    (tmp / "users" / "second").mkdir()

    def scene() -> tuple[dict[str, Any], list[Any], str]:
        fuse.mount(tmp / "below")
        overlay(tmp / "users" / "overlay", tmp / "below")
        overlay(tmp / "users" / "second", tmp / "users" / "overlay")
        fuse.fall_silent()
        reads = FileReads()
        hashes(f"{tmp}/users/second/program", reads=reads)
        below = read_anyhow(f"{tmp}/users/overlay/program", f"{tmp}/users/second/*")
        return asked_of_all(tmp / "users"), below, reads.omissions().summary()

    found, below, why = in_mount_namespace(scene, fuse=fuse, seconds=30)
    assert found["list"] == (["open", "overlay", "overlay.empty", "second", "second.empty"], 2)
    assert found["lines"] == found["columns"] == found["hashes"] == (["open"], 2)
    assert below == []
    assert "of type overlay that may be on top of another one" in why
    assert fuse.requests == []


def test_an_image_on_a_file_system_that_hangs_is_not_entered(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ramfs stands for FUSE here, since the loop device has to read the image once."""
    if shutil.which("mkfs.ext4") is None or not Path("/dev/loop-control").exists():
        pytest.skip("no mkfs.ext4, or no loop devices")
    monkeypatch.setattr(mount_rules, "LOCAL_FILE_SYSTEMS", mount_rules.LOCAL_FILE_SYSTEMS - {"ramfs"})
    for name in ("kept", "local", "hangs", "image"):
        (tmp / name).mkdir()
    image = tmp / "kept" / "disk"
    with image.open("wb") as file:
        file.truncate(4 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)

    def scene() -> tuple[Any, ...]:
        mount("ramfs", tmp / "hangs", "ramfs", data="mode=755")
        shutil.copy(image, tmp / "hangs" / "disk")
        found = []
        for where in ("kept", "hangs"):
            subprocess.run(["mount", "-o", "loop", str(tmp / where / "disk"), str(tmp / "image")], check=True)
            write(tmp / "image" / "file", "content\n")
            found.append(asked_of_all(tmp / "image"))
            subprocess.run(["umount", str(tmp / "image")], check=True)
        return tuple(each["lines"] for each in found)

    on_local, on_hazard = in_mount_namespace(scene)
    assert on_local == (["file"], 0)
    assert on_hazard == ([], 1)


@needs_fuse
def test_the_topmost_mount_of_a_mount_point_counts(tmp: Path) -> None:
    fuse = SilentFuse()
    place = tmp / "place"
    place.mkdir()

    def scene() -> tuple[list[str], list[str]]:
        fuse.mount(place)
        mount("x", place, "tmpfs")
        write(place / "file", "content\n")
        covered = lines(f"{place}/*", READS_ALL)
        fuse.mount(place)
        return covered, lines(f"{place}/*", READS_ALL)

    assert in_mount_namespace(scene, fuse=fuse, seconds=30) == (["content"], [])
    assert fuse.requests == []


@needs_fuse
def test_a_file_system_that_is_mounted_and_unmounted_meanwhile_is_never_touched(tmp: Path) -> None:
    fuse = SilentFuse()
    users = tmp / "users"
    for number in range(20):
        write(users / f"file{number:02}", "content\n")
    for name in ("a", "b", "c"):
        write(users / name / "file", "content\n")
    (users / "link").symlink_to("b/file")

    times = Counter()

    def come_and_go() -> None:
        for name in ("a", "b", "c", "file05"):
            fuse.mount(users / name, mode=0o100644 if name.startswith("file") else 0o40755)
        for name in ("a", "b", "c", "file05"):
            unmount(users / name)
        times.add()

    def scene() -> tuple[set[int], set[int]]:
        with process(lambda: None, again=come_and_go):
            rows: list[set[int]] = [set(), set()]
            for _ in range(60):
                rows[0].add(len(listed(f"{users}/file*")))
                rows[1].add(len({row["path"] for row in ask(files_lines, f"{users}/file*")} - {f"{users}/file05"}))
                for table in (files_list, files_lines, file_hashes):
                    ask(table, f"{users}/*/*")
                    ask(table, f"{users}/link")
                    ask(table, f"{users}/b/file")
            return rows[0], rows[1]

    assert in_mount_namespace(scene, fuse=fuse, seconds=60) == ({20}, {19})
    assert fuse.requests == []
    assert times.value > 3


@needs_fuse
@pytest.mark.parametrize(
    ("rule", "admitted"),
    [("fuse", True), ("fuse*", True), ("{place}", True), ("{place}/", True), ("nfs*", False), ("{place}2", False)],
)
def test_the_configuration_admits_file_systems_by_kind_or_mount_point(tmp: Path, rule: str, *, admitted: bool) -> None:
    fuse = SilentFuse(b"content\n")
    place = tmp / "place"
    place.mkdir()

    def scene() -> tuple[list[str], list[str]]:
        fuse.mount(place)
        access = allowing("/**", filesystems_allow=(rule.format(place=place),))
        return lines(f"{place}/program", access), [row["type"] for row in listed(f"{place}/program", access).values()]

    assert in_mount_namespace(scene, fuse=fuse, seconds=30) == ((["content"], ["file"]) if admitted else ([], []))


def test_an_automounter_is_not_waited_for(tmp: Path) -> None:
    place = tmp / "auto"
    place.mkdir()
    write(tmp / "open", "open\n")

    def scene() -> tuple[dict[str, Any], list[Any], dict[str, Any]]:
        with process(os.setsid) as daemon:
            _, requests = os.pipe()
            mount("x", place, "autofs", data=f"fd={requests},pgrp={daemon},minproto=5,maxproto=5,indirect")
            return asked_of_all(tmp), read_anyhow(place / "host"), listed(place / "host")

    if "autofs" not in Path("/proc/filesystems").read_text().split():
        pytest.skip("this kernel has no autofs")
    found, below, attributes = in_mount_namespace(scene, seconds=30)
    assert found["list"] == (["auto", "open"], 1)
    assert found["hashes"] == (["open"], 1)
    assert (below, attributes) == ([], {})


@needs_fuse
def test_a_directory_without_entry_types_is_listed_without_touching_mounts(tmp: Path) -> None:
    make = shutil.which("mke2fs", path=f"{os.environ.get('PATH')}:/sbin:/usr/sbin")
    if make is None:
        pytest.skip("needs mke2fs")
    fuse = SilentFuse()
    place, image = tmp / "place", tmp / "image"
    place.mkdir()
    subprocess.run([make, "-q", "-t", "ext2", "-O", "^filetype", str(image), "1M"], check=True)

    def scene() -> tuple[list[str], list[str], list[str]]:
        subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
        write(place / "directory" / "file", "content\n")
        (place / "link").symlink_to("directory/file")
        (place / "hangs").mkdir()
        fuse.mount(place / "hangs")
        names = sorted(Path(path).name for path in listed(f"{place}/*"))
        found = names, lines(f"{place}/*/*", READS_ALL), lines(f"{place}/*", READS_ALL)
        unmount(place)
        return found

    names, deeper, here = in_mount_namespace(scene, fuse=fuse, seconds=30)
    assert names == ["directory", "hangs", "link", "lost+found"]
    assert (deeper, here) == (["content"], ["content"])
    assert fuse.requests == []


# Names, links and directories


def test_files_with_any_name_are_read_and_listed(tmp: Path) -> None:
    names = [
        os.fsdecode(name)
        for name in (b"new\nline", b"\xff\xfe", b"\xc3\xa9", b" ", b"-", b"a*b", b"\\", b"'\"", b"x" * 255)
    ]
    for name in names:
        write(tmp / name / name, "content\n")
    found = listed(f"{tmp}/*/*")
    assert {to_bytes(path) for path in found} == {os.fsencode(tmp / name / name) for name in names}
    assert len(lines(f"{tmp}/*/*", READS_ALL)) == len(names)
    with_newline = AccessPolicy(AccessSettings(files_allow=("/**",), paths_deny=("/**/new\nline/**",)))
    assert len(lines(f"{tmp}/*/*", with_newline)) == len(names) - 1


@pytest.mark.parametrize(
    "way", ["d/../file", "link/../file", "link/file2", "./d/./../file", "d//../file", "d/e/../../file"]
)
def test_dots_are_resolved_as_the_kernel_does(tmp: Path, way: str) -> None:
    write(tmp / "file", "content\n")
    write(tmp / "other" / "file", "other\n")
    write(tmp / "other" / "deep" / "file2", "content2\n")
    (tmp / "d" / "e").mkdir(parents=True)
    (tmp / "link").symlink_to(tmp / "other" / "deep")
    expected = Path(os.path.realpath(f"{tmp}/{way}")).read_text().split()
    assert lines(f"{tmp}/{way}", READS_ALL) == expected
    (tmp / "to").symlink_to(way)
    assert lines(tmp / "to", READS_ALL) == expected
    assert lines("/../.." + f"{tmp}/{way}", READS_ALL) == expected


def test_circular_and_too_many_links_are_errors(tmp: Path) -> None:
    write(tmp / "file", "content\n")
    (tmp / "one").symlink_to("two")
    (tmp / "two").symlink_to("one")
    (tmp / "self").symlink_to("self/x")
    (tmp / "chain0").symlink_to("file")
    for number in range(1, 60):
        (tmp / f"chain{number}").symlink_to(f"chain{number - 1}")
    reads = FileReads()
    assert lines(f"{tmp}/[os]*", READS_ALL, reads) + lines(f"{tmp}/two/*", READS_ALL, reads) == []
    assert reads.omissions().skipped == 3
    kernel = sum((tmp / f"chain{number}").exists() for number in range(60))
    assert len(lines(f"{tmp}/chain*", READS_ALL)) == kernel == 40
    assert {row["type"] for path, row in listed(f"{tmp}/[ost]*").items()} == {"other"}


def test_links_on_the_way_of_a_link_count_too(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a user's 80 links would cost a look at 1,600 ways of 4 KB for each file that is listed."""
    write(tmp / "file", "content\n")
    (tmp / "way0").symlink_to(".")
    (tmp / "link0").symlink_to("file")
    for number in range(1, 39):
        (tmp / f"way{number}").symlink_to(f"way{number - 1}")
        (tmp / f"link{number}").symlink_to(f"{'./' * number}way{number - 1}/link{number - 1}")
    followed = Counter()
    link_text = gate_module.Gate.link_text

    def counted(*arguments: Any) -> str:
        followed.add()
        return link_text(*arguments)

    monkeypatch.setattr(gate_module.Gate, "link_text", counted)
    assert listed(f"{tmp}/link2")[f"{tmp}/link2"]["type"] == "file"
    assert listed(f"{tmp}/link38")[f"{tmp}/link38"]["type"] == "other"
    assert followed.value < 4 * gate_module.LINKS_MAX


def test_the_time_limit_of_a_statement_holds_at_each_link_of_a_long_way(tmp: Path) -> None:
    (tmp / "way0").symlink_to(".")
    for number in range(1, 9):
        (tmp / f"way{number}").symlink_to(f"way{number - 1}")
    checks = 0

    def check() -> None:
        nonlocal checks
        checks += 1
        if checks > 5:
            raise LimitError("too long")

    gate = gate_module.Gate(DEFAULT, FileReads(), check)
    assert gate.walk(gate.root, f"{tmp}/way3").path == str(tmp)
    with pytest.raises(LimitError):
        gate.walk(gate.root, f"{tmp}/way8")


@pytest.mark.parametrize(
    "pattern", ["/" + "x" * 8192, "/tmp/" + "*/" * 200, "/tmp/" + "./" * 200], ids=["long", "wild", "literal"]
)
def test_a_pattern_too_long_for_any_path_is_refused_and_does_not_end_the_statement(pattern: str) -> None:
    for table in (files_list, files_lines, file_hashes):
        reads = FileReads()
        assert list(ask(table, pattern, reads=reads)) == []
        omissions = reads.omissions()
        assert omissions.refused
        assert all(cause.startswith("refused: a pattern of more than") for cause in omissions.causes)


def test_any_valid_path_may_be_escaped_with_backslashes(tmp: Path) -> None:
    deep = tmp / "/".join(["[*?]" * 60] * 14)
    file = write(deep / ("[*?]" * 60), "content\n")
    escaped = "".join(f"\\{each}" if each in "[]*?" else each for each in str(file))
    assert lines(escaped, READS_ALL) == ["content"]
    assert hashes(str(file), READS_ALL) == [sha256("content\n")]


def test_names_of_a_large_directory_are_complete_and_sorted(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{number * 7919 % 1000:03d}" for number in range(100)]
    for name in names:
        write(tmp / name / "file", name)
    write(tmp / ".hidden" / "file", "hidden")
    write(tmp / "other", "other")
    monkeypatch.setattr(globbing, "_NAMES_HELD_MAX", 10)
    monkeypatch.setattr(globbing, "_NAMES_SPARE", 5)
    monkeypatch.setattr(gate_module, "_ENTRIES_PER_READ", 4)
    held: list[int] = []
    deeper = globbing._Walk._search_below

    def noted(walk: Any, directory: Any, path: str, entries: list[Any], rest: list[str]) -> Any:
        held.append(len(entries))
        return deeper(walk, directory, path, entries, rest)

    monkeypatch.setattr(globbing._Walk, "_search_below", noted)
    assert list(listed(f"{tmp}/*")) == [*(f"{tmp}/{name}" for name in sorted(names)), f"{tmp}/other"]
    assert lines(f"{tmp}/*/file", READS_ALL) == sorted(names)
    assert max(held) == 10


def test_a_pattern_with_a_slash_at_its_end_means_directories(tmp: Path) -> None:
    write(tmp / "directory" / "file", "content\n")
    write(tmp / "file", "content\n")
    (tmp / "link").symlink_to("directory")
    assert sorted(listed(f"{tmp}/*/")) == [f"{tmp}/directory/", f"{tmp}/link/"]
    assert read_anyhow(f"{tmp}/*/", f"{tmp}/file/", f"{tmp}/directory/") == []


def test_a_path_that_is_too_deep_is_refused_and_counted(tmp: Path) -> None:
    deep = "/".join("d" * 120)
    write(tmp / deep / "file", "content\n")
    write(tmp / "d" / "file", "content\n")
    (tmp / "link").symlink_to(f"{deep}/file")
    for path in (f"{tmp}/{deep}/file", f"{tmp}/link"):
        reads = FileReads()
        assert lines(path, READS_ALL, reads) == []
        assert reads.omissions().refused == 1
    assert lines(f"{tmp}/*/file", READS_ALL) == ["content"]


def test_a_name_or_path_too_long_for_the_kernel_matches_nothing(tmp: Path) -> None:
    (tmp / "long").symlink_to("x" * 4000)
    write(tmp / "open", "open\n")
    reads = FileReads()
    assert lines(f"{tmp}/{'x' * 300}", READS_ALL, reads) == []
    assert lines(f"{tmp}/*", READS_ALL, reads) == ["open"]
    path = "/".join([str(tmp), *["d" * 200] * 30])
    assert lines(path, READS_ALL, reads) == []
    assert reads.omissions().refused == 0


def test_a_user_without_rights_reads_what_he_may_and_the_rest_is_counted(tmp: Path) -> None:
    write(tmp / "open" / "file", "content\n")
    write(tmp / "private" / "file", "private\n")
    write(tmp / "closed", "closed\n", mode=0o600)
    write(tmp / "passage" / "file", "passed\n")
    (tmp / "private").chmod(0o700)
    (tmp / "passage").chmod(0o711)

    def scene() -> tuple[list[str], list[str], int]:
        become(NOBODY)
        reads = FileReads()
        found = lines(f"{tmp}/*/file", READS_ALL, reads) + lines(f"{tmp}/*", READS_ALL, reads)
        return found, lines(f"{tmp}/pass*/*", READS_ALL, reads), reads.omissions().skipped

    assert in_mount_namespace(scene) == (["content", "passed"], [], 3)


# Descriptors


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_statements_leave_no_descriptors_open(tmp: Path) -> None:
    write(tmp / "a" / "b" / "file", "content\n")
    write(tmp / "a" / "secret.key", "content\n")
    for number, target in enumerate(
        ("a/b/file", "a/b", "nowhere", f"/proc/{os.getpid()}/fd/0", "loop6", "..", "loop6")
    ):
        (tmp / f"loop{number}").symlink_to(target)

    def ask_all() -> None:
        for pattern in (
            f"{tmp}/*",
            f"{tmp}/*/*",
            f"{tmp}/a/*/..",
            f"{tmp}/loop1/file",
            "/proc/self/*",
            "/proc/[0-9]*/exe",
            "/dev/*",
        ):
            read_anyhow(pattern)
            listed(pattern)
        next(iter(asked(files_lines, f"{tmp}/a/b/*")))  # a statement that is not read to its end

    def scene() -> int:
        ask_all()
        before = descriptors()
        for _ in range(5):
            ask_all()
        return descriptors() - before

    assert in_mount_namespace(scene) == 0


def asked(table: Table, pattern: str) -> Iterator[Any]:
    """The rows of a table one by one."""
    wanted = Constraints(
        TableContext(Agent(), READS_ALL), {"pattern": pattern}, {}, frozenset({"content"}), lambda: None
    )
    return iter(table.rows(wanted))


def test_links_to_deep_directories_do_not_use_up_descriptors(tmp: Path) -> None:
    for number in range(40):
        deep = tmp / f"tree{number}" / "/".join("d" * 80)
        write(deep / "file", "content\n")
        (tmp / f"link{number}").symlink_to(f"{deep}/file")
        (tmp / f"way{number}").symlink_to(deep)

    def scene() -> tuple[int, int, int]:
        most = 0

        def check() -> None:
            nonlocal most
            most = max(most, descriptors())

        before = descriptors()
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + 700, before + 700))
        sizes = [row["size"] for row in ask(files_list, f"{tmp}/link*", check=check)]
        found = [row["content"] for row in ask(files_lines, f"{tmp}/way*/file", check=check)]
        return sizes.count(8), len(found), most - before

    same_size, read, most = in_mount_namespace(scene)
    assert (same_size, read) == (40, 40)
    assert most < 400


def test_when_descriptors_run_out_files_are_counted_as_skipped(tmp: Path) -> None:
    write(tmp / "file", "content\n")
    write(tmp / "a" / "/".join("d" * 50) / "file", "content\n")
    (tmp / "link").symlink_to("a/" + "/".join("d" * 50) + "/file")

    def scene() -> tuple[list[str], Omissions]:
        lines(tmp / "file", READS_ALL)
        limit = descriptors() + 30
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        reads = FileReads()
        return lines(f"{tmp}/*", READS_ALL, reads), reads.omissions()

    found, omissions = in_mount_namespace(scene)
    assert found == ["content"]
    assert omissions.skipped == 1
    assert "Too many open files" in omissions.summary()


# Files that change under the reader


def test_a_file_that_somebody_holds_a_lease_on_does_not_block(tmp: Path) -> None:
    write(tmp / "leased", "leased\n")
    write(tmp / "open", "open\n")

    def scene() -> tuple[list[str], list[str], int]:
        def prepare() -> None:
            signal.signal(signal.SIGIO, signal.SIG_IGN)
            fcntl.fcntl(os.open(tmp / "leased", os.O_RDWR), fcntl.F_SETLEASE, fcntl.F_WRLCK)

        with process(prepare):
            reads = FileReads()
            return lines(f"{tmp}/*", READS_ALL, reads), hashes(tmp / "open"), reads.omissions().skipped

    assert in_mount_namespace(scene, seconds=30) == (["open"], [sha256("open\n")], 1)


@pytest.mark.parametrize("other", ["fifo", "socket", "directory", "link to a secret", "device"])
def test_a_file_that_turns_into_something_else_while_it_is_opened_is_read_or_left_out(tmp: Path, other: str) -> None:
    write(tmp / "vault" / "secret", "secret\n", 0o600)
    write(tmp / "users" / "open", "open\n")
    file, swapped = write(tmp / "users" / "file", "file\n"), tmp / "users" / ".other"
    if other == "fifo":
        os.mkfifo(swapped)
    elif other == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(swapped))
    elif other == "directory":
        swapped.mkdir()
    elif other == "device":
        os.mknod(swapped, 0o20666, os.makedev(1, 5))
    else:
        swapped.symlink_to(tmp / "vault" / "secret")
    times = Counter()

    def swap() -> None:
        exchange(os.fsencode(file), os.fsencode(swapped))
        times.add()

    def scene() -> set[tuple[str, ...]]:
        access = AccessPolicy(AccessSettings(files_allow=("/**",), paths_deny=(f"{tmp}/vault/*",)))
        found: set[tuple[str, ...]] = set()
        with process(lambda: None, again=swap):
            for tries in count(1):
                found.add(tuple(lines(f"{tmp}/users/*", access)))
                if tries >= 300 and len(found) >= 2 and times.value > 100:
                    break
        return found

    assert in_mount_namespace(scene, seconds=60) == {("file", "open"), ("open",)}


def test_a_file_that_grows_for_ever_ends_at_its_limit(tmp: Path) -> None:
    write(tmp / "a", "a\n")
    growing = write(tmp / "growing", ("x" * 999 + "\n") * 3_001)  # the reader may be faster than who writes
    write(tmp / "z", "z\n")

    def scene() -> tuple[int, list[str], int]:
        line = b"x" * 999 + b"\n"
        descriptor = os.open(growing, os.O_WRONLY | os.O_APPEND)
        with process(lambda: None, again=lambda: os.write(descriptor, line * 1000)):
            until_sync(lambda: growing.stat().st_size > 3_000_000)
            reads = FileReads(LimitSettings(file_bytes=3_000_000))
            found = lines(f"{tmp}/*", READS_ALL, reads)
            return len(found), [line for line in found if len(line) < 900], reads.omissions().truncated

    count, others, truncated = in_mount_namespace(scene)
    assert others[0] == "a"
    assert others[-1] == "z"
    assert count <= 3_003
    assert truncated == 1


def test_one_users_huge_file_does_not_hide_those_of_others() -> None:
    def scene() -> tuple[list[str], int]:
        tmpfs("/home")
        for user in ("alice", "mallory", "zoe"):
            write(f"/home/{user}/.ssh/authorized_keys", f"{KEY} {user}\n", 0o600, owner=1000 + len(user))
        os.truncate("/home/mallory/.ssh/authorized_keys", 1 << 40)
        reads = FileReads()
        return lines("/home/*/.ssh/authorized_keys", reads=reads), reads.omissions().truncated

    assert in_mount_namespace(scene) == ([f"{KEY} {user}" for user in ("alice", "mallory", "zoe")], 1)


def test_many_files_of_one_user_do_not_hide_those_of_others() -> None:
    def scene() -> tuple[list[str], int, int]:
        tmpfs("/home")
        for number in range(300):
            write(f"/home/mallory/.ssh/{number}.pub", "noise\n" * 500, owner=1001)
            os.chown(f"/home/mallory/.ssh/{number}.pub", 2000 + number, 0)
        write("/home/alice/.ssh/key.pub", f"{KEY} alice\n", owner=1000)
        write("/home/zoe/.ssh/key.pub", f"{KEY} zoe\n" * 2, owner=1002)
        reads = FileReads(LimitSettings(files_lines=20_000))
        found = lines("/home/*/.ssh/*.pub", reads=reads)
        return [line for line in found if line != "noise"], found.count("noise"), reads.omissions().truncated

    others, noise, truncated = in_mount_namespace(scene)
    assert others == [f"{KEY} alice", f"{KEY} zoe", f"{KEY} zoe"]
    assert noise < 20_000 + FLOOR_FILES * FLOOR_LINES
    assert truncated > 200


def test_the_time_limit_of_a_statement_holds_also_while_nothing_matches(tmp: Path) -> None:
    for number in range(300):
        (tmp / f"link{number}").symlink_to(f"link{number}")
    for pattern in (f"{tmp}/*/x", f"{tmp}/*/*", f"{tmp}/*/"):
        turns = iter(range(4))

        def check(turns: Iterator[int] = turns) -> None:
            if next(turns, None) is None:
                raise LimitError("time is up")

        with pytest.raises(LimitError):
            ask(files_lines, pattern, check=check)


# What the gate itself stands on


def test_a_proc_that_is_not_the_kernels_or_not_there_refuses_all(tmp: Path) -> None:
    write(tmp / "file", "content\n")
    write(tmp / "fake" / "secret", "secret\n")

    def scene() -> tuple[list[Any], Omissions, list[Any], Omissions]:
        lines(tmp / "file", READS_ALL)
        for number in range(200):
            (tmp / "fake" / str(number)).symlink_to("secret")
        bind(tmp / "fake", f"/proc/{os.getpid()}/fd")
        elsewhere, missing = FileReads(), FileReads()
        read = lines(tmp / "file", READS_ALL, elsewhere)
        mount("x", "/proc", "tmpfs")
        return read, elsewhere.omissions(), lines(tmp / "file", READS_ALL, missing), missing.omissions()

    read, elsewhere, also, missing = in_mount_namespace(scene)
    assert (read, also) == ([], [])
    assert "opened a different file" in elsewhere.summary()
    assert "does not exist" in missing.summary()


def test_an_agent_whose_root_directory_is_not_a_mount_reports_why_it_reads_nothing(tmp: Path) -> None:
    (tmp / "root" / "proc").mkdir(parents=True)

    def scene() -> str:
        mount("proc", tmp / "root" / "proc", "proc")
        change_root(tmp / "root")
        with pytest.raises(RefusedError) as caught:
            gate_module.Gate(DEFAULT, FileReads())
        return str(caught.value)

    assert "/proc/self/mountinfo does not list" in in_mount_namespace(scene)
