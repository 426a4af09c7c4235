"""`zeek-agent tables --new-plugin DIR`: a package that adds a table, with tests that pass, to begin from."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

from zeek_agent import __version__
from zeek_agent.errors import UsageError

_NAME: Final = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_NAME_CHARACTERS_MAX: Final = 50

_PYPROJECT: Final = """\
[build-system]
requires = ["hatchling>=1.25"]
build-backend = "hatchling.build"

[project]
name = "{project}"
version = "0.1.0"
description = "Tables for the Zeek Agent"
requires-python = ">=3.11"
dependencies = ["zeek-agent>={version}"]

[project.entry-points."zeek_agent.tables"]
{project} = "{module}.tables:TABLES"

[dependency-groups]
dev = ["pytest>=8.2"]

[tool.hatch.build.targets.wheel]
packages = ["src/{module}"]

[tool.pytest.ini_options]
testpaths = ["tests"]
"""

_TABLES: Final = '''\
"""Load averages, from /proc/loadavg (proc_loadavg(5)): an example to replace by tables of your own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints, Table

load_averages = Table(
    "{table}",
    "how many processes were running or waiting for the disk",
    description="One row per period over which the kernel averages.",
    columns=[
        Column("period", "interval", "the time that the average covers"),
        Column("load", "real", "average number of processes"),
        Column("running", "count", "processes that run or could run now"),
        Column("total", "count", "processes and threads that exist now"),
    ],
    examples=["SELECT period, load FROM {table} WHERE load > 1"],
)


@load_averages.snapshot
def rows(wanted: Constraints) -> Iterator[Row]:
    """The values are in the order of the columns. Import everything at the top: a worker process can import nothing."""
    *averages, processes, _ = Path(wanted.context.proc, "loadavg").read_text().split()
    running, _, total = processes.partition("/")
    for period, average in zip((60.0, 300.0, 900.0), averages, strict=True):
        yield period, float(average), int(running), int(total)


TABLES = (load_averages,)
'''

_TESTS: Final = '''\
"""The tables keep their declarations, and the agent finds them."""

from __future__ import annotations

import pytest
from zeek_agent import contract
from zeek_agent.table import Table
from zeek_agent.tables import plugin_tables

from {module}.tables import TABLES, load_averages


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_the_table_keeps_its_declaration(table: Table) -> None:
    assert contract.problems(table) == []


def test_the_agent_finds_the_tables() -> None:
    assert {{table.name for table in TABLES}} <= {{table.name for table in plugin_tables()}}


def test_there_is_a_row_for_each_period() -> None:
    found = contract.rows(load_averages)
    assert [row["period"] for row in found] == [60.0, 300.0, 900.0]
    assert all(row["load"] >= 0 for row in found)
'''

_README: Final = """\
# {project}

Tables for the Zeek Agent. `src/{module}/tables.py` declares them; the entry point `zeek_agent.tables` in
`pyproject.toml` is how the agent finds them.

Install the package into the agent's environment, and restart the agent:

    pip install -e .
    python -m pytest
    zeek-agent query "SELECT * FROM {table}"

A table that uses a program, a Unix socket, the network or the user database declares it: see "Tables with privileges"
in the agent's CONTRIBUTING.md.
"""


def create(directory: Path) -> list[Path]:
    """Write the package; its files. Raises UsageError for a name that cannot be a package's, and if it exists."""
    project = directory.absolute().name
    module = project.replace("-", "_")
    if _NAME.fullmatch(project) is None or len(project) > _NAME_CHARACTERS_MAX:
        raise UsageError(
            f"{project!r} cannot be the name of a package: use small letters, digits and hyphens, beginning with a "
            f"letter, at most {_NAME_CHARACTERS_MAX}"
        )
    if module in sys.stdlib_module_names or module in ("zeek_agent", "tests"):
        raise UsageError(f"{module} is the name of another package; choose a directory of another name")
    table = f"{module.removeprefix('zeek_agent_')}_load_averages"
    names = {"project": project, "module": module, "table": table, "version": __version__}
    files = {
        "pyproject.toml": _PYPROJECT,
        "README.md": _README,
        f"src/{module}/__init__.py": '"""Tables for the Zeek Agent."""\n',
        f"src/{module}/py.typed": "",
        f"src/{module}/tables.py": _TABLES,
        "tests/test_tables.py": _TESTS,
    }
    try:
        directory.mkdir(parents=True)
        for name, text in files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.format(**names))
    except FileExistsError:
        raise UsageError(f"{directory} exists already; choose another directory") from None
    except OSError as error:
        raise UsageError(f"cannot write {error.filename or directory}: {error.strerror}") from error
    return [directory / name for name in files]
