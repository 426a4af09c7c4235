"""Declared privileges of tables: what a declaration may say, and where it is shown."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sql import database

from zeek_agent import reference, tables
from zeek_agent.config.sections import AccessSettings
from zeek_agent.errors import AccessDeniedError
from zeek_agent.host import programs
from zeek_agent.host.programs import ProgramError, run_program
from zeek_agent.privileges import NO_PRIVILEGES, Privileges
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints, Table
from zeek_agent.table_declarations import declare, declared
from zeek_agent.terminal.table_text import describe_table


def table(privileges: Any, **options: Any) -> Table:
    made = Table(
        "units",
        "units",
        description="For tests.",
        columns=[Column("name", "text", "a name")],
        privileges=privileges,
        **options,
    )

    @made.snapshot
    def rows(wanted: Constraints) -> Iterator[Row]:
        yield ("ssh",)

    return made


@pytest.mark.parametrize(
    ("declaration", "error"),
    [
        ({"programs": ("bin/true",)}, "programs: not an absolute path: 'bin/true'"),
        ({"programs": ("/bin/../true",)}, "not a plain path to a file"),
        ({"unix_sockets": ("/run/",)}, "not a plain path to a file"),
        ({"unix_sockets": ("//run/socket",)}, "not a plain path to a file"),
        ({"unix_sockets": ("/run/a\0b",)}, "not a plain path to a file"),
        ({"unix_sockets": "/run/socket"}, "must be a tuple of paths, not '/run/socket'"),
        ({"programs": (b"/bin/true",)}, "must be a tuple of paths"),
        ({"network": "yes"}, "network must be True or False, not 'yes'"),
        ({"disk": True}, "unexpected keyword argument 'disk'"),
        ({"network": True, "other_users": True}, "neither programs nor the network"),
    ],
)
def test_a_declaration_that_cannot_be_meant_is_an_error(declaration: dict[str, Any], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        Privileges(**declaration)


def test_a_table_refuses_what_is_not_a_declaration() -> None:
    with pytest.raises(TypeError, match="table units: privileges must be"):
        table("network")
    with pytest.raises(ValueError, match="only a snapshot table"):
        table(Privileges(network=True), kind="events")


def test_a_plugin_with_a_wrong_declaration_is_logged_and_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "wrong_declaration.py").write_text(
        "from zeek_agent.privileges import Privileges\ntable = Privileges(programs=('true',))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    points = EntryPoints([EntryPoint("wrong", "wrong_declaration:table", tables.PLUGINS)])
    monkeypatch.setattr(tables, "entry_points", lambda group: points.select(group=group))
    with caplog.at_level(logging.ERROR):
        assert tables.plugin_tables(sys.platform) == []
    assert "cannot load the tables of plug-in wrong" in caplog.text
    assert "not an absolute path: 'true'" in caplog.text


def test_privileges_are_shown_where_a_table_is_described() -> None:
    everything = Privileges(("/run/socket",), ("/bin/true",), network=True, user_database=True)
    words = "the user database (name service), the Unix socket /run/socket, the program /bin/true, the network"
    assert f"Privileges: {words}\n" in describe_table(table(everything))
    assert f"[Privileges](security.md#tables-with-privileges): {words}." in reference.tables_page([table(everything)])
    assert "Privileges" not in describe_table(table(NO_PRIVILEGES))


def test_a_declaration_survives_the_way_to_other_processes() -> None:
    for privileges in (NO_PRIVILEGES, Privileges(("/run/socket",), ("/bin/true",), network=True)):
        packed = msgspec.msgpack.encode(declare([table(privileges)]))
        (read,) = declared(msgspec.msgpack.decode(packed))
        assert read.privileges == privileges


@pytest.mark.parametrize(
    ("privileges", "allowed"),
    [
        (Privileges(network=True), ("units",)),
        (Privileges(programs=("/bin/true",)), ("units",)),
        (Privileges(programs=("/bin/true",)), ("/bin/true",)),
        (Privileges(unix_sockets=("/run/socket",), other_users=True), ("units",)),
    ],
)
async def test_permissions_are_also_required_without_worker_processes(
    privileges: Privileges, allowed: tuple[str, ...]
) -> None:
    for others in ((), ("other", "/bin/false")):
        db = database(table(privileges), access=AccessSettings(privileges_allow=others))
        with pytest.raises(AccessDeniedError, match=r"access\.privileges_allow = \['units'\]"):
            await db.query("SELECT name FROM units")
        await db.aclose()
    db = database(table(privileges), access=AccessSettings(privileges_allow=allowed))
    assert (await db.query("SELECT name FROM units")).rows == [("ssh",)]
    await db.aclose()


def test_a_program_has_limits_and_its_errors_are_reported() -> None:
    assert run_program("/bin/sh", ["-c", "cat; echo $#", "name", "one"]) == b"1\n"
    with pytest.raises(ProgramError, match="/bin/sh wrote more than 1000 bytes"):
        run_program("/bin/sh", ["-c", "while :; do echo more; done"], output_bytes_max=1_000)
    with pytest.raises(ProgramError, match="/bin/sh was ended by signal 9"):
        run_program("/bin/sh", ["-c", "kill -9 $$"])
    with pytest.raises(FileNotFoundError):
        run_program("/bin/no-such-program")


def test_a_program_ends_when_the_tables_time_is_up() -> None:
    def check() -> None:
        raise TimeoutError

    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(TimeoutError):
        run_program("/bin/sleep", ["3600"], check=check)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("refusals", [2, 1_000])
def test_a_program_waits_for_the_processes_of_others_to_end(refusals: int, monkeypatch: pytest.MonkeyPatch) -> None:
    start, tried = subprocess.Popen, 0

    def starting(*arguments: Any, **options: Any) -> Any:
        nonlocal tried
        tried += 1
        if tried <= refusals:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return start(*arguments, **options)

    monkeypatch.setattr(programs, "CHECK_SECONDS", 0.001)
    monkeypatch.setattr(programs, "START_SECONDS", 0.05 if refusals == 1_000 else 60.0)
    monkeypatch.setattr(subprocess, "Popen", starting)
    if refusals == 1_000:
        with pytest.raises(BlockingIOError):
            run_program("/bin/true")
    else:
        assert run_program("/bin/true") == b""
        assert tried == refusals + 1
