"""Text from the host, which is bytes: process names, paths, file lines.

Inside the agent such text is a `str` that SQLite can store and that maps back to the same bytes: each byte that is not
part of valid UTF-8 becomes one character of U+EF80…U+EFFF (the private range that MirBSD's OPTU-8 uses for this); a
genuine character of that range is represented byte by byte in the same way, so nothing is ambiguous. Ordinary text,
which is nearly all of it, is unchanged, and SQL compares it as expected.

For Zeek and terminals, `escaped` writes the same as Zeek's own logs: `\\xNN` for such bytes and for control characters,
and doubled backslashes. Where backslashes separate directories, they are not doubled: paths would be unreadable, and
not be those that version 2 sends.
"""

from __future__ import annotations

import os
import re
from functools import cache
from typing import Final

SHOWN: Final = 200
"""Characters of external text in a message."""
STATEMENT_SHOWN: Final = 1_000
"""Characters of a statement in a message, enough for its author to recognize it."""

_RAW = 0xEF00
_GENUINE = re.compile("[\uef80-\uefff]")
_SURROGATE = re.compile("[\udc80-\udcff]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_DECEPTIVE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Characters that change the direction of the text, break its line or cannot be seen (Default_Ignorable_Code_Point)."""
_CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\uef80-\uefff\ud800-\udfff]")
_CONTROL_OR_BACKSLASH = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\\\\uef80-\uefff\ud800-\udfff]")
_UNSAFE = _CONTROL if os.sep == "\\" else _CONTROL_OR_BACKSLASH


def from_bytes(raw: bytes) -> str:
    """Host bytes as text that SQLite can store; `to_bytes` is the inverse."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode(errors="surrogateescape")
    if text.isascii():
        return text
    if _GENUINE.search(text):
        text = _GENUINE.sub(lambda match: "".join(chr(_RAW + byte) for byte in match[0].encode()), text)
    return _SURROGATE.sub(lambda match: chr(_RAW + ord(match[0]) - 0xDC00), text)


def from_os(text: str) -> str:
    """The same for a `str` that Python decoded from the system (`os.listdir`, `pwd`), including surrogates."""
    return text if text.isascii() else from_bytes(os.fsencode(text))


def to_bytes(text: str) -> bytes:
    """The original bytes. Lone surrogates, which host text does not contain here, become `?`."""
    if text.isascii():
        return text.encode()
    text = _LONE_SURROGATE.sub("?", text)
    return _GENUINE.sub(lambda match: chr(0xDC00 + ord(match[0]) - _RAW), text).encode(errors="surrogateescape")


def escaped(text: str) -> str:
    """Printable form: control characters and raw bytes as `\\xNN`, backslashes doubled, other text as it is."""
    if _UNSAFE.search(text) is None:
        return text
    return _UNSAFE.sub(_escape, text)


def visible(text: str) -> str:
    """`escaped` for people: also characters that change the direction of the text, break its line or cannot be seen.

    They are written as `\\xNN`. They are valid UTF-8, but can make a name look like another one.
    """
    shown = escaped(text)
    return shown if shown.isascii() else _DECEPTIVE.sub(_escape, shown)


def is_text(text: str) -> bool:
    """Whether it is valid Unicode: arguments of commands may be any bytes, which become lone surrogates."""
    return _LONE_SURROGATE.search(text) is None


def clipped(text: str, characters: int = SHOWN) -> str:
    """The beginning of a text that may be long, with its total size: `SELECT … (3,900,000 bytes)`."""
    if len(text) <= characters:
        return text
    return f"{text[:characters]}… ({byte_length(text):,} bytes)"


def byte_length(text: str) -> int:
    """Size of the text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def _escape(match: re.Match[str]) -> str:
    return _escaped(match[0])


@cache  # of the few thousand characters that are escaped; a text may consist of millions of them
def _escaped(character: str) -> str:
    if character == "\\":
        return "\\\\"
    code = ord(character)
    if 0xEF80 <= code <= 0xEFFF:
        return f"\\x{code - _RAW:02x}"
    return "".join(f"\\x{byte:02x}" for byte in character.encode(errors="surrogatepass"))
