"""osquery's tables file and hash."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from asking_sql import ask_sql, rows_of
from mounting import SilentFuse, in_mount_namespace, needs_fuse

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import AccessSettings, LimitSettings
from zeek_agent.host.files import gate as gate_module
from zeek_agent.host.files import hashing, sql_patterns, statx
from zeek_agent.host.files.gate import Gate
from zeek_agent.host.files.hashing import ALGORITHMS, SETTLED_SECONDS
from zeek_agent.host.files.sql_patterns import SqlPattern

NAMES = "path, directory, filename"
STAT = {
    "inode": "%i",
    "uid": "%u",
    "gid": "%g",
    "mode": "%a",
    "size": "%s",
    "block_size": "%o",
    "atime": "%X",
    "mtime": "%Y",
    "ctime": "%Z",
    "hard_links": "%h",
    "type": "%F",
}
"""Formats of stat(1)."""
KINDS = {
    "regular file": "regular",
    "regular empty file": "regular",
    "directory": "directory",
    "block special file": "block",
    "character special file": "character",
    "fifo": "fifo",
    "socket": "socket",
    "symbolic link": "unknown",
}


def paths(where: str, table: str = "file", **context: Any) -> list[str]:
    return [row["path"] for row in rows_of(f"SELECT path FROM {table} WHERE {where}", **context)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files of all kinds."""
    for name in ("a.txt", "b.txt", ".hidden.txt", "sub/c.txt", "sub/deep/d.txt", "sub/.dot/e.txt", ".git/f.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "to_a").symlink_to("a.txt")
    (tmp_path / "to_sub").symlink_to("sub")
    (tmp_path / "broken").symlink_to("nowhere")
    return tmp_path


@pytest.mark.parametrize("followed", [True, False], ids=["target", "broken link"])
def test_attributes_are_those_that_stat_shows(tmp_path: Path, *, followed: bool) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 12_345)
    file.chmod(0o4751)
    os.utime(file, (1_000_000_000, 1_500_000_000))
    os.chown(file, 1234, 4321)
    os.link(file, tmp_path / "again")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("file" if followed else "nowhere")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        names = sorted(path.name for path in tmp_path.iterdir())
        rows = rows_of(f"SELECT * FROM file WHERE directory = '{tmp_path}' ORDER BY path")
        assert [row["filename"] for row in rows] == names
        for row in rows:
            whole = Path(row["path"])
            options = ["-L"] if whole.exists() else []
            command = ["stat", *options, "--printf", "\n".join(STAT.values()), whole]
            shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
            expected = dict(zip(STAT, shown, strict=True))
            expected["mode"] = expected["mode"].zfill(4)
            expected["type"] = KINDS[expected["type"]]
            assert {name: str(row[name]) for name in STAT} == expected
            assert (row["symlink"], row["symlink_target_path"]) == (
                (1, str(whole.readlink())) if whole.is_symlink() else (0, "")
            )
            assert (row["device"], row["btime"], row["directory"]) == (0, 0, str(tmp_path))


def test_the_device_is_that_of_a_device_file() -> None:
    (row,) = rows_of("SELECT device, type FROM file WHERE path = '/dev/null'")
    assert row == {"device": os.makedev(1, 3), "type": "character"}


