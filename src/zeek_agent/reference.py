"""Generator of the reference pages from the declarations in the code: tables, command line, configuration.

    python -m zeek_agent.reference [--check] [ROOT]

writes them below ROOT (default: here). With `--check` it only lists stale pages, and
exits with code 1 if there are any.
"""

from __future__ import annotations

import inspect
import itertools
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import click

from zeek_agent import manual
from zeek_agent.access_defaults import CONTENTS_PRIVATE, CONTENTS_PUBLIC, LOCAL_FILE_SYSTEMS, PATHS_DENY
from zeek_agent.config import declarations, loading
from zeek_agent.database.functions import BUILT_IN, FUNCTIONS
from zeek_agent.database.sandbox import PRAGMAS, TABLE_FUNCTIONS
from zeek_agent.database.time_columns import TIME_AGGREGATES
from zeek_agent.database.versions import COLLATIONS
from zeek_agent.masking.programs import PROGRAMS, Program
from zeek_agent.platforms.linux import Linux
from zeek_agent.reference_parts import markdown_table, replaced, with_logs, with_macos_records, with_metrics
from zeek_agent.reload import LIVE
from zeek_agent.schema import Column
from zeek_agent.service.example import example_configuration, section_summary
from zeek_agent.table import LookupTable, Table
from zeek_agent.tables import builtin_tables, osquery
from zeek_agent.tables.osquery._declaration import ALWAYS_NULL
from zeek_agent.terminal.table_text import parameter_summary, privileges_summary, zeek_record

PLATFORMS: Final = {"linux": "Linux", "darwin": "macOS", "win32": "Windows"}
GENERATED: Final = "<!-- Written by `make docs` from the declarations in the code. -->"


README_BEGIN: Final = "<!-- tables: generated -->\n"
README_END: Final = "<!-- tables: end -->\n"
LISTS_BEGIN: Final = "<!-- lists: generated -->\n"
LISTS_END: Final = "<!-- lists: end -->\n"
PROGRAMS_BEGIN: Final = "<!-- programs: generated -->\n"
PROGRAMS_END: Final = "<!-- programs: end -->\n"
LISTED_BY: Final = {"access.paths_deny": "security.md#never-read"}
"""Settings whose default is too long for a cell, and where it is printed."""


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or check them. Returns the exit code."""
    check = "--check" in arguments
    root = Path(next((argument for argument in arguments if not argument.startswith("-")), "."))
    wanted = pages()
    for path, filled in FILLED.items():
        if (page := root / path).exists():
            wanted[path] = filled(page.read_text())
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
    """The README with the current list of tables."""
    rows = [(f"[{table.name}](docs/tables.md#{table.name})", table.summary) for table in agent_tables()]
    return replaced(readme, README_BEGIN, README_END, markdown_table(("Table", "Rows"), rows))


def with_lists(security: str) -> str:
    """The security page with the path gate's current lists, and the programs whose secrets are masked."""
    lists = (
        ("Never read", "Neither contents nor hashes are available, unless `access.paths_deny` is changed:", PATHS_DENY),
        ("Contents", "Contents are readable if every local user can read the file:", CONTENTS_PUBLIC),
        (
            "Contents with narrower permissions",
            "Contents are readable whatever the file's permissions:",
            CONTENTS_PRIVATE,
        ),
        ("File systems", "File system types that are entered:", sorted(LOCAL_FILE_SYSTEMS)),
    )
    text = "\n\n".join(f"### {title}\n\n{lead}\n\n```\n{_filled(entries)}\n```" for title, lead, entries in lists)
    security = replaced(security, LISTS_BEGIN, LISTS_END, text)
    masked = (program for program in PROGRAMS if not _is_only_plain(program))
    names = sorted(
        {name for program in masked for name in program.names.split()}, key=lambda name: (name.lower(), name)
    )
    return replaced(security, PROGRAMS_BEGIN, PROGRAMS_END, f"```\n{_filled(names)}\n```")


def _is_only_plain(program: Program) -> bool:
    return not (program.secrets or program.positional or program.follows or program.last_with or program.settings)


FILLED: Final[Mapping[str, Callable[[str], str]]] = {
    "README.md": with_tables,
    "docs/security.md": with_lists,
    "docs/collector.md": with_logs,
    "docs/metrics.md": with_metrics,
    "docs/platforms.md": with_macos_records,
}
"""Pages with generated parts."""


