"""The interactive shell: SQL, dot commands, repeated queries; line editing, history and completion by readline."""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TextIO

from zeek_agent import platforms
from zeek_agent.control.messages import Columns, Note, Pause, Rows, SubscribeRequest, SubscriptionName
from zeek_agent.errors import UsageError, ZeekAgentError
from zeek_agent.terminal import responders
from zeek_agent.terminal.console import Mode, Printer
from zeek_agent.terminal.line_editing import line_editing
from zeek_agent.terminal.pager import Pager, unusable
from zeek_agent.terminal.status_report import facts_text
from zeek_agent.terminal.suggestions import KEYWORDS, as_in_osquery, columns_of, named_in, nearest
from zeek_agent.terminal.table_text import describe_table, list_tables
from zeek_agent.text import from_os, visible

if TYPE_CHECKING:
    from zeek_agent.schema import Row, ZeekType
    from zeek_agent.table import Table
    from zeek_agent.terminal.responders import Responder

DEFAULT_SCHEDULE_SECONDS: Final = 2.0
"""Interval of repeated queries without a number: people can follow it."""
_FINAL: Final = frozenset({"NULL", "ALL", "END", "ASC", "DESC", "EXISTS", "VALUES", "CAST"})
_UNFINISHED: Final = frozenset(KEYWORDS) - _FINAL
"""Words that cannot end a statement."""

_TOKEN: Final = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|--[^\n]*|/\*.*?\*/|[\w$.]+|[^\s\w]|['"]""",
    re.DOTALL,
)


