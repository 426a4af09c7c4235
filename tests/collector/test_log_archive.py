"""Rotated logs: compressed, removed by age and total size, and nothing but logs is touched."""

from __future__ import annotations

import errno
import gzip
import logging
import os
import random
import re
import signal
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from acting import NOBODY
from children import exit_code, fork
from waiting import until_sync
from zeek_log import Clock, parse_log

from zeek_agent import platforms
from zeek_agent.collector import log_archive
from zeek_agent.collector.log_archive import ArchiveStats, LogArchive, Retention
from zeek_agent.collector.log_files import LOCK, LogDirectory, LogFile
from zeek_agent.collector.log_formats import Field, make_format

FIELDS = [Field("number", "count"), Field("text", "string")]
DAY = 86_400.0
NAME = "test.2026-01-02-03-04-05.log"
CONTENT = b"".join(b"%d\ta line of a log\n" % number for number in range(20_000))
NOTES = {LOCK, ".logs"}


@pytest.fixture(autouse=True)
def _settled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_archive, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(log_archive, "PAUSE_FACTOR", 0.0)


def rotated(directory: Path, name: str = NAME, content: bytes = CONTENT, *, age: float = 60.0) -> Path:
    """A log that was written and rotated so many seconds ago."""
    file = directory / name
    file.write_bytes(content)
    file.chmod(0o640)
    os.utime(file, (time.time() - age,) * 2)
    return file