def _filled(entries: Iterable[str]) -> str:
    """The entries in one paragraph; those with blanks in quotes."""
    words = [f'"{entry}"' if " " in entry else entry for entry in entries]
    lines = textwrap.wrap("  ".join(word.replace(" ", "\0") for word in words), 110, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")


def pages() -> dict[str, str]:
    """Text of each generated file, by its path."""
    return {
        "docs/tables.md": tables_page(agent_tables()),
        "docs/osquery-tables.md": osquery_tables_page(osquery.TABLES),
        "docs/sql.md": sql_page(),
        "docs/cli.md": cli_page(),
        "docs/configuration.md": configuration_page(),
        "packaging/zeek-agent.toml": example_configuration(),
        **{f"packaging/{name}": text for name, text in manual.pages().items()},
    }


def agent_tables() -> list[Table]:
    """The built-in tables of all platforms, by name, without those of osquery."""
    found = {table.name: table for platform in PLATFORMS for table in builtin_tables(platform)}
    return [found[name] for name in sorted(found) if found[name].osquery_name is None]


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
        "A **snapshot** table shows the state of the host at query time. An **events** table contains recorded events "
        "from the event store: a query installed with the subscription `Events` returns the events since its last run, "
        "a one-time query returns all retained events. `<table>_history` always contains all retained events.",
        "In SQL, times are seconds since the epoch and intervals are seconds, both as real numbers; "
        "`timestamp('2026-11-28T03:20:00Z')` and `ago('10 minutes')` are such times ([times](sql.md#times)), and "
        "`datetime(time, 'unixepoch')` formats them. Sets, vectors, records and ports are JSON, for "
        "`json_each` and `->>`. A result column that is a table's column keeps its type; the alias of an expression "
        'can declare its type: `SELECT max(pid) AS "pid:count"`. Any value can be null. Columns marked ⁺ are not part '
        "of `SELECT *` for a stock Zeek package, which expects exactly the others; columns marked ⁻ of no `SELECT *`.",
        markdown_table(("Table", "Rows", "Kind", "Platforms", "Columns"), overview),
    ]
    parts += [_table_section(table) for table in tables]
    return "\n\n".join(parts) + "\n"


def osquery_tables_page(tables: Iterable[Table]) -> str:
    """docs/osquery-tables.md"""
    tables = sorted(tables, key=lambda table: str(table.osquery_name))
    overview = [(f"[{table.osquery_name}](#{table.osquery_name})", table.summary) for table in tables]
    parts = [
        GENERATED,
        "# osquery's tables",
        "Tables of osquery that the agent has itself, with osquery's columns and values, on Linux. "
        "[osquery](osquery.md) tells how to reach them and what differs. Times are whole seconds since the epoch. "
        "Columns marked ⁻ are not part of `SELECT *`; one of those marked * must have a value.",
        markdown_table(("Table", "Rows"), overview),
    ]
    parts += [_osquery_section(table) for table in tables]
    return "\n\n".join(parts) + "\n"


def _osquery_section(table: Table) -> str:
    required = table.required if isinstance(table, LookupTable) else ()
    columns = [
        (f"`{column.name}`{'*' if column.name in required else ''}{_mark(column)}", column.type, column.summary)
        for column in table.columns
        if column.summary != ALWAYS_NULL
    ]
    foreign = [f"`{column.name}`" for column in table.columns if column.summary == ALWAYS_NULL]
    name = f" Outside osquery's dialect: `{table.name}`." if table.name != table.osquery_name else ""
    name += "".join(f" Also called `{alias}`." for alias in table.osquery_names[1:])
    privileges = (
        f"[Privileges](security.md#tables-with-privileges): {used}." if (used := privileges_summary(table)) else ""
    )
    parts = [
        f"## {table.osquery_name}",
        f"{_sentence(table.summary)} {table.description}{name}",
        markdown_table(("Column", "Type", "Meaning"), columns),
        f"Always null on Linux: {', '.join(foreign)}." if foreign else "",
        "```sql\n" + "\n".join(f"{example};" for example in table.examples) + "\n```",
        privileges,
    ]
    return "\n\n".join(part for part in parts if part)


