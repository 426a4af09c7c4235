"""Results on a terminal or in a pipe: as a table, line by line, as JSON or as CSV.

Text from the host is written as in Zeek's logs, in all modes: control characters and bytes that are not UTF-8 as
`\\xNN`, with backslashes doubled. Characters that change the direction of the text, break its line or cannot be seen
(U+202E, U+2028, U+200B) are written like that, too. So text from the host cannot control the terminal, and nothing is
lost. Times are in ISO 8601 format in UTC, intervals in seconds. Output is in UTF-8, except to a terminal with another
encoding.

| | table, line | JSON | CSV |
|---|---|---|---|
| NULL | `-` | `null` | nothing |
| the string `-` | `\\x2d` | `"-"` | `-` |
| the empty string | nothing | `""` | `""` |
| port | `80/tcp` | `"80/tcp"` | `80/tcp` |
| set, vector, record | `{a, b}`, `[a, b]`, `{k: v}` | array, array, object | as JSON |
"""

from __future__ import annotations

import math
import shutil
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, TextIO

import msgspec

from zeek_agent.schema import ZeekType
from zeek_agent.text import from_bytes, visible

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NUMBERS: Final = frozenset({"count", "int", "interval", "real"})
_BRACKETS: Final = {"set": ("{", "}"), "vector": ("[", "]"), "record": ("{", "}")}
_COLUMN_CHARACTERS_MIN: Final = 12
"""Minimum width of a column that is truncated to fit a terminal; less is not readable."""

RED, GREEN, YELLOW, DIM, BOLD, PLAIN = "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[2m", "\x1b[1m", "\x1b[0m"


class Mode(StrEnum):
    """Output format of a result."""

    TABLE = "table"
    LINE = "line"
    JSON = "json"
    CSV = "csv"


class Printer:
    """Writes rows to a stream in a mode. `width` is the terminal's; without one, nothing is truncated."""

    def __init__(self, out: TextIO, mode: Mode = Mode.TABLE, *, width: int | None = None, color: bool = False) -> None:
        self.out = out
        self.mode = mode
        self.width = width
        self.color = color
        self._moment: float | None = None

    @classmethod
    def for_stream(cls, out: TextIO, mode: Mode, environment: Mapping[str, str]) -> Printer:
        """A printer with the terminal's width, and colour unless `NO_COLOR` is set, or `TERM` is not, or is `dumb`."""
        terminal = out.isatty()
        color = terminal and not environment.get("NO_COLOR") and environment.get("TERM", "dumb") != "dumb"
        return cls(out, mode, width=shutil.get_terminal_size().columns if terminal else None, color=color)

    def write(
        self,
        columns: Sequence[tuple[str, ZeekType]],
        rows: Sequence[Sequence[Any]],
        changes: Sequence[str | None] | None = None,
        moment: float | None = None,
    ) -> None:
        """Write a result; with `changes`, each row is marked as added or deleted.

        `moment` is the time of a repeated query's report: a line above its rows, a key of JSON changes, not in CSV.
        """
        if moment is not None and self.mode in (Mode.TABLE, Mode.LINE):
            self._put(f"-- {iso_time(int(moment))[:19]}Z", DIM)
        self._moment = moment
        write = {Mode.TABLE: self._table, Mode.LINE: self._lines, Mode.JSON: self._json, Mode.CSV: self._csv}
        write[self.mode](columns, rows, changes)
        self.out.flush()

    def _table(
        self,
        columns: Sequence[tuple[str, ZeekType]],
        rows: Sequence[Sequence[Any]],
        changes: Sequence[str | None] | None,
    ) -> None:
        if not columns:
            return
        kinds = [kind for _, kind in columns]
        body = [[display(kind, value) for kind, value in zip(kinds, row, strict=True)] for row in rows]
        head = [visible(name) for name, _ in columns]
        widths = [max(map(display_width, cells)) for cells in zip(head, *body, strict=True)]
        if self.width is not None:
            margin = 2 if changes is not None else 0
            fitted = fit(widths, self.width - margin)
            if fitted is None:
                self._lines(columns, rows, changes)
                return
            widths = fitted
        right = [kind.name in _NUMBERS for kind in kinds]
        indent = "  " if changes is not None else ""
        self._put(indent + _join(head, widths, right), BOLD)
        self._put(indent + "  ".join("-" * width for width in widths), DIM)
        for index, cells in enumerate(body):
            line = _join(cells, widths, right)
            if changes is None:
                self._put(line)
            else:
                sign, color = _SIGNS[changes[index]]
                self._put(f"{sign} {line}", color)

    def _lines(
        self,
        columns: Sequence[tuple[str, ZeekType]],
        rows: Sequence[Sequence[Any]],
        changes: Sequence[str | None] | None,
    ) -> None:
        names = [visible(name) for name, _ in columns]
        pad = max(map(display_width, names), default=0)
        for index, row in enumerate(rows):
            sign, color = _SIGNS[changes[index]] if changes is not None else ("", "")
            if index:
                self.out.write("\n")
            for name, (_, kind), value in zip(names, columns, row, strict=True):
                lead = f"{sign} " if sign else ""
                self._put(f"{lead}{' ' * (pad - display_width(name))}{name} = {display(kind, value)}".rstrip(), color)

    def _json(
        self,
        columns: Sequence[tuple[str, ZeekType]],
        rows: Sequence[Sequence[Any]],
        changes: Sequence[str | None] | None,
    ) -> None:
        """An array of objects, one per line; reports of a repeated query are lines of objects without an array."""
        names = _unique([visible(name) for name, _ in columns])
        kinds = [kind for _, kind in columns]
        lines = []
        for index, row in enumerate(rows):
            cells = {name: plain(kind, value) for name, kind, value in zip(names, kinds, row, strict=True)}
            if changes is not None:
                time = {} if self._moment is None else {"time": iso_time(self._moment)}
                cells = {**time, "change": changes[index], "row": cells}
            lines.append(msgspec.json.encode(cells).decode())
        if changes is not None:
            self.out.writelines(f"{line}\n" for line in lines)
        else:
            self.out.write("[" + ",\n ".join(lines) + "]\n")

    def _csv(
        self,
        columns: Sequence[tuple[str, ZeekType]],
        rows: Sequence[Sequence[Any]],
        changes: Sequence[str | None] | None,
    ) -> None:
        """RFC 4180, with LF; a column `change` comes first in reports of a repeated query."""
        head = [_csv_text(visible(name)) for name, _ in columns]
        self.out.write(",".join(head if changes is None else ["change", *head]) + "\n")
        for index, row in enumerate(rows):
            cells = [_csv_cell(kind, value) for (_, kind), value in zip(columns, row, strict=True)]
            self.out.write(",".join(cells if changes is None else [changes[index] or "", *cells]) + "\n")

    def _put(self, line: str, color: str = "") -> None:
        line = line.rstrip()
        self.out.write(f"{color}{line}{PLAIN}\n" if color and self.color else f"{line}\n")


