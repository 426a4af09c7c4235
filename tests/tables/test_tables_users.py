"""The table users, compared with getent and id."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import apsw
import pytest
from asking import ask

from zeek_agent.host.accounts import last_login, name_service
from zeek_agent.host.accounts.name_service import Account, first_human_uid, is_admin, is_system
from zeek_agent.tables.users import users
from zeek_agent.text import to_bytes

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs passwd(5)")


def output(*command: str) -> bytes:
    return subprocess.run(command, capture_output=True, check=True).stdout


@pytest.mark.skipif(sys.platform != "linux", reason="needs getent")
def test_it_agrees_with_getent_and_id() -> None:
    listed = output("getent", "passwd").splitlines()
    rows = ask(users)
    assert [
        b":".join(
            (
                to_bytes(row["name"]),
                row["uid"].encode(),
                b"%d" % row["gid"],
                to_bytes(row["home"]),
                to_bytes(row["shell"]),
            )
        )
        for row in rows
    ] == [
        b":".join((name, uid, gid, home, shell))
        for name, _, uid, gid, _, home, shell in (line.split(b":") for line in listed)
    ]
    for row in rows[:10]:
        assert set(row["groups"]) == set(output("id", "-Gn", row["name"]).decode().split())


def test_root_is_an_administrator() -> None:
    (root,) = ask(users, name="root")
    assert (root["uid"], root["is_admin"], root["is_system"], root["email"]) == ("0", True, True, None)
    assert [root] == [row for row in ask(users) if row["name"] == "root"]


def test_names_that_do_not_exist_have_no_row() -> None:
    assert ask(users, name=["no such user", "nul\0", "\uefff"]) == []


def test_groups_are_only_looked_up_if_selected(monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(_: Account) -> list[str]:
        raise AssertionError

    monkeypatch.setattr(name_service, "groups_of", unexpected)
    assert ask(users, columns=["name", "uid", "last_login"])


@pytest.mark.parametrize(
    ("uid", "groups", "expected"),
    [
        (0, [], True),
        (1000, ["users", "sudo"], True),
        (1000, ["wheel"], True),
        (1000, ["admin"], True),
        (1000, ["users", "sudoers"], False),
    ],
)
def test_administrators_are_recognized_by_uid_and_group(uid: int, groups: list[str], expected: bool) -> None:
    assert is_admin(uid, groups) is expected


@pytest.mark.parametrize(
    ("uid", "expected"), [(0, True), (999, True), (1000, False), (61184, True), (65534, True), (100000, False)]
)
def test_system_accounts_are_recognized_by_uid(uid: int, expected: bool) -> None:
    assert is_system(uid, 1000) is expected


def test_the_first_uid_of_people_is_read_from_login_defs(tmp_path: Path) -> None:
    file = tmp_path / "login.defs"
    assert first_human_uid(file) == 1000
    file.write_bytes(b"# UID_MIN 1\nSUB_UID_MIN 2\n  UID_MIN\t\t 500 \xff\nUID_MAX 60000\n")
    assert first_human_uid(file) == 500


def test_the_full_name_is_the_first_part_of_gecos() -> None:
    assert Account("a", 1, 1, "Ada Lovelace,Room 1,555", "/", "/bin/sh").full_name == "Ada Lovelace"


def test_last_logins_are_read_from_lastlog(tmp_path: Path) -> None:
    file = tmp_path / "lastlog"
    assert last_login.by_uid(0, file) is None
    with file.open("wb") as records:
        records.seek(1000 * 292)
        records.write(struct.pack("=I32s256s", 1_700_000_000, b"pts/0", b"host"))
    assert last_login.by_uid(1000, file) == 1_700_000_000.0
    assert last_login.by_uid(999, file) is None
    assert last_login.by_uid(1001, file) is None


def test_last_logins_are_read_from_lastlog2(tmp_path: Path) -> None:
    file = tmp_path / "lastlog2.db"
    assert last_login.by_name(file) == {}
    database = apsw.Connection(str(file))
    database.execute(
        "CREATE TABLE Lastlog2(Name TEXT PRIMARY KEY, Time INTEGER, TTY TEXT, RemoteHost TEXT, Service TEXT);"
        "INSERT INTO Lastlog2 VALUES('ada', 1700000000, 'pts/0', 'host', 'sshd'), ('bob', 0, '', '', '')"
    )
    database.close()
    assert last_login.by_name(file) == {"ada": 1_700_000_000.0}
    file.write_bytes(b"no database at all" * 100)
    assert last_login.by_name(file) == {}
