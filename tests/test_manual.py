"""Manual pages and completions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from zeek_agent import manual
from zeek_agent.cli.program import commands
from zeek_agent.config import declarations

CHECKS = {"bash": ["bash", "-n"], "zsh": ["zsh", "-n"], "fish": ["fish", "--no-execute"]}


@pytest.mark.parametrize("name", [name for name in manual.pages() if name[-2:] in (".1", ".5")])
def test_a_page_is_valid_and_readable(name: str, tmp_path: Path) -> None:
    if shutil.which("groff") is None:
        pytest.skip("needs groff")
    command = ["groff", "-man", "-Tutf8", "-ww", "-K", "utf8"]
    done = subprocess.run(command, input=manual.pages()[name], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "zeek-agent" in done.stdout


def test_the_page_has_every_command_and_option() -> None:
    page = manual.program_page()

    def check(command: click.Command, path: str) -> None:
        if isinstance(command, click.Group):
            for name, member in command.commands.items():
                if not member.hidden:  # for a unit of systemd, not for people
                    check(member, f"{path} {name}")
            return
        assert f".SS {path}".replace("-", "\\-") in page
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.opts[0].replace("-", "\\-") in page

    check(commands, "zeek-agent")


def test_the_page_has_every_setting() -> None:
    page = manual.configuration_page()
    for name in declarations.settings():
        assert f".B {name.rpartition('.')[2]}\n" in page


@pytest.mark.parametrize("shell", manual.COMPLETIONS)
def test_a_completion_is_a_valid_script(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    script = tmp_path / "script"
    script.write_text(manual.completion(shell))
    subprocess.run([*CHECKS[shell], str(script)], check=True)


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    program = tmp_path / "zeek-agent"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m zeek_agent "$@"\n')
    program.chmod(0o755)
    (tmp_path / "script").write_text(manual.completion("bash"))
    complete = (
        f"source {tmp_path}/script; COMP_WORDS=(zeek-agent {{words}}); COMP_CWORD={{last}}; "
        '_zeek_agent_completion zeek-agent; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for words, last, expected in (
        ("serv", 1, ["service"]),
        ("service unin", 2, ["uninstall"]),
        ("run --ze", 2, ["--zeek"]),
    ):
        script = complete.format(words=words, last=last)
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=environment)
        assert done.stdout.split() == expected
