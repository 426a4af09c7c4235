"""The tables files_list, files_lines and files_columns."""

from __future__ import annotations

import logging
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from asking import READS_ALL, ask
from hypothesis import given
from hypothesis import strategies as st

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import AccessSettings
from zeek_agent.errors import LimitError, SqlError
from zeek_agent.host.files.contents import LINE_BYTES_MAX
from zeek_agent.host.files.gate import Gate, Purpose
from zeek_agent.host.files.reads import FileReads
from zeek_agent.tables.files import files_columns, files_lines, files_list
from zeek_agent.text import from_os, to_bytes


def content(path: Path | str) -> list[bytes]:
    return [row["content"] for row in ask(files_lines, str(path))]


def columns(path: Path, *arguments: str) -> list[tuple[Any, ...]]:
    return [tuple(row["columns"].values()) for row in ask(files_columns, str(path), *arguments)]


def test_files_are_listed_with_their_attributes(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    file.chmod(0o640)
    os.utime(file, (1.5, 1.25))
    (row,) = ask(files_list, str(file))
    assert row == {
        "path": str(file),
        "type": "file",
        "uid": file.stat().st_uid,
        "gid": file.stat().st_gid,
        "mode": "640",
        "mtime": 1.25,
        "size": 5,
    }


def test_types_are_listed_and_links_followed(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir").chmod(0o1777)
    (tmp_path / "link").symlink_to("dir")
    (tmp_path / "nowhere").symlink_to("gone")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        types = {Path(row["path"]).name: (row["type"], row["mode"]) for row in ask(files_list, f"{tmp_path}/*")}
    assert types["dir"] == types["link"] == ("dir", "1777")
    assert types["nowhere"][0] == "other"
    assert (types["fifo"][0], types["socket"][0]) == ("fifo", "socket")
    assert ask(files_list, "/dev/null")[0]["type"] == "char"


def test_all_matches_are_listed_however_many(tmp_path: Path) -> None:
    for number in range(250):
        (tmp_path / f"{number:03}").touch()
    assert [Path(row["path"]).name for row in ask(files_list, f"{tmp_path}/*")] == [f"{n:03}" for n in range(250)]


def test_paths_of_any_bytes_go_both_ways(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/new\nline \xff\xc3"
    Path(os.fsdecode(name)).write_bytes(b"here")
    (row,) = ask(files_list, f"{tmp_path}/new*")
    assert to_bytes(row["path"]) == name
    assert content(from_os(os.fsdecode(name))) == [b"here"]


def test_lines_are_numbered_and_trimmed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"first\n\n \tthird\r\nlast without end")
    assert [(row["number"], row["content"]) for row in ask(files_lines, str(file))] == [
        (1, b"first"),
        (2, b""),
        (3, b"third"),
        (4, b"last without end"),
    ]
    file.write_bytes(b"")
    assert content(file) == []


@given(st.binary(max_size=300))
def test_lines_may_hold_any_bytes(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any"
    file.write_bytes(raw)
    expected = raw.split(b"\n")
    assert content(file) == [line.strip() for line in (expected if expected[-1] else expected[:-1])]


def test_a_line_of_a_megabyte_is_kept_and_an_endless_one_is_cut(tmp_path: Path) -> None:
    file = tmp_path / "long"
    file.write_bytes(b"x" * 1_000_000 + b"\nshort")
    reads = FileReads()
    assert [len(row["content"]) for row in ask(files_lines, str(file), reads=reads)] == [1_000_000, 5]
    assert not reads.omissions()
    file.write_bytes(b"x" * LINE_BYTES_MAX + b"\n" + b"y" * (3 * LINE_BYTES_MAX + 1) + b"\nshort")
    assert [len(row["content"]) for row in ask(files_lines, str(file), reads=reads)] == [
        LINE_BYTES_MAX,
        LINE_BYTES_MAX,
        5,
    ]
    assert reads.omissions().truncated == 1
    assert "longer than" in reads.omissions().summary()


def test_a_file_that_may_not_be_read_is_skipped_counted_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "a").write_text("open")
    (tmp_path / "b").write_text("secret")
    (tmp_path / "c").write_text("open too")
    (tmp_path / "d").symlink_to("b")
    access = AccessPolicy(AccessSettings(files_allow=("/**",), paths_deny=(f"{tmp_path}/b",)))
    for _ in range(2):
        reads = FileReads()
        rows = ask(files_lines, f"{tmp_path}/*", access=access, reads=reads)
        assert [row["content"] for row in rows] == [b"open", b"open too"]
        assert reads.omissions().refused == 2
        assert reads.omissions().unread == {f"{tmp_path}/b", f"{tmp_path}/d"}
    logged = [record.args[0] for record in caplog.records if isinstance(record.args, tuple)]
    assert logged == [f"{tmp_path}/b", f"{tmp_path}/d"]


def test_a_link_that_leads_to_a_denied_file_does_not_open_it(tmp_path: Path) -> None:
    directory = tmp_path / "denied"
    directory.mkdir()
    (directory / "secret").write_text("secret")
    (tmp_path / "way").symlink_to(directory)
    access = AccessPolicy(AccessSettings(files_allow=("/**",), paths_deny=(f"{tmp_path}/denied/**",)))
    assert ask(files_lines, f"{tmp_path}/way/*", access=access) == []
    assert ask(files_lines, f"{tmp_path}/way/../denied/secret", access=access) == []
    assert ask(files_columns, f"{tmp_path}/way/secret", "$1:text", access=access) == []


@pytest.mark.root
def test_a_bind_mount_of_a_secret_or_its_directory_does_not_show_it(tmp_path: Path) -> None:
    etc, elsewhere, plain = tmp_path / "etc", tmp_path / "else where", tmp_path / "plain"
    etc.mkdir()
    elsewhere.mkdir()
    (etc / "shadow").write_text("secret\n")
    (etc / "hosts").write_text("public\n")
    plain.touch()
    query = [sys.executable, "-m", "zeek_agent", "query", "--state-dir", str(tmp_path / "state"), "--format", "csv"]
    query.append(f'--set=access.files_allow=["{tmp_path}/**"]')
    sql = f"SELECT content FROM files_lines('{elsewhere}/*') UNION ALL SELECT content FROM files_lines('{plain}')"
    mounted = 'mount --bind "$0" "$1" && mount --bind "$0/shadow" "$2" && shift 2 && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", mounted, str(etc), str(elsewhere), str(plain), *query, sql]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["content", "public"]
    assert f"{elsewhere}/shadow refused (denied by access.paths_deny" in done.stderr


def test_secrets_are_denied_by_default() -> None:
    assert ask(files_lines, "/etc/shadow") == []
    assert ask(files_lines, "/proc/self/environ") == []
    assert ask(files_lines, "/proc/thread-self/environ") == []


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """Opening a FIFO would wait for its other end, or wake a process that waits there."""
    os.mkfifo(tmp_path / "fifo")
    assert content(f"{tmp_path}/*") == []
    assert content("/dev/zero") == []
    assert content(tmp_path) == []
    with pytest.raises(OSError, match="No such device"):
        os.open(tmp_path / "fifo", os.O_WRONLY | os.O_NONBLOCK)


def test_the_descriptors_are_closed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("one\ntwo")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        content(f"{tmp_path}/*")
        with pytest.raises(LimitError):
            ask(files_lines, f"{tmp_path}/*", check=_after(2))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_only_a_regular_file_is_handed_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    gate = Gate(READS_ALL, FileReads())
    place = gate.walk(gate.root, str(tmp_path / "file"))
    opened = gate.open_regular(place, str(tmp_path / "file"), Purpose.CONTENTS)
    assert opened is not None
    with opened.file as file:
        assert stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        assert file.read() == b"text"
    assert gate.open_regular(gate.walk(gate.root, str(tmp_path)), str(tmp_path), Purpose.CONTENTS) is None


def test_columns_are_split_at_white_space_and_comments_left_out(tmp_path: Path) -> None:
    file = tmp_path / "conf"
    file.write_text("# comment\n\n  ; other\nPort 22\n  UsePAM\tyes  # why\nAlone\n")
    rows = ask(files_columns, str(file), "$1:text,$2:text")
    assert [(row["number"], row["columns"]) for row in rows] == [
        (1, {"c1": "Port", "c2": "22"}),
        (2, {"c1": "UsePAM", "c2": "yes"}),
        (3, {"c1": "Alone", "c2": None}),
    ]


def test_columns_have_types_and_misfits_are_null(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"a:1:-2:3.5:\xff\nb:-1:x:nan:\nc:1_0:99999999999999999999:1e400:z")
    assert columns(file, "$1:text,$2:count,$3:int,$4:real,$5:blob", ":") == [
        ("a", 1, -2, 3.5, "\uefff"),
        ("b", None, None, None, ""),
        ("c", None, None, None, "z"),
    ]


def test_column_0_is_the_whole_line_and_a_column_may_be_requested_twice(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_text(" one two \n")
    assert columns(file, " $0:text , $2:text,$2:blob,$9:int") == [("one two", "two", "two", None)]


def test_the_lines_to_leave_out_are_a_matter_of_a_regular_expression(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"-- no\nyes\n\xff also\n")
    assert columns(file, "$1:text", "", "^(--|[[:digit:]])") == [("yes",), ("\uefff",)]
    assert columns(file, "$1:text", "", "\uefff") == [("--",), ("yes",)]


def test_a_pattern_that_makes_other_engines_slow_does_not(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_text("a" * 5_000 + "\n")
    assert columns(file, "$1:text", "", "^(a|a?)+$") == []


@pytest.mark.parametrize("spec", ["", "1:text", "$1", "$1:float", "$x:text", "$1:text,", "$1:text;$2:text"])
def test_columns_that_cannot_be_read_are_an_error(tmp_path: Path, spec: str) -> None:
    with pytest.raises(SqlError, match="is not a column"):
        columns(tmp_path, spec)


def test_the_number_of_columns_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("a b\n")
    thousand = ",".join(["$1:text"] * 1_000)
    (row,) = columns(file, thousand)
    assert row == ("a",) * 1_000
    with pytest.raises(SqlError, match="more than 1000 columns"):
        columns(file, f"{thousand},$1:text")


def test_other_mistakes_of_a_statement_are_errors_too() -> None:
    with pytest.raises(SqlError, match="is not a valid regular expression"):
        ask(files_columns, "/etc/hosts", "$1:text", "", "(")
    with pytest.raises(SqlError, match="NUL"):
        ask(files_list, "/etc/\0")


@pytest.mark.parametrize("table", [files_list, files_lines])
def test_a_statement_that_is_out_of_time_ends_within_the_table(table: Any) -> None:
    with pytest.raises(LimitError):
        ask(table, "/usr/share/*/*", check=_after(5))


def _after(calls: int) -> Any:
    left = iter(range(calls))

    def check() -> None:
        if next(left, None) is None:
            raise LimitError

    return check
