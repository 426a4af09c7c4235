"""osquery's table magic."""

from __future__ import annotations

import os
import socket
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from asking_sql import ask_sql, rows_of

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import AccessSettings, LimitSettings
from zeek_agent.errors import SqlError
from zeek_agent.host.files import libmagic


def _has_libmagic() -> bool:
    try:
        libmagic.Libmagic().close()
    except libmagic.LibmagicError:
        return False
    return True


needs_libmagic = pytest.mark.skipif(not _has_libmagic(), reason="needs libmagic")


def file_shows(path: Path, *options: str) -> str:
    command = ["file", "--brief", "--no-dereference", *options, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.removesuffix("\n")


@needs_libmagic
def test_types_are_those_that_file_shows(tmp_path: Path) -> None:
    contents = {
        "text": b"some words\n",
        "utf8": "größer\n".encode(),
        "script": b"#!/bin/sh\necho\n",
        "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x10\0\0\0\x10\x08\x02\0\0\0",
        "pdf": b"%PDF-1.7\n",
        "gzip": b"\x1f\x8b\x08\x08\0\0\0\0\0\x03name\0",
        "empty": b"",
        "noise": os.urandom(64),
        "program": Path("/bin/true").read_bytes(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("a", "b")
    (tmp_path / "program").chmod(0o6755)
    (tmp_path / "empty").chmod(0o4755)
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory").chmod(0o3777)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("text")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        files = [*tmp_path.iterdir(), Path("/dev/null"), Path("/usr/bin/passwd")]
        listed = ", ".join(f"'{file}'" for file in files)
        rows = rows_of(f"SELECT * FROM magic WHERE path IN ({listed})")
        assert {row["path"] for row in rows} == {str(file) for file in files}
        for row in rows:
            path = Path(row["path"])
            expected = file_shows(path), file_shows(path, "--mime-type"), file_shows(path, "--mime-encoding")
            assert (row["data"], row["mime_type"], row["mime_encoding"]) == expected
            assert row["magic_db_files"] == "/usr/share/file/magic.mgc:/usr/share/misc/magic.mgc"


@needs_libmagic
def test_a_broken_link_is_described(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    (row,) = rows_of(f"SELECT data, mime_type, mime_encoding FROM magic WHERE path = '{tmp_path}/link'")
    assert row == {"data": "broken symbolic link to nowhere", "mime_type": "inode/symlink", "mime_encoding": ""}
    assert file_shows(tmp_path / "link") == row["data"]


@needs_libmagic
def test_a_changed_file_changes_its_type(tmp_path: Path) -> None:
    file = tmp_path / "file"
    statement = f"SELECT mime_type FROM magic WHERE path = '{file}'"
    assert rows_of(statement) == []
    file.write_text("words\n")
    assert rows_of(statement) == [{"mime_type": "text/plain"}]
    file.write_bytes(b"%PDF-1.7\n")
    assert rows_of(statement) == [{"mime_type": "application/pdf"}]


@needs_libmagic
def test_denied_files_are_not_described(tmp_path: Path) -> None:
    for name in ("id_rsa", "open"):
        (tmp_path / name).write_text(name)
    statement = f"SELECT path FROM magic WHERE path IN ('{tmp_path}/id_rsa', '{tmp_path}/open')"
    answer = ask_sql(statement, access=AccessPolicy(AccessSettings()))
    assert answer.rows == [{"path": f"{tmp_path}/open"}]
    assert answer.files.refused == 1


@needs_libmagic
def test_only_the_forms_that_are_read_are_determined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forms: list[int] = []
    type_of = libmagic.Libmagic.type_of

    def counted(library: libmagic.Libmagic, descriptor: int, form: int) -> str:
        forms.append(form)
        return type_of(library, descriptor, form)

    monkeypatch.setattr(libmagic.Libmagic, "type_of", counted)
    (tmp_path / "file").write_text("words\n")
    rows_of(f"SELECT mime_type FROM magic WHERE path = '{tmp_path}/file'")
    assert forms == [libmagic.MIME_TYPE]


@needs_libmagic
def test_files_after_the_time_limit_have_no_type() -> None:
    limits = LimitSettings(files_time=1e-9)
    answer = ask_sql("SELECT data FROM magic WHERE path IN ('/bin/ls', '/bin/cat')", limits=limits)
    assert answer.rows[1:] == [{"data": None}]
    assert answer.files.truncated == 1


@needs_libmagic
def test_another_database_is_refused() -> None:
    answer = ask_sql("SELECT data FROM magic WHERE path = '/bin/ls' AND magic_db_files = '/tmp/evil.mgc'")
    assert answer.rows == []
    assert ["another database" in error for error in answer.errors] == [True]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("_LIBRARY", "libmagic-none.so", r"libmagic-none\.so cannot be loaded \(Debian: libmagic1"),
        ("DATABASES", ("/nowhere/magic.mgc",), r"database is missing: none of /nowhere/magic\.mgc exists"),
    ],
)
def test_without_libmagic_or_its_database_the_error_says_so(
    name: str, value: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libmagic, name, value)
    with pytest.raises(SqlError, match=message):
        rows_of("SELECT data FROM magic WHERE path = '/bin/ls'")


@needs_libmagic
def test_a_database_that_a_user_could_have_written_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "magic.mgc"
    database.write_bytes(b"")
    os.chown(database, 1234, 1234)
    monkeypatch.setattr(libmagic, "DATABASES", (str(database),))
    with pytest.raises(SqlError, match="libmagic's database is not used"):
        rows_of("SELECT data FROM magic WHERE path = '/bin/ls'")
