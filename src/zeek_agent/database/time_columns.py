"""Times in the text of a statement: comparisons that can never be true, and expressions whose result is a time.

SQLite has no type for times, so this looks at the tokens of a statement that SQLite has compiled. A name counts as a
column of a table only if the statement gives it to nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from zeek_agent.database.results import ResultColumn
from zeek_agent.errors import SqlError
from zeek_agent.schema import ZeekType
from zeek_agent.table import Table
from zeek_agent.text import clipped

TIME_AGGREGATES: Final = (
    *("min", "max", "avg", "median", "percentile", "percentile_cont", "percentile_disc"),
    *("first_value", "last_value", "nth_value", "lag", "lead"),
)
"""Functions whose result is a time or an interval if their first argument is such a column."""
INTERVAL_AGGREGATES: Final = (*TIME_AGGREGATES, "sum", "total")
PRINTED_CHARACTERS_MAX: Final = 10_000
"""The expressions of longer statements are not examined for printing, because the agent's main process does that."""
TIME_FUNCTIONS: Final = ("timestamp", "ago")

_TOKEN: Final = re.compile(
    r"""(?P<space>\s++|--[^\n]*+|/\*(?:[^*]|\*(?!/))*+(?:\*/)?)
    |(?P<blob>[xX]'[^']*+')
    |(?P<text>'(?:[^']|'')*+')
    |(?P<quoted>"(?:[^"]|"")*+"|`(?:[^`]|``)*+`|\[[^\]]*+\])
    |(?P<number>\.?\d[\w.]*+)
    |(?P<word>\w[\w$]*+)
    |(?P<sign><>|<=|>=|==|!=|\|\||->>|->|<<|>>|.)""",
    re.VERBOSE | re.DOTALL,
)
_KEYWORDS: Final = frozenset(
    """all and as asc between by case cast collate cross current current_date current_time current_timestamp desc
    distinct else end escape except exclude exists filter first following from full glob group groups having in indexed
    inner intersect is isnull join last left like limit match materialized natural not notnull null nulls offset on or
    order others outer over partition preceding range recursive regexp right row rows select then ties unbounded union
    using values when where window with""".split()  # noqa: SIM905
)
_COMPARISONS: Final = frozenset({"=", "==", "<>", "!=", "<", "<=", ">", ">=", "is"})
_OPERAND_BEGINS: Final = frozenset(
    {"(", ",", "where", "and", "or", "not", "on", "when", "then", "else", "case", "select", "having", "distinct"}
)
_OPERAND_ENDS: Final = frozenset(
    {")", ",", ";", "and", "or", "then", "else", "end", "when", "group", "order", "limit", "union", "except", "as"}
    | {"intersect", "having", "window", "from", "where", "left", "right", "full", "inner", "cross", "join", "natural"}
)
_TEXT_TIMES: Final = frozenset({"date", "datetime", "time"})
"""SQLite's functions that return a time as text."""
_CURRENT: Final = frozenset({"current_date", "current_time", "current_timestamp"})
_COMPOUND: Final = frozenset({"union", "intersect", "except"})


class Kind(StrEnum):
    WORD = "word"
    KEYWORD = "keyword"
    QUOTED = "quoted"
    TEXT = "text"
    OTHER = "other"


class Token(NamedTuple):
    """`text` is lower case, except for texts; names and texts are without their quotes."""

    kind: Kind
    text: str

    @property
    def is_name(self) -> bool:
        return self.kind in {Kind.WORD, Kind.QUOTED}

    @property
    def mark(self) -> str:
        """The keyword, operator or punctuation; empty for a name or a value."""
        return self.text if self.kind in {Kind.KEYWORD, Kind.OTHER} else ""


_END: Final = Token(Kind.OTHER, ";")


def _tokens(sql: str) -> tuple[Token, ...]:
    return tuple(_token(found) for found in _TOKEN.finditer(sql) if found.lastgroup != "space")


def _token(found: re.Match[str]) -> Token:
    content = found[0]
    match found.lastgroup:
        case "word":
            content = content.lower()
            return Token(Kind.KEYWORD if content in _KEYWORDS else Kind.WORD, content)
        case "quoted":
            return Token(Kind.QUOTED, content[1:-1].replace(content[-1] * 2, content[-1]).lower())
        case "text":
            return Token(Kind.TEXT, content[1:-1].replace("''", "'"))
    return Token(Kind.OTHER, content)


