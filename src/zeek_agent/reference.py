"""The reference pages, written from the live declarations: tables, command line, configuration.

    python -m zeek_agent.reference [--check] [ROOT]

writes them below ROOT (here); with `--check` it only says which are stale, and then ends with exit code 1.
"""

from __future__ import annotations

import itertools
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, get_args

import click

from zeek_agent import config, directories, paths
from zeek_agent.access_defaults import CONTENTS_PRIVATE, CONTENTS_PUBLIC, LOCAL_FILE_SYSTEMS, PATHS_DENY
from zeek_agent.collector import pack_file
from zeek_agent.collector.agents import State
from zeek_agent.database.functions import BUILT_IN, FUNCTIONS
from zeek_agent.database.sandbox import PRAGMAS, TABLE_FUNCTIONS
from zeek_agent.table import Table
from zeek_agent.tables import builtin_tables
from zeek_agent.terminal.table_text import parameter_summary, zeek_record

PLATFORMS: Final = {"linux": "Linux", "darwin": "macOS", "win32": "Windows"}
GENERATED: Final = "<!-- Written by `make docs` from the declarations in the code. -->"


README_BEGIN: Final = "<!-- tables: generated -->\n"
README_END: Final = "<!-- tables: end -->\n"
LISTS_BEGIN: Final = "<!-- lists: generated -->\n"
LISTS_END: Final = "<!-- lists: end -->\n"
LOGS_BEGIN: Final = "<!-- logs: generated -->\n"
LOGS_END: Final = "<!-- logs: end -->\n"
LINES: Final = {
    "Events": "each event, where the agent records events",
    "Differences": "rows that came (`new`) and went (`gone`) between two runs",
    "SnapshotPlusDifferences": "all rows once, then those that came (`new`) and went (`gone`)",
    "Snapshots": "all rows, each time",
}
"""What a line of a log is, by the subscription of its queries."""
LISTED_BY: Final = {"access.paths_deny": "security.md#never-read"}
"""Settings whose default is too long for a cell, and where it is printed."""


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or check them; the exit code."""
    check = "--check" in arguments
    root = Path(next((argument for argument in arguments if not argument.startswith("-")), "."))
    wanted = pages()
    if (readme := root / "README.md").exists():
        wanted["README.md"] = with_tables(readme.read_text())
    if (security := root / "docs/security.md").exists():
        wanted["docs/security.md"] = with_lists(security.read_text())
    if (collector := root / "docs/collector.md").exists():
        wanted["docs/collector.md"] = with_logs(collector.read_text())
    stale = [path for path, text in wanted.items() if not _is(root / path, text)]
    for path in stale:
        if check:
            sys.stderr.write(f"{path} is stale: run `make docs`\n")
        else:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(wanted[path])
            sys.stdout.write(f"wrote {path}\n")
    return 1 if check and stale else 0


def with_tables(readme: str) -> str:
    """The README with its list of tables as it should be."""
    rows = [(f"[{table.name}](docs/tables.md#{table.name})", table.summary) for table in all_tables()]
    return _replaced(readme, README_BEGIN, README_END, _markdown_table(("Table", "Rows are"), rows))


def with_lists(security: str) -> str:
    """The security page with the path gate's lists as they are."""
    lists = (
        ("Never read", "Neither contents nor hashes, unless `access.paths_deny` is set otherwise:", PATHS_DENY),
        ("Contents", "Contents, where every local user may read the file:", CONTENTS_PUBLIC),
        ("Contents with narrower permissions", "Contents, whatever the file's permissions:", CONTENTS_PRIVATE),
        ("File systems", "Kinds of file systems that are entered:", sorted(LOCAL_FILE_SYSTEMS)),
    )
    text = "\n\n".join(f"### {title}\n\n{lead}\n\n```\n{_filled(entries)}\n```" for title, lead, entries in lists)
    return _replaced(security, LISTS_BEGIN, LISTS_END, text)


