"""The interactive shell: SQL, dot commands, repeated queries; line editing, history and completion by readline."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from zeek_agent.control import messages
from zeek_agent.control.messages import Columns, Note, Pause, Rows, SubscriptionName
from zeek_agent.errors import UsageError, ZeekAgentError
from zeek_agent.terminal import responders
from zeek_agent.terminal.console import Mode, Printer
from zeek_agent.terminal.line_editing import line_editing
from zeek_agent.terminal.status_report import facts_text
from zeek_agent.terminal.table_text import describe_table, list_tables
from zeek_agent.text import escaped

if TYPE_CHECKING:
    from zeek_agent.schema import ZeekType
    from zeek_agent.table import Table
    from zeek_agent.terminal.responders import Responder

DEFAULT_SCHEDULE_SECONDS: Final = 2.0
"""Interval of repeated queries without a number: people can follow it."""
KEYWORDS: Final = tuple(
    """SELECT FROM WHERE AND OR NOT IN LIKE GLOB REGEXP BETWEEN IS NULL AS JOIN LEFT INNER CROSS ON USING GROUP ORDER BY
    HAVING LIMIT OFFSET UNION ALL EXCEPT INTERSECT DISTINCT WITH CASE WHEN THEN ELSE END CAST EXISTS ASC DESC
    VALUES""".split()  # noqa: SIM905
)
_FINAL: Final = frozenset({"NULL", "ALL", "END", "ASC", "DESC", "EXISTS", "VALUES", "CAST"})
_UNFINISHED: Final = frozenset(KEYWORDS) - _FINAL
"""Words that cannot end a statement."""

_TOKEN: Final = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|--[^\n]*|/\*.*?\*/|[\w$.]+|[^\s\w]|['"]""",
    re.DOTALL,
)