@contextmanager
def in_use(file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another program has the file open, without sharing it for removal: a real one on Windows, elsewhere the error."""
    if platforms.HERE.key == "win32":
        with file.open("ab"):
            yield
        return

    def refused(system: Callable[..., None]) -> Callable[..., None]:
        def change(path: str | Path, *others: Any, **directories: Any) -> None:
            if Path(path).name == file.name:
                error = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                error.winerror = 32  # type: ignore[attr-defined]
                raise error
            system(path, *others, **directories)

        return change

    with monkeypatch.context() as patched:
        for name in ("unlink", "replace", "rename"):
            patched.setattr(os, name, refused(getattr(os, name)))
        yield


def archive(directory: Path, *logs: str, **retention: Any) -> LogArchive:
    made = LogArchive(directory, Retention(**{"total_bytes": 0, **retention}))
    made.open(logs or ("test",))
    return made


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} - NOTES


def size_of(directory: Path) -> int:
    """The size of all files at one moment, while a thread compresses and removes some."""
    before: dict[str, int] = {}
    while True:
        now = {}
        for name in names(directory):
            with suppress(FileNotFoundError):
                now[name] = (directory / name).stat().st_size
        if now == before:
            return sum(now.values())
        before = now


def content_of(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def test_a_rotated_log_is_compressed_and_keeps_mode_and_time(tmp_path: Path) -> None:
    written = rotated(tmp_path, age=1000.0).stat()
    made = archive(tmp_path)
    made.maintain()
    assert names(tmp_path) == {f"{NAME}.gz"}
    compressed = (tmp_path / f"{NAME}.gz").read_bytes()
    assert gzip.decompress(compressed) == CONTENT
    assert int.from_bytes(compressed[4:8], "little") == int(written.st_mtime)
    if platforms.HERE.has_owner_ids:
        assert stat.S_IMODE((tmp_path / f"{NAME}.gz").stat().st_mode) == 0o640
    assert made.stats == ArchiveStats(files=1, stored_bytes=len(compressed), compressed=1)


def test_a_log_is_left_alone_until_shippers_have_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_archive, "SETTLE_SECONDS", 300.0)
    rotated(tmp_path, age=200.0)
    rotated(tmp_path, "test.2026-01-02-03-04-06.log", age=400.0)
    archive(tmp_path).maintain()
    assert names(tmp_path) == {NAME, "test.2026-01-02-03-04-06.log.gz"}


def test_compression_can_be_turned_off(tmp_path: Path) -> None:
    rotated(tmp_path)
    archive(tmp_path, compress=False).maintain()
    assert names(tmp_path) == {NAME}


def test_logs_are_removed_by_the_time_of_their_last_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also those that an earlier version wrote and this one compresses late."""
    rotated(tmp_path, "test.2026-01-01-00-00-00.log", age=31 * DAY)
    rotated(tmp_path, "test.2026-01-01-00-00-01.log", age=29 * DAY)
    made = archive(tmp_path, age_seconds=30 * DAY)
    made.maintain()
    assert names(tmp_path) == {"test.2026-01-01-00-00-01.log.gz"}
    assert (made.stats.removed_by_age, made.stats.removed_by_size) == (1, 0)
    later = Clock(time.time() + 2 * DAY)
    again = LogArchive(tmp_path, Retention(30 * DAY, 0), clock=later)
    again.open(["test"])
    with caplog.at_level(logging.INFO):
        again.maintain()
        again.close()
    assert names(tmp_path) == set()
    (line,) = caplog.messages
    assert re.fullmatch(r"removed 1 rotated log of [\d,]+ bytes \(test 1\): 1 older than 2,592,000 s", line)


def test_the_total_size_is_kept_by_removing_the_oldest_of_the_largest_log(tmp_path: Path) -> None:
    for second in range(5):
        rotated(tmp_path, f"busy.2026-01-01-00-00-0{second}.log", b"x" * 100_000, age=100.0 - second)
    rotated(tmp_path, "quiet.2025-01-01-00-00-00.log", b"x" * 50_000, age=10_000.0)
    made = archive(tmp_path, "busy", "quiet", total_bytes=360_000, compress=False)
    made.maintain()
    assert names(tmp_path) == {
        "quiet.2025-01-01-00-00-00.log",
        *(f"busy.2026-01-01-00-00-0{second}.log" for second in (2, 3, 4)),
    }
    assert (made.stats.removed_by_size, made.stats.removed_bytes, made.stats.stored_bytes) == (2, 200_000, 350_000)


@pytest.mark.root
def test_only_logs_of_its_own_are_touched(tmp_path: Path) -> None:
    directory, outside = tmp_path / "logs", tmp_path / "outside"
    directory.mkdir()
    outside.write_bytes(b"precious")
    kept = {
        "conn.2026-01-02-03-04-05.log",  # a log of Zeek's
        "test.2026-01-02-03-04-05.log.bak",
        "test.log",
        "test.notes.log",
        "test.2026-01-02.log",
        ".conn.2026-01-02-03-04-05.log.gz.part",
    }
    for name in kept:
        rotated(directory, name, age=100 * DAY)
    other = rotated(directory, "test.2026-01-02-00-00-01.log", age=100 * DAY)
    os.chown(other, NOBODY, NOBODY)
    (directory / "test.2026-01-02-00-00-02.log").symlink_to(outside)
    (directory / "test.2026-01-02-00-00-03.log").mkdir()
    os.mkfifo(directory / "test.2026-01-02-00-00-04.log")
    os.link(outside, directory / "test.2026-01-02-00-00-05.log")
    before = names(directory)
    made = archive(directory)
    made.maintain()
    assert names(directory) == before
    made = archive(directory, age_seconds=DAY, total_bytes=1)
    os.utime(outside, (time.time(), time.time()))
    made.maintain()
    assert names(directory) == before - {"test.2026-01-02-00-00-05.log"}
    assert outside.read_bytes() == b"precious"
    assert made.stats.stored_bytes == 0


@pytest.mark.root
def test_nothing_is_removed_through_a_link_of_another_user(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    rotated(tmp_path / "victim", age=100 * DAY)
    (tmp_path / "logs").symlink_to("victim")
    os.chown(tmp_path / "logs", NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(PermissionError, match="belongs to uid"):
        archive(tmp_path / "logs", age_seconds=DAY)
    assert names(tmp_path / "victim") == {NAME}


def test_logs_of_an_earlier_pack_are_removed_too(tmp_path: Path) -> None:
    directory = LogDirectory(tmp_path, retention=Retention(DAY, 0))
    directory.add("former", FIELDS)
    directory.start()
    directory.files["former"].write((1, "a"))
    directory.close()
    rotated(tmp_path, "former.2026-01-01-00-00-00.log", age=2 * DAY)
    later = LogDirectory(tmp_path, retention=Retention(DAY, 0, compress=False))
    later.add("test", FIELDS)
    later.start()
    later.flush()
    until_sync(lambda: len(names(tmp_path)) == 1, complaint="an old log is left")
    later.close()
    (left,) = names(tmp_path)
    assert re.fullmatch(r"former\.[\d-]{19}\.log", left)


class Killed(BaseException):
    """Stands for the signal in the process that is to be killed."""


CALLS = ("open", "write", "fsync", "rename", "unlink", "fchmod")


def killed_at(number: int, work: Callable[[], None]) -> bool:
    """Run in a process that is killed just before its system call of that number. Returns whether it was."""

    def child() -> None:
        left = [number]

        def counting(call: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*arguments: Any, **named: Any) -> Any:
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **named)

            return counted

        for name in CALLS:
            setattr(os, name, counting(getattr(os, name)))
        work()

    return exit_code(fork(child)) == -signal.SIGKILL


def test_a_kill_at_any_moment_leaves_every_log_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_archive, "CHUNK_BYTES", 200_000)
    other = "test.2026-01-02-03-04-06.log"
    expected = {NAME: CONTENT, other: CONTENT[:1000]}
    kills = 0
    states = set()
    while True:
        directory = tmp_path / str(kills)
        directory.mkdir()
        for name, content in expected.items():
            rotated(directory, name, content)
        if not killed_at(kills + 1, lambda directory=directory: archive(directory).maintain()):  # type: ignore[misc]
            break
        kills += 1
        for name, content in expected.items():  # a complete copy, and nothing incomplete under the name of a log
            found = [directory / name, directory / f"{name}.gz"]
            assert {content_of(file) for file in found if file.exists()} == {content}
        states.add(frozenset(names(directory)))
        made = archive(directory)
        made.maintain()
        assert names(directory) == {f"{name}.gz" for name in expected}
        assert {file.name.removesuffix(".gz"): content_of(file) for file in directory.glob("*.gz")} == expected
    assert kills > 15
    assert {NAME, f"{NAME}.gz", other} in states or {NAME, f"{other}.gz", other} in states
    assert any(any(name.endswith(".part") for name in state) for state in states)


@pytest.mark.root
def test_the_owner_of_the_directory_tidies_what_root_opened() -> None:
    """As the embedded collector: it opens with the agent's privileges and then becomes the directory's owner."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for path in (
            place,
            rotated(place),
            rotated(place, "test.2026-01-02-00-00-00.log", age=DAY),
            rotated(place, f".{NAME}.gz.part"),
        ):
            os.chown(path, NOBODY, NOBODY)
        directory = LogDirectory(place, retention=Retention(DAY / 2, 0))
        directory.add("test", FIELDS)
        directory.start()

        def child() -> None:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            directory.flush()
            until_sync(lambda: names(place) == {f"{NAME}.gz"}, complaint="the logs were not tidied")
            directory.close()

        assert exit_code(fork(child)) == 0
        assert (place / f"{NAME}.gz").stat().st_uid == NOBODY
        assert content_of(place / f"{NAME}.gz") == CONTENT
        directory.close()


@pytest.mark.root
def test_a_log_that_root_left_does_not_keep_the_directorys_owner_from_writing() -> None:
    """As after a first try of `zeek-agent collector` as root, in the log directory of a service with its own user."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        os.chown(place, NOBODY, NOBODY)
        (place / "test.log").write_bytes(CONTENT)
        (place / "test.log").chmod(0o600)

        def child() -> None:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            directory = LogDirectory(place, retention=Retention(0, 0))
            directory.add("test", FIELDS)
            directory.start()
            directory.files["test"].write((1, "a"))
            directory.flush()
            assert not directory.failing, directory.last_error
            directory.close()

        assert exit_code(fork(child)) == 0
        assert list(parse_log((place / "test.log").read_bytes())) == [(1, "a")]
        [moved] = [file for file in place.glob("test.*.log*") if file.name != "test.log"]
        assert content_of(moved) == CONTENT


def test_an_original_is_kept_beside_something_that_is_not_its_copy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rotated(tmp_path)
    (tmp_path / f"{NAME}.gz").write_bytes(gzip.compress(b"something else"))
    made = archive(tmp_path)
    made.maintain()
    made.maintain()
    assert names(tmp_path) == {NAME, f"{NAME}.gz"}
    assert caplog.messages == [f"{NAME}.gz is not the compressed form of {NAME}: left as they are"]


def test_a_name_is_not_given_to_a_second_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_archive, "PASS_SECONDS", 0.02)
    clock = Clock()
    directory = LogDirectory(tmp_path, rotate_bytes=1, clock=clock, retention=Retention(0, 0))
    directory.add("test", FIELDS)
    directory.start()
    for number in range(3):
        directory.files["test"].write((number, "a"))
        directory.flush()
        until_sync(lambda number=number: len(list(tmp_path.glob("*.gz"))) == number + 1, complaint="not compressed")
    directory.close()
    rows = [row for file in sorted(tmp_path.glob("*.gz")) for row in parse_log(content_of(file))]
    assert rows == [(number, "a") for number in range(3)]