def with_logs(collector: str) -> str:
    """The collector's page with its list of logs as the default pack declares them."""
    file, _ = pack_file.load()
    rows = [("`zeek-agent.log`", "Agents", ", ".join(f"`{state}`" for state in get_args(State)))]
    for path, log in file.logs.items():
        if queries := file.queries_for("collector", path):
            subscription = queries[0][1].subscription or file.subscription
            rows.append((f"`{path}.log`", log.summary, LINES[subscription]))
    rows.append(("`reporter.log`", "Errors", "what agents report, and messages that could not be used"))
    return _replaced(collector, LOGS_BEGIN, LOGS_END, _markdown_table(("Log", "Content", "Lines"), rows))


def _filled(entries: Iterable[str]) -> str:
    """The entries side by side; those with blanks in them in quotes."""
    words = [f'"{entry}"' if " " in entry else entry for entry in entries]
    lines = textwrap.wrap("  ".join(word.replace(" ", "\0") for word in words), 110, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")


def _replaced(page: str, begin: str, end: str, text: str) -> str:
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}{text}\n{end}{after}"


def pages() -> dict[str, str]:
    """Text of each generated file, by its path."""
    return {
        "docs/tables.md": tables_page(all_tables()),
        "docs/sql.md": sql_page(),
        "docs/cli.md": cli_page(),
        "docs/configuration.md": configuration_page(),
        "packaging/zeek-agent.toml": example_configuration(),
    }


def all_tables() -> list[Table]:
    """The built-in tables of all platforms, by name."""
    found = {table.name: table for platform in PLATFORMS for table in builtin_tables(platform)}
    return [found[name] for name in sorted(found)]


def tables_page(tables: Iterable[Table]) -> str:
    """docs/tables.md"""
    tables = list(tables)
    overview = [
        (f"[{table.name}](#{table.name})", table.summary, table.kind, _platforms(table), str(len(table.columns)))
        for table in tables
    ]
    parts = [
        GENERATED,
        "# Tables",
        "A **snapshot** table shows how things are when it is asked. An **events** table holds what happened, from the "
        "event store: a query that is installed with the subscription `Events` gets what is new since its last run, a "
        "query that runs once gets all that is kept. `<table>_history` is always all that is kept.",
        "Times are seconds since the epoch and intervals seconds, as real numbers, in SQL; "
        "`datetime(time, 'unixepoch')` makes them readable. Sets, vectors, records and ports are JSON in SQL, for "
        "`json_each` and `->>`. A result column that is a table's column keeps its type; an expression gets one by its "
        'alias: `SELECT max(pid) AS "pid:count"`. Any cell may be null. Columns marked ⁺ are not part of `SELECT *` '
        "for a stock Zeek package, which counts on exactly the others.",
        _markdown_table(("Table", "Rows are", "Kind", "Platforms", "Columns"), overview),
    ]
    parts += [_table_section(table) for table in tables]
    return "\n\n".join(parts) + "\n"


def _table_section(table: Table) -> str:
    columns = [
        (f"`{column.name}`{' ⁺' if column.added else ''}", str(column.zeek_type), column.summary)
        for column in table.columns
    ]
    parts = [f"## {table.name}", f"{_sentence(table.summary)} {table.description}"]
    if table.parameters:
        arguments = [(f"`{one.column}`", str(one.zeek_type), parameter_summary(one)) for one in table.parameters]
        names = ", ".join(one.name for one in table.parameters)
        parts.append(f"Asked as `{table.name}({names})`, or by these columns in `WHERE`:")
        parts.append(_markdown_table(("Parameter", "Type", "Meaning"), arguments))
    parts.append(_markdown_table(("Column", "Type", "Meaning"), columns))
    if table.examples:
        parts.append("```sql\n" + "\n".join(f"{example};" for example in table.examples) + "\n```")
    parts.append(f"<details><summary>Zeek record</summary>\n\n```zeek\n{zeek_record(table)}```\n\n</details>")
    parts.append(f"Kind: {table.kind}. Platforms: {_platforms(table)}.")
    return "\n\n".join(parts)


