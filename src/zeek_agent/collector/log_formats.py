"""Zeek's log formats: TSV exactly like its ASCII writer, or JSON.

The rules are those of Zeek 9 with its default settings (`src/logging/writers/ascii`, `src/threading/formatters`,
`ODesc::AddBytes`, `util::escape_utf8`). A value is `None` if unset, otherwise bool, int, float, str or bytes by the
field's type; times and intervals are seconds, a port is its number or a `(number, protocol)` pair, a set or vector is a
sequence. A `str` is host text (`zeek_agent.text`): bytes that are not UTF-8 are written in hex.
"""

from __future__ import annotations

import ipaddress
import math
import re
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import Any, Final, Literal, Protocol, TypeAlias

from zeek_agent.text import from_bytes, to_bytes

FormatName = Literal["tsv", "json", "osquery"]
Render: TypeAlias = Callable[[Any], str]

SCALARS: Final = ("time", "string", "count", "int", "interval", "double", "bool", "addr", "port", "subnet", "enum")
DATE_FORMAT: Final = "%Y-%m-%d-%H-%M-%S"

_CONTAINER = re.compile(r"(set|vector)\[(\w+)\]")
_SHOWN_CHARACTERS = 100
"""Characters of an invalid value in an error."""


@dataclass(frozen=True, slots=True)
class Field:
    """A log's field: its name and Zeek type (`string`, `set[addr]`). Raises ValueError for an unknown type."""

    name: str
    type: str

    def __post_init__(self) -> None:
        if self.scalar not in SCALARS:
            raise ValueError(f"field {self.name}: unknown type {self.type!r}")

    @property
    def container(self) -> bool:
        return _CONTAINER.fullmatch(self.type) is not None

    @property
    def scalar(self) -> str:
        """The type itself, or that of a container's elements."""
        match = _CONTAINER.fullmatch(self.type)
        return match[2] if match else self.type


class Format(Protocol):
    """The format of a log. `line` raises ValueError, naming the field, for a value that does not fit its type."""

    def header(self, opened: float) -> bytes: ...

    def line(self, values: Sequence[Any]) -> bytes: ...

    def footer(self, closed: float) -> bytes: ...


@dataclass(frozen=True, slots=True)
class ResultNames:
    """The names of a log's results in osquery's format."""

    name: str
    columns: tuple[str, ...]
    decorations: tuple[str, ...]
    has_change: bool
    is_snapshot: bool


def make_format(kind: FormatName, path: str, fields: Sequence[Field], results: ResultNames | None = None) -> Format:
    """The format of the log `path`; with osquery's, a log that has no results of queries is JSON."""
    if kind == "osquery" and results is not None:
        return OsqueryFormat(fields, results)
    return TsvFormat(path, fields) if kind == "tsv" else JsonFormat(fields)


def local_time(moment: float) -> str:
    """Local time in Zeek's format for `#open`, `#close` and names of rotated files."""
    return time.strftime(DATE_FORMAT, time.localtime(moment))


class TsvFormat:
    """Zeek's own format."""

    def __init__(self, path: str, fields: Sequence[Field]) -> None:
        self.path = path
        self.fields = tuple(fields)
        self._renders = tuple((field.name, _tsv_render(field)) for field in self.fields)

    def header(self, opened: float) -> bytes:
        lines = (
            "#separator \\x09",
            "#set_separator\t,",
            "#empty_field\t(empty)",
            "#unset_field\t-",
            f"#path\t{self.path}",
            f"#open\t{local_time(opened)}",
            "\t".join(("#fields", *(field.name for field in self.fields))),
            "\t".join(("#types", *(field.type for field in self.fields))),
        )
        return "".join(f"{line}\n" for line in lines).encode()

    def line(self, values: Sequence[Any]) -> bytes:
        line = "\t".join(_rendered(self._renders, values, "-"))
        if line.startswith("#"):
            line = f"\\x23{line[1:]}"
        return f"{line}\n".encode()

    def footer(self, closed: float) -> bytes:
        return f"#close\t{local_time(closed)}\n".encode()


