"""DNS messages (RFC 1035): what was asked, and the answers as text.

Names are in presentation format without the final dot, in lower case as in Zeek's dns.log: a dot or backslash within a
label is preceded by a backslash, and a byte that is not printable ASCII is `\\DDD`.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

_HEADER: Final = struct.Struct(">HHHHHH")
_QUESTION: Final = struct.Struct(">HH")
_RECORD: Final = struct.Struct(">HHIH")
_NUMBER: Final = struct.Struct(">H")
_SERVICE: Final = struct.Struct(">HHH")
_START_OF_AUTHORITY: Final = struct.Struct(">IIIII")

_RESPONSE: Final = 0x8000
_TRUNCATED: Final = 0x0200
_POINTER: Final = 0xC0
_NAME_BYTES_MAX: Final = 255
_OPT: Final = 41
_POINTERS_MAX: Final = 127
"""Pointers that one name may follow: as many as it can have labels. More only cost the reader its time."""
ANSWERS_MAX: Final = 100
"""Answers of one message that are kept."""
TEXT_MAX: Final = 1_024
"""Characters of one answer."""

TYPES: Final[Mapping[int, str]] = {
    1: "A",
    2: "NS",
    5: "CNAME",
    6: "SOA",
    12: "PTR",
    13: "HINFO",
    15: "MX",
    16: "TXT",
    24: "SIG",
    25: "KEY",
    28: "AAAA",
    29: "LOC",
    33: "SRV",
    35: "NAPTR",
    37: "CERT",
    39: "DNAME",
    41: "OPT",
    43: "DS",
    44: "SSHFP",
    45: "IPSECKEY",
    46: "RRSIG",
    47: "NSEC",
    48: "DNSKEY",
    50: "NSEC3",
    51: "NSEC3PARAM",
    52: "TLSA",
    53: "SMIMEA",
    59: "CDS",
    60: "CDNSKEY",
    61: "OPENPGPKEY",
    64: "SVCB",
    65: "HTTPS",
    99: "SPF",
    249: "TKEY",
    250: "TSIG",
    251: "IXFR",
    252: "AXFR",
    255: "ANY",
    256: "URI",
    257: "CAA",
}
"""Names of types; others are `TYPE` and the number (RFC 3597)."""

CODES: Final[Mapping[int, str]] = {
    0: "NOERROR",
    1: "FORMERR",
    2: "SERVFAIL",
    3: "NXDOMAIN",
    4: "NOTIMP",
    5: "REFUSED",
    6: "YXDOMAIN",
    7: "YXRRSET",
    8: "NXRRSET",
    9: "NOTAUTH",
    10: "NOTZONE",
    16: "BADVERS",
    23: "BADCOOKIE",
}
"""Names of response codes, with the upper bits of OPT (RFC 6891)."""

_SPECIAL: Final = re.compile(rb'[.\\"();@$]|[^\x21-\x7e]')
_UNPRINTABLE: Final = re.compile(rb'["\\]|[^\x20-\x7e]')


class Answer(NamedTuple):
    """A record of the answer section. `text` is the address, the name, or the data in presentation format."""

    name: str
    type: int
    text: str


class Message(NamedTuple):
    """A message. `truncated`: the server left out something (TC), or the end is missing here."""

    id: int
    is_response: bool
    code: int
    truncated: bool
    name: str | None
    type: int | None
    answers: tuple[Answer, ...]


class DnsError(ValueError):
    """The bytes are not a DNS message, or end within its header or question."""


def type_name(number: int) -> str:
    """The name of a record's type."""
    return TYPES.get(number) or f"TYPE{number}"


def code_name(number: int) -> str:
    """The name of a response code."""
    return CODES.get(number) or f"RCODE{number}"


def parse(raw: bytes, *, is_cut: bool = False) -> Message:
    """Read a message. `is_cut`: its end is missing. Raises DnsError if header or question cannot be read."""
    try:
        identity, flags, questions, answers, authorities, additional = _HEADER.unpack_from(raw)
        name = kind = None
        at = _HEADER.size
        if questions:
            name, at = _name(raw, at)
            kind, _ = _QUESTION.unpack_from(raw, at)
            at += _QUESTION.size
        for _ in range(questions - 1):
            at = _skip_name(raw, at) + _QUESTION.size
        if at > len(raw):
            raise DnsError("the message ends within its questions")
    except struct.error as error:
        raise DnsError("the message ends within its header or question") from error
    is_response, code = bool(flags & _RESPONSE), flags & 0xF
    truncated = is_cut or bool(flags & _TRUNCATED)
    read: list[Answer] = []
    try:
        for _ in range(min(answers, ANSWERS_MAX)):
            answer, at = _answer(raw, at)
            read.append(answer)
        if answers > ANSWERS_MAX:
            truncated = True
        else:
            code |= _upper_bits(raw, at, authorities, additional) << 4
    except (DnsError, struct.error):
        truncated = True
    return Message(identity, is_response, code, truncated, name, kind, tuple(read))


def _upper_bits(raw: bytes, at: int, authorities: int, additional: int) -> int:
    """The upper eight bits of the response code, from the record OPT; 0 without one."""
    for _ in range(authorities):
        at = _skip(raw, at)
    for _ in range(additional):
        kind, _, extended, size = _RECORD.unpack_from(raw, at := _skip_name(raw, at))
        if kind == _OPT:
            return int(extended) >> 24
        at += _RECORD.size + int(size)
    return 0