def sql_page() -> str:
    """docs/sql.md"""
    own = [(f"`{one.signature}`", one.summary) for one in FUNCTIONS if not one.replaces]
    parts = [
        GENERATED,
        "# SQL",
        "Statements are SQLite's, one at a time and read-only: `SELECT`, `WITH`, `VALUES`, window functions, JSON. "
        "What would write, attach a file, load code or change a setting is refused. Literals may be in double quotes, "
        "as scripts for version 2 have them.",
        "## Functions of the agent",
        _markdown_table(("Function", "Gives"), own),
        "Patterns are RE2's: their time grows with the text's length and no faster.",
        "## Functions of SQLite",
        "These may be used; `randomblob` only within the limit on values. "
        + ", ".join(f"`{name}`" for name in sorted(BUILT_IN)),
        "## What can be read",
        "The agent's tables, and of SQLite's own "
        + ", ".join(f"`{name}`" for name in sorted(TABLE_FUNCTIONS - {f"pragma_{name}" for name in PRAGMAS}))
        + " and `sqlite_schema`. "
        + ", ".join(f"`PRAGMA {name}(table)`" for name in sorted(PRAGMAS))
        + " and the same as tables, `pragma_table_info('table')`, describe them; `zeek_agent_tables` lists them. "
        "Whatever else SQLite has, or will have in a later version, is refused. A name that `WITH` gives hides a table "
        "of that name, as in SQLite; only names that begin with `sqlite_` are better left to SQLite.",
        "## Limits",
        "A statement ends with a clear error at its limit on time, rows, memory or length; see "
        "[limits](configuration.md#limits). Only tables, and contents of files, that [access](configuration.md#access) "
        "allows can be read.",
    ]
    return "\n\n".join(parts) + "\n"


def cli_page() -> str:
    """docs/cli.md"""
    from zeek_agent.cli import commands
    from zeek_agent.terminal.shell import COMMANDS

    parts = [
        GENERATED,
        "# Command line",
        "Exit codes: 0 done, 1 failed, 2 wrong use. What is wrong is one line on standard error.",
        "`query`, `shell`, `tables`, `status` and `doctor` reach a running agent through its control socket. Where "
        "there is none, all but `status` work in their own process, on the events that an agent has kept.",
        *(_command_section(command, f"zeek-agent {path}") for path, command in _commands(commands)),
        "## Commands of the shell",
        _markdown_table(
            ("Command", "Does"),
            [(f"`{command.usage}`", command.summary) for command in COMMANDS.values()],
        ),
        "## How results are written",
        _printed_forms(),
    ]
    return "\n\n".join(parts) + "\n"


def _printed_forms() -> str:
    from zeek_agent.terminal import console

    return (console.__doc__ or "").partition("\n\n")[2].strip()


