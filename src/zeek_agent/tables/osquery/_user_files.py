"""Files in the home directories of local accounts, through the path gate."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from time import thread_time
from typing import Final, TypeVar

from zeek_agent.access import ShownFiles
from zeek_agent.host.accounts.local_accounts import local_accounts
from zeek_agent.host.accounts.name_service import Account
from zeek_agent.host.files.gate import Gate
from zeek_agent.host.files.globbing import Match, matching, open_gate
from zeek_agent.host.files.portable import PortableGate
from zeek_agent.host.files.reads import FileReads, Omission
from zeek_agent.host.files.whole import literal
from zeek_agent.schema import Row
from zeek_agent.table import Constraints
from zeek_agent.text import to_bytes

T = TypeVar("T")
FILES_MAX: Final = 1_000
"""Files of one kind in one user's directory, many times what people have."""
SECONDS_MAX: Final = 1.0
"""Processor time for the files of one user, which suffices for thousands."""


def user_files(wanted: Constraints, *patterns: str, shown: ShownFiles | None = None) -> Iterator[tuple[Account, Match]]:
    """The files that match a pattern relative to the home directory, of accounts with the uids that are asked for.

    Each account has the files of its home directory, also if that is another account's too. A pattern is one of
    `globbing`. `shown` are the files that the table shows.
    """
    context = wanted.context
    gate = open_gate(context.access, context.reads, wanted.check, shown)
    for account, home in wanted_homes(wanted):
        for match in in_time(wanted, home, partial(_matching, gate, home, patterns)):
            yield account, match


def user_rows(
    wanted: Constraints,
    *patterns: str,
    rows: Callable[[Account, Match, Callable[[], None]], Iterable[Row]],
    shown: ShownFiles | None = None,
) -> Iterator[Row]:
    """The rows of the files of `user_files`, within the time that one user's may take.

    `rows` makes those of a file of an account, and gets a function to call in long loops.
    """
    gate = open_gate(wanted.context.access, wanted.context.reads, wanted.check, shown)

    def rows_of(account: Account, home: str, check: Callable[[], None]) -> Iterator[Row]:
        for match in _matching(gate, home, patterns, check):
            for row in rows(account, match, check):
                check()
                yield row

    for account, home in wanted_homes(wanted):
        yield from in_time(wanted, home, partial(rows_of, account, home))


def _matching(
    gate: Gate | PortableGate, home: str, patterns: Iterable[str], check: Callable[[], None]
) -> Iterator[Match]:
    for pattern in patterns:
        place = f"{literal(home)}/{pattern}"
        yield from limited(matching(gate, place, check, explain=False), place, gate.reads)


class _TimeUsedUpError(Exception):
    pass


def in_time(wanted: Constraints, home: str, search: Callable[[Callable[[], None]], Iterable[T]]) -> Iterator[T]:
    """What a search finds in a user's directory or file until it has used up `SECONDS_MAX`, to hide no other user's.

    `search` gets a function to call in long loops. `reads` count what is left out.
    """
    begun = thread_time()

    def check() -> None:
        wanted.check()
        if thread_time() - begun > SECONDS_MAX:
            raise _TimeUsedUpError

    try:
        yield from search(check)
    except _TimeUsedUpError:
        cause = f"took more than {SECONDS_MAX:g} s of processor time"
        wanted.context.reads.leave_out(Omission.TRUNCATED, home, cause)


def wanted_homes(wanted: Constraints) -> Iterator[tuple[Account, str]]:
    """The accounts with the uids that are asked for, and their home directories, in the form of `os.fsdecode`."""
    uids = wanted.integers("uid")
    for account in local_accounts(wanted.report):
        wanted.check()
        if account.home.startswith("/") and (uids is None or account.uid in uids):
            yield account, os.fsdecode(to_bytes(account.home)).rstrip("/")


def limited(found: Iterable[T], place: str, reads: FileReads) -> Iterator[T]:
    """The first files at a place, so that a user with very many hides no other user's; `reads` counts the rest."""
    for number, one in enumerate(found):
        if number == FILES_MAX:
            reads.leave_out(Omission.TRUNCATED, place, f"more than {FILES_MAX} files")
            return
        yield one
