"""Snippets in the documentation: Zeek parses them, the agent compiles, loads or accepts them."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from places import ROOT
from zeek_program import PACKAGE, ZEROMQ, needs_zeek

from zeek_agent.cli.program import commands
from zeek_agent.collector import pack_check
from zeek_agent.collector.statements import Statements
from zeek_agent.config import loading
from zeek_agent.database.sql_connection import Profile
from zeek_agent.errors import AccessDeniedError, UnknownTableError

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = sorted(PACKAGE.rglob("*.zeek"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OSQUERY = ROOT / "docs" / "osquery.md"
OWN_TABLES = ROOT / "docs" / "own-tables.md"
"""Its examples run in tests/system/test_system_own_tables.py."""


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(page.read_text()) if found == language]


def pages_with(language: str) -> list[Path]:
    found = [page for page in PAGES if blocks(page, language)]
    assert found
    return found


def commented_code(script: Path) -> list[str]:
    """The code in comments like those of Zeek's own scripts."""
    found = re.findall(r"^\t## \.\. code:: zeek\n\t##\n((?:\t##    .*\n)+)", script.read_text(), re.MULTILINE)
    return [re.sub(r"^\t##    ", "\t", code, flags=re.MULTILINE) for code in found]


def parse(directory: Path, text: str) -> None:
    """Have Zeek parse a script that loads the package and ZeroMQ's options; fails with Zeek's message."""
    (directory / "zeek-agent").symlink_to(PACKAGE)
    (directory / "snippets.zeek").write_text(f"{ZEROMQ}@load zeek-agent\n{text}")
    command = ["zeek", "--parse-only", "snippets.zeek", "ZeekAgent::listen=F"]
    done = subprocess.run(command, cwd=directory, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), text


@needs_zeek
@pytest.mark.parametrize("page", pages_with("zeek"), ids=lambda page: page.name)
def test_zeek_parses_the_scripts_of_a_page_together(tmp_path: Path, page: Path) -> None:
    parse(tmp_path, "\n".join(blocks(page, "zeek")))


@needs_zeek
@pytest.mark.parametrize("script", [one for one in SCRIPTS if commented_code(one)], ids=lambda script: script.stem)
def test_zeek_parses_the_code_in_comments(tmp_path: Path, script: Path) -> None:
    context = "type User: record { name: string &optional; };\ntype Users: vector of User;\n"
    functions = [f"function f{n}(id: string)\n\t{{\n{code}\t}}\n" for n, code in enumerate(commented_code(script))]
    parse(tmp_path, context + "".join(functions))


def zeek_agent_commands(page: Path) -> Iterator[list[str]]:
    """The arguments of each command in a block of a shell's input and output; what follows a pipe is left out."""
    for text in blocks(page, ""):
        joined = text.replace("\\\n", " ")
        for line in re.findall(r"^(?:[$#] )?(?:sudo )?(?:\.venv/bin/)?zeek-agent ([a-z-].*)$", joined, re.MULTILINE):
            if "[OPTIONS]" in line:  # a synopsis
                continue
            words = shlex.split(line, comments=True)
            end = next((place for place, word in enumerate(words) if word in ("|", ">", "&&", "&", "<")), len(words))
            yield words[:end]


def statements(page: Path) -> Iterator[str]:
    for block in blocks(page, "sql"):
        yield from (text for text in block.split(";\n") if text.strip())
    for command in zeek_agent_commands(page):
        if command[:1] == ["query"]:
            yield from (word for word in command if word.upper().startswith(("SELECT ", "WITH ")))


@pytest.mark.parametrize("page", [page for page in PAGES if list(statements(page))], ids=lambda page: page.name)
def test_statements_of_a_page_compile(page: Path) -> None:
    compiler = Statements()
    for sql in statements(page):
        try:
            compiler.compile(sql, Profile.FULL)
        except UnknownTableError:
            assert page in (OSQUERY, OWN_TABLES), sql
        except AccessDeniedError as error:
            if "access.secrets_deny" not in str(error):
                raise


@pytest.mark.parametrize("page", pages_with("toml"), ids=lambda page: page.name)
def test_packs_and_settings_of_a_page_are_valid(tmp_path: Path, page: Path) -> None:
    file = tmp_path / "snippet.toml"
    for text in blocks(page, "toml"):
        file.write_text(text)
        if "[[queries]]" in text:
            assert not [problem.text for problem in pack_check.problems(file) if not problem.is_warning]
        elif page != OWN_TABLES or "[tables]" in text:
            loading.load(file, {})


@pytest.mark.parametrize(
    "page", [page for page in PAGES if list(zeek_agent_commands(page))], ids=lambda page: page.name
)
def test_commands_of_a_page_exist_with_their_options(page: Path) -> None:
    for words in zeek_agent_commands(page):
        accept(commands, words)


def accept(command: click.Command, words: list[str], parent: click.Context | None = None) -> None:
    """Parse a command line without running it. Raises UsageError."""
    context = command.make_context(command.name or "zeek-agent", list(words), parent=parent)
    if isinstance(command, click.Group):
        _, member, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert member is not None
        accept(member, rest, context)
