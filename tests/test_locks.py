"""Lock files: nobody else can hold them, and agents of older versions and this one still exclude each other."""

from __future__ import annotations

import fcntl
import logging
import os
import resource
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from acting import NOBODY, acting_as, locks_of_another_user, reachable_directory

from zeek_agent import identity
from zeek_agent.collector.log_files import LOCK, LogDirectory
from zeek_agent.errors import UsageError, ZeekAgentError
from zeek_agent.events import scratch
from zeek_agent.platforms import flock as locks

OLDER_AGENT = """
import fcntl, os, sys, time
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o644)
fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
os.pwrite(descriptor, b"%d %d\\n" % (os.getpid(), int(time.time())), 0)
print("held", flush=True)
sys.stdin.read()
"""
OLDER_COLLECTOR = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def place() -> Iterator[Path]:
    with reachable_directory() as directory:
        yield directory


@contextmanager
def running(program: str, place: Path) -> Iterator[subprocess.Popen[str]]:
    """What an older version did to lock a place, as a process that holds it."""
    command = [sys.executable, "-c", program, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.stdin.close()


def is_private(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o600 and status.st_uid == os.geteuid()


def older(path: Path, mode: int = 0o644) -> int:
    """A lock file as older versions made them; a descriptor to read it."""
    path.touch()
    path.chmod(mode)
    return os.open(path, os.O_RDONLY)


def test_a_lock_file_is_for_its_owner_only_and_names_the_holder(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    lock = locks.acquire_lock(file)
    assert is_private(file)
    assert int(file.read_text().split()[0]) == os.getpid()
    with pytest.raises(locks.LockHeldError, match=rf"\(pid {os.getpid()}, since 20.* UTC\)"):
        locks.acquire_lock(file)
    lock.close()
    locks.acquire_lock(file).close()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_file_that_others_could_open_is_replaced_so_that_their_descriptors_lock_nothing(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    theirs = older(file)
    locks.acquire_lock(file).close()
    assert is_private(file)
    fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
    locks.acquire_lock(file).close()
    os.close(theirs)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.root
@pytest.mark.parametrize("mode", [0o644, 0o666, 0o640])
def test_another_user_who_holds_an_older_lock_file_is_ignored(
    place: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    file = place / "lock"
    os.close(older(file, mode))
    os.chown(file, 0, NOBODY)
    with locks_of_another_user(file) as held:
        assert held == [file]
        lock = locks.acquire_lock(file)
        assert is_private(file)
        assert "another user holds the lock" in caplog.text
        with pytest.raises(locks.LockHeldError):
            locks.acquire_lock(file)
        lock.close()


@pytest.mark.root
def test_a_set_user_id_program_does_not_make_another_user_an_agent(place: Path) -> None:
    file, program = place / "lock", place / "sleep"
    os.close(older(file))
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    program.chmod(0o4755)
    with locks_of_another_user(file, then=program) as held:
        assert held == [file]
        locks.acquire_lock(file).close()


def test_a_descriptor_that_can_only_read_is_not_an_agent(tmp_path: Path) -> None:
    """A program that has become root in every respect may still have a descriptor from whoever started it."""
    file = tmp_path / "lock"
    theirs = older(file)
    fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
    locks.acquire_lock(file).close()
    os.close(theirs)


def test_a_running_agent_of_an_older_version_is_respected(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with running(OLDER_AGENT, file) as process:
        with pytest.raises(locks.LockHeldError, match=rf"pid {process.pid}, since 20.* UTC"):
            locks.acquire_lock(file)
        file.write_text("")
        with pytest.raises(locks.LockHeldError, match=rf"\(pid {process.pid}\)"):
            locks.acquire_lock(file)
        assert stat.S_IMODE(file.stat().st_mode) == 0o644
    locks.acquire_lock(file).close()
    assert is_private(file)


def test_an_agent_of_an_older_version_that_starts_later_is_excluded(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    file.touch(0o644)
    opened_before = os.open(file, os.O_RDWR)
    lock = locks.acquire_lock(file)
    opened_after = os.open(file, os.O_RDWR)
    for descriptor in (opened_before, opened_after):
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock.close()
    fcntl.flock(opened_after, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for descriptor in (opened_before, opened_after):
        os.close(descriptor)


def test_of_agents_that_replace_a_file_at_the_same_time_one_gets_the_lock(tmp_path: Path) -> None:
    contenders = 4
    for attempt in range(20):
        file = tmp_path / str(attempt)
        theirs = older(file)
        fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
        taken: list[locks.FileLock] = []
        refused: list[locks.LockHeldError] = []
        together = threading.Barrier(contenders)

        def contend(file: Path = file, together: threading.Barrier = together) -> None:
            together.wait()
            try:
                taken.append(locks.acquire_lock(file))  # noqa: B023
            except locks.LockHeldError as error:
                refused.append(error)  # noqa: B023

        threads = [threading.Thread(target=contend) for _ in range(contenders)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(taken), len(refused)) == (1, contenders - 1)
        taken[0].close()
        os.close(theirs)
        assert not file.with_name(f"{file.name}.new").exists()


@pytest.mark.root
def test_a_file_of_another_user_is_replaced(place: Path) -> None:
    file = place / "lock"
    os.close(older(file, 0o600))
    os.chown(file, NOBODY, NOBODY)
    with locks_of_another_user(file) as held:
        assert held == [file]
        locks.acquire_lock(file).close()
    assert is_private(file)


def test_a_link_is_replaced_and_its_target_is_not_changed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    target.chmod(0o600)
    for make_link in (Path.symlink_to, Path.hardlink_to):
        file = tmp_path / make_link.__name__
        make_link(file, target)
        locks.acquire_lock(file).close()
        assert is_private(file)
        assert not file.samefile(target)
    assert target.read_text() == "precious"


def test_a_pipe_in_place_of_a_lock_file_does_not_block(tmp_path: Path) -> None:
    for name in ("lock", "other.new"):
        os.mkfifo(tmp_path / name)
    locks.acquire_lock(tmp_path / "lock").close()
    os.close(older(tmp_path / "other"))
    locks.acquire_lock(tmp_path / "other").close()
    assert is_private(tmp_path / "lock")
    assert is_private(tmp_path / "other")


def test_a_directory_in_place_of_a_lock_file_is_renamed_with_its_contents(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("lock", "other.new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "within").touch()
    locks.acquire_lock(tmp_path / "lock").close()
    os.close(older(tmp_path / "other"))
    locks.acquire_lock(tmp_path / "other").close()
    assert is_private(tmp_path / "lock")
    assert is_private(tmp_path / "other")
    aside = sorted(path.parent.name for path in tmp_path.glob("*/within"))
    assert [name.rpartition(".")[0] for name in aside] == ["lock", "other.new"]
    for name in aside:
        assert f"renamed to {name}" in caplog.text


def test_an_unfinished_replacement_of_a_crash_is_used(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    os.close(older(file))
    (tmp_path / "lock.new").touch(0o600)
    locks.acquire_lock(file).close()
    assert is_private(file)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_full_disk_does_not_prevent_a_lock(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        lock = locks.acquire_lock(tmp_path / "lock")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot write the process id to a lock file" in caplog.text
    with pytest.raises(locks.LockHeldError):
        locks.acquire_lock(tmp_path / "lock")
    lock.close()


# The state directory


@pytest.mark.root
def test_a_state_directory_that_others_control_is_refused(place: Path) -> None:
    state = place / "state"
    state.mkdir()
    os.chown(state, NOBODY, NOBODY)
    with (
        pytest.raises(ZeekAgentError, match=f"{state} belongs to uid {NOBODY}: .* --state-dir"),
        identity.only_one(state / "lock"),
    ):
        pytest.fail("locked in a directory of another user")
    os.chown(state, 0, 0)
    state.chmod(0o757)
    with (
        pytest.raises(ZeekAgentError, match=f"{state} is writable by every user"),
        identity.only_one(state / "lock"),
    ):
        pytest.fail("locked in a directory of everybody")
    assert list(state.iterdir()) == []


def test_a_state_directory_of_a_group_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tmp_path.chmod(0o770)
    with caplog.at_level(logging.WARNING), identity.only_one(tmp_path / "lock"):
        assert f"{tmp_path} is writable by its group" in caplog.text
        assert is_private(tmp_path / "lock")


# The logs


def logs(directory: Path) -> LogDirectory:
    opened = LogDirectory(directory)
    opened.start()
    assert opened.last_error is None
    return opened


@pytest.mark.root
def test_another_user_who_holds_the_directory_of_logs_is_ignored(place: Path) -> None:
    with locks_of_another_user(place) as held:
        assert held == [place]
        logs(place).close()
    assert is_private(place / LOCK)


def test_a_program_that_became_root_with_another_users_descriptor_is_not_a_collector(place: Path) -> None:
    """sudo, waiting for a password, runs as root in every respect and holds what it inherited as standard input."""
    descriptor = os.open(place, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with subprocess.Popen([shutil.which("sleep") or "/bin/sleep", "300"], stdin=descriptor) as waiting:
        os.close(descriptor)
        try:
            logs(place).close()
        finally:
            waiting.kill()


def test_a_running_collector_of_an_older_version_is_respected(tmp_path: Path) -> None:
    with running(OLDER_COLLECTOR, tmp_path) as process, pytest.raises(UsageError) as refused:
        logs(tmp_path)
    assert f"another collector (pid {process.pid}) writes its logs to {tmp_path}" in str(refused.value)
    logs(tmp_path).close()


def test_a_collector_of_an_older_version_that_starts_later_is_excluded(tmp_path: Path) -> None:
    opened = logs(tmp_path)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    opened.close()
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


@pytest.mark.root
def test_a_directory_of_logs_that_others_control_is_used_with_a_warning(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place.chmod(0o777)
    with acting_as(NOBODY, NOBODY):
        (place / LOCK).touch()
    with locks_of_another_user(place / LOCK) as held:
        assert held == [place / LOCK]
        logs(place).close()
    assert f"other users can replace the logs: {place} is writable by every user" in caplog.text


# Scratch directories in /dev/shm


REMOVE_LEFTOVERS = """
import sys
from pathlib import Path
from zeek_agent.events import scratch
scratch.ScratchDirectory(Path(sys.argv[1])).close()
"""


def test_a_pipe_among_scratch_directories_does_not_keep_the_agent_from_starting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "zeek-agent-events-pipe")
    (tmp_path / "zeek-agent-events-link").symlink_to(tmp_path / "elsewhere")
    left, elsewhere = tmp_path / "zeek-agent-events-left", tmp_path / "elsewhere"
    for directory in (left, elsewhere):
        directory.mkdir()
        (directory / "events.db").touch()
    subprocess.run([sys.executable, "-c", REMOVE_LEFTOVERS, str(tmp_path)], check=True, timeout=60)
    assert not left.exists()
    assert (elsewhere / "events.db").exists()


@pytest.mark.root
def test_scratch_directories_of_other_users_are_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "zeek-agent-events-theirs"
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    scratch.ScratchDirectory(tmp_path).close()
    assert theirs.exists()


@pytest.mark.root
def test_whether_a_lock_is_held_is_seen_without_taking_it_by_any_user(place: Path) -> None:
    path = place / LOCK
    assert not locks.is_held(path), "there is no file yet"
    lock = locks.acquire_lock(path)
    assert locks.is_held(path)
    with acting_as(NOBODY, NOBODY):
        assert locks.is_held(path), "who cannot open the file sees it, too"
    lock.close()
    assert not locks.is_held(path)
    with acting_as(NOBODY, NOBODY):
        assert not locks.is_held(path)
    again = locks.acquire_lock(path)
    again.close()
