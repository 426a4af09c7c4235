"""osquery's tables of accounts and groups, compared with getent, id, passwd and chage where accounts are made."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from scratch_host import Rows, on_scratch_host, output, select, select_with_errors

from zeek_agent.contract import NoAgent
from zeek_agent.host.accounts import name_service
from zeek_agent.host.accounts.local_accounts import LocalAccounts, local_accounts, names_by_id
from zeek_agent.host.accounts.passwords import password_states
from zeek_agent.host.files import system_files
from zeek_agent.table import Constraints, TableContext
from zeek_agent.tables.osquery import accounts
from zeek_agent.text import from_bytes

DAY_SECONDS = 86_400


def entries(database: str) -> list[list[str]]:
    """The fields of all entries by getent, from local files only."""
    return [line.split(":") for line in output("getent", "-s", "files", database).splitlines()]


@pytest.mark.root
def test_new_accounts_are_listed_as_getent_lists_them(tmp_path: Path) -> None:
    def scene() -> tuple[Rows, list[list[str]]]:
        output("groupadd", "--gid", "4000000000", "ada")
        identity = ("--uid", "4123456789", "--gid", "ada", "--comment", "Ada Lovelace,,,", "--shell", "/bin/sh")
        output("useradd", *identity, "ada")
        rows = select("SELECT *, include_remote, pid_with_namespace, type, is_hidden FROM osquery_users")
        return rows, entries("passwd")

    rows, expected = on_scratch_host(scene, tmp_path)
    columns = ("username", "uid", "gid", "description", "directory", "shell")
    assert [[str(row[column]) for column in columns] for row in rows] == [
        [name, uid, gid, *rest] for name, _, uid, gid, *rest in expected
    ]
    (ada,) = [row for row in rows if row["username"] == "ada"]
    assert (ada["uid_signed"], ada["gid_signed"]) == (4_123_456_789 - 2**32, 4_000_000_000 - 2**32)
    assert ada["directory"] == "/home/ada"
    assert {(row["uuid"], row["include_remote"]) for row in rows} == {("", 0)}
    assert {(row["pid_with_namespace"], row["type"], row["is_hidden"]) for row in rows} == {(None, None, None)}


@pytest.mark.root
def test_new_groups_and_their_members_are_listed(tmp_path: Path) -> None:
    def scene() -> tuple[Rows, Rows, Rows, str, list[list[str]]]:
        output("groupadd", "--gid", "7001", "poets")
        output("groupadd", "--gid", "7001", "--non-unique", "authors")
        output("useradd", "--uid", "7100", "--groups", "poets,daemon", "ada")
        members = select("SELECT gid FROM user_groups WHERE uid = 7100")
        joined = select("SELECT g.groupname FROM user_groups JOIN groups g USING (gid) WHERE uid = 7100")
        ids = output("id", "-G", "ada")
        return select("SELECT *, group_sid, comment FROM groups"), members, joined, ids, entries("group")

    rows, members, joined, ids, expected = on_scratch_host(scene, tmp_path)
    by_id = {gid: name for name, _, gid, _ in reversed(expected)}
    assert {str(row["gid"]): row["groupname"] for row in rows} == by_id
    assert len(rows) == len(by_id)
    assert all(row["gid_signed"] == row["gid"] for row in rows if row["gid"] < 2**31)
    assert {(row["group_sid"], row["comment"]) for row in rows} == {(None, None)}
    assert {str(row["gid"]) for row in members} == set(ids.split())
    assert {row["groupname"] for row in joined} == {"ada", "poets", "daemon"}


def test_groups_of_all_users_are_those_of_id() -> None:
    found: dict[str, set[str]] = {}
    for row in select("SELECT uid, gid FROM user_groups"):
        found.setdefault(str(row["uid"]), set()).add(str(row["gid"]))
    names = {uid: name for name, _, uid, *_ in reversed(entries("passwd"))}
    assert {uid: found[uid] for uid in names} == {uid: set(output("id", "-G", names[uid]).split()) for uid in names}


def test_one_account_is_asked_of_the_name_service_by_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Iterator[Any]:
        raise AssertionError("all entries are read")

    monkeypatch.setattr(name_service, "accounts", refuse)
    monkeypatch.setattr(name_service, "groups", refuse)
    for condition in ("uid = 0", "username = 'root'"):
        rows = select(f"SELECT username, uid FROM osquery_users WHERE include_remote = 1 AND {condition}")
        assert rows == [{"username": "root", "uid": 0}]
    assert select("SELECT groupname FROM groups WHERE gid IN (0, 4294967294)") == [{"groupname": "root"}]
    assert {"gid": 0} in select("SELECT gid FROM user_groups WHERE uid = 0")
    assert select("SELECT uid FROM osquery_users WHERE include_remote = 1 AND uid = -1") == []
    assert select("SELECT gid FROM groups WHERE gid = -1") == []
    assert select("SELECT gid FROM user_groups WHERE uid = 123456789012") == []


def test_all_accounts_of_the_name_service_are_listed_on_request() -> None:
    rows = select("SELECT username, uid FROM osquery_users WHERE include_remote = 1")
    assert [f"{row['username']} {row['uid']}" for row in rows] == [
        f"{name} {uid}" for name, _, uid, *_ in (line.split(":") for line in output("getent", "passwd").splitlines())
    ]


@pytest.mark.root
def test_states_of_passwords_are_those_of_passwd_and_chage(tmp_path: Path) -> None:
    def scene() -> tuple[Rows, str, str, str]:
        for name in ("hashed", "locked", "none"):
            output("useradd", name)
        output("chpasswd", "-c", "SHA512", standard_input="hashed:correct horse\nlocked:battery staple\n")
        output("passwd", "--lock", "locked")
        output("passwd", "--delete", "none")
        output("chage", "-m", "1", "-M", "90", "-W", "5", "-I", "30", "-E", "2030-01-02", "-d", "2026-03-04", "hashed")
        status, ages = output("passwd", "--status", "--all"), output("chage", "-l", "hashed")
        return select("SELECT * FROM shadow"), status, ages, Path("/etc/shadow").read_text()

    rows, status, chage, file = on_scratch_host(scene, tmp_path)
    letters = {"active": "P", "locked": "L", "not_set": "L", "empty": "NP"}
    for row, line in zip(rows, status.splitlines(), strict=True):
        name, letter, date, *days = line.split()
        changed = datetime.strptime(date, "%Y-%m-%d" if "-" in date else "%m/%d/%Y").replace(tzinfo=UTC)
        assert (row["username"], letters[row["password_status"]]) == (name, letter)
        assert row["last_change"] == changed.timestamp() // DAY_SECONDS
        assert [str(row[column]) for column in ("min", "max", "warning", "inactive")] == days
    by_name = {row["username"]: row for row in rows}
    assert [by_name[name]["password_status"] for name in ("hashed", "locked", "none")] == ["active", "locked", "empty"]
    assert [by_name[name]["hash_alg"] for name in ("hashed", "locked", "none")] == ["6", "", ""]
    expires = re.search(r"Account expires\s*: (.*)", chage)
    assert expires is not None
    expiry = datetime.strptime(f"{expires[1]} +0000", "%b %d, %Y %z")
    assert by_name["hashed"]["expire"] == expiry.timestamp() // DAY_SECONDS
    assert (by_name["none"]["expire"], by_name["none"]["flag"]) == (-1, None)
    hashes = [line.split(":")[1] for line in file.splitlines() if len(line.split(":")[1]) > 3]
    assert len(hashes) == 2
    assert not any(secret.strip("!") in json.dumps(rows) for secret in hashes)


@pytest.mark.root
def test_a_password_that_was_never_set_and_one_account(tmp_path: Path) -> None:
    def scene() -> Rows:
        with Path("/etc/shadow").open("a") as shadow:
            shadow.write("new:!!:20000::::::1\nold:$y$j9T$salt$hash:20000:0:99999:7:::\n")
        return select("SELECT username, password_status, hash_alg, flag FROM shadow WHERE username IN ('new', 'old')")

    assert on_scratch_host(scene, tmp_path) == [
        {"username": "new", "password_status": "not_set", "hash_alg": "", "flag": 1},
        {"username": "old", "password_status": "active", "hash_alg": "y", "flag": None},
    ]


def test_lines_that_are_not_entries_cost_no_others(tmp_path: Path) -> None:
    passwd, shadow = tmp_path / "passwd", tmp_path / "shadow"
    passwd.write_bytes(
        b"# a comment\n\nroot:x:0:0:root:/root:/bin/sh\n+::::::\n-bob::::::\nshort:x:5\nminus:x:-1:1::/:\n"
        b"huge:x:99999999999999999999:1::/:\nabove:x:4294967296:1::/:\nfour:x:4:4\n  blank:x:6:6:::\n"
        b"ad\xe9:x:7:7:a:b:c:d\n:x:8:8:::\n" + b"0" * 100_000 + b"\nlast:x:9:9:::/bin/sh"
    )
    shadow.write_bytes(b"\n:x:\nalone\n+:x:\nad\xe9:*:x:-1:99999999999999999999:7:::\nten:!:1:2:3:4:5:6:7:8:9\n")
    reports: list[str] = []
    assert [(one.name, one.uid, one.shell) for one in local_accounts(reports.append, passwd)] == [
        ("root", 0, "/bin/sh"),
        ("four", 4, ""),
        ("blank", 6, ""),
        (from_bytes(b"ad\xe9"), 7, "c:d"),
        ("last", 9, "/bin/sh"),
    ]
    states = list(password_states(reports.append, shadow))
    assert [tuple(state) for state in states] == [
        (from_bytes(b"ad\xe9"), "locked", "", None, None, None, 7, None, None, None),
        ("ten", "locked", "", 1, 2, 3, 4, 5, 6, None),
    ]
    assert reports == []


@pytest.mark.root
def test_files_that_cannot_be_read_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scene() -> list[Any]:
        Path("/etc/shadow").unlink()
        os.mkfifo("/etc/shadow")
        Path("/etc/passwd").unlink()
        return [select_with_errors("SELECT * FROM shadow"), select("SELECT * FROM osquery_users")]

    monkeypatch.setattr(system_files, "BYTES_MAX", 40)
    assert on_scratch_host(scene, tmp_path) == [([], ["/etc/shadow cannot be read: not a regular file"]), []]
    file = tmp_path / "long"
    file.write_bytes(b"root:x:0:0:root:/root:/bin/sh\n" * 3)
    reports: list[str] = []
    assert [one.name for one in local_accounts(reports.append, file)] == ["root"]
    assert reports == [f"{file} has more than 40 bytes: the rest was not read"]


def test_only_a_question_for_remote_accounts_needs_a_helper() -> None:
    def is_privileged(**equal: int) -> bool:
        values = {column: frozenset([value]) for column, value in equal.items()}
        return accounts.users.is_privileged(Constraints(TableContext(NoAgent()), equalities=values))

    assert not is_privileged(include_remote=0)
    assert not is_privileged(uid=0)
    assert is_privileged(include_remote=1, uid=0)


def test_numbers_that_are_not_ids_cost_their_lines_only(tmp_path: Path) -> None:
    file = tmp_path / "passwd"
    file.write_bytes(b"long:x:%s:0::/:\nhigh:x:4294967296:0::/:\n\xff:x:7:0::/:\nada:x:8:0::/:\n" % (b"1" * 5_000))
    accounts = LocalAccounts(file)
    assert (accounts.uid("ada"), accounts.name(8), accounts.uid("high")) == (8, "ada", None)
    assert names_by_id(file) == {7: from_bytes(b"\xff"), 8: "ada"}
