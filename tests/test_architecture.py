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


def modules(package: Path) -> dict[str, Path]:
    """Dotted names below the package; the package itself is the empty name."""
    found = {}
    for file in package.rglob("*.py"):
        parts = file.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(name: str, tree: ast.AST, known: dict[str, Path], package: str = "zeek_agent") -> set[str]:
    """The modules of the package that a module imports, anywhere in its code and for type checking too."""
    named: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
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