_SIGNS: Final[dict[str | None, tuple[str, str]]] = {None: (" ", ""), "Add": ("+", GREEN), "Delete": ("-", RED)}


def display(kind: ZeekType, value: Any) -> str:
    """A cell for display: `-` if unset; text that would look like that is escaped, as in Zeek's logs."""
    if value is None:
        return "-"
    text = _text(kind, value)
    return "\\x2d" if text == "-" else text


def _text(kind: ZeekType, value: Any) -> str:
    if kind.name == "time":
        return iso_time(value)
    if kind.name == "interval":
        return f"{value:.6f}".rstrip("0").rstrip(".") if math.isfinite(value) else str(value)
    if kind.name == "port":
        return f"{value[0]}/{visible(value[1])}"
    if kind.name in _BRACKETS:
        opening, closing = _BRACKETS[kind.name]
        parts = _pairs(value) if kind.name == "record" else value
        return opening + ", ".join(_part(kind, part) for part in parts) + closing
    return _any(value)


def _part(kind: ZeekType, part: Any) -> str:
    if kind.name == "record":
        return f"{visible(part[0])}: {_any(part[1])}"
    return _any(part) if kind.element is None else display(kind.element, part)


def _any(value: Any) -> str:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, bytes):
        return visible(from_bytes(value))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_any, value)) + "]"
    return "-" if value is None else str(value)


def plain(kind: ZeekType, value: Any) -> Any:
    """A cell as a JSON value; numbers that JSON lacks become strings."""
    if value is None:
        return None
    match kind.name:
        case "time":
            return iso_time(value)
        case "port":
            return f"{value[0]}/{visible(value[1])}"
        case "set" | "vector":
            return [plain(kind.element, part) if kind.element else _plain(part) for part in value]
        case "record":
            return {visible(name): _plain(part) for name, part in _pairs(value)}
    return _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, (str, bytes)):
        return _any(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_plain(part) for part in value]
    return value


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    return iter(value.items() if isinstance(value, dict) else value)


def _csv_cell(kind: ZeekType, value: Any) -> str:
    if value is None:
        return ""
    if kind.name in ("set", "vector", "record"):
        return _csv_text(msgspec.json.encode(plain(kind, value)).decode())
    return _csv_text(_text(kind, value))


def _csv_text(text: str) -> str:
    if text and not any(character in text for character in ',"\r\n'):
        return text
    return '"' + text.replace('"', '""') + '"'


def iso_time(seconds: float) -> str:
    """`2026-01-01T12:00:00.250000Z`; a number outside the range of dates stays a number."""
    try:
        moment = (_EPOCH + timedelta(seconds=seconds)).replace(tzinfo=None)
        return f"{moment.isoformat(timespec='microseconds')}Z"
    except (OverflowError, ValueError):
        return str(seconds)


def age(seconds: float) -> str:
    """A duration for people: `5 s`, `3 min`, `2 h 5 min`, `3 days`. A clock that was set back gives `0 s`."""
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 2 * 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} days"


def display_width(text: str) -> int:
    """Width of a text in terminal cells: wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def fit(widths: Sequence[int], room: int) -> list[int] | None:
    """Column widths reduced, the widest first, so that the table fits; None if it cannot."""
    fitted = list(widths)
    excess = sum(fitted) + 2 * (len(fitted) - 1) - room
    while excess > 0:
        widest = max(fitted)
        second = max((width for width in fitted if width < widest), default=0)
        same = [index for index, width in enumerate(fitted) if width == widest]
        target = max(second, _COLUMN_CHARACTERS_MIN, widest - -(-excess // len(same)))
        if target >= widest:
            return None
        for index in same:
            fitted[index] = target
            excess -= widest - target
    return fitted


def _join(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    return "  ".join(map(_pad, cells, widths, right))


def _pad(cell: str, width: int, right: bool) -> str:
    taken = display_width(cell)
    if taken > width:
        cell, taken = cut(cell, width)
    return " " * (width - taken) + cell if right else cell + " " * (width - taken)


def cut(cell: str, width: int) -> tuple[str, int]:
    """The beginning of a text with `…`, so that it takes at most `width` terminal cells; and how many it takes."""
    kept, taken = [], 0
    for character in cell:
        more = display_width(character)
        if taken + more > width - 1:
            break
        kept.append(character)
        taken += more
    return "".join(kept) + "…", taken + 1


def _unique(names: Sequence[str]) -> list[str]:
    """Number repeated names: `pid`, `pid:2`."""
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}:{seen[name]}")
    return unique
