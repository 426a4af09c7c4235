"""osquery's tables as tables of this agent: discovery, names and reading."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Final

import msgspec

from zeek_agent.errors import LimitError, SqlError
from zeek_agent.masking.masker import Masker
from zeek_agent.masking.text_rules import MASK
from zeek_agent.osquery import osquery_sql
from zeek_agent.osquery.client import OsqueryClient
from zeek_agent.osquery.wire import ConnectionLostError, OsqueryRefusedError, OsqueryRow, UnreachableError
from zeek_agent.schema import Column
from zeek_agent.table import Constraints, LookupTable, Table
from zeek_agent.text import to_bytes

PREFIX: Final = "osquery_"
OFFERED: Final = (
    "SELECT name, owner_uuid FROM osquery_registry WHERE registry = 'table' AND active = 1 AND internal = 0"
)
SUBSCRIBERS: Final = "SELECT name FROM osquery_events WHERE type = 'subscriber'"
DECODED_ROWS: Final = 1_000
"""Rows decoded together column by column, few enough to stay in the processor's cache."""
COMMAND_LINES: Final = frozenset({"args", "cmdline", "command", "created_by"})
"""Columns whose text is masked: of processes, crontabs, startup items, containers and steps of their images."""
ARGUMENTS: Final = frozenset({"json_cmdline"})
"""Columns with arguments as a list in JSON, each of which is masked."""
ENVIRONMENTS: Final = frozenset({"env", "env_variables", "environment"})
"""Columns whose values are withheld, because the environment of a process is never shown."""

REQUIRED: Final[Mapping[str, frozenset[str]]] = {
    table: frozenset(columns.split())
    for table, columns in {
        "authenticode": "path",
        "curl": "url",
        "curl_certificate": "hostname",
        "device_file": "device partition",
        "device_hash": "device partition inode",
        "device_partitions": "device",
        "docker_container_fs_changes": "id",
        "docker_container_processes": "id",
        "docker_container_stats": "id",
        "extended_attributes": "path directory",
        "file": "path directory",
        "hash": "path directory",
        "lxd_instance_config": "name",
        "lxd_instance_devices": "name",
        "magic": "path",
        "mdfind": "query",
        "mdls": "path",
        "ntfs_acl_permissions": "path",
        "package_bom": "path",
        "plist": "path",
        "process_open_handles": "pid",
        "signature": "path",
        "system_profiler": "data_type",
        "windows_eventlog": "channel xpath",
        "yara_file": "path",
        "yara_process": "pid",
    }.items()
}
"""Columns of which one requires a value, by osquery's table specifications; the protocol does not report it."""

OF_A_USER: Final = frozenset(
    {
        *("authorized_keys", "browser_plugins", "chrome_extension_content_scripts", "chrome_extensions", "crashes"),
        *("firefox_addons", "jetbrains_plugins", "known_hosts", "preferences", "python_packages", "recent_files"),
        *("safari_extensions", "shell_history", "ssh_configs", "user_ssh_keys", "vscode_extensions"),
    }
)
"""Tables that only show items of osquery's own user unless `uid` has a value, as in a join with `users`."""


@dataclass(frozen=True, slots=True)
class OsqueryTable:
    """A table in osquery: its owner (0 for osquery itself, else an extension's uuid), and its columns."""

    name: str
    owner: int
    columns: tuple[Column, ...]
    events: bool


@dataclass(frozen=True, slots=True)
class ImportRules:
    """Which of osquery's tables are imported, and how many rows at a time."""

    rows_max: int
    exclude: Sequence[str] = ()
    event_tables: Sequence[str] = ()
    prefer: Sequence[str] = ()
    required: Mapping[str, frozenset[str]] = field(default_factory=lambda: REQUIRED)

    def wants(self, table: str) -> bool:
        return not any(fnmatchcase(table, pattern) for pattern in self.exclude)

    def replaces(self, table: str) -> bool:
        """Whether this table is used rather than the agent's with the same columns."""
        return self.records(table) or any(fnmatchcase(table, pattern) for pattern in self.prefer)

    def records(self, table: str) -> bool:
        """Whether the rows of this event table are recorded."""
        return any(fnmatchcase(table, pattern) for pattern in self.event_tables)