def _table_section(table: Table) -> str:
    columns = [(f"`{column.name}`{_mark(column)}", str(column.zeek_type), column.summary) for column in table.columns]
    parts = [f"## {table.name}", f"{_sentence(table.summary)} {table.description}"]
    if table.parameters:
        arguments = [(f"`{one.column}`", str(one.zeek_type), parameter_summary(one)) for one in table.parameters]
        names = ", ".join(one.name for one in table.parameters)
        parts.append(f"Use as `{table.name}({names})`, or with these columns in `WHERE`:")
        parts.append(markdown_table(("Parameter", "Type", "Meaning"), arguments))
    parts.append(markdown_table(("Column", "Type", "Meaning"), columns))
    if table.examples:
        parts.append("```sql\n" + "\n".join(f"{example};" for example in table.examples) + "\n```")
    parts.append(f"<details><summary>Zeek record</summary>\n\n```zeek\n{zeek_record(table)}```\n\n</details>")
    privileges = (
        f" [Privileges](security.md#tables-with-privileges): {used}." if (used := privileges_summary(table)) else ""
    )
    parts.append(f"Kind: {table.kind}. Platforms: {_platforms(table)}.{privileges}")
    return "\n\n".join(parts)


def _mark(column: Column) -> str:
    if column.hidden:
        return " ⁻"
    return " ⁺" if column.added else ""


def sql_page() -> str:
    """docs/sql.md"""
    own = [(f"`{one.signature}`", one.summary) for one in FUNCTIONS if not one.replaces and not one.osquery]
    of_osquery = [(f"`{one.signature}`", one.summary) for one in FUNCTIONS if one.osquery]
    parts = [
        GENERATED,
        "# SQL",
        "The dialect is SQLite's, with one read-only statement at a time: `SELECT`, `WITH`, `VALUES`, window "
        "functions, JSON. Statements that would write, attach a file, load code or change a setting are refused. "
        "String literals can be in double quotes, for compatibility with scripts for version 2.",
        "## Agent functions",
        markdown_table(("Function", "Result"), own),
        "Patterns use RE2, whose run time is linear in the length of the text.",
        "## Functions of osquery",
        "osquery's functions that read only their arguments. The result is NULL if an argument is, unless noted. Those "
        "above and SQLite's that osquery has under the same name can differ: see "
        "[osquery](osquery.md#functions-and-collations).",
        markdown_table(("Function", "Result"), of_osquery),
        "Collations for version numbers: "
        + ", ".join(f"`{name}`" for name in COLLATIONS)
        + ". They order texts as `version_compare` does with the flavor of that name: "
        "`ORDER BY version COLLATE version`. They have osquery's results, which are not those of the package managers "
        "in all cases: `version_rhel` has 1.9 after 1.10.",
        "## Times",
        "Times are seconds since the epoch, and intervals are seconds, both as real numbers. Commands print times as "
        "`2026-11-28T03:20:00.000000Z`, but such a text does not compare with a time: write "
        "`time > timestamp('2026-11-28')` or `time > ago('10 minutes')`.",
        "Comparing a column of type `time` or `interval` with a text literal other than a number, or with `date()`, "
        "`datetime()` or `time()`, is an error, also under an alias (`max(time) AS last … HAVING last > '2026'`), "
        "unless the statement gives the column's name or the alias to something else. Other text, such as that of "
        "another column or of an expression, is not recognized.",
        "`query` and `shell` print an expression as a time (interval) if it is one of these functions of a column of "
        "that type, named directly, in a statement with neither `*` nor `UNION`: "
        + ", ".join(f"`{name}`" for name in TIME_AGGREGATES)
        + "; for intervals also `sum` and `total`. `timestamp` and `ago` are printed as times, too. Zeek receives all "
        'of these as `double`, unless the alias declares a type: `SELECT max(time) AS "last:time"`.',
        "## Text and bytes",
        "Names, paths and lines on the host are bytes. In SQL they are text, also in columns of type `blob` such as "
        "`files_lines.content`, so `=`, `LIKE`, `GLOB` and all functions work on them. A byte that is not part of "
        "valid UTF-8 is a single character there, from U+EF80 to U+EFFF, and is printed as `\\xNN`. Result columns of "
        "type `blob` contain the original bytes; in Zeek, `text` and `blob` are both `string`.",
        "## SQLite functions",
        "The following functions are available; `randomblob` only within the limit on values. "
        + ", ".join(f"`{name}`" for name in sorted(BUILT_IN)),
        "## Readable objects",
        "Statements can read the agent's tables and SQLite's own "
        + ", ".join(f"`{name}`" for name in sorted(TABLE_FUNCTIONS - {f"pragma_{name}" for name in PRAGMAS}))
        + " and `sqlite_schema`. "
        + ", ".join(f"`PRAGMA {name}(table)`" for name in sorted(PRAGMAS))
        + " and their table-valued forms, such as `pragma_table_info('table')`, describe tables; `zeek_agent_tables` "
        "lists them. Everything else that SQLite has now, or adds in a later version, is refused. A name defined by "
        "`WITH` hides a table of that name, as in SQLite; avoid names that begin with `sqlite_`.",
        "## Limits",
        "A statement that exceeds its limit on time, rows, memory or length fails with an error; see "
        "[limits](configuration.md#limits). The events that it reads together with other tables, as in `processes JOIN "
        "processes_events`, have to fit into half of `limits.memory_bytes`: restrict them by time, as in "
        "`WHERE processes_events.time > ago('10 minutes')`. [Access rules](configuration.md#access) restrict the "
        "tables and file contents that can be read.",
    ]
    return "\n\n".join(parts) + "\n"


