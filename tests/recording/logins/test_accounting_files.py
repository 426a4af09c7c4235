"""Files of login accounting: records as login programs write them, and databases of the form that wtmpdb and
lastlog2 create, which are not installed where these tests run.
"""

from __future__ import annotations

import os
import sqlite3
import struct
from pathlib import Path

from zeek_agent.host.accounts import accounting
from zeek_agent.recording.logins.accounting_files import LastLogins, RecordFile, WtmpDatabase

RECORD = struct.Struct("=hxxi32s4s32s256shhiIi16s20x")


def record(kind: int, pid: int, line: str, user: str, host: str, seconds: int, address: bytes = b"") -> bytes:
    texts = line.encode(), b"", user.encode(), host.encode()
    return RECORD.pack(kind, pid, *texts, 0, 0, 0, seconds, 250_000, address.ljust(16, b"\0"))


def test_a_record() -> None:
    found = accounting.parse_record(record(7, 41, "pts/0", "alice", "client", 2**31 + 5, bytes([192, 0, 2, 7])))
    assert (found.user, found.line, found.remote_addr, found.time) == ("alice", "pts/0", "192.0.2.7", 2**31 + 5.25)
    v6 = accounting.parse_record(record(7, 41, "pts/0", "alice", "", 1, bytes.fromhex("20010db8" + "00" * 11 + "07")))
    assert v6.remote_addr == "2001:db8::7"


def test_wtmp_is_followed_over_rotation_and_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "wtmp"
    path.write_bytes(record(7, 1, "tty1", "old", "", 1))
    file = RecordFile("wtmp", path, lambda _: True)
    file.resume(None)
    with path.open("ab") as stream:
        stream.write(record(7, 41, "pts/0", "alice", "", 10) + record(8, 41, "pts/0", "", "", 20) + b"half a record")
    assert [(one.action, one.user, one.time) for one in file.read()] == [
        ("login", "alice", 10.25),
        ("logout", "alice", 20.25),
    ]
    assert list(file.read()) == []
    path.write_bytes(path.read_bytes()[: 3 * accounting.RECORD_BYTES] + record(7, 42, "pts/1", "bob", "", 30))
    path.rename(tmp_path / "wtmp.1")
    path.write_bytes(record(7, 43, "pts/2", "carol", "", 40))
    resumed = RecordFile("wtmp", path, lambda _: True)
    resumed.resume(file.position)
    assert [one.user for one in resumed.read()] == ["bob", "carol"]


def test_without_a_position_recording_goes_on_with_younger_records(tmp_path: Path) -> None:
    path = tmp_path / "wtmp"
    path.write_bytes(record(7, 1, "tty1", "old", "", 10) + record(7, 2, "tty2", "young", "", 30))
    file = RecordFile("wtmp", path, lambda _: True)
    file.resume(None, 20.0)
    assert [one.user for one in file.read()] == ["young"]


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(record(7, 1, "tty1", "x", "", 1))
    (tmp_path / "wtmp").symlink_to(tmp_path / "target")
    file = RecordFile("wtmp", tmp_path / "wtmp", lambda _: True)
    assert file.probe() is not None
    file.resume(None, 0.0)
    assert list(file.read()) == []


def test_btmp_that_is_rotated_by_date_is_read_to_its_end_however_long_it_is(tmp_path: Path) -> None:
    path = tmp_path / "btmp"
    path.write_bytes(b"")
    file = RecordFile("btmp", path, lambda _: True)
    file.resume(None)
    path.write_bytes(b"".join(record(6, n, "ssh:notty", f"u{n}", "", 10) for n in range(10_500)))
    path.rename(tmp_path / "btmp-20260101")
    path.write_bytes(record(6, 1, "ssh:notty", "between", "", 20))
    path.rename(tmp_path / "btmp-20260201")
    path.write_bytes(record(6, 1, "ssh:notty", "now", "", 30))
    os.utime(tmp_path / "btmp-20260101", (1, 1))
    users = [one.user for _ in range(4) for one in file.read()]
    assert users == [*(f"u{n}" for n in range(10_500)), "between", "now"]


def test_btmp_that_is_truncated_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "btmp"
    path.write_bytes(record(6, 1, "ssh:notty", "old", "", 10) * 3)
    file = RecordFile("btmp", path, lambda _: True)
    file.resume(None)
    path.write_bytes(record(6, 1, "ssh:notty", "new", "", 10))
    assert [one.user for one in file.read()] == ["new"]


def touch(path: Path, nanoseconds: int) -> None:
    """Give a changed database another time, because two changes may be within the clock's accuracy."""
    os.utime(path, ns=(nanoseconds, nanoseconds))


