"""A database whose statements run in real worker processes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from recipients import NobodysAgent

from zeek_agent.access import AccessPolicy
from zeek_agent.config.declarations import Config
from zeek_agent.config.sections import AccessSettings, LimitSettings
from zeek_agent.containment import worker_process
from zeek_agent.containment.accounts import worker_account
from zeek_agent.containment.contained_database import ContainedDatabase
from zeek_agent.containment.messages import Need, Setup
from zeek_agent.errors import SqlError
from zeek_agent.events.store import EventStore
from zeek_agent.own_tables.snapshots import tables as own_tables
from zeek_agent.table import TableContext
from zeek_agent.tables import builtin_tables


async def give_nothing(need: Need) -> tuple[bytes, Sequence[int]]:
    raise SqlError(f"no {need.what} here")


@asynccontextmanager
async def contained(
    state: Path,
    store: EventStore | None = None,
    limits: LimitSettings | None = None,
    access: AccessSettings | None = None,
    **arguments: Any,
) -> AsyncIterator[ContainedDatabase]:
    """The built-in tables, and own ones, as root in locked-down workers."""
    own = arguments.pop("own", ())
    config = Config(limits=limits or LimitSettings(), access=access or AccessSettings())
    setup = Setup(
        config=msgspec.msgpack.encode(config),
        protected=(str(state),),
        agent_id="H1",
        instance="I1",
        hostname="here",
        started=0.0,
        account=worker_account() if os.geteuid() == 0 else None,
        agent_pid=os.getpid(),
        own_tables=msgspec.msgpack.encode(own) if own else b"",
    )
    database = ContainedDatabase(
        [*builtin_tables(), *own_tables(own), *arguments.pop("plugins", ())],
        TableContext(NobodysAgent(), AccessPolicy(config.access, setup.protected)),
        config.limits,
        store,
        setup=setup,
        need=arguments.pop("need", give_nothing),
        directory=state,
        **arguments,
    )
    try:
        yield database
    finally:
        await database.aclose()


@contextmanager
def quick_kills() -> Iterator[None]:
    """Statements that begin here and exceed their time are killed without the usual grace. Not for honest ones."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(worker_process, "GRACE_SECONDS", 0.05)
        yield


def resident(pid: int, field: str = "VmRSS") -> int:
    """Bytes of a process: resident (`VmRSS`) or the most it ever had (`VmHWM`); 0 if it has ended."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0


def descendants(pid: int) -> list[int]:
    """All processes that a process has started, and those that they have."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
