"""Accounts of Windows, with what its functions return on computers of different kinds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from zeek_agent.host.windows import accounts as windows
from zeek_agent.host.windows.accounts import AccountSource, WindowsAccount
from zeek_agent.platforms.winapi.accounts import LocalUser

COMPUTER = "S-1-5-21-1-2-3"
DOMAIN = "S-1-5-21-7-8-9"
SIDS = {
    "DESK\\Administrator": f"{COMPUTER}-500",
    "DESK\\Guest": f"{COMPUTER}-501",
    "DESK\\Anna": f"{COMPUTER}-1001",
    "DESK\\Ben": f"{COMPUTER}-1002",
}
NAMES = {
    "S-1-5-18": "NT AUTHORITY\\SYSTEM",
    "S-1-5-32-544": "VORDEFINIERT\\Administratoren",
    f"{DOMAIN}-1105": "CORP\\carla",
    f"{DOMAIN}-1106": None,
}
GROUPS = {
    "Administrator": ["Administratoren"],
    "Guest": ["Gäste"],
    "Anna": ["Benutzer", "Administratoren"],
    "Ben": ["Benutzer"],
}


def sid_of(name: str) -> str:
    try:
        return SIDS[name]
    except KeyError:
        raise FileNotFoundError(name) from None


def groups_of(name: str) -> list[str]:
    try:
        return GROUPS[name]
    except KeyError:
        raise OSError(f"the domain of {name} cannot be reached") from None


SOURCE = AccountSource(
    local_users=lambda: [
        LocalUser("Administrator", None, None, None),
        LocalUser("Guest", None, None, None),
        LocalUser("Anna", "Anna A.", r"D:\home\anna", 1_790_000_000),
        LocalUser("Ben", None, r"D:\home\ben", None),
    ],
    profiles=lambda: {
        "S-1-5-18": r"C:\Windows\system32\config\systemprofile",
        f"{COMPUTER}-1001": r"C:\Users\Anna",
        f"{DOMAIN}-1105": r"C:\Users\carla",
        f"{DOMAIN}-1106": r"C:\Users\left",
    },
    sid_of=sid_of,
    name_of=NAMES.get,
    groups_of=groups_of,
    computer_name=lambda: "DESK",
)


def accounts(source: AccountSource = SOURCE, *, with_groups: bool = True) -> dict[str, WindowsAccount]:
    return {account.name: account for account in windows.accounts(with_groups=with_groups, source=source)}


def test_local_accounts_come_with_sid_home_and_groups() -> None:
    anna = accounts()["Anna"]
    assert anna == WindowsAccount(
        "Anna", "Anna A.", f"{COMPUTER}-1001", r"C:\Users\Anna", 1_790_000_000.0, GROUPS["Anna"]
    )


def test_without_a_profile_the_home_is_the_accounts() -> None:
    assert accounts()["Ben"].home == r"D:\home\ben"


def test_others_with_a_profile_are_accounts_too() -> None:
    found = accounts()
    assert found["CORP\\carla"].sid == f"{DOMAIN}-1105"
    assert found["CORP\\carla"].groups is None  # its domain cannot be reached
    assert found[f"{DOMAIN}-1106"].home == r"C:\Users\left"  # the account is gone, the profile is not
    assert found["NT AUTHORITY\\SYSTEM"].groups is None
    assert len(found) == 7


def test_groups_are_only_read_when_they_are_wanted() -> None:
    def never(name: str) -> list[str]:
        raise AssertionError(name)

    found = accounts(replace(SOURCE, groups_of=never), with_groups=False)
    assert {account.groups for account in found.values()} == {None}


def test_administrators_are_members_of_the_group_whatever_it_is_called() -> None:
    name = windows.administrators(SOURCE)
    found = {account.name: windows.is_admin(account, name) for account in accounts().values()}
    assert name == "Administratoren"
    assert found == {
        "Administrator": True,
        "Guest": False,
        "Anna": True,
        "Ben": False,
        "NT AUTHORITY\\SYSTEM": None,
        "CORP\\carla": None,
        f"{DOMAIN}-1106": None,
    }


def test_without_groups_only_the_built_in_administrator_is_known_to_be_one() -> None:
    def nothing(_: str) -> list[str]:
        return []

    found = {
        account.name: windows.is_admin(account, "Administratoren")
        for account in accounts(replace(SOURCE, groups_of=nothing)).values()
    }
    assert {name for name, is_admin in found.items() if is_admin is not None} == {"Administrator"}
    assert found["Administrator"] is True


def test_without_the_groups_name_nobody_is_denied_to_be_an_administrator() -> None:
    assert windows.administrators(replace(SOURCE, name_of=lambda _: None)) is None
    assert windows.is_admin(accounts()["Ben"], None) is None


def test_an_account_without_a_sid_is_of_unknown_kind() -> None:
    found = accounts(replace(SOURCE, sid_of=lambda name: sid_of("nobody" + name)))
    assert found["Anna"].sid is None
    assert windows.is_system(None) is None


@pytest.mark.parametrize(
    ("sid", "expected"),
    [
        ("S-1-5-18", True),
        ("S-1-5-19", True),
        ("S-1-5-80-956008885-3418522649", True),  # a service's
        (f"{COMPUTER}-500", True),
        (f"{COMPUTER}-503", True),
        (f"{COMPUTER}-1000", False),
        (f"{DOMAIN}-1105", False),
        ("S-1-12-1-3449050006-1318031494-1861009568-3029379498", False),  # of Microsoft Entra ID
        ("S-1-5-21-broken-x", True),
    ],
)
def test_people_have_accounts_of_computers_and_domains(sid: str, expected: bool) -> None:
    assert windows.is_system(sid) is expected