def test_a_change_of_a_file_is_seen_at_once(tmp_path: Path) -> None:
    file = tmp_path / "file"
    statement = f"SELECT size, sha256 FROM file JOIN hash USING (path) WHERE path = '{file}'"
    assert rows_of(statement) == []
    for content in (b"one", b"three"):
        file.write_bytes(content)
        assert rows_of(statement) == [{"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}]
    file.unlink()
    assert rows_of(statement) == []


def test_a_percent_sign_stays_within_one_directory(tree: Path) -> None:
    assert sorted(paths(f"path LIKE '{tree}/%'")) == [
        f"{tree}/{name}" for name in ("a.txt", "b.txt", "broken", "sub/", "to_a", "to_sub/")
    ]
    assert sorted(paths(f"path LIKE '{tree}/%.txt'")) == [f"{tree}/a.txt", f"{tree}/b.txt"]
    assert paths(f"path LIKE '{tree}/.%.txt'") == [f"{tree}/.hidden.txt"]
    assert sorted(paths(f"path LIKE '{tree}/%/c.t%'")) == [f"{tree}/sub/c.txt", f"{tree}/to_sub/c.txt"]
    assert paths(f"path LIKE '{tree}/s%b/%%%/d.txt'") == [f"{tree}/sub/deep/d.txt"]


def test_two_percent_signs_at_the_end_cross_directories(tree: Path) -> None:
    below = ("sub/", "sub/c.txt", "sub/deep/", "sub/deep/d.txt", "sub/.dot/", "sub/.dot/e.txt")
    assert sorted(paths(f"path LIKE '{tree}/su%%'")) == sorted(f"{tree}/{name}" for name in below)
    others = ("a.txt", "b.txt", "broken", "to_a", "to_sub/")
    assert sorted(paths(f"path LIKE '{tree}/%%'")) == sorted(f"{tree}/{name}" for name in (*below, *others))
    assert paths(f"path LIKE '{tree}/%%' AND filename = 'e.txt'") == [f"{tree}/sub/.dot/e.txt"]
    assert paths(f"path LIKE '{tree}/%%/d.txt'") == []


def test_links_are_followed_once(tree: Path) -> None:
    (tree / "sub" / "up").symlink_to("..")
    (tree / "sub" / "loop").symlink_to("loop")
    found = paths(f"path LIKE '{tree}/sub/%%'")
    assert len(found) == len(set(found))
    assert f"{tree}/sub/up/a.txt" in found
    assert f"{tree}/sub/up/sub/deep/" in found
    assert f"{tree}/sub/up/sub/deep/d.txt" not in found
    assert f"{tree}/sub/loop" in found


def test_case_counts_and_underscores_are_literal_where_files_are_found(tree: Path) -> None:
    assert paths(f"path LIKE '{tree}/A.TX%'") == []
    assert paths(f"path LIKE '{tree}/_.txt'") == []
    (tree / "_.txt").touch()
    assert paths(f"path LIKE '{tree}/_.txt'") == [f"{tree}/_.txt"]


def test_a_directory_that_matches_has_a_slash_at_its_end(tree: Path) -> None:
    assert rows_of(f"SELECT {NAMES}, symlink FROM file WHERE path LIKE '{tree}/to_su%'") == [
        {"path": f"{tree}/to_sub/", "directory": f"{tree}/to_sub", "filename": ".", "symlink": 0}
    ]
    assert paths(f"path LIKE '{tree}/sub'") == []
    assert sorted(paths(f"path LIKE '{tree}/%/'")) == [f"{tree}/sub/", f"{tree}/to_sub/"]


def test_a_path_is_shown_as_it_is_given(tree: Path) -> None:
    spellings = {
        f"{tree}/a.txt": (str(tree), "a.txt"),
        f"{tree}//a.txt": (str(tree), "a.txt"),
        f"{tree}/sub/../a.txt": (f"{tree}/sub/..", "a.txt"),
        f"{tree}/sub": (str(tree), "sub"),
        f"{tree}/sub/": (f"{tree}/sub", "."),
        f"{tree}/sub/..": (f"{tree}/sub", ".."),
        "/": ("", "/"),
    }
    missing = (f"{tree}/a.txt/", f"{tree}/none", f"{tree}/a.txt/x", "a.txt", "", f"{tree}/{'x' * 300}", f"{tree}/A.TXT")
    listed = ", ".join(f"'{path}'" for path in (*spellings, *missing))
    rows = rows_of(f"SELECT {NAMES} FROM file WHERE path IN ({listed})")
    assert {row["path"]: (row["directory"], row["filename"]) for row in rows} == spellings


def test_a_directory_has_all_its_entries(tree: Path) -> None:
    names = {path.name for path in tree.iterdir()}
    assert set(paths(f"directory = '{tree}'")) == {f"{tree}/{name}" for name in names}
    assert set(paths(f"directory = '{tree}/'")) == {f"{tree}/{name}" for name in names}
    assert paths(f"directory = '{tree}/a.txt'") == []
    assert paths("directory = ''") == []
    assert paths(f"directory = '{tree}' AND path LIKE '%/a.txt'") == [f"{tree}/a.txt"]
    assert paths(f"directory = '{tree}' AND path = '{tree}/a.txt'") == [f"{tree}/a.txt"]


def test_a_pattern_of_directories_has_the_entries_of_each(tree: Path) -> None:
    rows = rows_of(f"SELECT {NAMES} FROM file WHERE directory LIKE '{tree}/su%' AND filename LIKE '%.txt'")
    assert rows == [{"path": f"{tree}/sub/c.txt", "directory": f"{tree}/sub/", "filename": "c.txt"}]
    assert sorted(paths(f"directory LIKE '{tree}/%%' AND filename = 'e.txt'")) == [f"{tree}/sub/.dot/e.txt"]


def test_glob_patterns_stay_within_one_directory_too(tree: Path) -> None:
    assert sorted(paths(f"path GLOB '{tree}/[ab].tx?'")) == [f"{tree}/a.txt", f"{tree}/b.txt"]
    assert paths(f"path GLOB '{tree}/*/c.txt'") == [f"{tree}/sub/c.txt", f"{tree}/to_sub/c.txt"]


def test_names_may_have_any_bytes(tmp_path: Path) -> None:
    names = [b"new\nline", b"quo'te", b"\xff\xfe", "é".encode(), b"100%", b"a[1]*?", b"back\\slash", b"{x,y}"]
    for name in names:
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(name)
    rows = rows_of(f"SELECT h.path, f.size, md5 FROM file f JOIN hash h USING (path) WHERE f.path LIKE '{tmp_path}/%'")
    assert sorted(row["md5"] for row in rows) == sorted(hashlib.md5(name).hexdigest() for name in names)
    for row in rows:
        quoted = row["path"].replace("'", "''")
        assert paths(f"path = '{quoted}'", "hash") == [row["path"]]
    for name in ("a[1]*?", "back\\slash", "{x,y}", "100%"):
        assert paths(f"path LIKE '{tmp_path}/{name}'") == [f"{tmp_path}/{name}"]


def test_a_relative_pattern_finds_nothing_and_says_so() -> None:
    answer = ask_sql("SELECT path FROM file WHERE path LIKE '%.conf'")
    assert answer.rows == []
    assert answer.files.causes == {"refused: a pattern that does not begin with /"}


def test_one_of_path_and_directory_is_required() -> None:
    for table in ("file", "hash"):
        with pytest.raises(Exception, match="a value for directory or path is required"):
            rows_of(f"SELECT * FROM {table} WHERE path != '/'")


def test_magic_links_of_proc_are_not_followed() -> None:
    (row,) = rows_of(f"SELECT symlink, type, symlink_target_path FROM file WHERE path = '/proc/{os.getpid()}/root'")
    assert row == {"symlink": 1, "type": "unknown", "symlink_target_path": ""}


def test_other_files_of_proc_are_no_links() -> None:
    for where in ("path = '/proc/uptime'", "path LIKE '/proc/uptime'", "path LIKE '/proc/up%'"):
        assert rows_of(f"SELECT symlink, type FROM file WHERE {where}") == [{"symlink": 0, "type": "regular"}]
    (row,) = rows_of("SELECT symlink, type, symlink_target_path AS text FROM file WHERE path = '/proc/self'")
    assert row == {"symlink": 1, "type": "directory", "text": str(os.getpid())}


def test_the_kernels_file_systems_are_not_entered_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_patterns, "RECURSED_DIRECTORIES_MAX", 100)
    answer = ask_sql("SELECT path FROM file WHERE path LIKE '/pro%%'")
    assert [row["path"] for row in answer.rows] == ["/proc/"]
    assert any("a file system of the kernel" in cause for cause in answer.files.causes)
    assert f"/proc/sys/kernel/{'ostype'}" in paths("path LIKE '/proc/sys/kernel/%%'")


def test_directories_that_are_too_many_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "file").touch()
    monkeypatch.setattr(sql_patterns, "RECURSED_DIRECTORIES_MAX", 3)
    answer = ask_sql(f"SELECT path FROM file WHERE path LIKE '{tmp_path}/%%'")
    assert len(answer.rows) == 5 + 3
    assert answer.files.truncated == 1