class JsonFormat:
    """One object per line without unset fields; strings by Zeek's default policy (`STRING_ESCAPE_POLICY_HEX`)."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self._renders = tuple((field.name, _json_render(field)) for field in fields)
        self._keys = tuple(f"{encode_basestring(field.name)}:" for field in fields)

    def header(self, opened: float) -> bytes:
        return b""

    def line(self, values: Sequence[Any]) -> bytes:
        members = zip(self._keys, _rendered(self._renders, values, ""), strict=True)
        return f"{{{','.join(key + value for key, value in members if value)}}}\n".encode()

    def footer(self, closed: float) -> bytes:
        return b""


class OsqueryFormat:
    """osquery's results, one event per line (docs/wiki/deployment/logging.md of osquery). All values are strings.

    The last of a line's values is the counter of the result.
    """

    def __init__(self, fields: Sequence[Field], results: ResultNames) -> None:
        leading = 4 if results.has_change else 3
        self._results = results
        self._renders = tuple((field.name, _result_render(field)) for field in fields[leading:])
        self._keys = tuple(f"{encode_basestring(name)}:" for name in (*results.columns, *results.decorations))
        self._leading = leading
        self._name = encode_basestring(results.name)

    def header(self, opened: float) -> bytes:
        return b""

    def line(self, values: Sequence[Any]) -> bytes:
        now, agent_id, host, *rest = values[: self._leading]
        *cells, counter = values[self._leading :]
        texts = _rendered(self._renders, cells, '""')
        members = [key + text for key, text in zip(self._keys, texts, strict=True)]
        columns = members[: len(self._results.columns)]
        decorations = [f'"zeek_agent_id":{_json_text(agent_id)}', *members[len(columns) :]]
        seconds = int(_number(now, "time"))
        calendar = time.strftime("%a %b %e %H:%M:%S %Y UTC", time.gmtime(seconds))
        return (
            f'{{"name":{self._name},"hostIdentifier":{_json_text(host)},"calendarTime":"{calendar}",'
            f'"unixTime":{seconds},"epoch":0,"counter":{counter},"numerics":false,'
            f'"decorations":{{{",".join(decorations)}}},"columns":{{{",".join(columns)}}},'
            f'"action":"{self._action(rest)}"}}\n'
        ).encode()

    def _action(self, change: Sequence[Any]) -> str:
        if self._results.is_snapshot:
            return "snapshot"
        return "removed" if change == ["gone"] else "added"

    def footer(self, closed: float) -> bytes:
        return b""


def _result_render(field: Field) -> Render:
    """The value as a JSON string."""
    if field.type in ("string", "enum"):
        return _json_text
    render = _json_render(field)
    if field.type == "bool":
        return lambda value: '"1"' if render(value) == "true" else '"0"'
    if field.container:
        return lambda value: encode_basestring(render(value))
    return lambda value: f'"{render(value).strip(chr(34))}"'


def _rendered(renders: Sequence[tuple[str, Render]], values: Sequence[Any], unset: str) -> list[str]:
    if len(values) != len(renders):
        raise ValueError(f"{len(values)} values for {len(renders)} fields")
    texts = []
    for (name, render), value in zip(renders, values, strict=True):
        try:
            texts.append(unset if value is None else render(value))
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"field {name}: {error}") from error
    return texts


def _tsv_render(field: Field) -> Render:
    if not field.container:
        return _TSV[field.scalar]
    element = _tsv_member if field.scalar in ("string", "enum") else _TSV[field.scalar]

    def container(values: Any) -> str:
        return ",".join("-" if value is None else element(value) for value in _sequence(values)) or "(empty)"

    return container


def _json_render(field: Field) -> Render:
    element = _JSON[field.scalar]
    if not field.container:
        return element

    def container(values: Any) -> str:
        return f"[{','.join('null' if value is None else element(value) for value in _sequence(values))}]"

    return container


def _sequence(values: Any) -> Iterable[Any]:
    if not isinstance(values, list | tuple | set | frozenset):
        raise _misfit(values, "set or vector")
    return values


def _misfit(value: Any, name: str) -> ValueError:
    shown = repr(value)
    if len(shown) > _SHOWN_CHARACTERS:
        shown = f"{shown[:_SHOWN_CHARACTERS]}…"
    return ValueError(f"not a {name}: {shown}")


def _count(value: Any) -> str:
    if type(value) is int and 0 <= value < 1 << 64:
        return str(value)
    raise _misfit(value, "count")


def _int(value: Any) -> str:
    if type(value) is int and -(1 << 63) <= value < 1 << 63:
        return str(value)
    raise _misfit(value, "int")


def _number(value: Any, name: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise _misfit(value, name)


def _seconds(value: Any) -> str:
    return f"{_number(value, 'time or interval'):.6f}"


def _double(value: Any) -> str:
    """Six decimals without trailing zeros, `.0` for integers; never an exponent."""
    number = _number(value, "double")
    if not math.isfinite(number):
        return "nan" if math.isnan(number) else str(number)
    text = f"{number or 0.0:.6f}".rstrip("0").rstrip(".")
    return f"{text}.0" if abs(number - round(number)) < 1e-9 else text


def _json_double(value: Any) -> str:
    """The shortest decimal, formatted like rapidjson's `Prettify`; `null` for numbers that JSON lacks."""
    number = _number(value, "number")
    if not math.isfinite(number):
        return "null"
    if number == 0 or 1e-4 <= abs(number) < 1e16:
        return repr(number)
    mantissa, _, exponent = f"{number!r}".partition("e")
    sign = "-" if number < 0 else ""
    whole, _, fraction = mantissa.lstrip("-").partition(".")
    fraction = fraction.rstrip("0")
    digits = whole + fraction
    point = len(whole) + int(exponent or 0)
    if 0 < point <= 21:
        return f"{sign}{digits.ljust(point, '0')}.0"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    tail = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{tail}e{point - 1}"


