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
_BINDS_TIGHTER: Final = frozenset({"||", "->", "->>", "*", "/", "%", "+", "-", "<<", ">>", "&", "|"})
"""Operators that bind tighter than comparisons, so that what stands before them is only part of an operand."""
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


def _is_foreign(token: Token) -> bool:
    """Whether it names a table of SQLite's, with columns that are not known here."""
    return token.is_name and token.text.startswith(("json_each", "json_tree", "pragma_", "sqlite_"))


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
    begin: int = -1


class StatementText:
    """The tokens of a statement, and the meaning of names in it. `tables` has all names under which one can be read."""

    def __init__(self, sql: str, tables: Mapping[str, Table], *, follow_aliases: bool = False) -> None:
        """With `follow_aliases`, an alias of a column of type time or interval, or of an aggregate, counts as one."""
        self.tokens = _tokens(sql)
        self._closing = _closing(self.tokens)
        self._opening = {end: start for start, end in self._closing.items()}
        given = self._names_given()
        self._aliases = frozenset(name for name, _ in given)
        self._aliased: dict[str, Operand] = {}
        self._types: dict[str, set[str]] = {}
        mentioned = {token.text for token in self.tokens if token.is_name}
        read = {name.lower(): table for name, table in tables.items() if name.lower() in mentioned}
        for table in read.values():
            for name, kind in _columns(table):
                self._types.setdefault(name, set()).add(kind)
        self._sources = self._find_sources(read)
        if follow_aliases and not any(token.mark in _COMPOUND or _is_foreign(token) for token in self.tokens):
            self._aliased = self._operands_named(given)

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
        aliased = self._aliased.get(names[-1])
        if aliased is not None and (len(names) == 1 or names[-2] not in self._sources):
            return aliased._replace(end=index)
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
        """The column, or the aggregate of one, that is the whole operand before a token, also in parentheses."""
        start = end - 1
        if self.at(start).mark == ")":
            opening = self._opening.get(start, 0)
            if self.begins_operand(opening):
                inner = self.operand_before(start)
                if inner is None or inner.begin != opening + 1:
                    return None
                return inner._replace(end=end, begin=opening)
            start = opening - 1
        while self.at(start - 1).mark == "." and start >= 2:
            start -= 2
        found = self.operand_at(start)
        if found is None or found.end != end:
            return None
        if self.at(start - 1).mark == "+":  # an expression, which has no affinity
            start, found = start - 1, found._replace(is_column=False)
        return found._replace(begin=start) if self.begins_operand(start) else None

    def begins_operand(self, start: int) -> bool:
        """Whether the token is the first one of an operand of a comparison."""
        return self.at(start - 1).mark in _OPERAND_BEGINS

    def whole_operand(self, start: int) -> tuple[int, int] | None:
        """The single token that is the operand at `start`, without parentheses, and the index after these.

        None if the operand is anything longer.
        """
        if self.at(start).mark == "(":
            inner = self.whole_operand(start + 1)
            return None if inner is None or self._closing.get(start) != inner[1] else (inner[0], inner[1] + 1)
        return None if self.at(start + 1).mark in _BINDS_TIGHTER else (start, start + 1)

    def text_time_at(self, start: int) -> str | None:
        """What returns a time as text, if the operand at `start` begins with it: `datetime(…)`, `current_date`."""
        token = self.at(start)
        if token.mark in _CURRENT:
            return token.text
        called = token.kind is Kind.WORD and token.text in _TEXT_TIMES and self.at(start + 1).mark == "("
        return f"{token.text}(…)" if called else None

    def text_time_before(self, end: int) -> str | None:
        """The same for the whole operand that ends before a token."""
        start = end - 1
        if self.at(start).mark == ")":
            start = self._opening.get(start, 0) - 1
        return self.text_time_at(start) if self.begins_operand(start) else None

    def rows(self, index: int) -> list[tuple[int, int]]:
        """The operands of a comparison of rows, `(a, b) = (c, d)`: ends of the left ones, begins of the right ones.

        Empty for any other comparison.
        """
        opening = self._opening.get(index - 1)
        if opening is None or not self.begins_operand(opening) or self.at(index + 1).mark != "(":
            return []
        left, right = self.group(opening), self.group(index + 1)
        if len(left) < 2 or len(left) != len(right):
            return []
        return [(end, start) for (_, end), (start, _) in zip(left, right, strict=True)]

    def choices(self) -> dict[int, list[int]]:
        """Where the values of each CASE begin, by the index of the CASE."""
        found: dict[int, list[int]] = {}
        inside: list[int] = []
        for at, token in enumerate(self.tokens):
            if token.mark == "case":
                found[at] = []
                inside.append(at)
            elif token.mark == "when" and inside:
                found[inside[-1]].append(at + 1)
            elif token.mark == "end" and inside:
                inside.pop()
        return found

    def listed(self, opening: int) -> list[int]:
        """Where the values of an IN begin: `(1, 2)`, `(VALUES (1), (2))`, `(SELECT 1)`."""
        first = self.at(opening + 1).mark
        if first == "select":
            return [opening + 2]
        if first != "values":
            return [start for start, _ in self.group(opening)]
        parts = self._parts(opening + 2, self._closing.get(opening, len(self.tokens)))
        return [start + 1 for start, _ in parts if self.at(start).mark == "("]

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

    def _operands_named(self, given: Iterable[tuple[str, int]]) -> dict[str, Operand]:
        """Columns of type time or interval, and aggregates of them, by their aliases, if these mean nothing else."""
        named: dict[str, Operand | None] = {}
        for name, end in given:
            found = self.operand_before(end)
            known = self._types.get(name, set())
            kinds = {found.kind} if found is not None else set()
            other = named.get(name, found)
            fits = found is not None and known <= kinds and other is not None and other[1:4:2] == found[1:4:2]
            named[name] = found._replace(name=name) if found is not None and fits else None
        return {name: found for name, found in named.items() if found is not None}

    def _names_given(self) -> list[tuple[str, int]]:
        """Names that the statement gives to expressions, or to columns of a WITH, with the end of the expression."""
        given: list[tuple[str, int]] = []
        for index, token in enumerate(self.tokens):
            before = self.at(index - 1)
            if token.kind in {Kind.WORD, Kind.QUOTED, Kind.TEXT} and index > 0:
                ends_expression = before.kind in {Kind.WORD, Kind.QUOTED, Kind.TEXT} or before.mark in _BEFORE_ALIAS
                is_number = before.kind is Kind.OTHER and before.text[-1:].isalnum()
                if before.mark == "as" or ends_expression or is_number:
                    given.append((token.text.lower(), index - (before.mark == "as")))
            if token.mark == "as" and before.mark == ")" and self.at(index + 1).mark in {"(", "not", "materialized"}:
                for start, _ in self.group(self._opening.get(index - 1, index)):
                    given.append((self.at(start).text, start))
        return given

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
    statement = StatementText(sql, tables, follow_aliases=True)
    for index, starts in statement.choices().items():
        operand = statement.operand_at(index + 1)
        if operand is not None and statement.at(operand.end).mark == "when":
            for start in starts:
                _check_value(statement, operand, start)
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
        if statement.at(right).mark == "distinct":  # IS [NOT] DISTINCT FROM
            right += 2
    for end, start in statement.rows(index):
        if (column := statement.operand_before(end)) is not None:
            _check_value(statement, column, start)
    operand = statement.operand_before(index)
    if operand is not None:
        _check_value(statement, operand, right)
        return
    operand = statement.operand_at(right)
    if operand is None or statement.at(operand.end).mark in _BINDS_TIGHTER:
        return
    literal = statement.text_at(index - 1, operand)
    if literal is not None and statement.begins_operand(index - 1):
        raise _never_equal(operand, literal)
    shown = statement.text_time_before(index)
    if shown is not None:
        raise _is_text(operand, shown)


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
        for start in statement.listed(index + 1):
            _check_value(statement, operand, start)