class Shell:
    """Reads statements and commands and writes their results."""

    def __init__(self, responder: Responder, printer: Printer, errors: TextIO) -> None:
        self._responder = responder
        self._printer = printer
        self._errors = errors
        self._tables: list[Table] | None = None
        self._buffer: list[str] = []
        self._done = False
        self.failed = False
        """Whether a statement or command has failed."""

    @property
    def tables(self) -> list[Table]:
        """The tables' declarations, requested once."""
        if self._tables is None:
            self._tables = responders.tables(self._responder)
        return self._tables

    def run_interactive(self, history: Path) -> None:
        """Read from the terminal until `.quit` or the end of input."""
        with line_editing(history, self.completions):
            where = "the running agent" if self._responder.remote else "this process because no agent is running"
            self._printer.out.write(f"Zeek Agent shell, using {where}. .help lists commands, Ctrl-D exits.\n")
            while not self._done:
                try:
                    self.feed(input("   ...> " if self._buffer else "zeek-agent> "), waiting=False)
                except EOFError:
                    self._printer.out.write("\n")
                    return
                except KeyboardInterrupt:
                    self._buffer.clear()
                    self._printer.out.write("\n")

    def run_script(self, lines: Iterable[str]) -> None:
        """Run lines that are not typed: a statement ends with `;` or with the input."""
        for line in lines:
            self.feed(line.rstrip("\n"), waiting=True)
            if self._done:
                return
        self._run_buffer()

    def feed(self, line: str, *, waiting: bool) -> None:
        """Process a line. A statement ends with `;` or, unless `waiting`, with a line that can end one."""
        if not self._buffer and line.lstrip().startswith("."):
            self._guarded(lambda: self._command(line.strip()))
            return
        if not self._buffer and not line.strip():
            return
        self._buffer.append(line)
        text = "\n".join(self._buffer)
        if is_complete(text, waiting=waiting):
            self._run_buffer()

    def _run_buffer(self) -> None:
        text = "\n".join(self._buffer).strip()
        self._buffer.clear()
        for statement in split_statements(text):
            self._guarded(lambda sql=statement: self._query(sql))  # type: ignore[misc]

    def _guarded(self, action: Callable[[], None]) -> None:
        """Run an action; on an error, print it and continue."""
        try:
            action()
        except ZeekAgentError as error:
            self.failed = True
            self._complain(str(error))

    def _complain(self, message: str) -> None:
        self._printer.out.flush()
        self._errors.write(f"error: {escaped(message)}\n")
        self._errors.flush()

    def _query(self, sql: str) -> None:
        columns, rows, notes = responders.query(self._responder, sql)
        self._printer.write(columns, rows)
        for note in notes:
            self._complain(note.message)

    # Commands

    def _command(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        command = COMMANDS.get(name)
        if command is None:
            raise UsageError(f"no command {name}; .help lists them")
        command.run(self, argument.strip().rstrip(";").rstrip())

    def help(self, _: str) -> None:
        width = max(len(command.usage) for command in COMMANDS.values())
        for command in dict.fromkeys(COMMANDS.values()):
            self._printer.out.write(f"{command.usage:{width}}  {command.summary}\n")
        self._printer.out.write("Anything else is SQL; it can span several lines and ends with ;\n")

    def list_tables(self, _: str) -> None:
        self._tables = None
        self._printer.out.write(list_tables(self.tables))

    def schema(self, argument: str) -> None:
        self._printer.out.write(describe_table(find_table(self.tables, argument)))

    def mode(self, argument: str) -> None:
        if not argument:
            self._printer.out.write(f"{self._printer.mode}\n")
            return
        if argument not in list(Mode):
            raise UsageError(f"no mode {argument!r}; modes are {', '.join(Mode)}")
        self._printer.mode = Mode(argument)

    def status(self, _: str) -> None:
        self._printer.out.write(facts_text(responders.status(self._responder)))

    def quit(self, _: str) -> None:
        self._done = True

    def repeat(self, subscription: SubscriptionName, argument: str) -> None:
        """Run a query repeatedly and show its reports until Ctrl-C."""
        schedule, sql = split_schedule(argument)
        columns: list[tuple[str, ZeekType]] = []
        with closing(self._responder.responses(messages.SubscribeRequest(sql, subscription, schedule))) as frames:
            for frame in frames:
                match frame:
                    case Columns():
                        columns = responders.typed_columns(frame)
                    case Rows(rows=rows, changes=changes):
                        self._printer.write(columns, rows, None if subscription == "Snapshots" else changes)
                    case Note(message=message):
                        self._complain(message)
                    case Pause():
                        self._printer.out.write("\n" if self._printer.mode in (Mode.TABLE, Mode.LINE) else "")
                        self._printer.out.flush()

    # Completion

    def completions(self, before: str, word: str) -> list[str]:
        """Completions of `word`, given the line before it."""
        if before == "" and word.startswith("."):
            return [name for name in COMMANDS if name.startswith(word)]
        if re.fullmatch(r"\s*\.mode\s+", before):
            return [mode.value for mode in Mode if mode.value.startswith(word)]
        names = [table.name for table in self.tables]
        if re.search(r"(?i)(\b(from|join)\s+([\w$]+\s*,\s*)*|^\s*\.schema\s+)$", before):
            return [name for name in names if name.startswith(word)]
        alias, dot, start = word.rpartition(".")
        columns = sorted(self._columns_in_reach("\n".join([*self._buffer, before, word])))
        if dot:
            return [f"{alias}.{column}" for column in columns if column.startswith(start)]
        keywords = [keyword for keyword in KEYWORDS if keyword.startswith(word.upper())] if word else []
        return [name for name in (*columns, *names) if name.startswith(word)] + keywords

    def _columns_in_reach(self, text: str) -> set[str]:
        """Columns of the tables in a statement, or of all tables if it has none yet."""
        words = set(re.findall(r"[\w$]+", text))
        reach = [table for table in self.tables if table.name in words] or self.tables
        return {column.name for table in reach for column in table.columns} | {
            parameter.column for table in reach for parameter in table.parameters
        }


class Command:
    """A dot command."""

    def __init__(self, usage: str, summary: str, run: Callable[[Shell, str], None]) -> None:
        self.usage = usage
        self.summary = summary
        self.run = run


def _repeated(name: str, subscription: SubscriptionName, what: str) -> Command:
    return Command(
        f"{name} [SECS] SQL",
        f"run a query every SECS seconds ({DEFAULT_SCHEDULE_SECONDS:g}) and show {what}; Ctrl-C stops",
        lambda shell, argument: shell.repeat(subscription, argument),
    )


COMMANDS: Final = {
    ".tables": Command(".tables", "list the tables", Shell.list_tables),
    ".schema": Command(".schema NAME", "describe a table", Shell.schema),
    ".mode": Command(f".mode [{'|'.join(Mode)}]", "show or set the output format", Shell.mode),
    ".snapshots": _repeated(".snapshots", "Snapshots", "all rows of each run"),
    ".diffs": _repeated(".diffs", "Differences", "added (+) and removed (-) rows"),
    ".snapshot-plus-diffs": _repeated(".snapshot-plus-diffs", "SnapshotPlusDifferences", "all rows, then differences"),
    ".events": _repeated(".events", "Events", "new events"),
    ".status": Command(".status", "show the status of the agent", Shell.status),
    ".help": Command(".help", "list the commands", Shell.help),
    ".quit": Command(".quit", "exit the shell (also Ctrl-D)", Shell.quit),
    ".exit": Command(".exit", "same as .quit", Shell.quit),
}


def find_table(tables: Iterable[Table], name: str) -> Table:
    """The table with that name. Raises UsageError that suggests the nearest one."""
    from difflib import get_close_matches

    by_name = {table.name: table for table in tables}
    if name in by_name:
        return by_name[name]
    near = get_close_matches(name, by_name, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UsageError(f"no table {name!r}{hint}" if name else "name a table; .tables lists them")


def split_schedule(argument: str) -> tuple[float, str]:
    """Split `5 SELECT …` into seconds, two by default, and statement. Raises UsageError."""
    match = re.match(r"(\d+(?:\.\d*)?|\.\d+)s?\s+(.*)", argument, re.DOTALL)
    schedule, sql = (float(match[1]), match[2]) if match else (DEFAULT_SCHEDULE_SECONDS, argument)
    if not sql:
        raise UsageError("missing query; example: .diffs 2 SELECT name FROM users")
    if schedule <= 0:
        raise UsageError("the seconds between runs must be more than 0")
    return schedule, sql


def is_complete(text: str, *, waiting: bool) -> bool:
    """Whether a statement ends here: after `;` or, unless `waiting` for that, if nothing is left open."""
    tokens = _tokens(text)
    if not tokens:
        return not waiting
    if any(token in ("'", '"') for token in tokens) or _open_comment(text):
        return False
    if tokens[-1] == ";":
        return True
    depth = tokens.count("(") - tokens.count(")")
    unfinished = tokens[-1] in (",", "=", "<", ">", "+", "-", "/", "|") or tokens[-1].upper() in _UNFINISHED
    return not (waiting or depth > 0 or unfinished)


def split_statements(text: str) -> list[str]:
    """The statements of a text, without their `;`."""
    statements, start = [], 0
    for match in _TOKEN.finditer(text):
        if match[0] == ";":
            statements.append(text[start : match.start()])
            start = match.end()
    statements.append(text[start:])
    return [statement.strip() for statement in statements if _tokens(statement)]


def _tokens(text: str) -> list[str]:
    return [token for token in _TOKEN.findall(text) if not token.startswith(("--", "/*"))]


def _open_comment(text: str) -> bool:
    tokens = _TOKEN.findall(text)
    return any(first == "/" and second == "*" for first, second in pairwise(tokens))