def _address(value: Any) -> str:
    """The canonical form; an IPv4-mapped IPv6 address is written as IPv4, as in Zeek."""
    if not isinstance(value, str):
        raise _misfit(value, "addr")
    try:
        if ":" not in value:
            return socket.inet_ntop(socket.AF_INET, socket.inet_pton(socket.AF_INET, value))
        packed = socket.inet_pton(socket.AF_INET6, value)
    except (OSError, ValueError):
        raise _misfit(value, "addr") from None
    if packed.startswith(b"\0" * 10 + b"\xff\xff"):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed)


def _subnet(value: Any) -> str:
    if not isinstance(value, str):
        raise _misfit(value, "subnet")
    try:
        return str(ipaddress.ip_network(value, strict=False))
    except ValueError:
        raise _misfit(value, "subnet") from None


def _port(value: Any) -> str:
    number = value[0] if isinstance(value, tuple) and value else value
    if type(number) is int and 0 <= number <= 65535:
        return str(number)
    raise _misfit(value, "port")


def _truth(value: Any, true: str, false: str) -> str:
    if isinstance(value, bool):
        return true if value else false
    raise _misfit(value, "bool")


_PLAIN: Final = re.compile(r"[ -\[\]-~]+")
_PLAIN_MEMBER: Final = re.compile(r"[ -+\--\[\]-~]+")
_CUT: Final = re.compile(r"([\\\t])")
_CUT_MEMBER: Final = re.compile(r"([\\\t,])")
_CUTS: Final = {"\\": "\\\\", "\t": "\\x09", ",": "\\x2c"}
_RESERVED: Final = {"": "(empty)", "-": "\\x2d", "(empty)": "\\x28empty)"}

_NOT_SHOWN: Final = "\x7f-\x9f\ue000-\uf8ff\ufff0-\uffff\ud800-\udfff"
_BAD: Final = re.compile(f"[\x00-\x08\x0a-\x1f{_NOT_SHOWN}]")
_BAD_IN_JSON: Final = re.compile(f"[\x00-\x07\x0b\x0e-\x1f{_NOT_SHOWN}]")
_HEX: Final = {byte: f"\\x{byte:02x}" for byte in range(256) if not 32 <= byte < 127}
_HEX_IN_JSON: Final = {byte: text for byte, text in _HEX.items() if byte not in b"\b\f\n\r\t"}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return from_bytes(value)
    raise _misfit(value, "string")


def _hex(text: str, table: dict[int, str]) -> str:
    return to_bytes(text).decode("latin-1").translate(table)


def _tsv_text(value: Any) -> str:
    text = _text(value)
    if text in _RESERVED:
        return _RESERVED[text]
    return text if _PLAIN.fullmatch(text) else _tsv_escaped(text, _CUT)


def _tsv_member(value: Any) -> str:
    text = _text(value)
    if text in _RESERVED:
        return _RESERVED[text]
    return text if _PLAIN_MEMBER.fullmatch(text) else _tsv_escaped(text, _CUT_MEMBER)


def _tsv_escaped(text: str, cut: re.Pattern[str]) -> str:
    """Split at separators and backslashes; in a part with a bad character, all non-ASCII bytes are in hex."""
    if _BAD.search(text) is None:
        return cut.sub(lambda match: _CUTS[match[0]], text)
    return "".join(
        _CUTS.get(piece) or (_hex(piece, _HEX) if _BAD.search(piece) else piece) for piece in cut.split(text)
    )


def _json_text(value: Any) -> str:
    text = _text(value)
    return encode_basestring(_hex(text, _HEX_IN_JSON) if _BAD_IN_JSON.search(text) else text)


_TSV: Final[dict[str, Render]] = {
    "time": _seconds,
    "interval": _seconds,
    "string": _tsv_text,
    "enum": _tsv_text,
    "count": _count,
    "int": _int,
    "double": _double,
    "bool": lambda value: _truth(value, "T", "F"),
    "addr": _address,
    "port": _port,
    "subnet": _subnet,
}
_JSON: Final[dict[str, Render]] = _TSV | {
    "time": _json_double,
    "interval": _json_double,
    "double": _json_double,
    "string": _json_text,
    "enum": _json_text,
    "bool": lambda value: _truth(value, "true", "false"),
    "addr": lambda value: f'"{_address(value)}"',
    "subnet": lambda value: f'"{_subnet(value)}"',
}
