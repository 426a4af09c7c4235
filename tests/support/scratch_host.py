"""A host to change: accounts, configuration and home directories of which only the test sees the changes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mounting import SilentFuse, in_mount_namespace, mount

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import AccessSettings, LimitSettings
from zeek_agent.contract import NoAgent
from zeek_agent.database.database import Database
from zeek_agent.table import TableContext
from zeek_agent.tables import builtin_tables

T = TypeVar("T")
CHANGEABLE = ("etc", "home", "root", "var")
Rows = list[dict[str, Any]]


def on_scratch_host(scene: Callable[[], T], place: Path, fuse: SilentFuse | None = None) -> T:
    """What the function returns where /etc, /home, /root and /var can be changed without a trace, and /run is empty.

    It runs in a process of its own, so it returns what is compared. `place` is an empty directory of the test. The
    scene may mount `fuse`.
    """

    def run() -> T:
        mount("scratch", place, "tmpfs", data="mode=755")
        for name in CHANGEABLE:
            upper, work = place / name, place / f"{name}-work"
            upper.mkdir()
            work.mkdir()
            upper.chmod(Path("/", name).stat().st_mode & 0o7777)
            mount("overlay", f"/{name}", "overlay", data=f"lowerdir=/{name},upperdir={upper},workdir={work}")
        mount("scratch", "/run", "tmpfs", data="mode=755")
        return scene()

    return in_mount_namespace(run, fuse=fuse)


def select(sql: str, **access: Any) -> Rows:
    """The rows of a statement; it must not report errors."""
    rows, errors = select_with_errors(sql, **access)
    assert errors == []
    return rows


def select_with_errors(sql: str, **access: Any) -> tuple[Rows, Sequence[str]]:
    """The rows of a statement, and the errors that it reports about omitted rows and files."""

    async def run() -> tuple[Rows, Sequence[str]]:
        host = TableContext(NoAgent(), AccessPolicy(AccessSettings(**access)))
        database = Database(builtin_tables(), host, LimitSettings())
        try:
            result = await database.query(sql)
        finally:
            await database.aclose()
        names = [column.name for column in result.columns]
        rows = [dict(zip(names, row, strict=True)) for row in result.rows]
        return rows, [*result.errors, *([result.files.summary()] if result.files else [])]

    return asyncio.run(run())


def select_in_worker(sql: str, *settings: str) -> Rows:
    """The rows of a statement as the program shows them, which runs it in a worker process.

    `settings` have the form `access.mask=false`.
    """
    options = [part for setting in settings for part in ("--set", setting)]
    program = (sys.executable, "-m", "zeek_agent", "query", "--state-dir", "/run/zeek-agent", "--format", "json")
    rows: Rows = json.loads(output(*program, *options, sql))
    return rows


def output(*command: str, standard_input: str | None = None) -> str:
    """What a program writes."""
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, input=standard_input, capture_output=True, check=False, text=True, env=environment)
    assert done.returncode == 0, f"{command[0]}: {done.stderr}"
    return done.stdout
