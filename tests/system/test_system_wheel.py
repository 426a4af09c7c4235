"""What users install: the wheel, in an environment of its own, answers a query."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from places import ROOT

from zeek_agent import __version__

PROJECT = ROOT


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=cwd, check=False, env={"PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as it lies here, without anything fetched."""
    directory = tmp_path_factory.mktemp("wheel")
    command = (sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", directory)
    run(*command, cwd=PROJECT)
    (built,) = directory.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"zeek_agent", f"zeek_agent-{__version__}.dist-info"}
    for needed in ("py.typed", "agent.py", "collector/default.toml"):
        assert f"zeek_agent/{needed}" in names
    sources = {str(path.relative_to(PROJECT / "src")) for path in (PROJECT / "src").rglob("*.py")}
    assert sources <= set(names)


def test_a_wheel_with_programs_is_for_this_architecture(wheel: Path) -> None:
    if shutil.which("clang") is None:
        pytest.skip("needs clang")
    assert wheel.name == f"zeek_agent-{__version__}-py3-none-manylinux_2_17_{platform.machine()}.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"zeek_agent/bpf/{name}.bpf.o" for name in ("processes", "tcp", "udp", "packet", "iterators")} <= set(names)
    assert "zeek_agent/service/zeek-agent.service" in names


@pytest.mark.long
def test_a_wheel_without_programs_is_for_any_platform_and_says_so_loudly(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    ignored = shutil.ignore_patterns("*.bpf.o", ".venv", ".build", ".git", "tests", "__pycache__")
    shutil.copytree(PROJECT, tree, ignore=ignored)
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    environment = {"PATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tree, check=True, env=environment)
    assert "WITHOUT eBPF: clang is not installed" in done.stdout + done.stderr
    (built,) = (tree / "dist").glob("*.whl")
    assert built.name == f"zeek_agent-{__version__}-py3-none-any.whl"
    required = {**environment, "ZEEK_AGENT_BPF": "require"}
    refused = subprocess.run(command, capture_output=True, text=True, cwd=tree, check=False, env=required)
    assert refused.returncode != 0


@pytest.mark.long
def test_the_same_tree_makes_the_same_wheel_elsewhere(wheel: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(PROJECT, tree, ignore=shutil.ignore_patterns("*.bpf.o", ".venv", ".build", ".git", "__pycache__"))
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", cwd=tree)
    (again,) = (tree / "dist").glob("*.whl")
    first, second = zipfile.ZipFile(wheel), zipfile.ZipFile(again)
    assert again.name == wheel.name
    different = [name for name in first.namelist() if first.read(name) != second.read(name)]
    assert different == []
    assert again.read_bytes() == wheel.read_bytes()


def test_wheel_and_source_distribution_carry_license_and_notice(wheel: Path, tmp_path: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    run(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", tmp_path, cwd=PROJECT)
    (source,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        packed = archive.getnames()
    for file in ("LICENSE", "NOTICE"):
        assert f"zeek_agent-{__version__}.dist-info/licenses/{file}" in names
        assert f"zeek_agent-{__version__}/{file}" in packed


@pytest.mark.long
def test_the_installed_wheel_answers_a_query(wheel: Path, tmp_path: Path) -> None:
    """Its dependencies are those of this environment, so that nothing is fetched; the package itself is the wheel's."""
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    site = Path(
        sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}, scheme="venv")
    )
    run(sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install", "--no-deps", "--no-index",
        "--quiet", wheel, cwd=tmp_path)  # fmt: skip
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    program = environment / "bin" / "zeek-agent"
    place = run(environment / "bin" / "python", "-c", "import zeek_agent; print(zeek_agent.__file__)", cwd=tmp_path)
    assert place.strip() == str(site / "zeek_agent" / "__init__.py")
    assert __version__ in run(program, "--version", cwd=tmp_path)
    state = ("--state-dir", tmp_path / "state")
    sql = "SELECT pid, name FROM processes WHERE pid = 1"
    (row,) = json.loads(run(program, "query", *state, "--format", "json", sql, cwd=tmp_path))
    assert row == {"pid": 1, "name": Path("/proc/1/comm").read_text().rstrip("\n")}
    assert "processes" in run(program, "tables", cwd=tmp_path)