def _skip(raw: bytes, at: int) -> int:
    at = _skip_name(raw, at)
    *_, size = _RECORD.unpack_from(raw, at)
    return at + _RECORD.size + int(size)


def _skip_name(raw: bytes, at: int) -> int:
    """The offset behind a name that nobody wants to know: no pointer is followed, so this costs what it passes."""
    while length := _byte(raw, at):
        if length & _POINTER == _POINTER:
            return at + 2
        if length & _POINTER:
            raise DnsError("a label of an unknown kind")
        at += 1 + length
    return at + 1


def _answer(raw: bytes, at: int) -> tuple[Answer, int]:
    name, at = _name(raw, at)
    kind, _, _, size = _RECORD.unpack_from(raw, at)
    begin = at + _RECORD.size
    end = begin + size
    if end > len(raw):
        raise DnsError("the message ends within a record")
    reader = _READERS.get(kind)
    try:
        text = reader(raw, begin, end) if reader is not None else None
    except (DnsError, struct.error, OSError):
        text = None
    return Answer(name, kind, (_generic(raw[begin:end]) if text is None else text)[:TEXT_MAX]), end


def _name(raw: bytes, at: int, limit: int | None = None) -> tuple[str, int]:
    """The name at an offset, `.` for the root, and the offset behind it, which must not be beyond `limit`."""
    labels: list[str] = []
    size, after, before, pointers = 1, None, at, 0
    while True:
        length = _byte(raw, at)
        if length & _POINTER:
            pointers += 1
            if pointers > _POINTERS_MAX:
                raise DnsError("a name of too many pointers")
            after = at + 2 if after is None else after
            at = before = _target(raw, at, before)
            continue
        at += 1
        if length == 0:
            break
        size += length + 1
        if size > _NAME_BYTES_MAX or at + length > len(raw):
            raise DnsError("a name is too long, or the message ends within it")
        labels.append(_label(raw[at : at + length]))
        at += length
    end = at if after is None else after
    if limit is not None and end > limit:
        raise DnsError("a name beyond its record")
    return ".".join(labels) or ".", end


def _target(raw: bytes, at: int, before: int) -> int:
    """Where a pointer leads: backwards only, so that every name ends."""
    if raw[at] & _POINTER != _POINTER:
        raise DnsError("a label of an unknown kind")
    target = (raw[at] & ~_POINTER) << 8 | _byte(raw, at + 1)
    if target >= before:
        raise DnsError("a pointer does not lead backwards")
    return target


def _byte(raw: bytes, at: int) -> int:
    if at >= len(raw):
        raise DnsError("the message ends within a name")
    return raw[at]


def _label(label: bytes) -> str:
    if _SPECIAL.search(label) is not None:
        label = _SPECIAL.sub(_escape, label)
    return label.decode("ascii").lower()


def _escape(match: re.Match[bytes]) -> bytes:
    byte = match[0]
    return b"\\" + byte if 0x21 <= byte[0] <= 0x7E else b"\\%03d" % byte[0]


def _generic(data: bytes) -> str:
    """Data of an unknown type (RFC 3597)."""
    return f"\\# {len(data)} {data.hex()}".rstrip()


def _address(family: int, size: int) -> Callable[[bytes, int, int], str | None]:
    def read(raw: bytes, begin: int, end: int) -> str | None:
        return socket.inet_ntop(family, raw[begin:end]) if end - begin == size else None

    return read


def _one_name(raw: bytes, begin: int, end: int) -> str:
    name, _ = _name(raw, begin, end)
    return name


def _mail_exchange(raw: bytes, begin: int, end: int) -> str:
    (preference,) = _NUMBER.unpack_from(raw, begin)
    return f"{preference} {_one_name(raw, begin + _NUMBER.size, end)}"


def _service(raw: bytes, begin: int, end: int) -> str:
    priority, weight, port = _SERVICE.unpack_from(raw, begin)
    return f"{priority} {weight} {port} {_one_name(raw, begin + _SERVICE.size, end)}"


def _start_of_authority(raw: bytes, begin: int, end: int) -> str:
    source, at = _name(raw, begin, end)
    mailbox, at = _name(raw, at, end)
    numbers = _START_OF_AUTHORITY.unpack_from(raw, at)
    return " ".join([source, mailbox, *map(str, numbers)])


def _strings(raw: bytes, begin: int, end: int) -> str:
    found = []
    while begin < end:
        text = raw[begin + 1 : begin + 1 + raw[begin]]
        if len(text) < raw[begin] or begin + 1 + raw[begin] > end:
            raise DnsError("a string beyond its record")
        found.append('"' + _UNPRINTABLE.sub(_quote, text).decode("ascii") + '"')
        begin += 1 + raw[begin]
    return " ".join(found)


def _quote(match: re.Match[bytes]) -> bytes:
    byte = match[0]
    return b"\\" + byte if 0x20 <= byte[0] <= 0x7E else b"\\%03d" % byte[0]


_READERS: Final[Mapping[int, Callable[[bytes, int, int], str | None]]] = {
    1: _address(socket.AF_INET, 4),
    28: _address(socket.AF_INET6, 16),
    2: _one_name,
    5: _one_name,
    12: _one_name,
    39: _one_name,
    15: _mail_exchange,
    33: _service,
    6: _start_of_authority,
    16: _strings,
    99: _strings,
}
