"""The reference pages match the code and are complete."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import click
import pytest
from places import ROOT

from zeek_agent import reference
from zeek_agent.cli.program import commands
from zeek_agent.config import declarations, loading
from zeek_agent.database.functions import FUNCTIONS
from zeek_agent.terminal.shell import COMMANDS
from zeek_agent.terminal.table_text import zeek_field, zeek_record


@pytest.mark.parametrize("path", reference.pages())
def test_the_page_is_up_to_date(path: str) -> None:
    assert (ROOT / path).read_text() == reference.pages()[path], "run `make docs`"


def test_the_readme_lists_the_tables() -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme == reference.with_tables(readme), "run `make docs`"
    assert "[processes](docs/tables.md#processes)" in readme


def test_every_sql_function_is_described() -> None:
    page = (ROOT / "docs/sql.md").read_text()
    for function in FUNCTIONS:
        assert function.summary
        assert function.name in page.lower()


def test_the_check_names_stale_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reference.main(["--check", str(tmp_path)]) == 1
    assert "docs/tables.md is stale: run `make docs`" in capsys.readouterr().err
    assert reference.main([str(tmp_path)]) == 0
    assert reference.main(["--check", str(tmp_path)]) == 0


def test_every_table_and_column_is_described() -> None:
    page = (ROOT / "docs/tables.md").read_text()
    for table in reference.agent_tables():
        assert f"\n## {table.name}\n" in page
        assert table.summary
        assert table.description
        assert table.examples, f"{table.name} has no example"
        for column in table.columns:
            assert f"| `{column.name}`" in page
            assert column.summary


def test_every_command_and_option_is_described() -> None:
    page = (ROOT / "docs/cli.md").read_text()

    def check(command: click.Command, path: str) -> None:
        assert command.help, f"{path} has no help"
        if isinstance(command, click.Group):
            for name, member in command.commands.items():
                if not member.hidden:  # for a unit of systemd, not for people
                    check(member, f"{path} {name}")
            return
        assert f"\n## {path}\n" in page
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, f"{path} {option.name} has no help"
                assert option.opts[0] in page

    check(commands, "zeek-agent")
    for name in COMMANDS:
        assert f"`{name}" in page


def test_every_setting_is_described() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    for setting in declarations.settings().values():
        section, _, key = setting.name.rpartition(".")
        part = page.partition(f"## [{section}]\n" if section else "## Top level\n")[2].partition("\n## ")[0]
        assert f"| `{key}` |" in part, setting.name


def test_renamed_settings_are_listed() -> None:
    page = reference.configuration_page({"limits.seconds": "limits.time"})
    assert "## Renamed settings" in page
    assert "| `limits.seconds` | `limits.time` |" in page


def test_the_example_configuration_holds_the_defaults(tmp_path: Path) -> None:
    example = (ROOT / "packaging/zeek-agent.toml").read_text()
    environment = {"ZEEK_AGENT_CONFIG": str(ROOT / "packaging/zeek-agent.toml")}
    assert loading.load(None, environment)[0] == declarations.Config()
    lines = [
        line.removeprefix("#") if line.startswith("#") and line[1:2] != " " else line for line in example.splitlines()
    ]
    settable = "\n".join(line for line in lines if '"…"' not in line)
    file = tmp_path / "all.toml"
    file.write_text(settable)
    loaded, origins = loading.load(file, {})
    assert loaded == declarations.Config()
    unset = {name for name, setting in declarations.settings().items() if setting.default is None}
    assert {name for name, origin in origins.items() if origin == "default"} == unset
    tomllib.loads("\n".join(lines))


def test_zeek_records_avoid_the_languages_own_words() -> None:
    for table in reference.agent_tables():
        record = zeek_record(table)
        for column in table.columns:
            field = f"\t{zeek_field(column.name)}: {column.zeek_type.script} &optional;\n"
            assert (field in record) is not column.hidden  # a record has what `SELECT *` returns
    assert zeek_field("time") == "time_"
    assert zeek_field("pid") == "pid"


def test_every_promise_of_security_names_tests_that_exist() -> None:
    table = (ROOT / "docs/security.md").read_text().partition("## Tests of these promises\n")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "tests/" in line]
    assert len(rows) > 20
    tests = r"`(tests/[a-z_/]+\.py)`: ((?:`[a-z0-9_]+`(?:, )?)+)"
    for row in rows:
        assert re.fullmatch(rf"\| [^|]+ \| {tests}(?:; {tests})* \|", row), row
        for file, names in re.findall(tests, row):
            code = (ROOT / file).read_text()
            for name in re.findall(r"`([a-z0-9_]+)`", names):
                assert f"def test_{name}(" in code, f"{file} has no test_{name}"


def test_the_limits_of_worker_processes_are_described_with_the_rest() -> None:
    limits = (ROOT / "docs/architecture.md").read_text().partition("## Limits\n")[2]
    for name in ("processes", "workers", "worker_bytes", "time", "cpu", "memory_bytes", "state_bytes"):
        assert f"limits.{name}" in declarations.settings()
        assert f"`limits.{name}`" in limits


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", one) for one in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in plain}


@pytest.mark.parametrize(
    "page", [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))], ids=lambda one: one.name
)
def test_links_of_a_page_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(((?!https?:|mailto:)[^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in headings(target)):
            broken.append(link)
    assert not broken
