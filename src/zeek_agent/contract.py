"""What every table keeps, as checks for tests of the agent's tables and of plug-ins.

A test of a plug-in needs one line for each table: `assert contract.problems(table) == []`.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from zeek_agent import platforms
from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import AccessSettings, LimitSettings
from zeek_agent.database.database import Database, Lane, Profile
from zeek_agent.errors import SqlError
from zeek_agent.host.files.reads import FileReads
from zeek_agent.platforms import Platform
from zeek_agent.schema import Row, Value, ZeekType
from zeek_agent.table import Constraints, LookupTable, Table, TableContext
from zeek_agent.tables import builtin_tables

TIME_MAX: Final = 253_402_300_800.0
"""The year 10000: Zeek cannot write later dates."""


class NoAgent:
    """An agent that has just started and that has no data, for tables that are read without one."""

    id = "HsCElvPqe0P8W73ADijZGY"
    instance = "IsCElvPqe0P8W73ADijZGY"
    hostname = "host.example"
    pid = os.getpid()

    def __init__(self, tables: Iterable[Table] = ()) -> None:
        self._tables = list(tables)

    def uptime(self) -> float:
        return 1.5

    def tables(self) -> Iterable[Table]:
        return [*builtin_tables(), *self._tables]

    def recorded(
        self,
        sql: str,
        bindings: Sequence[int | float | str | None] = (),
        check: Callable[[], None] = lambda: None,
        functions: Mapping[str, Callable[..., Any]] | None = None,
    ) -> Iterable[Row]:
        return ()

    def connections(self) -> Iterable[Row]:
        return ()

    def queries(self) -> Iterable[Row]:
        return ()

    def workers(self) -> Iterable[Row]:
        return ()

    def sources(self) -> Iterable[Row]:
        return ()

    def gaps(self) -> Iterable[Row]:
        return ()

    def log(self) -> Iterable[Row]:
        return ()

    def config(self) -> Iterable[Row]:
        return ()


def rows(table: Table, *arguments: Value, platform: Platform = platforms.HERE) -> list[dict[str, Value]]:
    """The rows that a snapshot table yields now, by column. `arguments` are those of its parameters, in order.

    Its function runs in this process, with the privileges of the test and without the limits of an agent. If columns
    require a value, the constraints are those of the table's first example.
    """
    given = {parameter.name: parameter.default for parameter in table.parameters}
    given.update(zip(given, arguments, strict=False))  # type: ignore[arg-type]
    names = [column.name for column in table.columns]
    context = TableContext(NoAgent([table]), _access(table), FileReads(), platform=platform)
    equal = {name: frozenset([value]) for name, value in _exemplary(table).items()}
    wanted = Constraints(context, given, equal, columns=frozenset(names))
    return [dict(zip(names, row, strict=True)) for row in table.rows(wanted)]


def problems(table: Table, arguments: Sequence[Value] = (), platform: Platform = platforms.HERE) -> list[str]:
    """Everything in which the table breaks its contract; empty if it is sound.

    The declaration is complete and documented; each row that the table yields now obeys it; SQL shows the declared
    columns and types; each example runs. `arguments` are those of the table's required parameters.
    """
    found = [*undocumented(table)]
    if table.kind == "snapshot":
        try:
            found += [text for row in rows(table, *arguments, platform=platform) for text in misfits(table, row)]
        except ValueError as error:
            found.append(f"a row has too few or too many values: {error}")
    return [*found, *platforms.HERE.run(_sql_problems(table, arguments, platform))]


def undocumented(table: Table) -> Iterator[str]:
    """What the documentation that is generated from the declaration would lack."""
    if not table.summary or not table.summary[0].islower() or table.summary.endswith("."):
        yield "the summary has to begin with a small letter and to end without a full stop"
    if not table.description.endswith("."):
        yield "the description has to end with a full stop"
    if not table.examples:
        yield "there is no example"
    elif isinstance(table, LookupTable) and table.required and not table.required & _exemplary(table).keys():
        yield "the first example has to give a required column a value by ="
    for example in table.examples:
        if re.search(rf"\b{re.escape(table.name)}\b", example) is None:
            yield f"an example is about another table: {example}"
    summaries = [(one.name, one.summary) for one in table.columns] + [(p.name, p.summary) for p in table.parameters]
    for name, summary in summaries:
        if not summary or summary.endswith("."):
            yield f"{name}: the summary has to be there, without a full stop at its end"


def misfits(table: Table, row: Mapping[str, Value]) -> Iterator[str]:
    """The values of a row that are not of their columns' types."""
    for column in table.columns:
        value = row[column.name]
        if value is not None and not fits(column.zeek_type, value):
            yield f"{column.name}: {value!r} is not a {column.type}"


