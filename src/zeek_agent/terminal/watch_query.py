"""The statements of `zeek-agent watch`: events of processes and sockets in one shape, restricted by its filters."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from zeek_agent.errors import UsageError

PROCESSES: Final = "processes_events"
SOCKETS: Final = "sockets_events"
COLUMNS: Final = (
    "kind",
    "seq",
    "time",
    "state",
    "pid",
    "name",
    "uid",
    "container_id",
    "entity_id",
    "parent_entity_id",
    "parent_name",
    "ppid",
    "exe",
    "cmdline",
    "exit_code",
    "duration",
    "protocol",
    "local_addr",
    "local_port",
    "remote_addr",
    "remote_port",
    "direction",
    "listener_stands_in",
    "correction",
)
_SOURCES: Final[Mapping[str, Mapping[str, str]]] = {
    PROCESSES: dict.fromkeys(COLUMNS[16:], "NULL") | {"kind": f"'{PROCESSES}'"},
    SOCKETS: dict.fromkeys(("parent_name", "ppid", "exit_code", "duration"), "NULL")
    | {"kind": f"'{SOCKETS}'", "name": "process"},
}
"""What stands for a column of COLUMNS in each table; its own name unless given."""


@dataclass(frozen=True, slots=True)
class Filters:
    """What to show. Each has alternatives; an event must match one of each that is given."""

    processes: Sequence[str] = ()
    """Process ids, names with `*` and `?`, or paths of executables with them."""
    users: Sequence[str] = ()
    """User ids and names."""
    addresses: Sequence[str] = ()
    """Addresses and blocks, of either endpoint."""
    ports: Sequence[int] = ()
    """Ports of either endpoint."""
    containers: Sequence[str] = ()
    """Container ids or the first characters of them."""


def conditions(filters: Filters, uid_of: Callable[[str], int | None]) -> Mapping[str, str]:
    """A condition in SQL by table, without the tables in which no event can match.

    `uid_of` gives the id of a user by name. Raises UsageError for an invalid filter.
    """
    common = [
        _any_of(_process(given) for given in filters.processes),
        _any_of(f"uid = {_uid(given, uid_of)}" for given in filters.users),
        _any_of(f"container_id GLOB {literal(_without_wildcards(given) + '*')}" for given in filters.containers),
    ]
    addresses = _any_of(_address(given) for given in filters.addresses)
    ports = _any_of(f"{given} IN (local_port, remote_port)" for given in filters.ports)
    found = {SOCKETS: _all_of([*common, addresses, ports], name="process")}
    if not filters.addresses and not filters.ports:
        found[PROCESSES] = _all_of(common, name="name")
    return found


@dataclass(frozen=True, slots=True)
class Position:
    """An event's place in the history, which is in the order of time."""

    time: float
    kind: str
    seq: int


def statement(wanted: Mapping[str, str]) -> str:
    """A statement with the columns COLUMNS for conditions by table, in the order of time."""
    return f"{_union(wanted, '')} ORDER BY time, kind, seq"


def past_statement(
    wanted: Mapping[str, str],
    bounds: Mapping[str, tuple[int, int]],
    since: float | None,
    after: Position | None,
    rows_max: int,
) -> str:
    """The same for stored events, of each table those with low < seq <= high, since a time and after a position."""
    limited = {
        table: f"{condition} AND seq > {bounds[table][0]} AND seq <= {bounds[table][1]}"
        + (f" AND time >= {since if after is None else after.time!r}" if since is not None or after is not None else "")
        for table, condition in wanted.items()
    }
    rest = "" if after is None else f" WHERE (time, kind, seq) > ({after.time!r}, {literal(after.kind)}, {after.seq})"
    union = _union(limited, "_history")
    return f"SELECT * FROM ({union}){rest} ORDER BY time, kind, seq LIMIT {rows_max}"


def _union(wanted: Mapping[str, str], suffix: str) -> str:
    parts = []
    for table, condition in wanted.items():
        names = ", ".join(f"{_SOURCES[table].get(column, column)} AS {column}" for column in COLUMNS)
        parts.append(f"SELECT {names} FROM {table}{suffix} WHERE {condition}")
    return " UNION ALL ".join(parts)


def literal(text: str) -> str:
    """A text as an SQL literal. Raises UsageError for a NUL, which SQL text ends with."""
    if "\0" in text:
        raise UsageError(f"not a filter: {text!r} contains a NUL")
    return "'" + text.replace("'", "''") + "'"


def _process(given: str) -> str:
    if not given:
        raise UsageError("--process: expected a process id, a name, or the path of an executable")
    if given.isascii() and given.isdigit():
        return f"pid = {given}"
    column = "exe" if "/" in given else "{name}"
    return f"{column} GLOB {literal(given).replace('{', '{{').replace('}', '}}')}"


def _uid(given: str, uid_of: Callable[[str], int | None]) -> int:
    if given.isascii() and given.isdigit():
        return int(given)
    uid = uid_of(given)
    if uid is None:
        raise UsageError(f"--user: there is no user {given!r}; a numeric id works for users that have no account")
    return uid


def _address(given: str) -> str:
    try:
        block = ipaddress.ip_network(given, strict=False)
    except ValueError:
        raise UsageError(f"--address: expected an address or a block such as 10.0.0.0/8, got {given!r}") from None
    return f"in_cidr_block('{block}', local_addr) OR in_cidr_block('{block}', remote_addr)"


def _without_wildcards(given: str) -> str:
    if re.fullmatch(r"[\w.:/-]+", given, re.ASCII) is None:
        raise UsageError(f"--container: expected a container id or the beginning of one, got {given!r}")
    return given


def _any_of(alternatives: Iterator[str]) -> str:
    return " OR ".join(f"({one})" for one in alternatives)


def _all_of(alternatives: Sequence[str], name: str) -> str:
    return " AND ".join(f"({one.format(name=name)})" for one in alternatives if one) or "1"