class Operand(NamedTuple):
    """A column of type time or interval, or (`is_column` unset) an aggregate of one; `end` is the index after it."""

    name: str
    kind: str
    end: int
    is_column: bool = True


class StatementText:
    """The tokens of a statement, and the meaning of names in it. `tables` has all names under which one can be read."""

    def __init__(self, sql: str, tables: Mapping[str, Table]) -> None:
        self.tokens = _tokens(sql)
        self._closing = _closing(self.tokens)
        self._opening = {end: start for start, end in self._closing.items()}
        self._aliases = self._names_given()
        self._types: dict[str, set[str]] = {}
        mentioned = {token.text for token in self.tokens if token.is_name}
        read = {name.lower(): table for name, table in tables.items() if name.lower() in mentioned}
        for table in read.values():
            for name, kind in _columns(table):
                self._types.setdefault(name, set()).add(kind)
        self._sources = self._find_sources(read)

    def at(self, index: int) -> Token:
        return self.tokens[index] if 0 <= index < len(self.tokens) else _END

    def column_at(self, start: int) -> Operand | None:
        """The column that begins at a token."""
        names = []
        index = start
        while self.at(index).is_name:
            names.append(self.at(index).text)
            index += 1
            if self.at(index).mark != ".":
                break
            index += 1
        if not names or self.at(index).mark == "(" or self.at(start - 1).mark == ".":
            return None
        kind = self._type(names)
        return Operand(names[-1], kind, index) if kind is not None else None

    def operand_at(self, start: int) -> Operand | None:
        """The column, or the aggregate of one, that begins at a token."""
        name, opens = self.at(start), self.at(start + 1).mark == "("
        if name.kind is not Kind.WORD or not opens or name.text not in INTERVAL_AGGREGATES:
            return self.column_at(start)
        found = self.column_at(start + 2 + (self.at(start + 2).mark == "distinct"))
        if found is None or self.at(found.end).mark not in {")", ","}:
            return None
        if found.kind == "time" and name.text not in TIME_AGGREGATES:
            return None
        return Operand(found.name, found.kind, self._closing.get(start + 1, len(self.tokens)) + 1, is_column=False)

    def operand_before(self, end: int) -> Operand | None:
        """The column, or the aggregate of one, that is the whole operand before a token."""
        start = end - 1
        if self.at(start).mark == ")":
            start = self._opening.get(start, 0) - 1
        while self.at(start - 1).mark == "." and start >= 2:
            start -= 2
        found = self.operand_at(start)
        if found is None or found.end != end or self.at(start - 1).mark not in _OPERAND_BEGINS:
            return None
        return found

    def text_at(self, index: int, operand: Operand) -> str | None:
        """The text literal at a token, also in double quotes; None for anything else.

        A column, which has a numeric affinity, compares with a number in quotes.
        """
        token = self.at(index)
        literal = token.kind is Kind.TEXT or (
            token.kind is Kind.QUOTED
            and token.text not in self._types
            and token.text not in self._aliases
            and "." not in {self.at(index - 1).mark, self.at(index + 1).mark}
        )
        return token.text if literal and not (operand.is_column and _is_number(token.text)) else None

    def group(self, start: int) -> list[tuple[int, int]]:
        """Begin and end of each part, separated by commas, of the parentheses that open at a token."""
        return self._parts(start + 1, self._closing.get(start, len(self.tokens)))

    def results(self) -> list[tuple[int, int]] | None:
        """Begin and end of each result expression; None if there are several SELECTs at the top, or stars."""
        depth_zero = self._parts(0, len(self.tokens), every=True)
        selects = [at for at, _ in depth_zero if self.at(at).mark == "select"]
        if len(selects) != 1 or any(self.at(at).mark in _COMPOUND for at, _ in depth_zero):
            return None
        start = selects[0] + 1
        start += self.at(start).mark in {"distinct", "all"}
        ends = (at for at, _ in depth_zero if at >= start and self.at(at).mark in _RESULTS_END)
        parts = self._parts(start, next(ends, len(self.tokens)))
        return None if any(self.at(end - 1).mark == "*" for _, end in parts) else parts

    def _parts(self, start: int, end: int, *, every: bool = False) -> list[tuple[int, int]]:
        """The parts between commas outside of parentheses; with `every`, each token outside of parentheses."""
        parts, begin, index = [], start, start
        while index < end:
            if every:
                parts.append((index, index + 1))
            elif self.at(index).mark == ",":
                parts.append((begin, index))
                begin = index + 1
            index = self._closing.get(index, index) + 1
        return parts if every else [*parts, (begin, end)]

    def _type(self, names: Sequence[str]) -> str | None:
        name = names[-1]
        if name in self._aliases:
            return None
        kinds = self._types.get(name, set())
        if len(names) > 1 and (table := self._sources.get(names[-2])) is not None:
            kinds = {kind for column, kind in _columns(table) if column == name}
        return next(iter(kinds)) if len(kinds) == 1 and kinds <= {"time", "interval"} else None

    def _names_given(self) -> frozenset[str]:
        """Names that the statement gives to expressions, or to columns of a WITH."""
        given: set[str] = set()
        for index, token in enumerate(self.tokens):
            before = self.at(index - 1)
            if token.kind in {Kind.WORD, Kind.QUOTED, Kind.TEXT} and index > 0:
                ends_expression = before.kind in {Kind.WORD, Kind.QUOTED, Kind.TEXT} or before.mark in _BEFORE_ALIAS
                is_number = before.kind is Kind.OTHER and before.text[-1:].isalnum()
                if before.mark == "as" or ends_expression or is_number:
                    given.add(token.text.lower())
            if token.mark == "as" and before.mark == ")" and self.at(index + 1).mark in {"(", "not", "materialized"}:
                for start, _ in self.group(self._opening.get(index - 1, index)):
                    given.add(self.at(start).text)
        return frozenset(given)

    def _find_sources(self, tables: Mapping[str, Table]) -> dict[str, Table | None]:
        """Tables by the names that qualify their columns; None for a name of several."""
        sources: dict[str, Table | None] = {}
        for index, token in enumerate(self.tokens):
            table = tables.get(token.text) if token.is_name else None
            if table is None or self.at(index + 1).mark == ".":
                continue
            after = index + 1
            if self.at(after).mark == "(":
                after = self._closing.get(after, after) + 1
            after += self.at(after).mark == "as"
            for name in {token.text, self.at(after).text if self.at(after).is_name else token.text}:
                sources[name] = table if sources.get(name, table) is table else None
        return sources