def test_a_disk_that_fills_up_while_compressing_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rotated(tmp_path)
    rotated(tmp_path, "test.2026-01-02-03-04-06.log")
    write = os.write
    left = [20]

    def full(descriptor: int, content: bytes) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part = bytes(content[: left[0]])
        left[0] -= len(part)
        return write(descriptor, part)

    made = archive(tmp_path)
    before = made.stats.stored_bytes
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        made.maintain()
        made.maintain()
    assert names(tmp_path) == {NAME, "test.2026-01-02-03-04-06.log"}
    assert made.stats == ArchiveStats(files=2, stored_bytes=before, compression_errors=2)
    assert caplog.messages == [
        f"cannot compress rotated logs in {tmp_path}: {os.strerror(errno.ENOSPC)}; tried again later"
    ]
    made.maintain()
    assert {content_of(file) for file in tmp_path.glob("*.gz")} == {CONTENT}
    assert made.stats.compressed == 2


def test_compression_that_is_stopped_leaves_the_original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_archive, "PAUSE_FACTOR", 1e9)
    rotated(tmp_path)
    made = archive(tmp_path)
    made.start()
    until_sync(lambda: any(tmp_path.glob(".*.part")), complaint="no compression")
    made.close()
    assert names(tmp_path) == {NAME}
    assert (tmp_path / NAME).read_bytes() == CONTENT