def required(additional: Iterable[str]) -> dict[str, frozenset[str]]:
    """The required columns by table, with others as `table.column`."""
    found = dict(REQUIRED)
    for item in additional:
        table, _, column = item.partition(".")
        found[table] = found.get(table, frozenset()) | {column}
    return found


def offered(
    client: OsqueryClient, rules: ImportRules, known: Mapping[str, OsqueryTable], ours: Collection[int]
) -> dict[str, OsqueryTable]:
    """osquery's current tables, by name. Columns of tables that are `known` with the same owner are not queried again.

    Tables of the extensions `ours` are omitted. Raises UnreachableError, ConnectionLostError and OsqueryRefusedError.
    """
    rows = [_texts(row) for row in client.query(OFFERED)]
    owners = {row["name"]: int(row.get("owner_uuid") or 0) for row in rows}
    wanted = {name: owner for name, owner in owners.items() if owner not in ours and rules.wants(name)}
    if all(name in known and known[name].owner == owner for name, owner in wanted.items()):
        return {name: known[name] for name in wanted}
    subscribers = {_texts(row)["name"] for row in client.query(SUBSCRIBERS)} if "osquery_events" in owners else set()
    found = {}
    for name, owner in wanted.items():
        before = known.get(name)
        if before is not None and before.owner == owner:
            found[name] = before
        elif columns := _columns(client, name):
            events = name in subscribers or (name.endswith("_events") and name != "osquery_events")
            found[name] = OsqueryTable(name, owner, columns, events)
    return found


def _columns(client: OsqueryClient, table: str) -> tuple[Column, ...]:
    """The table's columns; none if it has been removed meanwhile."""
    try:
        rows = [_texts(row) for row in client.query(f"PRAGMA table_info({osquery_sql.identifier(table)})")]
        types = [(row["name"], row["type"]) for row in sorted(rows, key=lambda row: int(row["cid"]))]
    except (OsqueryRefusedError, KeyError, ValueError):
        types = []
    if not types:
        try:
            with client.connected() as connection:
                types = connection.columns(f"SELECT * FROM {osquery_sql.identifier(table)}")
        except OsqueryRefusedError:
            return ()
    return tuple(Column(name, osquery_sql.TYPES.get(kind.upper(), "text"), f"osquery's {kind}") for name, kind in types)


def _texts(row: OsqueryRow) -> dict[str, str]:
    return {name: value if isinstance(value, str) else value.decode(errors="replace") for name, value in row.items()}


def tables(found: Iterable[OsqueryTable], taken: Collection[str], reader: OsqueryReader) -> Iterator[Table]:
    """The tables for SQL: each under its own name, unless that is taken, and as `osquery_<name>`."""
    names = {one.name for one in found} | set(taken)
    for one in found:
        prefixed = one.name if one.name.startswith(PREFIX) else f"{PREFIX}{one.name}"
        if one.name not in taken:
            yield _table(one.name, one, reader, alias=False)
        if prefixed not in names:
            yield _table(prefixed, one, reader, alias=one.name not in taken)


def _table(name: str, one: OsqueryTable, reader: OsqueryReader, *, alias: bool) -> Table:
    names = {column.name for column in one.columns}
    decisive = {"uid"} & names if one.name in OF_A_USER else set()
    opaque = frozenset(_MASKS.keys() & names)
    needed = reader.rules.required.get(one.name, frozenset()) & names
    table = LookupTable(
        name,
        f"osquery's table {one.name}",
        description=f"The table {one.name} of the osquery running on the host.",
        columns=one.columns,
        alias=alias,
        osquery_name=one.name,
        required=needed,
        decisive=decisive,
        opaque=opaque,
        remote=True,
    )
    table.snapshot(lambda wanted: reader.rows(name, one, wanted))
    return table


