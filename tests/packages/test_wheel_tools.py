"""The wheel as pipx and uv install it, from a package index. Opt-in: `make test-packages`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

from zeek_agent import __version__

pytestmark = [pytest.mark.packages, pytest.mark.timeout(900)]
TOOLS = {"pipx": ["pipx", "install"], "uv": ["uv", "tool", "install"]}


def run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_installs_the_wheel_and_its_program_runs(tool: str, tmp_path: Path) -> None:
    places = {"PIPX_HOME": "home", "PIPX_BIN_DIR": "bin", "UV_TOOL_DIR": "home", "UV_TOOL_BIN_DIR": "bin"}
    environment = {**os.environ, **{name: str(tmp_path / place) for name, place in places.items()}}
    run([sys.executable, "-m", "venv", str(tmp_path / "tool")], environment)
    run([str(tmp_path / "tool/bin/pip"), "install", "--quiet", tool], environment)
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    name, *arguments = TOOLS[tool]
    run([str(tmp_path / "tool/bin" / name), *arguments, "--python", sys.executable, str(wheel)], environment)
    program = str(tmp_path / "bin/zeek-agent")
    assert __version__ in run([program, "--version"], environment)
    state = ["--state-dir", str(tmp_path / "state")]
    assert "pid\n1\n" in run(
        [program, "query", *state, "--format", "csv", "SELECT pid FROM processes WHERE pid = 1"], environment
    )
    assert "processes by ebpf" in run([program, "doctor", *state], environment) or os.geteuid() != 0
