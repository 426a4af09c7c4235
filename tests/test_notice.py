"""NOTICE names what the agent uses and contains, with the licenses that the packages themselves state."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from email.message import Message
from importlib.metadata import Distribution, distribution
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from places import ROOT

SCRIPT = ROOT / "packaging" / "check_notice.py"


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_notice", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_notice"] = module
    spec.loader.exec_module(module)
    return module


check_notice = loaded()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the check reads, to be changed."""
    for name in ("NOTICE", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("src", "zeek", "tests/captures"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.o", "__pycache__"))
    return tmp_path


def changed(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {file.name}"
    file.write_text(text.replace(old, new))


def faults(tree: Path, find: Callable[[str], Distribution] = distribution) -> list[str]:
    return list(check_notice.check(tree, find))


def package(**metadata: str | list[str]) -> Any:
    """An installed package with this metadata."""
    message = Message()
    for name, values in metadata.items():
        for value in [values] if isinstance(values, str) else values:
            message[name.replace("_", "-")] = value
    return SimpleNamespace(metadata=message, requires=[])


def test_this_tree_has_no_fault() -> None:
    assert faults(ROOT) == []


def test_a_fault_is_printed_and_ends_the_command_with_1(tree: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(tree)]
    assert subprocess.run(command, check=False).returncode == 0
    changed(tree / "NOTICE", "click >=8.2", "clack >=8.2")
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "NOTICE: click of pyproject.toml is missing (Python packages at run time)\n" in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('    "rich>=13.7",\n', '    "rich>=13.7",\n    "mypy>=1.11",\n', "mypy of pyproject.toml is missing"),
        ('    "rich>=13.7",\n', "", "rich is not in pyproject.toml any more"),
        ('"click>=8.2"', '"click>=8.3"', "click: >=8.2, but pyproject.toml has >=8.3"),
        ('osquery = ["thriftpy2>=0.5.2"]', "", "thriftpy2 is not in pyproject.toml any more"),
        ("osquery = [", "bridge = [", "thriftpy2: extra osquery, but pyproject.toml has bridge"),
        ('    "ruff>=0.6",\n', "", "ruff is not in pyproject.toml any more"),
    ],
)
def test_an_added_removed_or_changed_dependency_is_named(tree: Path, old: str, new: str, fault: str) -> None:
    changed(tree / "pyproject.toml", old, new)
    assert any(one.startswith(fault) for one in faults(tree)), faults(tree)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("\nmdurl\n", "\nmdnone\n", "mdurl is missing"),
        ("\nmdurl\n", "\nmdurl-too\n", "mdurl-too is required by nothing any more"),
        ("Contained in: ijson", "Contained in: orjson", "YAJL: orjson is not used any more"),
        ("ply\n    License: BSD-3-Clause", "ply\n    License: MIT", "ply: MIT, but its metadata has"),
        (
            "rich >=13.7\n    License: MIT",
            "rich >=13.7\n    License: GPL-3.0-only",
            "rich: GPL-3.0-only may not be used",
        ),
        ("ply\n    License: BSD-3-Clause", "ply\n    Note: none", "ply: no license may not be used"),
        ("Abseil\n    License: Apache-2.0", "Abseil\n    License: SSPL-1.0", "Abseil: SSPL-1.0 may not be used"),
        ("src/zeek_agent/cli/program.py", "src/zeek_agent/text.py", "click is not imported in src/zeek_agent/text.py"),
        ("src/zeek_agent/cli/program.py", "src/zeek_agent/gone.py", "click: there is no src/zeek_agent/gone.py"),
        ("extensions.thrift", "gone.thrift", "osquery extension interface: there is no src/zeek_agent/osquery/gone.th"),
        ("zkg >=3.0                   NCSA", "zkg >=3.0                   MIT", "zkg: MIT, but its metadata has NCSA"),
        ("System libraries\n================", "Libraries\n=========", "there is no section 'System libraries'"),
    ],
)
def test_a_line_of_notice_that_is_wrong_is_named(tree: Path, old: str, new: str, fault: str) -> None:
    changed(tree / "NOTICE", old, new)
    assert any(one.startswith(fault) for one in faults(tree)), faults(tree)


def test_a_package_that_changes_its_license_is_named(tree: Path) -> None:
    def find(name: str) -> Any:
        return package(License_Expression="AGPL-3.0-only") if name == "apsw" else distribution(name)

    assert faults(tree, find) == ["apsw: any-OSI, but its metadata has AGPL-3.0-only"]


def test_a_package_that_is_not_installed_cannot_be_checked(tree: Path) -> None:
    def find(name: str) -> Distribution:
        return distribution("no-such-package" if name == "apsw" else name)

    assert faults(tree, find) == ["apsw is not installed, so its license cannot be checked: run `make setup`"]


def test_a_file_with_anothers_mark_must_be_listed(tree: Path) -> None:
    (tree / "src/zeek_agent/osquery/vendored.thrift").write_text("// Copyright (c) 2020 Somebody\n")
    assert faults(tree) == [
        f"src/zeek_agent/osquery/vendored.thrift bears 'Copyright (c)' and is not listed ({check_notice.DATA})"
    ]
    changed(tree / "NOTICE", "osquery/extensions.thrift", "osquery/*.thrift")
    assert faults(tree) == []


@pytest.mark.parametrize(
    ("metadata", "meanings"),
    [
        ({"License_Expression": "MIT", "License": "other"}, [{"MIT"}]),
        ({"Classifier": ["Topic :: Security", "License :: OSI Approved :: MIT License"]}, [{"MIT"}]),
        ({"License": "BSD"}, [{"BSD-2-Clause", "BSD-3-Clause"}]),
        ({"License": "The MIT License (MIT)\n  Copyright"}, [{"MIT"}]),
        ({"License": "Copyright (c) of somebody"}, []),
        ({}, []),
    ],
)
def test_license_metadata_is_understood(metadata: dict[str, Any], meanings: list[set[str]]) -> None:
    assert check_notice.stated(package(**metadata)) == meanings


@pytest.mark.parametrize(
    ("expression", "permitted"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("GPL-2.0-only OR Apache-2.0", True),
        ("MIT AND GPL-2.0-only", False),
        ("BSD-3-Clause AND ISC", True),
        ("", False),
    ],
)
def test_an_expression_is_met_by_allowed_licenses(expression: str, permitted: bool) -> None:
    assert check_notice.permitted(expression, check_notice.IN_PROCESS) is permitted