def _commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command with its path; groups have only their members."""
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def _command_section(command: click.Command, path: str) -> str:
    context = click.Context(command, info_name=path)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    options = [_option_row(option, context) for option in command.params if isinstance(option, click.Option)]
    parts = [f"## {path}", f"```\n{usage}\n```", textwrap.dedent(command.help or "").strip()]
    return "\n\n".join([*parts, _markdown_table(("Option", "Meaning"), options)])


def _option_row(option: click.Option, context: click.Context) -> tuple[str, str]:
    record = option.get_help_record(context)
    assert record is not None
    names, help_text = record
    return f"`{names}`", help_text


def configuration_page(renamed: Mapping[str, str] = config.RENAMED) -> str:
    """docs/configuration.md; `renamed` is as `config.RENAMED`."""
    parts = [
        GENERATED,
        "# Configuration",
        "A setting is taken from the first of these that has it:",
        "1. a flag of the command, or `--set KEY=VALUE` for those without one of their own;\n"
        "2. the environment: `ZEEK_AGENT_SECTION__KEY`, so `ZEEK_AGENT_LIMITS__TIME=5` sets `limits.time`, "
        "`ZEEK_AGENT_ZEEK__TLS__CA_FILE` sets `zeek.tls.ca_file` and `ZEEK_AGENT_STATE_DIR` sets `state_dir`; "
        "`ZEEK_AGENT_ZEEK` is short for the destinations; "
        "lists are separated by spaces or commas, or given as JSON; an empty variable counts as not set;\n"
        "3. the TOML file that `--config` or `ZEEK_AGENT_CONFIG` names, else "
        f"`{directories.SYSTEM_CONFIG}` for root and `$XDG_CONFIG_HOME/zeek-agent/zeek-agent.toml` for others, where "
        "there is one;\n"
        "4. the default.",
        "Unknown keys and values that make no sense are errors. `zeek-agent config check` finds them and prints what "
        "differs from the defaults; the table `zeek_agent_config` shows every setting of a running agent and where it "
        "comes from.",
        "A setting that gets a new name goes on working under the old one: in the file, in the environment and with "
        "`--set`. A warning, also of `zeek-agent config check`, names the new one. Where one place gives a setting "
        "under both names, the new one counts.",
        *_renamed_section(renamed),
        "## Places",
        _markdown_table(
            ("", "root", "other users"),
            [
                ("state directory", f"`{paths.SYSTEM_STATE}`", "`$XDG_STATE_HOME/zeek-agent`"),
                ("control socket", f"`{paths.SYSTEM_SOCKET}`", "`$XDG_RUNTIME_DIR/zeek-agent/zeek-agent.sock`"),
                ("history of the shell", "`$XDG_STATE_HOME/zeek-agent/history`", "the same"),
            ],
        ),
        "With `--state-dir DIR` the control socket is `DIR/zeek-agent.sock`. Other users' commands also try root's "
        "socket, which is open to the group that `control.group` names.",
    ]
    by_section = itertools.groupby(config.settings().values(), lambda one: one.name.rpartition(".")[0])
    for section, settings in by_section:
        parts.append(f"## {f'[{section}]' if section else 'Top level'}")
        if summary := _section_summary(section):
            parts.append(summary)
        rows = [
            (
                f"`{one.name.rpartition('.')[2]}`",
                one.summary,
                one.expected,
                _default(one),
            )
            for one in settings
        ]
        parts.append(_markdown_table(("Key", "Meaning", "Value", "Default"), rows))
    return "\n\n".join(parts) + "\n"


def _default(one: config.Setting) -> str:
    if one.name in LISTED_BY:
        return f"[this list]({LISTED_BY[one.name]})"
    return f"`{config.literal(one.default)}`" if one.default is not None else "not set"


def _renamed_section(renamed: Mapping[str, str]) -> Iterator[str]:
    if renamed:
        yield "## Renamed settings"
        yield _markdown_table(("Old name", "Name"), [(f"`{old}`", f"`{new}`") for old, new in renamed.items()])


def example_configuration() -> str:
    """packaging/zeek-agent.toml: every setting, commented out, with its default."""
    lines = [
        "# Configuration of the Zeek Agent. Every setting is here with its default; take away the # to change one.",
        "# `zeek-agent config check` says whether the file is good.",
    ]
    by_section = itertools.groupby(config.settings().values(), lambda one: one.name.rpartition(".")[0])
    for section, settings in by_section:
        lines.append("")
        if section:
            lines += [f"# {_section_summary(section)}", f"[{section}]"]
        for one in settings:
            lines += textwrap.wrap(f"# {one.summary}", 118, subsequent_indent="# ")
            value = config.literal(one.default) if one.default is not None else '"…"'
            lines.append(f"#{one.name.rpartition('.')[2]} = {value}")
    return "\n".join(lines) + "\n"


def _section_summary(section: str) -> str:
    """The first line of the section's declaration."""
    value: object = config.Config()
    for part in filter(None, section.split(".")):
        value = getattr(value, part)
    return "" if not section else (type(value).__doc__ or "").strip().partition("\n")[0]


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("\n", " ").replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _platforms(table: Table) -> str:
    return ", ".join(PLATFORMS.get(platform, platform) for platform in table.platforms)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _is(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
