"""The import graph: no circles, and no import against the order of docs/architecture.md."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from places import ROOT

import zeek_agent

PACKAGE = Path(zeek_agent.__file__).parent
LOADERS = {"import_module", "__import__"}
LOADS_OWN_MODULES = {"platforms", "tables", "tables.osquery"}
"""Modules that import modules by a name that they make up, all of them from their own package."""


def modules(package: Path) -> dict[str, Path]:
    """Dotted names below the package; the package itself is the empty name."""
    found = {}
    for file in package.rglob("*.py"):
        parts = file.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(name: str, tree: ast.AST, known: dict[str, Path], package: str = "zeek_agent") -> set[str]:
    """The modules of the package that a module imports, anywhere in its code, for type checking or by name too.

    Importing a module runs the packages that it is in, so it imports these, too.
    """
    named: set[str] = {f"{package}.{name.rpartition('.')[0]}"} if "." in name else set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in LOADERS:
            is_known = isinstance(node.args[0], ast.Constant)
            assert is_known or name in LOADS_OWN_MODULES, f"{name} imports by name: {ast.unparse(node)}"
            named |= {node.args[0].value} if is_known else set()
        elif isinstance(node, ast.Attribute) and _inside(ast.unparse(node), known, package):
            named.add(ast.unparse(node))
        elif isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            module = node.module or ""
            named |= {
                f"{module}.{alias.name}" if _inside(f"{module}.{alias.name}", known, package) else module
                for alias in node.names
            }
    return {each[len(package) + 1 :] for each in named if each.split(".")[0] == package} - {name}


def _inside(dotted: str, known: dict[str, Path], package: str) -> bool:
    return dotted.startswith(f"{package}.") and dotted[len(package) + 1 :] in known


def graph(package: Path = PACKAGE) -> dict[str, set[str]]:
    known = modules(package)
    return {name: imports(name, ast.parse(file.read_text()), known) for name, file in known.items()}


def order() -> dict[str, int]:
    """The packages of docs/architecture.md, the lowest with the lowest number."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text.split("| Package |", 1)[1].split("\n\n", 1)[0]
    rows = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in table.splitlines()[2:]]
    return {package: number for number, row in enumerate(reversed(rows), 1) for package in row} | {"": 0}


def upward(edges: dict[str, set[str]], rank: dict[str, int]) -> list[str]:
    """Imports of a package further up, or of another one in the same row."""
    return sorted(
        f"{name} imports {other}"
        for name, others in edges.items()
        for other in others
        if (package := name.split(".")[0]) != (below := other.split(".")[0]) and rank[below] >= rank[package]
    )


def test_the_table_lists_exactly_the_packages() -> None:
    assert {name.split(".")[0] for name in modules(PACKAGE)} == set(order())


def test_no_import_goes_up() -> None:
    assert upward(graph(), order()) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter(graph()).prepare()


def test_circles_and_upward_imports_are_found(tmp_path: Path) -> None:
    """The checks above can fail."""
    (tmp_path / "low.py").write_text("def later():\n    import zeek_agent.high\n")
    (tmp_path / "high.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from zeek_agent import low\n"
    )
    edges = graph(tmp_path)
    assert upward(edges, {"": 0, "low": 1, "high": 2}) == ["low imports high"]
    with pytest.raises(CycleError):
        TopologicalSorter(edges).prepare()


@pytest.mark.parametrize(
    "code",
    [
        "import importlib\nimportlib.import_module('zeek_agent.high')",
        "from importlib import import_module\nimport_module('zeek_agent.high')",
        "__import__('zeek_agent.high')",
        "import zeek_agent\nzeek_agent.high.function()",
    ],
)
def test_imports_by_name_are_found(tmp_path: Path, code: str) -> None:
    (tmp_path / "low.py").write_text(code)
    (tmp_path / "high.py").touch()
    assert upward(graph(tmp_path), {"": 0, "low": 1, "high": 2}) == ["low imports high"]


def test_an_import_by_a_name_that_is_not_in_the_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "low.py").write_text("def load(name):\n    return __import__(name)\n")
    with pytest.raises(AssertionError, match="low imports by name: __import__\\(name\\)"):
        graph(tmp_path)


def test_a_package_that_imports_its_own_module_is_a_circle_with_it(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "__init__.py").write_text("from zeek_agent.room import inner\n")
    (tmp_path / "room" / "inner.py").touch()
    with pytest.raises(CycleError):
        TopologicalSorter(graph(tmp_path)).prepare()


ASKS_FOR_SYSTEM = {"sys.platform", "os.name", "platform.system", "platform.uname", "sys.getwindowsversion"}


def asks_for_system(tree: ast.AST) -> bool:
    """Whether a module asks which operating system this is."""
    named: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            named.add(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.ImportFrom):
            named |= {f"{node.module}.{alias.name}" for alias in node.names}
    return not named.isdisjoint(ASKS_FOR_SYSTEM)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import sys\nif sys.platform == 'linux': pass", True),
        ("from os import name", True),
        ("import platform\nplatform.system()", True),
        ("from zeek_agent import platforms\nplatforms.HERE.name", False),
    ],
)
def test_questions_for_the_operating_system_are_found(code: str, expected: bool) -> None:
    assert asks_for_system(ast.parse(code)) == expected


def test_only_platforms_asks_which_operating_system_this_is() -> None:
    asking = {
        name
        for name, file in modules(PACKAGE).items()
        if name.split(".")[0] != "platforms" and asks_for_system(ast.parse(file.read_text()))
    }
    assert asking == set()