class Shell:
    """Reads statements and commands and writes their results."""

    def __init__(
        self,
        responder: Responder,
        printer: Printer,
        errors: TextIO,
        pager: Pager | None = None,
        dialect: Literal["osquery"] | None = None,
    ) -> None:
        """`pager` shows results that are longer than the terminal; `dialect` is that of statements."""
        self._responder = responder
        self._dialect = dialect
        self._terminal = printer
        self._printer = printer
        self._errors = errors
        self._pager = pager
        self._tables: list[Table] | None = None
        self._buffer = ""
        self._interactive = False
        self._hinted = False
        self._done = False
        self.failed = False
        """Whether a statement or command has failed."""

    @property
    def tables(self) -> list[Table]:
        """The tables' declarations, requested once."""
        if self._tables is None:
            self._tables = responders.tables(self._responder)
        return self._tables if self._dialect is None else as_in_osquery(self._tables)

    def run_interactive(self, history: Path) -> None:
        """Read from the terminal until `quit` or the end of input."""
        self._interactive = True
        with line_editing(history, self.completions):
            self._say(f"Zeek Agent shell, using {self._responder.place}.")
            self._guarded(self._give_notice)
            self._say("A statement ends with ; and can span several lines. help lists commands, Ctrl-D exits.")
            while not self._done:
                try:
                    self.feed(input("   ...> " if self._buffer else "zeek-agent> "))
                except EOFError:
                    self._say("")
                    break
                except KeyboardInterrupt:
                    self._buffer = ""
                    self._say("")
        self.close()

    def run_script(self, lines: Iterable[str]) -> None:
        """Run lines that are not typed: a statement ends with `;` or with the input."""
        self._guarded(self._give_notice)
        for line in lines:
            self.feed(line.rstrip("\n"))
            if self._done:
                break
        else:
            self._run(split_statements(self._buffer))
        self.close()

    def close(self) -> None:
        """Close the file of `.output`, if any; rows that cannot be written are reported."""
        printer, self._printer = self._printer, self._terminal
        if printer is not self._terminal:
            try:
                printer.out.close()
            except OSError as error:
                self.failed = True
                self._complain(f"cannot write {printer.out.name}: {error.strerror or error}")

    def feed(self, text: str) -> None:
        """Process typed or pasted text, which may have several lines, up to the last `;`; the rest waits for more."""
        for line in text.split("\n"):
            if not self._done:
                self._feed_line(line.rstrip("\r"))
        self._hint()

    def _feed_line(self, line: str) -> None:
        word = line.strip().rstrip("; \t").lower()
        is_command = line.lstrip().startswith(".") and word.partition(" ")[0] in COMMANDS
        if not self._buffer and (line.lstrip().startswith(".") or word in WORDS):
            self._guarded(lambda: self._command(WORDS.get(word, line.strip())))
            return
        if not self._buffer and not line.strip():
            return
        if self._interactive and self._buffer and (is_command or word in WORDS):
            self._say("This is within a statement: end it with ;, or discard it with Ctrl-C.")
            if is_command:
                return
        statements, self._buffer = take_statements(f"{self._buffer}\n{line}" if self._buffer else line)
        if not self._buffer.strip() or (self._interactive and is_blank(self._buffer)):
            self._buffer = ""
        self._run(statements)

    def _hint(self) -> None:
        """Say once how a statement ends, when one looks complete and no more pasted lines follow."""
        if self._interactive and not self._hinted and could_end(self._buffer) and not platforms.HERE.has_typed_input():
            self._hinted = True
            self._say("End the statement with ; to run it.")

    def _run(self, statements: Iterable[str]) -> None:
        for statement in statements:
            self._guarded(lambda sql=statement: self._query(sql))  # type: ignore[misc]

    def _guarded(self, action: Callable[[], None]) -> None:
        """Run an action; on an error, print it and continue."""
        try:
            action()
        except ZeekAgentError as error:
            self.failed = True
            self._complain(str(error))

    def _complain(self, message: str, kind: str = "error") -> None:
        self._terminal.out.flush()
        self._errors.write(f"{kind}: {visible(message)}\n")
        self._errors.flush()

    def _give_notice(self) -> None:
        notice = self._responder.notice
        if notice is not None and self._interactive:
            self._say(visible(notice[:1].upper() + notice[1:] + "."))
        elif notice is not None:
            self._complain(notice, "note")

    def _say(self, text: str) -> None:
        """Write a line that is not part of any result."""
        self._terminal.out.write(f"{text}\n")
        self._terminal.out.flush()

    def _query(self, sql: str) -> None:
        columns, rows, notes = responders.query(self._responder, sql, self._dialect or "full")
        self._show(columns, rows)
        for note in notes:
            self._complain(note.message)

    def _show(self, columns: Sequence[tuple[str, ZeekType]], rows: Sequence[Row]) -> None:
        """Write a result; people also see how many rows it has."""
        count = f"({len(rows):,} {'row' if len(rows) == 1 else 'rows'})"
        if self._printer is not self._terminal:
            self._write_file(lambda: self._printer.write(columns, rows))
            self._say(f"{count[:-1]} to {visible(self._printer.out.name)})")
            return
        if not self._interactive:
            self._printer.write(columns, rows)
            return
        end = f"{count}\n" if self._printer.mode in (Mode.TABLE, Mode.LINE) else ""
        if self._pager is None:
            self._printer.write(columns, rows)
            self._terminal.out.write(end)
            self._terminal.out.flush()
        else:
            text = io.StringIO()
            Printer(text, self._printer.mode, width=self._printer.width, color=self._printer.color).write(columns, rows)
            code = self._pager.show(text.getvalue() + end, self._terminal.out)
            if code:
                self._complain(f"{self._pager.command[0]}: exit code {code}; .pager off turns the pager off")

    def _put(self, text: str) -> None:
        """Write the output of a command."""
        if self._printer is self._terminal:
            self._printer.out.write(text)
        else:
            self._write_file(lambda: self._printer.out.write(text))

    def _write_file(self, write: Callable[[], object]) -> None:
        """Write to the file of `.output`. Raises ZeekAgentError if that fails."""
        try:
            write()
        except OSError as error:
            raise ZeekAgentError(f"cannot write {self._printer.out.name}: {error.strerror or error}") from None

    # Commands

    def _command(self, line: str) -> None:
        name, argument = re.fullmatch(r"(\S*?)(?:\s+(.*?))?[\s;]*", line, re.DOTALL).groups("")  # type: ignore[union-attr]
        command = COMMANDS.get(name)
        if command is None:
            near = nearest(name, COMMANDS, cutoff=0.75)
            raise UsageError(f"no command {name}; " + (f"did you mean {near}?" if near else ".help lists them"))
        command.run(self, argument)

    def help(self, _: str) -> None:
        width = max(len(command.usage) for command in COMMANDS.values())
        for command in dict.fromkeys(COMMANDS.values()):
            self._terminal.out.write(f"{command.usage:{width}}  {command.summary}\n")
        self._say("Anything else is SQL; it can span several lines and ends with ;")

    def list_tables(self, _: str) -> None:
        self._tables = None
        self._put(list_tables(self.tables))

    def schema(self, argument: str) -> None:
        self._put(describe_table(find_table(self.tables, argument)))

    def mode(self, argument: str) -> None:
        if not argument:
            self._say(self._printer.mode)
            return
        if argument not in list(Mode):
            raise UsageError(f"no mode {argument!r}; modes are {', '.join(Mode)}")
        self._printer.mode = self._terminal.mode = Mode(argument)

    def dialect(self, argument: str) -> None:
        if argument not in ("", "agent", "osquery"):
            raise UsageError(".dialect takes osquery, or agent for the agent's own tables")
        if not argument:
            self._say(self._dialect or "agent")
            return
        self._dialect = "osquery" if argument == "osquery" else None

    def output(self, argument: str) -> None:
        """Write results to a file, readable only by its owner, or again to the terminal."""
        self.close()
        if not argument:
            return
        path = Path(argument).expanduser()
        try:
            file = open(path, "w", encoding="utf-8", opener=_create_private)  # noqa: SIM115
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from None
        self._printer = Printer(file, self._terminal.mode)

    def pager(self, argument: str) -> None:
        if argument not in ("", "on", "off"):
            raise UsageError(".pager takes on or off; the environment variable PAGER names the program")
        if argument:
            self._pager = Pager.from_environment(os.environ) if argument == "on" else None
        if argument == "on" and self._pager is None:
            raise UsageError(f"no pager: {unusable(os.environ)}")
        self._say(f"pager: {'off' if self._pager is None else visible(' '.join(self._pager.command))}")

    def status(self, _: str) -> None:
        self._put(facts_text(responders.status(self._responder)))

    def quit(self, _: str) -> None:
        self._done = True

    def repeat(self, subscription: SubscriptionName, argument: str) -> None:
        """Run a query repeatedly and show its reports, each with its time, until Ctrl-C."""
        schedule, sql = split_schedule(argument)
        if self._interactive:
            self._say(f"Runs every {schedule:g} s; Ctrl-C stops.")
        columns: list[tuple[str, ZeekType]] = []
        rows: list[Row] = []
        changes: list[str | None] = []
        request = SubscribeRequest(from_os(sql), subscription, schedule, self._dialect)
        with closing(responders.explained(self._responder, request)) as frames:
            for frame in frames:
                match frame:
                    case Columns():
                        columns = responders.typed_columns(frame)
                    case Rows():
                        rows += frame.rows
                        changes += frame.changes or [None] * len(frame.rows)
                    case Note(message=message):
                        self._complain(message)
                    case Pause():
                        self._report(columns, rows, None if subscription == "Snapshots" else changes)
                        rows, changes = [], []

    def _report(
        self,
        columns: Sequence[tuple[str, ZeekType]],
        rows: Sequence[Row],
        changes: Sequence[str | None] | None,
    ) -> None:
        """Write one report of a repeated query."""
        if not rows and changes is not None:
            return

        def write() -> None:
            self._printer.write(columns, rows, changes, time.time())
            self._printer.out.write("\n" if self._printer.mode in (Mode.TABLE, Mode.LINE) else "")
            self._printer.out.flush()

        if self._printer is self._terminal:
            write()
        else:
            self._write_file(write)

    # Completion

    def completions(self, before: str, word: str) -> list[str]:
        """Completions of `word`, given the line before it."""
        if before == "" and word.startswith("."):
            return [name for name in COMMANDS if name.startswith(word)]
        command = re.fullmatch(r"\s*(\.\w+)\s+", before)
        if command is not None and command[1] in _ARGUMENTS:
            return [value for value in _ARGUMENTS[command[1]] if value.startswith(word)]
        names = [table.name for table in self.tables]
        if re.search(r"(?i)(\b(from|join)\s+([\w$]+\s*,\s*)*|^\s*\.schema\s+)$", before):
            return [name for name in names if name.startswith(word)]
        alias, dot, start = word.rpartition(".")
        reach = named_in(self.tables, "\n".join([self._buffer, before, word])) or self.tables
        columns = sorted(columns_of(reach))
        if dot:
            return [f"{alias}.{column}" for column in columns if column.startswith(start)]
        keywords = [keyword for keyword in KEYWORDS if keyword.startswith(word.upper())] if word else []
        return [name for name in (*columns, *names) if name.startswith(word)] + keywords


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
    ".dialect": Command(
        ".dialect [osquery|agent]", "show or set whose tables `processes`, `users` and others are", Shell.dialect
    ),
    ".snapshots": _repeated(".snapshots", "Snapshots", "all rows of each run"),
    ".diffs": _repeated(".diffs", "Differences", "added (+) and removed (-) rows"),
    ".snapshot-plus-diffs": _repeated(".snapshot-plus-diffs", "SnapshotPlusDifferences", "all rows, then differences"),
    ".events": _repeated(".events", "Events", "new events"),
    ".output": Command(".output [FILE]", "write results to FILE, or again to the terminal", Shell.output),
    ".pager": Command(".pager [on|off]", "show long results with $PAGER (less), or do not", Shell.pager),
    ".status": Command(".status", "show the status of the agent", Shell.status),
    ".help": Command(".help", "list the commands (also help)", Shell.help),
    ".quit": Command(".quit", "exit the shell (also quit, exit and Ctrl-D)", Shell.quit),
    ".exit": Command(".exit", "same as .quit", Shell.quit),
}
WORDS: Final = {"help": ".help", "quit": ".quit", "exit": ".exit", "?": ".help"}
"""What newcomers type for commands, where a statement would begin."""


