"""Certificate revocation lists (RFC 5280) of the authorities that sign agents' certificates.

OpenSSL judges certificates by them. They are read here to report a list that would have it refuse every agent, and to
end open connections.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from zeek_agent.errors import UsageError

LIST_BYTES_MAX: Final = 64 * 1024 * 1024
"""Longest file: more than a million certificates."""
_BLOCK: Final = re.compile(rb"-----BEGIN X509 CRL-----([A-Za-z0-9+/=\s]+)-----END X509 CRL-----")
_INTEGER, _SEQUENCE, _UTC_TIME, _GENERALIZED_TIME = 0x02, 0x30, 0x17, 0x18


class RevocationList(NamedTuple):
    """One list: the encoded name of its authority, when the next one was promised, and the revoked serial numbers."""

    issuer: bytes
    next_update: float | None
    serials: frozenset[int]


def read(file: str) -> list[RevocationList]:
    """The lists in a PEM file. Raises UsageError that names the file."""
    try:
        with Path(file).open("rb") as stream:
            text = stream.read(LIST_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"collector.tls.crl: cannot read {file}: {error.strerror}") from None
    if len(text) > LIST_BYTES_MAX:
        raise UsageError(f"collector.tls.crl: cannot use {file}: it is longer than {LIST_BYTES_MAX:,} bytes")
    try:
        lists = [_list(base64.b64decode(match[1])) for match in _BLOCK.finditer(text)]
    except (ValueError, IndexError):
        raise UsageError(f"collector.tls.crl: cannot use {file}: a revocation list in it is damaged") from None
    if not lists:
        raise UsageError(f"collector.tls.crl: cannot use {file}: it contains no revocation list in PEM format")
    return lists


def check(file: str, authorities: Sequence[bytes], now: float) -> None:
    """Raises UsageError for lists with which no agent could connect: `authorities` are encoded certificates."""
    lists = read(file)
    if not any(one.issuer in authority for one in lists for authority in authorities):
        raise UsageError(f"collector.tls.crl: cannot use {file}: it is of no authority in collector.tls.client_ca")
    for one in lists:
        if one.next_update is not None and one.next_update <= now:
            expired = datetime.fromtimestamp(one.next_update, UTC).strftime("%Y-%m-%d")
            raise UsageError(
                f"collector.tls.crl: {file} has expired on {expired}: get a new one from its authority "
                "(zeek-agent fleet services)"
            )


def _list(encoded: bytes) -> RevocationList:
    """Raises ValueError or IndexError for what is not a list."""
    (_, outer, _), *_ = _items(encoded)
    (_, signed, _), *_ = _items(outer)
    items = list(_items(signed))
    if items[0][0] == _INTEGER:
        del items[0]  # the version
    (_, _, _), (kind, _, issuer), (_, _, _), *rest = items
    if kind != _SEQUENCE:
        raise ValueError("no issuer")
    next_update = None
    if rest and rest[0][0] in {_UTC_TIME, _GENERALIZED_TIME}:
        next_update = _time(*rest.pop(0)[:2])
    entries = rest[0][1] if rest and rest[0][0] == _SEQUENCE else b""
    serials = frozenset(int.from_bytes(next(_items(entry))[1]) for _, entry, _ in _items(entries))
    return RevocationList(issuer, next_update, serials)


def _items(encoded: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Tag, contents and encoding of each value in a DER sequence. Raises ValueError or IndexError."""
    at = 0
    while at < len(encoded):
        begin, tag, length = at, encoded[at], encoded[at + 1]
        at += 2
        if length >= 0x80:
            digits = length & 0x7F
            length = int.from_bytes(encoded[at : at + digits])
            at += digits
        if at + length > len(encoded):
            raise ValueError("a value is cut off")
        yield tag, encoded[at : at + length], encoded[begin : at + length]
        at += length


def _time(tag: int, text: bytes) -> float:
    pattern = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(text.decode("ascii"), pattern).replace(tzinfo=UTC).timestamp()
