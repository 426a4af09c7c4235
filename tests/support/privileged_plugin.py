"""A plug-in whose tables use Unix sockets, programs and the network, with and without declaring them."""

from __future__ import annotations

import importlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from zeek_agent.containment import own_code
from zeek_agent.table import Table
from zeek_agent.tables import plugin_tables

CODE = '''
"""Tables of a test's plug-in. Paths are parameters, so that a statement can try what the table has not declared."""

import errno, os, signal, socket, subprocess, time
from zeek_agent.host.programs import run_program
from zeek_agent.privileges import Privileges
from zeek_agent.schema import Column, Parameter
from zeek_agent.table import Table

PLACE = {place!r}
SOCKETS = Privileges(unix_sockets=(PLACE + "/open", PLACE + "/group"))


def table(name, parameters, function, **privileges):
    made = Table(
        name, "for tests", description="For tests.",
        columns=[Column("pid", "count", "the process"), Column("answer", "text", "what came of it")],
        parameters=[Parameter(*parameter) for parameter in parameters],
        **privileges,
    )
    made.snapshot(function)
    return made


def code(attempt):
    try:
        return attempt()
    except OSError as error:
        return errno.errorcode[error.errno]


def talk(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        return client.recv(100).decode()


def talked(wanted):
    return [(os.getpid(), code(lambda: talk(wanted.parameter("path"))))]


def dialled(wanted):
    def dial():
        with socket.create_connection(("localhost", wanted.parameter("port")), 5) as client:
            return client.recv(100).decode()
    return [(os.getpid(), code(dial))]


def ran(wanted):
    arguments = str(wanted.parameter("arguments")).split("|") if wanted.parameter("arguments") else []
    output = code(lambda: run_program(wanted.parameter("path"), arguments, check=wanted.check).decode())
    return [(os.getpid(), output)]


def waited(wanted):
    if wanted.parameter("how") == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if wanted.parameter("how") == "asleep":
        time.sleep(3600)
    while wanted.parameter("how") == "polite":
        wanted.check()
        time.sleep(0.01)
    return [(os.getpid(), "awake")]


def many(wanted):
    return ((number, "x" * wanted.parameter("length")) for number in range(wanted.parameter("rows")))


def told(wanted):
    asked = {{name: sorted(values) for name, values in wanted.equalities.items()}}
    yield (1, repr((dict(wanted.parameters), asked, sorted(wanted.columns))))
    yield (1, {{1, 2}}, "a cell too many")
    yield (2, "caf\\udce9")


def failed(wanted):
    raise RuntimeError("the daemon said no")


def asked(wanted):
    return [(os.getpid(), str(list(wanted.context.agent.log())))]


PATH, PORT = ("path", "text", "where"), ("port", "count", "which")
RUN = [PATH, ("arguments", "text", "of the program", "")]
tables = [
    table("talk_declared", [PATH], talked, privileges=SOCKETS),
    table("talk_undeclared", [PATH], talked),
    table("dial_declared", [PORT], dialled, privileges=Privileges(network=True)),
    table("dial_undeclared", [PORT], dialled),
    table("run_declared", RUN, ran, privileges=Privileges(programs={programs!r})),
    table("run_replaceable", RUN, ran, privileges=Privileges(programs=(PLACE + "/program",))),
    table("run_undeclared", RUN, ran),
    table("wait", [("how", "text", "how")], waited, privileges=Privileges(unix_sockets=(PLACE + "/open",))),
    table("many", [("rows", "count", "n"), ("length", "count", "n")], many, privileges=SOCKETS),
    table("told", [("first", "text", "a"), ("second", "count", "b", 7)], told, privileges=SOCKETS),
    table("failed", [], failed, privileges=SOCKETS),
    table("asked", [], asked, privileges=SOCKETS),
]
'''
PROGRAMS = ("/bin/echo", "/bin/sh", "/bin/sleep")


@contextmanager
def installed() -> Iterator[tuple[Path, list[Table]]]:
    """The plug-in, as agents and their zygotes in this process find it: a directory for its sockets, and its tables."""
    place = Path(tempfile.mkdtemp(prefix="zeek-agent-plugin-", dir="/tmp"))
    place.chmod(0o755)
    site = place / "site"
    information = site / "privileged-1.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: privileged\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[zeek_agent.tables]\nprivileged = privileged_in_tests:tables\n")
    (site / "privileged_in_tests.py").write_text(CODE.format(place=str(place), programs=PROGRAMS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        patch.syspath_prepend(str(site))
        patch.setattr(own_code, "_RUN", f"import sys; sys.path.append({str(site)!r}); {own_code._RUN}")
        importlib.invalidate_caches()
        try:
            yield place, [table for table in plugin_tables("linux") if table.summary == "for tests"]
        finally:
            sys.modules.pop("privileged_in_tests", None)
            shutil.rmtree(place)