_DATE_LIKE: Final = re.compile(r"\d-\d|\d:\d|[^\W\d_]{3}")
"""Part of a pattern that no number matches."""
_RESULTS_END: Final = frozenset({"from", "where", "group", "having", "window", "order", "limit", ";"})
_BEFORE_ALIAS: Final = frozenset({")", "end", "null", *_CURRENT})


def check_comparisons(sql: str, tables: Mapping[str, Table]) -> None:
    """Raises SqlError for a comparison of a time or an interval with text, which is never true.

    Text that is a number is compared as one, and is no error.
    """
    statement = StatementText(sql, tables)
    for index, token in enumerate(statement.tokens):
        if token.mark in _COMPARISONS:
            _check_comparison(statement, index)
        elif token.mark in {"between", "in"}:
            _check_list(statement, index)
        elif token.mark in {"like", "glob", "regexp"}:
            _check_pattern(statement, index)


def _check_comparison(statement: StatementText, index: int) -> None:
    right = index + 1
    if statement.at(index).mark == "is":
        right += statement.at(right).mark == "not"
    operand = statement.operand_before(index)
    if operand is not None:
        _check_value(statement, operand, right)
        return
    operand = statement.operand_at(right)
    if operand is None or statement.at(operand.end).mark not in _OPERAND_ENDS:
        return
    literal = statement.text_at(index - 1, operand)
    if literal is not None and statement.at(index - 2).mark in _OPERAND_BEGINS:
        raise _never_equal(operand, literal)


def _check_list(statement: StatementText, index: int) -> None:
    """BETWEEN … AND …, and IN (…)."""
    operand = statement.operand_before(index - (statement.at(index - 1).mark == "not"))
    if operand is None:
        return
    if statement.at(index).mark == "between":
        _check_value(statement, operand, index + 1)
        if statement.at(index + 2).mark == "and":
            _check_value(statement, operand, index + 3)
    elif statement.at(index + 1).mark == "(":
        for start, end in statement.group(index + 1):
            literal = statement.text_at(start, operand)
            if literal is not None and end == start + 1:
                raise _never_equal(operand, literal)


