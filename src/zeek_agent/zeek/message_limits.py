"""Limits on the names and strings in messages, checked before any part of a message is stored, logged or passed on.

A message that exceeds a limit is refused as a whole, with an error that names the field; nothing else is affected.
Frames can be `zeek.message_bytes_max` long, so without these limits each of a thousand queries could occupy four
megabytes, several times over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from zeek_agent.text import byte_length, clipped
from zeek_agent.zeek.protocol import CancelQuery, InstallQuery, RowsAck, ZeekEvent, ZeekHello

NAME_BYTES_MAX: Final = 1_024
"""Names of instances, queries, events, streams, tables, features, versions. Zeek's own have 20 to 60 bytes."""
NAMES_MAX: Final = 1_000
"""Tables in one query's conditions, or features of one package. An agent with osquery has 300 tables."""
TOPIC_BYTES_MAX: Final = 1_024
"""A topic contains one or two names."""
SUBSCRIPTION_BYTES_MAX: Final = 131_072
"""Total of the topics of one connection to the collector. An agent in a hundred groups has 400 topics of 80 bytes."""
COOKIE_BYTES_MAX: Final = 65_536
"""A script's own text, which is returned with each row or batch. The packages send none, or a few words; a script may
send a record as JSON."""
INSTALLED_BYTES_MAX: Final = 16 * 1024 * 1024
"""Total strings of all queries installed over one connection. A cluster of 60 nodes with 20 queries of 2 KB each needs
2.4 MB."""


def excess(event: ZeekEvent) -> str | None:
    """The limit that a message exceeds, as text; None if it exceeds none."""
    for what, text, most in _texts(event):
        if byte_length(text) > most:
            return f"{what} is longer than {most:,} bytes: {clipped(text)}"
    for what, names in _sets(event):
        if len(names) > NAMES_MAX:
            return f"{what} has {len(names):,} members, more than {NAMES_MAX:,}"
    return None


def _texts(event: ZeekEvent) -> Iterator[tuple[str, str, int]]:
    yield "the instance's id", event.instance, NAME_BYTES_MAX
    match event:
        case InstallQuery(query_id=query_id, query=query):
            yield "the query's id", query_id, NAME_BYTES_MAX
            yield "the event's name", query.event, NAME_BYTES_MAX
            yield "the cookie", query.cookie or "", COOKIE_BYTES_MAX
            yield "the dialect", query.dialect or "", NAME_BYTES_MAX
        case CancelQuery(query_id=query_id):
            yield "the query's id", query_id, NAME_BYTES_MAX
        case RowsAck(query_id=query_id, stream=stream):
            yield "the query's id", query_id, NAME_BYTES_MAX
            yield "the stream", stream, NAME_BYTES_MAX
        case ZeekHello(version=version, package_version=package):
            yield "Zeek's version", version, NAME_BYTES_MAX
            yield "the package's version", package, NAME_BYTES_MAX
    for what, names in _sets(event):
        for name in names:
            yield f"a name in {what}", name, NAME_BYTES_MAX


def _sets(event: ZeekEvent) -> Iterator[tuple[str, frozenset[str]]]:
    match event:
        case InstallQuery(query=query):
            yield "requires_tables", query.requires_tables
            yield "if_missing_tables", query.if_missing_tables
        case ZeekHello(features=features):
            yield "features", features
