"""Accounts of macOS: whose they are, by uid, name and group."""

from __future__ import annotations

import pytest

from zeek_agent.host.macos.account_rules import is_admin, is_system

NOBODY = 4_294_967_294


@pytest.mark.parametrize(
    ("name", "uid", "expected"),
    [
        ("root", 0, True),
        ("daemon", 1, True),
        ("_spotlight", 89, True),
        ("_later", 501, True),
        ("nobody", NOBODY, True),
        ("guest", 201, True),
        ("anna", 501, False),
        ("anna_b", 1_025_433_217, False),  # of a directory service
    ],
)
def test_services_have_low_uids_or_an_underscore(name: str, uid: int, expected: bool) -> None:
    assert is_system(name, uid) is expected


@pytest.mark.parametrize(
    ("uid", "groups", "expected"), [(0, [], True), (501, [20, 80], True), (502, [20, 12], False), (502, [], False)]
)
def test_administrators_are_members_of_admin(uid: int, groups: list[int], expected: bool) -> None:
    assert is_admin(uid, groups) is expected