def _check_pattern(statement: StatementText, index: int) -> None:
    """LIKE, GLOB and REGEXP, which compare with the digits of the number."""
    operand = statement.operand_before(index - (statement.at(index - 1).mark == "not"))
    if operand is not None:
        pattern = statement.text_at(index + 1, operand)
        if pattern is not None and _DATE_LIKE.search(pattern):
            raise _never_equal(operand, pattern)


def _check_value(statement: StatementText, operand: Operand, at: int) -> None:
    """The operand to the right of a comparison."""
    whole = statement.whole_operand(at)
    if whole is not None and statement.at(whole[1]).mark not in _BINDS_TIGHTER:
        literal = statement.text_at(whole[0], operand)
        if literal is not None:
            raise _never_equal(operand, literal)
    shown = statement.text_time_at(at)
    if shown is not None:
        raise _is_text(operand, shown)


def _is_text(operand: Operand, shown: str) -> SqlError:
    if operand.kind == "time":
        what, advice = "a time", f"timestamp({shown}) or ago('10 minutes')"
    else:
        what, advice = "an interval", "a number of seconds; timestamp('…') and ago('…') are for times"
    return SqlError(f"column {operand.name} is {what} in seconds, but {shown} is text: write {advice}")


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
    """Whether SQLite converts a text that is compared with a number: neither `inf` nor `1_0`, which Python reads."""
    return _NUMERIC.fullmatch(content) is not None


_NUMERIC: Final = re.compile(r"[ \t\n\v\f\r]*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?[ \t\n\v\f\r]*", re.ASCII)


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