@pytest.fixture
def _compressing_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_archive, "PAUSE_FACTOR", 3.0)
    monkeypatch.setattr(log_archive, "PASS_SECONDS", 0.02)


def flood(
    directory: Path, limit: int, total: int, *, rotate_bytes: int, row_bytes: int = 500
) -> tuple[LogDirectory, int]:
    """Write so many bytes to three logs, unevenly. Returns the closed directory and the largest size seen."""
    logs = LogDirectory(directory, rotate_bytes=rotate_bytes, retention=Retention(0, limit))
    shares = {"flood": 0.9, "busy": 0.09, "quiet": 0.01}
    for name in shares:
        logs.add(name, FIELDS)
    logs.start()
    randomness = random.Random(1)
    largest = written = number = 0
    while written < total:
        for name, share in shares.items():
            for _ in range(max(1, int(share * 100))):
                logs.files[name].write((number, randomness.randbytes(row_bytes // 2).hex()))
                written, number = written + row_bytes, number + 1
        logs.flush()
        largest = max(largest, size_of(directory))
    logs.close()
    return logs, max(largest, size_of(directory))


@pytest.mark.long(kept=1)
@pytest.mark.usefixtures("_compressing_slowly")
@pytest.mark.parametrize("rotate_bytes", [0, 20_000, 100 << 20])
def test_the_total_size_holds_in_a_flood(tmp_path: Path, rotate_bytes: int) -> None:
    limit = 1_000_000
    logs, largest = flood(tmp_path, limit, 10 * limit, rotate_bytes=rotate_bytes)
    assert logs.errors == 0
    assert limit // 2 < largest <= limit
    archived = logs.archive_stats
    assert archived is not None
    assert archived.removed_by_size > 10
    assert archived.limit_bytes == limit
    kept: Counter[str] = Counter()
    for file in (path for path in tmp_path.iterdir() if path.name not in NOTES):
        kept[file.name.partition(".")[0]] += len(parse_log(content_of(file)))
    assert kept["flood"] < logs.files["flood"].rows
    assert kept["quiet"] == logs.files["quiet"].rows


@pytest.mark.soak
@pytest.mark.usefixtures("_compressing_slowly")
def test_the_total_size_holds_in_a_long_flood(tmp_path: Path) -> None:
    limit = 16 << 20
    logs, largest = flood(tmp_path, limit, 512 << 20, rotate_bytes=100 << 20, row_bytes=20_000)
    assert logs.errors == 0
    assert largest <= limit
    archived = logs.archive_stats
    assert archived is not None
    assert archived.removed_by_size > 100


def test_removals_in_a_flood_are_reported_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(log_archive, "PASS_SECONDS", 1e6)  # one report at the first pass, one at the end
    logs, _ = flood(tmp_path, 200_000, 1_000_000, rotate_bytes=0)
    archived = logs.archive_stats
    assert archived is not None
    reports = [message for message in caplog.messages if message.startswith("removed ")]
    assert 1 <= len(reports) <= 2
    assert "because all logs together reached 200,000 bytes" in reports[-1]
    assert sum(int(report.split()[1]) for report in reports) == archived.removed_by_size


def test_without_a_limit_of_the_operators_a_tenth_of_the_file_system_is_used(tmp_path: Path) -> None:
    whole = platforms.HERE.file_system_bytes(tmp_path)
    made = archive(tmp_path, total_bytes=None)
    assert made.stats.limit_bytes == min(max(whole // 10, 64 << 20), 10 << 30)
    assert archive(tmp_path, total_bytes=0).stats.limit_bytes == 0


def test_a_clock_that_is_set_far_ahead_costs_no_logs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock, uptime = Clock(time.time()), Clock(1000.0)
    made = LogArchive(tmp_path, Retention(30 * DAY, 0), clock=clock, monotonic=uptime)
    made.open(["test"])
    rotated(tmp_path)
    made.maintain()
    clock.now += 3650 * DAY
    made.maintain()
    assert names(tmp_path) == {f"{NAME}.gz"}
    assert caplog.messages == [
        "the clock was set forward by 315360000 s: rotated logs are not removed by age for 3600 s"
    ]
    clock.now -= 3650 * DAY  # corrected
    uptime.now += 7200
    clock.now += 7200
    made.maintain()
    assert names(tmp_path) == {f"{NAME}.gz"}
    clock.now += 31 * DAY
    made.maintain()
    assert names(tmp_path) == {f"{NAME}.gz"}
    uptime.now += 3601
    clock.now += 3601
    made.maintain()
    assert names(tmp_path) == set(), "a clock that stays like that is right"


@pytest.mark.parametrize("stuck", [f".{NAME}.gz.part", NAME])
def test_a_file_that_cannot_be_removed_does_not_stop_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stuck: str
) -> None:
    other = "test.2026-01-02-03-04-06.log"
    rotated(tmp_path)
    (tmp_path / f"{NAME}.gz").write_bytes(gzip.compress(CONTENT))
    rotated(tmp_path, f".{NAME}.gz.part")
    rotated(tmp_path, other)
    unlink = os.unlink

    def protected(path: str, *, dir_fd: int | None = None) -> None:
        if Path(path).name == stuck:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        unlink(path, dir_fd=dir_fd)

    made = archive(tmp_path)
    monkeypatch.setattr(os, "unlink", protected)
    made.maintain()
    made.maintain()
    assert stuck in names(tmp_path)
    assert (tmp_path / f"{other}.gz").exists()
    assert not (tmp_path / other).exists()
    assert len(caplog.messages) == 1
    assert stuck in caplog.messages[0]


def test_a_log_that_another_program_has_open_is_removed_at_a_later_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rotated(tmp_path)
    made = archive(tmp_path)
    with in_use(tmp_path / NAME, monkeypatch):
        made.maintain()
        made.maintain()
        assert names(tmp_path) == {NAME, f"{NAME}.gz"}
        assert gzip.decompress((tmp_path / f"{NAME}.gz").read_bytes()) == CONTENT
    assert caplog.messages == [f"the rotated log {NAME} is removed when no other program has it open"]
    made.maintain()
    assert names(tmp_path) == {f"{NAME}.gz"}
    assert (made.stats.compressed, made.stats.compression_errors) == (1, 0)


def test_an_old_log_that_another_program_has_open_is_removed_at_a_later_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotated(tmp_path, age=2 * DAY)
    made = archive(tmp_path, age_seconds=DAY, compress=False)
    with in_use(tmp_path / NAME, monkeypatch):
        made.maintain()
        assert names(tmp_path) == {NAME}
    made.maintain()
    assert names(tmp_path) == set()
    assert made.stats.removed_by_age == 1


def test_a_log_that_another_program_has_open_goes_on_until_it_can_be_rotated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(type(platforms.HERE), "renames_open_files", False)
    file = LogFile(tmp_path, "test", make_format("tsv", "test", FIELDS), rotate_bytes=2_000)
    file.write([0, "x"])
    file.flush()
    with in_use(tmp_path / "test.log", monkeypatch):
        for number in (1, 2):
            file.write([number, "x" * 2_000])
            file.flush()
    assert [row[0] for row in parse_log((tmp_path / "test.log").read_bytes())] == [0, 1, 2]
    assert len(caplog.messages) == 1
    file.write([3, "x"])
    file.flush()
    (done,) = tmp_path.glob("test.2*.log")
    assert [row[0] for row in parse_log(done.read_bytes())] == [0, 1, 2, 3]
    assert done.read_bytes().count(b"#close") == 1
    assert not (tmp_path / "test.log").exists()
