"""osquery's tables in a worker process, which gets a description of them and a connection from the agent."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

import msgspec
from msgspec import Struct

from zeek_agent.masking.masker import Masker
from zeek_agent.osquery.client import OsqueryClient
from zeek_agent.osquery.imported import ImportRules, OsqueryReader, OsqueryTable, tables
from zeek_agent.table import Table


class ImportDescription(Struct, frozen=True):
    """What a worker needs to know of osquery. `null` is what stands for NULL in its rows."""

    offered: list[OsqueryTable]
    taken: list[str]
    rows_max: int
    required: Mapping[str, frozenset[str]]
    null: str
    timeout: float


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(ImportDescription).decode


def describe(offered: Iterable[OsqueryTable], taken: Collection[str], reader: OsqueryReader, timeout: float) -> bytes:
    """The description; empty without tables."""
    found = list(offered)
    if not found:
        return b""
    rules = reader.rules
    return _encode(ImportDescription(found, sorted(taken), rules.rows_max, rules.required, reader.null, timeout))


def tables_from(description: bytes, dial: Callable[[], socket.socket], masker: Masker) -> list[Table]:
    """The tables. `dial` makes a connection to osquery; it raises SqlError."""
    if not description:
        return []
    found = _decode(description)
    client = OsqueryClient(lambda: "osquery", found.timeout, dial=lambda path, timeout: dial())
    reader = OsqueryReader(client, ImportRules(found.rows_max, required=found.required), masker)
    reader.null = found.null
    return list(tables(found.offered, found.taken, reader))