_ARGUMENTS: Final = {
    ".pager": ("on", "off"),
    ".dialect": ("agent", "osquery"),
    ".mode": tuple(mode.value for mode in Mode),
}
"""What commands take as their argument."""


def find_table(tables: Iterable[Table], name: str) -> Table:
    """The table with that name. Raises UsageError that suggests the nearest one."""
    by_name = {table.name: table for table in tables}
    if name in by_name:
        return by_name[name]
    near = nearest(name, by_name, cutoff=0.4)
    hint = f"; did you mean {near}?" if near else ""
    raise UsageError(f"no table {name!r}{hint}" if name else "name a table; .tables lists them")


def split_schedule(argument: str) -> tuple[float, str]:
    """Split `5 SELECT …` into seconds, two by default, and statement. Raises UsageError."""
    match = re.match(r"(-?(?:\d+(?:\.\d*)?|\.\d+))s?(?:\s+(.*)|$)", argument, re.DOTALL)
    schedule, sql = (float(match[1]), match[2] or "") if match else (DEFAULT_SCHEDULE_SECONDS, argument)
    if not sql:
        raise UsageError("missing query; example: .diffs 2 SELECT name FROM users")
    if schedule <= 0:
        raise UsageError("the seconds between runs must be more than 0")
    return schedule, sql