def test_wtmpdb_has_beginnings_and_ends(tmp_path: Path) -> None:
    path = tmp_path / "wtmp.db"
    with sqlite3.connect(path) as database:
        database.execute(
            "CREATE TABLE wtmp(ID INTEGER PRIMARY KEY, Type INTEGER, User TEXT NOT NULL, Login INTEGER, "
            "Logout INTEGER, TTY TEXT, RemoteHost TEXT, Service TEXT)"
        )
        database.execute("INSERT INTO wtmp VALUES (1, 3, 'old', 1000000, 2000000, 'tty1', NULL, 'login')")
        database.commit()
        source = WtmpDatabase(path)
        source.resume(None)
        assert list(source.read()) == []
        database.execute("INSERT INTO wtmp VALUES (2, 1, 'reboot', 3000000, NULL, '~', NULL, NULL)")
        database.execute("INSERT INTO wtmp VALUES (3, 3, 'alice', 4500000, NULL, 'pts/0', '192.0.2.7', 'sshd')")
        database.commit()
        touch(path, 1)
        (begun,) = source.read()
        assert (begun.action, begun.user, begun.tty, begun.remote_addr, begun.time) == (
            *("login", "alice", "pts/0", "192.0.2.7"),
            4.5,
        )
        database.execute("UPDATE wtmp SET Logout = 9000000 WHERE ID = 3")
        database.commit()
        touch(path, 2)
        resumed = WtmpDatabase(path)
        resumed.resume(source.position)
        (ended,) = resumed.read()
        assert (ended.action, ended.user, ended.time) == ("logout", "alice", 9.0)


WTMPDB = (
    "CREATE TABLE wtmp(ID INTEGER PRIMARY KEY, Type INTEGER, User TEXT NOT NULL, Login INTEGER, Logout INTEGER, "
    "TTY TEXT, RemoteHost TEXT, Service TEXT)"
)


def test_rows_of_wtmpdb_are_new_though_rotation_makes_their_ids_free_again(tmp_path: Path) -> None:
    path = tmp_path / "wtmp.db"
    with sqlite3.connect(path) as database:
        database.execute(WTMPDB)
        database.execute("INSERT INTO wtmp VALUES (57, 3, 'old', 1000000, 2000000, 'tty1', NULL, 'login')")
        database.commit()
        source = WtmpDatabase(path)
        source.resume(None)
        database.execute("DELETE FROM wtmp")
        database.execute("INSERT INTO wtmp VALUES (1, 3, 'alice', 3000000, NULL, 'pts/0', NULL, 'sshd')")
        database.commit()
        assert [one.user for one in source.read()] == ["alice"]
        database.execute("INSERT INTO wtmp VALUES (2, 3, 'bob', 3000000, NULL, 'pts/0', NULL, 'sshd')")
        database.commit()
        resumed = WtmpDatabase(path)
        resumed.resume(source.position)
        assert [one.user for one in resumed.read()] == ["bob"]


def test_a_change_within_the_accuracy_of_the_clock_is_not_missed(tmp_path: Path) -> None:
    path = tmp_path / "wtmp.db"
    with sqlite3.connect(path) as database:
        database.execute(WTMPDB)
        database.commit()
        source = WtmpDatabase(path)
        source.resume(None)
        now = path.stat().st_mtime_ns
        users = []
        for number in (1, 2):
            database.execute("INSERT INTO wtmp VALUES (?, 3, ?, ?, NULL, '', NULL, '')", (number, f"u{number}", number))
            database.commit()
            touch(path, now)
            users += [one.user for one in source.read()]
    assert users == ["u1", "u2"]


def test_a_large_wtmpdb_is_not_replayed_and_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "wtmp.db"
    with sqlite3.connect(path) as database:
        database.execute(WTMPDB)
        rows = [(n, 3, "old", n, None, "", None, "") for n in range(1, 10_101)]
        database.executemany("INSERT INTO wtmp VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        database.commit()
        source = WtmpDatabase(path)
        source.resume(None)
        assert list(source.read()) == []
        rows = [(n, 3, "new", n, None, "", None, "") for n in range(10_101, 20_301)]
        database.executemany("INSERT INTO wtmp VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        database.commit()
        assert len(list(source.read())) == len(rows)


def test_users_of_lastlog2_within_the_same_second_are_all_seen(tmp_path: Path) -> None:
    path = tmp_path / "lastlog2.db"
    with sqlite3.connect(path) as database:
        database.execute(
            "CREATE TABLE Lastlog2(Name TEXT PRIMARY KEY, Time INTEGER, TTY TEXT, RemoteHost TEXT, Service TEXT)"
        )
        database.commit()
        source = LastLogins(path)
        source.resume(None)
        users = []
        for name in ("alice", "bob"):
            database.execute("INSERT INTO Lastlog2 VALUES (?, 7, '', '', 'sshd')", (name,))
            database.commit()
            users += [one.user for one in source.read()]
    assert users == ["alice", "bob"]


def test_lastlog2_has_new_last_logins(tmp_path: Path) -> None:
    path = tmp_path / "lastlog2.db"
    with sqlite3.connect(path) as database:
        database.execute(
            "CREATE TABLE Lastlog2(Name TEXT PRIMARY KEY, Time INTEGER, TTY TEXT, RemoteHost TEXT, Service TEXT)"
        )
        database.execute("INSERT INTO Lastlog2 VALUES ('old', 5, 'tty1', '', 'login')")
        database.commit()
        source = LastLogins(path)
        source.resume(None)
        assert list(source.read()) == []
        database.execute("INSERT INTO Lastlog2 VALUES ('alice', 7, 'ssh', 'client.example', 'sshd')")
        database.commit()
        touch(path, 1)
        (found,) = source.read()
        assert (found.user, found.tty, found.remote_addr, found.time) == ("alice", None, None, 7.0)