def cli_page() -> str:
    """docs/cli.md"""
    from zeek_agent.cli.program import commands
    from zeek_agent.terminal.shell import COMMANDS

    parts = [
        GENERATED,
        "# Command line",
        "Exit codes: 0 success, 1 failure, 2 usage error, 130 interrupted by Ctrl-C. Errors are one line on standard "
        "error.",
        "`query`, `shell`, `tables`, `watch`, `status` and `doctor` connect to a running agent through its control "
        "socket. Without one, all but `watch` and `status` read the host themselves, with the events stored by an "
        "agent; statements of root's commands run in worker processes, as in a running agent. `query` and `shell` then "
        "write a line to standard error (an interactive shell to the terminal) with the age of the newest stored event."
        " In a clone in which `make run` was used, [its agent](configuration.md#locations) comes first.",
        *(_command_section(command, f"zeek-agent {path}") for path, command in _commands(commands)),
        "## Shell commands",
        "Anything that is not a command is SQL. A statement ends with `;`, typed, pasted or piped in, and can span "
        "several lines. On a terminal, results are followed by their number of rows, and those longer than the "
        "terminal are shown in a pager. A file of `.output` is created readable only by its owner, and overwritten "
        "if it exists. Reports of repeated queries begin with a line with their time, in JSON they have a key `time`; "
        "CSV has no times.",
        markdown_table(
            ("Command", "Purpose"),
            [(f"`{command.usage}`", command.summary) for command in COMMANDS.values()],
        ),
        "## Output formats",
        _printed_forms(),
    ]
    return "\n\n".join(parts) + "\n"


def _printed_forms() -> str:
    from zeek_agent.terminal import console

    return (console.__doc__ or "").partition("\n\n")[2].strip()


