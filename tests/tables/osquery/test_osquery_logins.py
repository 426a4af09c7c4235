"""osquery's tables of logins, compared with utmpdump, for a real login."""

from __future__ import annotations

import json
import re
import shutil
import struct
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import apsw
import pytest
from scratch_host import Rows, select, select_with_errors
from ssh_host import USER, SshHost, ssh_host
from waiting import until_sync

from zeek_agent.host.accounts import accounting
from zeek_agent.host.accounts.sessions import LoginSession
from zeek_agent.tables.osquery import logins

NAMES = {5: "init", 6: "login", 7: "user", 8: "dead", 2: "boot_time"}


def by_utmpdump(host: SshHost, file: str) -> list[tuple[Any, ...]]:
    """Type, process, user, terminal, host and whole seconds of each record."""
    records = []
    for line in host.run("utmpdump", file).stdout.splitlines():
        kind, pid, _, user, tty, name, _, time = (part.strip() for part in re.findall(r"\[(.*?)\]", line))
        seconds = int(datetime.fromisoformat(time.partition(",")[0] + "+00:00").timestamp())
        records.append((int(kind), int(pid), user, tty, name, seconds))
    return records


def asked(host: SshHost, state: Path, sql: str) -> Rows:
    """What the program shows in there."""
    program = (sys.executable, "-m", "zeek_agent", "query", "--state-dir", str(state), "--format", "json", sql)
    done = host.run(*program)
    assert done.returncode == 0, done.stderr
    rows: Rows = json.loads(done.stdout)
    return rows


@pytest.mark.root
@pytest.mark.skipif(shutil.which("utmpdump") is None, reason="needs utmpdump")
def test_a_session_is_shown_while_it_exists_and_its_login_and_logout_later(tmp_path: Path) -> None:
    with ssh_host(tmp_path / "host", "none") as host:
        host.run("install", "-m", "664", "/dev/null", "/run/utmp")
        host.start_sshd()
        session = host.start_ssh("-tt", "sleep", "60", key="key")
        until_sync(lambda: USER in host.run("utmpdump", "/run/utmp").stdout)
        sql = "SELECT type, pid, user, tty, host, time FROM logged_in_users"
        during = [tuple(row.values()) for row in asked(host, tmp_path / "state", sql)]
        utmp = by_utmpdump(host, "/run/utmp")
        session.terminate()
        session.wait()
        until_sync(lambda: "[8]" in host.run("utmpdump", "/var/log/wtmp").stdout)
        rows = asked(host, tmp_path / "state", "SELECT type, pid, username, tty, host, time, type_name FROM last")
        wtmp = by_utmpdump(host, "/var/log/wtmp")
    assert during == [(NAMES[kind], *rest) for kind, *rest in utmp]
    assert [row[:3] for row in during if row[2] == USER] == [("user", during[0][1], USER)]
    assert [tuple(row.values())[:-1] for row in rows] == wtmp
    assert [(row["type"], row["type_name"], row["host"]) for row in rows] == [
        (7, "user-process", "127.0.0.1"),
        (8, "dead-process", ""),
    ]


def record(kind: int, pid: int, user: bytes, seconds: int = 1_000_000_000) -> bytes:
    return struct.pack(
        "=hxxi32s4s32s256shhiii16s20x", kind, pid, b"pts/1", b"", user, b"host", 0, 0, 0, seconds, 5, b""
    )


def test_all_records_but_those_of_init_are_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "utmp"
    kinds = [*range(10), 77, -1]
    file.write_bytes(b"".join(record(kind, 5, b"ad\xe9") for kind in kinds) + record(7, 1, b"init") + b"cut off")
    monkeypatch.setattr(accounting, "UTMP", file)
    monkeypatch.setattr(accounting, "WTMP", file)
    rows = select("SELECT * FROM logged_in_users")
    assert [row["type"] for row in rows] == [
        *("empty", "runlevel", "boot_time", "new_time", "old_time", "init", "login", "user", "dead", "accounting"),
        *("unknown", "unknown"),
    ]
    assert {(row["pid"], row["user"], row["time"]) for row in rows} == {(5, "ad\uefe9", 1_000_000_000)}
    assert [row["pid"] for row in select("SELECT * FROM last")] == [5, 5, 1]


def test_without_utmp_sessions_are_those_of_the_agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def sessions(*_: Any, **__: Any) -> Sequence[LoginSession]:
        return [
            LoginSession(1, "ada", 7, "pts/3", None, "there", login_time=12.9, pid=44),
            LoginSession(2, "cron", 8, pid=45),
            LoginSession(3, tty="tty2"),
        ]

    monkeypatch.setattr(accounting, "UTMP", tmp_path / "none")
    monkeypatch.setattr(logins, "login_sessions", sessions)
    assert select("SELECT type, user, tty, host, time, pid, sid FROM logged_in_users") == [
        {"type": "user", "user": "ada", "tty": "pts/3", "host": "there", "time": 12, "pid": 44, "sid": None},
        {"type": "user", "user": "", "tty": "tty2", "host": "", "time": None, "pid": None, "sid": None},
    ]


def test_without_wtmp_logins_are_those_of_wtmpdb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(accounting, "WTMP", tmp_path / "none")
    monkeypatch.setattr(accounting, "WTMPDB", tmp_path / "wtmp.db")
    assert select("SELECT * FROM last") == []
    with apsw.Connection(str(tmp_path / "wtmp.db")) as database:
        database.execute(
            "CREATE TABLE wtmp(ID INTEGER PRIMARY KEY, Type INTEGER, User TEXT NOT NULL, Login INTEGER, Logout INTEGER,"
            " TTY TEXT, RemoteHost TEXT, Service TEXT)"
        )
        database.execute("INSERT INTO wtmp VALUES (1, 1, 'reboot', 5000000, NULL, '~', NULL, NULL)")
        database.execute("INSERT INTO wtmp VALUES (2, 3, 'ada', 6000000, 9500000, 'pts/0', 'there', 'sshd')")
        database.execute("INSERT INTO wtmp VALUES (3, 3, 'bob', 7000000, NULL, NULL, NULL, 'login')")
    database.close()
    assert [tuple(row.values()) for row in select("SELECT * FROM last")] == [
        ("ada", "pts/0", None, 7, "user-process", 6, "there"),
        ("ada", "pts/0", None, 8, "dead-process", 9, "there"),
        ("bob", "", None, 7, "user-process", 7, ""),
    ]


def test_files_that_are_none_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(accounting, "UTMP", tmp_path)
    monkeypatch.setattr(accounting, "WTMP", tmp_path / "none")
    damaged = tmp_path / "wtmp.db"
    damaged.write_bytes(b"SQLite format 3\0" + b"\xff" * 5_000)
    monkeypatch.setattr(accounting, "WTMPDB", damaged)
    assert select_with_errors("SELECT * FROM logged_in_users") == ([], [f"{tmp_path} cannot be read: Is a directory"])
    assert select_with_errors("SELECT * FROM last") == ([], [f"{damaged} cannot be read: file is not a database"])


def test_holes_of_a_file_are_skipped(tmp_path: Path) -> None:
    file = tmp_path / "wtmp"
    with file.open("wb") as written:
        written.write(record(7, 1, b"ada") + record(7, 2, b"ada"))
        written.seek((1 << 40) // accounting.RECORD_BYTES * accounting.RECORD_BYTES)
        written.write(record(7, 3, b"ada"))
        written.truncate(2 << 40)
    assert [record.pid for record in accounting.accounting_records(file) if record.user] == [1, 2, 3]