class OsqueryReader:
    """Reads rows of osquery's tables. `null` is osquery's text for NULL; `masker` masks command lines."""

    def __init__(self, client: OsqueryClient, rules: ImportRules, masker: Masker) -> None:
        self.rules = rules
        self.null = ""
        self._client = client
        self._masker = masker

    def rows(self, name: str, table: OsqueryTable, wanted: Constraints) -> Iterator[tuple[Any, ...]]:
        """The rows with the wanted columns; other cells are None.

        Raises SqlError if osquery does not answer, LimitError if there are too many rows.
        """
        read = [column for column in table.columns if column.name in wanted.columns]

        def decode(rows: Sequence[OsqueryRow]) -> list[tuple[Any, ...]]:
            return self.decoded(name, rows, table.columns, read)

        sql = osquery_sql.select_statement(table.name, read, wanted, self.rules.rows_max)
        try:
            rows = self._client.shared_query(
                sql, osquery_sql.statement_kind(table.name, read, wanted), decode, wanted.check
            )
        except (UnreachableError, ConnectionLostError, OsqueryRefusedError) as error:
            raise SqlError(f"table {name}: osquery: {error}") from error
        if len(rows) > self.rules.rows_max:
            raise LimitError(
                f"table {name}: osquery has more than {self.rules.rows_max} rows (osquery.rows); restrict the query"
            )
        return iter(rows)

    def decoded(
        self, name: str, rows: Sequence[OsqueryRow], columns: Sequence[Column], read: Collection[Column]
    ) -> list[tuple[Any, ...]]:
        """osquery's rows as tuples with one cell per column, None for columns that were not read.

        Command lines are masked.
        """
        failed = self._undecodable(name)
        decoders = [
            osquery_sql.OsqueryDecoder(column, self.null, failed) if column in read else None for column in columns
        ]
        decoded: list[tuple[Any, ...]] = []
        for start in range(0, len(rows), DECODED_ROWS):
            chunk = rows[start : start + DECODED_ROWS]
            nothing = [None] * len(chunk)
            cells = (nothing if decoder is None else decoder.column(chunk) for decoder in decoders)
            decoded += zip(*cells, strict=True)
        return _masked(decoded, columns, self._masker)

    def _undecodable(self, name: str) -> Callable[[str, str | bytes], None]:
        counters = self._client.counters

        def count(column: str, cell: str | bytes) -> None:
            counters.undecodable += 1
            counters.last_error = f"table {name}, column {column}: {cell[:40]!r} does not match its type"

        return count


def _masked(rows: list[tuple[Any, ...]], columns: Sequence[Column], masker: Masker) -> list[tuple[Any, ...]]:
    """The rows with command lines and environments masked."""
    masks = {
        index: partial(_MASKS[column.name], masker) for index, column in enumerate(columns) if column.name in _MASKS
    }
    if not masks:
        return rows
    return [
        tuple(
            masks[index](cell) if index in masks and isinstance(cell, str) else cell for index, cell in enumerate(row)
        )
        for row in rows
    ]


def _masked_arguments(masker: Masker, cell: str) -> str:
    """A list of arguments in JSON, masked; text that is not such a list is masked as a line."""
    try:
        arguments = _decode_arguments(cell)
    except msgspec.MsgspecError:
        return masker.line(cell)
    if not arguments:
        return cell
    raw = b"".join(to_bytes(argument).replace(b"\0", b" ") + b"\0" for argument in arguments)
    return msgspec.json.encode(masker.command_line(raw).arguments.split("\0")).decode()


def _withheld(_: Masker, cell: str) -> str:
    return MASK if cell else cell


_decode_arguments: Final = msgspec.json.Decoder(list[str]).decode
_MASKS: Final[Mapping[str, Callable[[Masker, str], str]]] = {
    **dict.fromkeys(COMMAND_LINES, Masker.line),
    **dict.fromkeys(ARGUMENTS, _masked_arguments),
    **dict.fromkeys(ENVIRONMENTS, _withheld),
}
