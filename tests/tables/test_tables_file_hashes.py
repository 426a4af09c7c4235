"""The table file_hashes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from asking import ask

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import AccessSettings
from zeek_agent.errors import LimitError
from zeek_agent.host.files import hashing
from zeek_agent.host.files.hashing import ALGORITHMS, HASHED_BYTES_MAX, SETTLED_SECONDS
from zeek_agent.host.files.reads import FileReads
from zeek_agent.tables.file_hashes import file_hashes


def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What is computed from now on, by the names of the hashes."""
    computed: list[tuple[str, ...]] = []
    real = hashing._hashes

    def counted(*arguments: object) -> tuple[int, dict[str, str]]:
        computed.append(arguments[1])  # type: ignore[arg-type]
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(hashing, "_hashes", counted)
    return computed


def test_hashes_are_those_of_the_system_tools(tmp_path: Path) -> None:
    file = tmp_path / "program"
    file.write_bytes(os.urandom(3 << 20))
    os.utime(file, (1.5, 1.25))
    (row,) = ask(file_hashes, str(file))
    tools = {
        name: subprocess.run([f"{name}sum", file], check=True, capture_output=True, text=True).stdout.split()[0]
        for name in ALGORITHMS
    }
    assert row == {"path": str(file), "size": 3 << 20, "mtime": 1.25, **tools}


def test_only_regular_files_have_rows(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").mkdir()
    (tmp_path / "d").symlink_to("nowhere")
    os.mkfifo(tmp_path / "e")
    rows = ask(file_hashes, f"{tmp_path}/*")
    assert [(row["path"], row["sha256"]) for row in rows] == [
        (f"{tmp_path}/{name}", hashlib.sha256(b"").hexdigest()) for name in "ab"
    ]


def test_a_name_with_wildcards_can_be_given_literally(tmp_path: Path) -> None:
    for name in ("a[1]", "a1", "x\\*"):
        (tmp_path / name).write_text(name)
    assert [Path(row["path"]).name for row in ask(file_hashes, f"{tmp_path}/a[1]")] == ["a[1]", "a1"]
    assert [Path(row["path"]).name for row in ask(file_hashes, f"{tmp_path}/x\\*")] == ["x\\*"]
    assert [Path(row["path"]).name for row in ask(file_hashes, f"{tmp_path}//a1")] == ["a1"]


def test_only_the_hashes_that_are_wanted_are_computed_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    time.sleep(2 * SETTLED_SECONDS)
    computed = reads(monkeypatch)
    (row,) = ask(file_hashes, str(file), columns=["path", "size"])
    assert [row[name] for name in ALGORITHMS] == [None, None, None]
    assert computed == []
    for _ in range(2):
        (row,) = ask(file_hashes, str(file), columns=["sha256"])
        assert row["sha256"] == hashlib.sha256(b"one").hexdigest()
    ask(file_hashes, str(file), columns=["sha256", "md5"])
    assert computed == [("sha256",), ("md5",)]


def test_a_changed_file_is_read_again_whatever_its_timestamps(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for content in (b"one", b"two"):
        file.write_bytes(content)
        os.utime(file, (1, 1))
        assert ask(file_hashes, str(file))[0]["sha1"] == hashlib.sha1(content).hexdigest()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_kernel_files_are_read_each_time() -> None:
    hashes = set()
    for _ in range(3):
        hashes.add(ask(file_hashes, "/proc/uptime")[0]["sha256"])
        time.sleep(2 * SETTLED_SECONDS)
    assert len(hashes) == 3


def test_a_file_that_is_too_large_has_no_hashes(tmp_path: Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as sparse:
        sparse.truncate(HASHED_BYTES_MAX + 1)
    (row,) = ask(file_hashes, str(file))
    assert (row["size"], row["md5"], row["sha1"], row["sha256"]) == (HASHED_BYTES_MAX + 1, None, None, None)


def test_files_denied_by_access_rules_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "link").symlink_to("secret")
    (tmp_path / "open").write_text("open")
    access = AccessPolicy(AccessSettings(paths_deny=(f"{tmp_path}/secret",)))
    reads = FileReads()
    assert [Path(row["path"]).name for row in ask(file_hashes, f"{tmp_path}/*", access=access, reads=reads)] == ["open"]
    assert reads.omissions().refused == 2
    assert ask(file_hashes, "/etc/shadow") == []


def test_a_statement_whose_time_is_up_ends_within_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with file.open("wb") as sparse:
        sparse.truncate(64 << 20)
    turns = iter(range(5))

    def check() -> None:
        if next(turns, None) is None:
            raise LimitError("time is up")

    with pytest.raises(LimitError):
        ask(file_hashes, str(file), check=check)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_program_that_was_deleted_is_found_by_its_process(tmp_path: Path) -> None:
    program = tmp_path / "program"
    content = Path("/bin/sleep").read_bytes()
    program.write_bytes(content)
    program.chmod(0o755)
    with subprocess.Popen([str(program), "60"]) as process:
        try:
            program.unlink()
            (row,) = ask(file_hashes, f"/proc/{process.pid}/exe")
        finally:
            process.kill()
    assert row["sha256"] == hashlib.sha256(content).hexdigest()