def test_a_limit_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for directory in range(20):
        (tmp_path / str(directory)).mkdir()
        for file in range(100):
            (tmp_path / str(directory) / f"file{file}").touch()
    entered: list[str] = []
    walk = Gate.walk

    def counted(gate: Gate, start: Any, path: str) -> Any:
        entered.append(path)
        return walk(gate, start, path)

    monkeypatch.setattr(Gate, "walk", counted)
    rows = rows_of(f"SELECT path FROM file WHERE path LIKE '{tmp_path}/%%' LIMIT 3")
    assert len(rows) == 3
    assert len([path for path in entered if path.isdigit()]) < 5


@needs_fuse
def test_a_file_system_that_hangs_is_listed_but_not_touched(tmp_path: Path) -> None:
    fuse = SilentFuse()
    place = tmp_path / "hangs"
    place.mkdir()
    (tmp_path / "link").symlink_to("hangs/x")

    def scene() -> tuple[list[Any], int, list[str], list[str]]:
        fuse.mount(place)
        answer = ask_sql(f"SELECT path, type, size, inode FROM file WHERE path LIKE '{tmp_path}/%%' ORDER BY path")
        listed = [tuple(row.values()) for row in answer.rows]
        entries = paths(f"directory = '{tmp_path}'")
        return listed, answer.files.skipped, entries, paths(f"path LIKE '{place}/%'", "hash")

    listed, skipped, entries, below = in_mount_namespace(scene, fuse=fuse, seconds=30)
    assert listed[0] == (f"{place}/", "directory", None, None)
    assert [row[1] for row in listed[1:]] == ["unknown"]
    assert skipped >= 1
    assert set(entries) == {str(place), f"{tmp_path}/link"}
    assert below == []
    assert fuse.requests == []