def fits(zeek_type: ZeekType, cell: Any) -> bool:
    """Whether a cell is one of its column's type, as a table yields it."""
    if zeek_type.element is None:
        return _FITS[zeek_type.name](cell)
    if isinstance(cell, str | bytes | Mapping) or not isinstance(cell, Iterable):
        return False
    members = list(cell)
    is_unique = zeek_type.name == "vector" or len({repr(member) for member in members}) == len(members)
    return is_unique and all(fits(zeek_type.element, member) for member in members)


async def _sql_problems(table: Table, arguments: Sequence[Value], platform: Platform) -> list[str]:
    context = TableContext(NoAgent([table]), _access(table), platform=platform)
    database = Database([*builtin_tables(platform.key), table], context, LimitSettings())
    try:
        return [text async for text in _sql_checks(database, table, arguments)]
    finally:
        await database.aclose()


async def _sql_checks(database: Database, table: Table, arguments: Sequence[Value]) -> Any:
    call = f"{table.name}({', '.join(map(_literal, arguments))})" if arguments else table.name
    call += "".join(
        f" {'AND' if number else 'WHERE'} {name} = {_literal(value)}"
        for number, (name, value) in enumerate(_exemplary(table).items())
    )
    for profile in Profile if table.osquery_name is not None else (Profile.FULL, Profile.STOCK):
        shown = [one for one in table.columns if not one.hidden and (profile is not Profile.STOCK or not one.added)]
        try:
            result = await database.query(f"SELECT * FROM {call}", profile=profile, lane=Lane.LOCAL)
        except SqlError as error:
            yield f"SELECT * FROM {call}: {error}"
            continue
        is_typed = table.kind != "view"  # whose columns have types of the columns or expressions that they stand for
        if [(one.name, is_typed and one.type) for one in result.columns] != [
            (one.name, is_typed and one.zeek_type) for one in shown
        ]:
            yield f"SQL shows other columns than those declared: {', '.join(one.name for one in result.columns)}"
        for text in result.errors:
            yield text
    for example in table.examples:
        try:
            result = await database.query(example, lane=Lane.LOCAL)
        except SqlError as error:
            yield f"the example {example!r} fails: {error}"
        else:
            for text in result.errors:
                yield f"the example {example!r}: {text}"


def _exemplary(table: Table) -> dict[str, int | str]:
    """The values that columns have in the first example, if the table has required columns."""
    if not isinstance(table, LookupTable) or not table.examples or not table.required:
        return {}
    found = re.findall(r"\b(\w+) = (?:'([^']*)'|(\d+))", table.examples[0])
    names = {column.name for column in table.columns}
    return {name: int(number) if number else text for name, text, number in found if name in names}


def _literal(value: Value) -> str:
    return str(value) if isinstance(value, int | float) else "'" + str(value).replace("'", "''") + "'"


def _access(table: Table) -> AccessPolicy:
    """Rules under which the table may use what it declares, show secrets, and read all files but the denied ones."""
    return AccessPolicy(AccessSettings(secrets_deny=(), files_allow=("/**",), privileges_allow=(table.name,)))


def _is_text(cell: Any) -> bool:
    """Text that SQLite and Zeek can hold: no lone surrogates."""
    if not isinstance(cell, str):
        return False
    try:
        cell.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_address(cell: Any) -> bool:
    try:
        return isinstance(cell, str) and str(ipaddress.ip_address(cell)) == cell
    except ValueError:
        return False


def _is_port(cell: Any) -> bool:
    match cell:
        case (int(number), str(protocol)):
            return 0 <= number <= 65_535 and protocol in {"tcp", "udp", "icmp", "unknown"}
    return False


def _is_real(cell: Any) -> bool:
    return isinstance(cell, float) and math.isfinite(cell)


_FITS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "address": _is_address,
    "blob": lambda cell: isinstance(cell, bytes),
    "bool": lambda cell: isinstance(cell, bool),
    "count": lambda cell: type(cell) is int and 0 <= cell < 2**63,
    "enum": _is_text,
    "int": lambda cell: type(cell) is int and -(2**63) <= cell < 2**63,
    "interval": _is_real,
    "port": _is_port,
    "real": _is_real,
    "record": lambda cell: isinstance(cell, Mapping) and all(map(_is_text, cell)),
    "text": _is_text,
    "time": lambda cell: _is_real(cell) and 0 <= cell < TIME_MAX,
}