def take_statements(text: str) -> tuple[list[str], str]:
    """The statements that end with `;`, without it, and the rest of the text."""
    statements, start, before = [], 0, None
    for match in _TOKEN.finditer(text):
        opens_comment = before is not None and before.end() == match.start() and before[0] + match[0] == "/*"
        if match[0] in ("'", '"') or opens_comment:
            break
        if match[0] == ";":
            statements.append(text[start : match.start()])
            start = match.end()
        before = match
    return [statement.strip() for statement in statements if _tokens(statement)], text[start:]


def could_end(text: str) -> bool:
    """Whether a text without `;` could be a whole statement: nothing is left open."""
    tokens = _tokens(text)
    if not tokens or any(token in ("'", '"') for token in tokens) or _open_comment(text):
        return False
    depth = tokens.count("(") - tokens.count(")")
    unfinished = tokens[-1] in (",", "=", "<", ">", "+", "-", "/", "|") or tokens[-1].upper() in _UNFINISHED
    return not (depth > 0 or unfinished)


def is_blank(text: str) -> bool:
    """Whether a text is nothing but white space and comments, all closed."""
    return not _tokens(text) and not _open_comment(text)


def split_statements(text: str) -> list[str]:
    """The statements of a text, without their `;`."""
    statements, start = [], 0
    for match in _TOKEN.finditer(text):
        if match[0] == ";":
            statements.append(text[start : match.start()])
            start = match.end()
    statements.append(text[start:])
    return [statement.strip() for statement in statements if _tokens(statement)]


def _create_private(path: str, flags: int) -> int:
    """A new file is readable only by its owner, like the history: rows may contain secrets."""
    return platforms.HERE.open_private(Path(path), flags)


def _tokens(text: str) -> list[str]:
    return [token for token in _TOKEN.findall(text) if not token.startswith(("--", "/*"))]


def _open_comment(text: str) -> bool:
    tokens = _TOKEN.findall(text)
    return any(first == "/" and second == "*" for first, second in pairwise(tokens))
