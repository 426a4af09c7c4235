"""The table users, compared with getent and id."""

from __future__ import annotations

import asyncio
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import apsw
import pytest
from asking import ask
from mounting import bind, in_mount_namespace
from sql import database

from zeek_agent.containment.accounts import worker_account
from zeek_agent.containment.protections import LockdownError
from zeek_agent.errors import UsageError
from zeek_agent.host.accounts import last_login, name_service
from zeek_agent.host.accounts.name_service import Account, first_human_uid, is_admin, is_system
from zeek_agent.platforms.unix_sockets import group_id
from zeek_agent.tables.users import users
from zeek_agent.text import from_bytes, to_bytes

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs passwd(5)")


T = TypeVar("T")


def output(*command: str) -> bytes:
    return subprocess.run(command, capture_output=True, check=True).stdout


LARGEST = 4_294_967_295
PASSWD = b"""root:x:0:0:root:/root:/bin/bash
ad\xe9:x:1001:1001:Ad\xe9le:/home/ad\xe9:/bin/sh
+::::::
+
-bob::::::
+@people::::::
bob:x:1002:1002::/home/bob:/bin/sh
largest:x:4294967295:4294967295::/:/bin/sh
"""
GROUP = b"""root:x:0:
sudo:x:27:ad\xe9
g\xe9:x:1001:bob
everyone:x:4294967295:bob
+:::
"""


def with_accounts(scene: Callable[[], T], place: Path, passwd: bytes = PASSWD, group: bytes = GROUP) -> T:
    """What the function returns in a mount namespace with these account files."""
    for name, content in (("passwd", passwd), ("group", group), ("nsswitch.conf", b"passwd: files\ngroup: files\n")):
        (place / name).write_bytes(content)

    def run() -> T:
        for name in ("passwd", "group", "nsswitch.conf"):
            bind(place / name, Path("/etc") / name)
        return scene()

    return in_mount_namespace(run)


@pytest.mark.root
def test_login_names_of_any_bytes_have_a_row_with_their_groups(tmp_path: Path) -> None:
    rows, named = with_accounts(lambda: (ask(users), ask(users, name=from_bytes(b"ad\xe9"))), tmp_path)
    (row,) = [row for row in rows if row["uid"] == "1001"]
    assert [to_bytes(row[column]) for column in ("name", "full_name", "home")] == [
        b"ad\xe9",
        b"Ad\xe9le",
        b"/home/ad\xe9",
    ]
    assert (set(row["groups"]), row["is_admin"]) == ({from_bytes(b"g\xe9"), "sudo"}, True)
    assert named == [row]


@pytest.mark.root
def test_lines_that_include_or_exclude_accounts_of_nis_are_not_accounts(tmp_path: Path) -> None:
    rows, named = with_accounts(lambda: (ask(users), ask(users, name=["+", "-bob", "+@people"])), tmp_path)
    assert [row["name"] for row in rows] == ["root", from_bytes(b"ad\xe9"), "bob", "largest"]
    assert named == []


@pytest.mark.root
def test_the_largest_uid_and_gid_are_not_negative(tmp_path: Path) -> None:
    rows, named = with_accounts(lambda: (ask(users), ask(users, name="largest")), tmp_path)
    (largest,) = [row for row in rows if row["name"] == "largest"]
    assert named == [largest]
    assert (largest["uid"], largest["gid"], largest["is_admin"]) == (str(LARGEST), LARGEST, False)
    assert set(largest["groups"]) == {"everyone"}
    (bob,) = [row for row in rows if row["name"] == "bob"]
    assert set(bob["groups"]) == {"1002", "everyone", from_bytes(b"g\xe9")}


@pytest.mark.root
def test_sql_returns_every_account(tmp_path: Path) -> None:
    """SQLite stores no negative count and no surrogate."""

    def select() -> list[tuple[object, ...]]:
        db = database(users)
        rows = asyncio.run(db.query("SELECT uid, gid, hex(name) FROM users")).rows
        db.close()
        return list(rows)

    assert with_accounts(select, tmp_path) == [
        ("0", 0, "726F6F74"),
        ("1001", 1001, "6164EEBFA9"),
        ("1002", 1002, "626F62"),
        (str(LARGEST), LARGEST, "6C617267657374"),
    ]


@pytest.mark.root
def test_an_account_may_belong_to_many_groups(tmp_path: Path) -> None:
    group = b"".join(b"g%d:x:%d:bob\n" % (number, number) for number in range(2_000, 2_300))
    (bob,) = with_accounts(lambda: ask(users, name="bob"), tmp_path, group=group)
    assert len(bob["groups"]) == 301


@pytest.mark.root
@pytest.mark.parametrize(("uid", "gid"), [(LARGEST, 999), (999, LARGEST)])
def test_workers_are_not_given_an_id_that_the_kernel_ignores(tmp_path: Path, uid: int, gid: int) -> None:
    """setresuid(2) leaves a uid as it is for 4294967295: the worker would stay root."""

    def ask_for_account() -> str:
        with pytest.raises(LockdownError) as refused:
            worker_account("_zeek-agent")
        return str(refused.value)

    passwd = b"root:x:0:0::/:/bin/sh\n_zeek-agent:x:%d:%d::/:/bin/false\n" % (uid, gid)
    assert f"uid {uid} and gid {gid}" in with_accounts(ask_for_account, tmp_path, passwd)


@pytest.mark.root
def test_the_control_sockets_group_must_be_able_to_own_a_file(tmp_path: Path) -> None:
    def ask_for_group() -> str:
        with pytest.raises(UsageError) as refused:
            group_id("everyone", "control")
        return str(refused.value)

    assert "4294967295" in with_accounts(ask_for_group, tmp_path)


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
        "INSERT INTO Lastlog2 VALUES('ada', 1700000000, 'pts/0', 'host', 'sshd'), ('bob', 0, '', '', ''),"
        "(CAST(x'6164e9' AS TEXT), 1600000000, '', '', '')"
    )
    database.close()
    assert last_login.by_name(file) == {"ada": 1_700_000_000.0, from_bytes(b"ad\xe9"): 1_600_000_000.0}
    file.write_bytes(b"no database at all" * 100)
    assert last_login.by_name(file) == {}
