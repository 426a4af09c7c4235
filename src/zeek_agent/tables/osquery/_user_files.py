"""Files in the home directories of local accounts, through the path gate."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final

from zeek_agent.host.accounts.local_accounts import local_accounts
from zeek_agent.host.accounts.name_service import Account
from zeek_agent.host.files.globbing import Match, matching, open_gate
from zeek_agent.table import Constraints
from zeek_agent.text import to_bytes

_WILDCARD: Final = re.compile(r"[*?\[\\]")


def user_files(wanted: Constraints, *patterns: str, private: tuple[str, ...] = ()) -> Iterator[tuple[Account, Match]]:
    """The files that match a pattern relative to the home directory, of accounts with the uids that are asked for.

    Each account has the files of its home directory, also if that is another account's too. A pattern is one of
    `globbing`. `private` is as in `AccessPolicy.contents`.
    """
    context = wanted.context
    gate = open_gate(context.access, context.reads, wanted.check, private)
    uids = wanted.integers("uid")
    for account in local_accounts(wanted.report):
        wanted.check()
        home = os.fsdecode(to_bytes(account.home)).rstrip("/")
        if (uids is not None and account.uid not in uids) or not account.home.startswith("/"):
            continue
        for pattern in patterns:
            for match in matching(gate, f"{literal(home)}/{pattern}", wanted.check, explain=False):
                yield account, match


def literal(path: str) -> str:
    """The pattern that matches only this path."""
    return _WILDCARD.sub(r"\\\g<0>", path)