def _commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command with its path; groups have only their members."""
    for name, command in sorted(group.commands.items()):
        if command.hidden:
            continue
        if isinstance(command, click.Group):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def _command_section(command: click.Command, path: str) -> str:
    context = click.Context(command, info_name=path)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    options = [_option_row(option, context) for option in command.params if isinstance(option, click.Option)]
    parts = [f"## {path}", f"```\n{usage}\n```", inspect.cleandoc(command.help or "")]
    return "\n\n".join([*parts, markdown_table(("Option", "Meaning"), options)])


def _option_row(option: click.Option, context: click.Context) -> tuple[str, str]:
    record = option.get_help_record(context)
    assert record is not None
    names, help_text = record
    return f"`{names}`", help_text


def configuration_page(renamed: Mapping[str, str] = loading.RENAMED) -> str:
    """docs/configuration.md; `renamed` is as `loading.RENAMED`."""
    parts = [
        GENERATED,
        "# Configuration",
        "The value of a setting comes from the first of these sources that contains it:",
        "1. a flag of the command, or `--set KEY=VALUE` for settings without a flag;\n"
        "2. the environment: `ZEEK_AGENT_SECTION__KEY`, so `ZEEK_AGENT_LIMITS__TIME=5` sets `limits.time`, "
        "`ZEEK_AGENT_ZEEK__TLS__CA_FILE` sets `zeek.tls.ca_file` and `ZEEK_AGENT_STATE_DIR` sets `state_dir`; "
        "`ZEEK_AGENT_ZEEK` is an alias for the destinations; "
        "lists are separated by spaces or commas, or written as JSON; an empty variable counts as unset;\n"
        "3. the TOML file named by `--config` or `ZEEK_AGENT_CONFIG`, or else "
        f"`{Linux.system_configuration}` for root and `$XDG_CONFIG_HOME/zeek-agent/zeek-agent.toml` for other users, "
        "if it exists;\n"
        "4. the default.",
        "Unknown keys and invalid values are errors. `zeek-agent config check` reports all of them, and prints the "
        "settings that differ from the defaults. The table `zeek_agent_config` shows every setting of a running agent "
        "and its origin.",
        "A renamed setting still works under its old name: in the file, in the environment and with "
        "`--set`. A warning, which `zeek-agent config check` also prints, gives the new name. If one source contains "
        "both names, the new one takes precedence.",
        *_renamed_section(renamed),
        "## Changes at run time",
        "`zeek-agent reload`, or SIGHUP, has the running agent read its file and environment again. An invalid "
        "configuration, a query pack whose statements do not compile, or a place where metrics cannot be served is an "
        "error, and nothing is applied. Otherwise these settings are applied: "
        f"{', '.join(f'`{name}*`' if name.endswith('.') else f'`{name}`' for name in LIVE)}. Others keep their value "
        "until a restart; the answer lists them. The files of `tables.files` are read again, too, and a changed one is "
        "applied even if the setting is the same.",
        "New access rules hold at once: once the command has returned, no row that they forbid is sent any more. A "
        "statement that runs at that moment and may be affected is run again; a result of which a part is sent ends "
        "with an error. New limits hold for statements that begin afterwards, and new masking for what is recorded "
        "afterwards, except for processes whose command line is already known.",
        "A change in `zeek` reconnects to all destinations, and one in `collector`, or in the file of the query pack, "
        "restarts the embedded collector; no event is lost by that, but the embedded collector may log some twice, "
        "with the same `seq`. The delivery state of a removed destination is kept: if it is added again, it gets the "
        "events since then that are still stored. An agent that was started on a terminal ends when that is closed, "
        "which is also signalled by SIGHUP.",
        "## Locations",
        markdown_table(
            ("", "root", "other users"),
            [
                ("state directory", f"`{Linux.system_state}`", "`$XDG_STATE_HOME/zeek-agent`"),
                ("control socket", f"`{Linux.system_control}`", "`$XDG_RUNTIME_DIR/zeek-agent/zeek-agent.sock`"),
                ("shell history", "`$XDG_STATE_HOME/zeek-agent/history`", "the same"),
            ],
        ),
        "With `--state-dir DIR` the control socket is `DIR/zeek-agent.sock`. Commands of other users also try root's "
        "socket, which is accessible to the group named by `control.group`.",
        "`make run` keeps state in `state` in the clone, or in `state-USER` for users who do not own the clone. The "
        "other commands of the clone's program, `.venv/bin/zeek-agent`, look there first if neither `state_dir` nor "
        "`control.socket` is set.",
    ]
    by_section = itertools.groupby(declarations.settings().values(), lambda one: one.name.rpartition(".")[0])
    for section, settings in by_section:
        parts.append(f"## {f'[{section}]' if section else 'Top level'}")
        if summary := section_summary(section):
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
        parts.append(markdown_table(("Key", "Meaning", "Value", "Default"), rows))
    return "\n\n".join(parts) + "\n"


def _default(one: declarations.Setting) -> str:
    if one.name in LISTED_BY:
        return f"[this list]({LISTED_BY[one.name]})"
    return f"`{declarations.literal(one.default)}`" if one.default is not None else "unset"


def _renamed_section(renamed: Mapping[str, str]) -> Iterator[str]:
    if renamed:
        yield "## Renamed settings"
        yield markdown_table(("Old name", "Name"), [(f"`{old}`", f"`{new}`") for old, new in renamed.items()])


def _platforms(table: Table) -> str:
    return ", ".join(PLATFORMS.get(platform, platform) for platform in table.platforms)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _is(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
