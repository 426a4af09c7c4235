"""Which accounts of macOS are administrators', and which are the system's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from zeek_agent.host.accounts import name_service

FIRST_HUMAN_UID: Final = 500
"""Directory services give uids from 501 on to people."""
_ADMIN_GROUP: Final = 80
"""The group `admin`, whose members may use sudo."""


def is_admin(uid: int, groups: Iterable[int]) -> bool:
    """Whether an account may act as root; `groups` are the ids of all its groups."""
    return uid == 0 or _ADMIN_GROUP in groups


def is_system(name: str, uid: int) -> bool:
    """Whether an account is not a person's: services have low uids, and names that begin with an underscore."""
    return name.startswith("_") or name_service.is_system(uid, FIRST_HUMAN_UID)