@needs_fuse
@pytest.mark.parametrize("has_openat2", [True, False])
def test_a_mount_point_that_hangs_is_not_even_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_openat2: bool
) -> None:
    fuse = SilentFuse()
    place = tmp_path / "hangs"
    place.mkdir()
    looked_up: list[str] = []
    monkeypatch.setattr(statx, "_has_openat2", cache(lambda: has_openat2))
    for module, name in ((gate_module, "open_on_mount"), (gate_module, "status_on_mount"), (gate_module, "status_at")):
        real = getattr(module, name)

        def noted(directory: int, entry: str, *more: Any, real: Any = real) -> Any:
            looked_up.append(entry)
            return real(directory, entry, *more)

        monkeypatch.setattr(module, name, noted)

    def scene() -> tuple[list[int], list[str]]:
        fuse.mount(place)
        statements = [
            f"SELECT * FROM {table} WHERE {where}"
            for table in ("file", "hash", "extended_attributes")
            for where in (
                *(f"path = '{place}'", f"path = '{place}/x'", f"directory = '{tmp_path}'", f"directory = '{place}'"),
                *(f"path LIKE '{place}'", f"path LIKE '{tmp_path}/%'", f"path LIKE '{tmp_path}/%%'"),
            )
        ]
        return [len(ask_sql(statement).rows) for statement in statements], looked_up

    counts, names = in_mount_namespace(scene, fuse=fuse, seconds=30)
    assert counts == [1, 0, 1, 0, 0, 1, 1, *[0] * 14]
    assert tmp_path.name in names
    assert "hangs" not in names
    assert fuse.requests == []


def test_hashes_are_those_of_the_system_tools(tmp_path: Path) -> None:
    file = tmp_path / "program"
    file.write_bytes(os.urandom(3 << 20))
    tools = {
        name: subprocess.run([f"{name}sum", file], check=True, capture_output=True, text=True).stdout.split()[0]
        for name in ALGORITHMS
    }
    expected = {"path": str(file), "directory": str(tmp_path), **tools}
    assert rows_of(f"SELECT * FROM hash WHERE path = '{file}'") == [expected]
    assert rows_of(f"SELECT * FROM hash WHERE directory = '{tmp_path}'") == [expected]
    assert rows_of(f"SELECT * FROM hash WHERE path LIKE '{tmp_path}/pro%'") == [expected]


def test_hashes_compare_without_regard_to_case() -> None:
    digest = hashlib.sha256(Path("/bin/sh").read_bytes()).hexdigest().upper()
    assert paths(f"path = '/bin/sh' AND sha256 = '{digest}'", "hash") == ["/bin/sh"]


def test_patterns_may_be_alternatives_and_come_from_other_tables(tree: Path) -> None:
    alternatives = f"path LIKE '{tree}/a%' OR path LIKE '{tree}/b.%' OR path LIKE '{tree}/%.txt'"
    assert sorted(paths(alternatives)) == [f"{tree}/a.txt", f"{tree}/b.txt"]
    joined = f"(SELECT '{tree}/sub' AS home UNION SELECT '{tree}/.git') AS u JOIN file AS f"
    found = rows_of(f"SELECT f.path FROM {joined} ON f.path LIKE u.home || '/%.txt'")
    assert sorted(row["path"] for row in found) == [f"{tree}/.git/f.txt", f"{tree}/sub/c.txt"]