def _check_pattern(statement: StatementText, index: int) -> None:
    """LIKE, GLOB and REGEXP, which compare with the digits of the number."""
    operand = statement.operand_before(index - (statement.at(index - 1).mark == "not"))
    if operand is not None:
        pattern = statement.text_at(index + 1, operand)
        if pattern is not None and _DATE_LIKE.search(pattern):
            raise _never_equal(operand, pattern)


def _check_value(statement: StatementText, operand: Operand, at: int) -> None:
    """The operand to the right of a comparison."""
    token = statement.at(at)
    literal = statement.text_at(at, operand)
    if literal is not None and statement.at(at + 1).mark in _OPERAND_ENDS:
        raise _never_equal(operand, literal)
    called = token.kind is Kind.WORD and token.text in _TEXT_TIMES and statement.at(at + 1).mark == "("
    if called or token.mark in _CURRENT:
        shown = f"{token.text}(…)" if called else token.text
        if operand.kind == "time":
            what, advice = "a time", f"timestamp({shown}) or ago('10 minutes')"
        else:
            what, advice = "an interval", "a number of seconds; timestamp('…') and ago('…') are for times"
        raise SqlError(f"column {operand.name} is {what} in seconds, but {shown} is text: write {advice}")


def _never_equal(operand: Operand, literal: str) -> SqlError:
    name = operand.name
    shown = "'" + clipped(literal, 60).replace("'", "''") + "'"
    if operand.kind == "time":
        return SqlError(
            f"column {name} is a time, which a text such as {shown} does not compare with: write timestamp({shown}), "
            "or ago('10 minutes') for a time before now"
        )
    return SqlError(
        f"column {name} is an interval, which a text such as {shown} does not compare with: write a number of seconds, "
        "such as 600 for 10 minutes; timestamp('…') and ago('…') are for times"
    )


def with_time_types(sql: str, tables: Mapping[str, Table], columns: Sequence[ResultColumn]) -> tuple[ResultColumn, ...]:
    """The columns of a result as commands print them: aggregates of times are times, and those of intervals intervals.

    Zeek receives such an expression as a real number, as from version 2, unless its alias declares a type.
    """
    if len(sql) > PRINTED_CHARACTERS_MAX or not any(column.type.name == "real" for column in columns):
        return tuple(columns)
    statement = StatementText(sql, tables)
    parts = statement.results()
    if parts is None or len(parts) != len(columns):
        return tuple(columns)
    return tuple(_with_time_type(statement, part, column) for part, column in zip(parts, columns, strict=True))


def _with_time_type(statement: StatementText, part: tuple[int, int], column: ResultColumn) -> ResultColumn:
    start, end = part
    if column.type.name != "real":
        return column
    name = statement.at(start)
    if name.kind is not Kind.WORD or statement.at(start + 1).mark != "(":
        return column
    groups = statement.group(start + 1)
    after = groups[-1][1] + 1
    while statement.at(after).mark in {"over", "filter"} and statement.at(after + 1).mark == "(":
        after = statement.group(after + 1)[-1][1] + 1
    is_whole = after >= end or statement.at(after).mark == "as" or (after == end - 1 and statement.at(after).is_name)
    if not is_whole or (after < end and ":" in statement.at(end - 1).text):  # the alias declares a type
        return column
    if name.text in TIME_FUNCTIONS:
        return ResultColumn(column.name, ZeekType("time"))
    found = statement.operand_at(start)
    return column if found is None else ResultColumn(column.name, ZeekType(found.kind))


def _is_number(content: str) -> bool:
    try:
        float(content)
    except ValueError:
        return False
    return True


def _closing(tokens: Sequence[Token]) -> dict[int, int]:
    """The index of each closing parenthesis by that of the opening one."""
    pairs: dict[int, int] = {}
    open_at: list[int] = []
    for index, token in enumerate(tokens):
        if token.kind is not Kind.OTHER:
            continue
        if token.text == "(":
            open_at.append(index)
        elif token.text == ")" and open_at:
            pairs[open_at.pop()] = index
    return pairs


def _columns(table: Table) -> Iterable[tuple[str, str]]:
    yield from ((column.name.lower(), column.type) for column in table.columns)
    yield from ((parameter.column.lower(), parameter.type) for parameter in table.parameters)
