"""`zeek-agent tables --new-plugin`: the package is whole, installs, and passes its own tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from places import ROOT

from zeek_agent.cli.program import run_command


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ZEEK_AGENT", "PYTEST"))}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A new package, and the interpreter of an environment with the agent that it was installed into."""
    place = tmp_path_factory.mktemp("plugin")
    assert run_command(["tables", "--new-plugin", str(place / "acme-tables")]) == 0
    venv.create(place / "env", with_pip=False)
    python = place / "env/bin/python"
    (site,) = (place / "env/lib").glob("python3*/site-packages")
    agents = sysconfig.get_path("purelib")
    (site / "agent.pth").write_text(f"import site; site.addsitedir({agents!r})\n")
    run(
        *(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"),
        *("--target", site, place / "acme-tables"),
        cwd=place,
    )
    return place / "acme-tables", python


@pytest.mark.long
def test_the_new_package_passes_its_own_tests(installed: tuple[Path, Path]) -> None:
    package, python = installed
    assert "3 passed" in run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=package)


@pytest.mark.long
def test_the_agent_answers_statements_on_its_table(installed: tuple[Path, Path], tmp_path: Path) -> None:
    """In worker processes, if root runs this."""
    _, python = installed
    options = ("--format", "json", "--state-dir", tmp_path / "state")
    sql = "SELECT period, load FROM acme_tables_load_averages"
    rows = json.loads(run(python, "-m", "zeek_agent", "query", *options, sql, cwd=tmp_path))
    assert [row["period"] for row in rows] == [60.0, 300.0, 900.0]


@pytest.mark.long
def test_the_new_package_follows_the_projects_style(installed: tuple[Path, Path]) -> None:
    package, python = installed
    run(sys.executable, "-m", "ruff", "check", "--config", ROOT / "pyproject.toml", package, cwd=package)
    run(sys.executable, "-m", "ruff", "format", "--check", "--line-length=120", package, cwd=package)
    run(python, "-m", "mypy", "--strict", package / "src", cwd=package)


@pytest.mark.parametrize("name", ["Acme", "acme tables", "-acme", "acme.tables", "json", "zeek-agent", "a" * 51, "é"])
def test_a_name_that_cannot_be_a_packages_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["tables", "--new-plugin", str(tmp_path / name)]) == 2
    assert "name" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_nothing_that_exists_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "acme").mkdir()
    assert run_command(["tables", "--new-plugin", str(tmp_path / "acme")]) == 2
    assert "exists already; choose another directory" in capsys.readouterr().err
    assert run_command(["tables", "processes", "--new-plugin", str(tmp_path / "other")]) == 2
    assert list(tmp_path.iterdir()) == [tmp_path / "acme"]