def test_only_regular_files_have_hashes(tree: Path) -> None:
    os.mkfifo(tree / "fifo")
    assert sorted(paths(f"path LIKE '{tree}/%'", "hash")) == [f"{tree}/{name}" for name in ("a.txt", "b.txt", "to_a")]
    for name in ("fifo", "sub", "broken", "none"):
        assert paths(f"path = '{tree}/{name}'", "hash") == []


def test_denied_files_are_listed_but_not_hashed(tmp_path: Path) -> None:
    for name in ("id_rsa", "open"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to("id_rsa")
    assert sorted(paths(f"directory = '{tmp_path}'")) == [f"{tmp_path}/{name}" for name in ("id_rsa", "link", "open")]
    for where in (f"directory = '{tmp_path}'", f"path LIKE '{tmp_path}/%'"):
        answer = ask_sql(f"SELECT path FROM hash WHERE {where}", access=AccessPolicy(AccessSettings()))
        assert [row["path"] for row in answer.rows] == [f"{tmp_path}/open"]
        assert answer.files.refused == 2


def test_a_join_hashes_each_path_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    hashes_of = hashing._hashes

    def counted(*arguments: Any) -> Any:
        hashed.append(str(Path(f"/proc/self/fd/{arguments[0].fileno()}").readlink()))
        return hashes_of(*arguments)

    monkeypatch.setattr(hashing, "_hashes", counted)
    monkeypatch.setattr(hashing, "_known", type(hashing._known)())
    monkeypatch.setattr(hashing, "CACHED_HASHES_MAX", 0)
    children = [subprocess.Popen(["/usr/bin/sleep", "60"]) for _ in range(5)]
    try:
        rows = rows_of("SELECT p.pid, h.sha256 FROM processes p JOIN hash h ON h.path = p.exe")
        pids = {
            row["pid"]
            for row in rows
            if row["sha256"] == hashlib.sha256(Path("/usr/bin/sleep").read_bytes()).hexdigest()
        }
        assert {child.pid for child in children} <= pids
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert len(hashed) == len(set(hashed))
    assert os.path.realpath("/usr/bin/sleep") in hashed


def test_only_the_hashes_that_are_read_are_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[tuple[str, ...]] = []
    hashes_of = hashing._hashes

    def counted(*arguments: Any) -> Any:
        computed.append(arguments[1])
        return hashes_of(*arguments)

    monkeypatch.setattr(hashing, "_hashes", counted)
    (tmp_path / "file").write_text("one")
    time.sleep(2 * SETTLED_SECONDS)
    for columns in ("path", "sha1", "sha1", "sha1, md5"):
        rows_of(f"SELECT {columns} FROM hash WHERE path = '{tmp_path}/file'")
    assert computed == [("sha1",), ("md5",)]


def test_the_executable_of_a_process_can_be_hashed() -> None:
    (row,) = rows_of(f"SELECT sha256 FROM hash WHERE path = '/proc/{os.getpid()}/exe'")
    assert row["sha256"] == hashlib.sha256(Path(sys.executable).resolve().read_bytes()).hexdigest()


def test_a_file_that_is_too_large_has_no_hashes(tmp_path: Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as sparse:
        sparse.truncate(hashing.HASHED_BYTES_MAX + 1)
    answer = ask_sql(f"SELECT sha256 FROM hash WHERE path = '{file}'", limits=LimitSettings(time=60))
    assert answer.rows == [{"sha256": None}]
    assert answer.files.truncated == 1


@pytest.mark.parametrize(
    "pattern", ["/" * 10_000, "/x" * 201, "/" + "%a" * 4_000], ids=["slashes", "parts", "wildcards"]
)
def test_patterns_that_are_too_long_are_counted_or_match_nothing(pattern: str) -> None:
    answer = ask_sql(f"SELECT path FROM file WHERE path LIKE '{pattern}'")
    assert answer.rows == []


@pytest.mark.parametrize("end", ["%", "%b"])
def test_patterns_that_backtracking_would_not_finish(end: str) -> None:
    ((_, component),) = SqlPattern.parse(f"/{'%a' * 100}{end}").parts
    assert callable(component)
    assert bool(component("ba" * 127)) == (end == "%")
