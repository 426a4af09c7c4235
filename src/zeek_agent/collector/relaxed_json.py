"""JSON as osquery's configurations and packs have it: with comments, trailing commas and continued lines.

Comments are `//` and `#` to the end of the line, and `/* */`. A backslash at the end of a line continues a string on
the next one.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from typing import Any, Final, NoReturn

import msgspec

_TOKEN: Final = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*+")|(?P<comment>//[^\n]*+|\#[^\n]*+|/\*.*?\*/)|(?P<comma>,)|(?P<other>[^\s"/#,]++)""",
    re.DOTALL | re.VERBOSE,
)
_NOT_A_LINE_END: Final = re.compile(r"[^\n]")


class JsonError(ValueError):
    """The text is not JSON in this wider sense; the message has the position if it is known."""


def parse(text: str) -> Any:
    """The value that the text describes. Raises JsonError, also for a key that occurs twice in an object."""
    plain, continued = _plain(text)
    try:
        found = json.loads(plain, strict=False, object_pairs_hook=_object, parse_constant=_no_constant)
        msgspec.json.encode(found)
        return found
    except json.JSONDecodeError as error:
        line = error.lineno + bisect_right(continued, error.pos)
        raise JsonError(f"{error.msg} (line {line}, column {error.colno})") from None
    except RecursionError:
        raise JsonError("nested too deeply") from None
    except UnicodeEncodeError:
        raise JsonError("a text has half of a surrogate pair (\\ud800 to \\udfff)") from None
    except JsonError:
        raise
    except ValueError as error:  # such as a number of more digits than Python converts
        raise JsonError(str(error)) from None


def _plain(text: str) -> tuple[str, list[int]]:
    """The text as plain JSON, and the positions in it at which a line end was removed.

    Comments and trailing commas become blanks, so that positions in error messages are those of the file.
    """
    pieces: list[str] = []
    continued: list[int] = []
    length = end = 0
    comma: int | None = None
    previous = ""

    def add(piece: str) -> None:
        nonlocal length
        pieces.append(piece)
        length += len(piece)

    for token in _TOKEN.finditer(text):
        add(text[end : token.start()])
        end = token.end()
        piece = token[0]
        if token["comment"]:
            add(_NOT_A_LINE_END.sub(" ", piece))
            continue
        if token["other"] and piece[0] in "}]" and comma is not None:
            pieces[comma] = " "
        comma = len(pieces) if token["comma"] and previous not in "[{," else None
        previous = piece[-1]
        if token["string"] and "\\\n" in piece:
            piece = _joined(piece, length, continued)
        add(piece)
    add(text[end:])
    return "".join(pieces), continued


def _joined(string: str, position: int, continued: list[int]) -> str:
    """The string, which begins at that position, as one line."""
    pieces = re.split(r"((?:[^\\]|\\[^\n])*+)\\\n", string)
    for piece in pieces[1::2]:
        position += len(piece)
        continued.append(position)
    return "".join(pieces)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise JsonError(f"the key {twice!r} occurs twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise JsonError(f"{name} is not a value of JSON")


def is_object(text: str) -> bool:
    """Whether the first thing after blanks and comments is an object."""
    first = next((token[0] for token in _TOKEN.finditer(text) if not token["comment"]), "")
    return first.startswith("{")
