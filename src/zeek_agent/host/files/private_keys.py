"""Private keys in text files: recognised by their headers, masked line by line.

A key extends from its header to its end marker, or to the first line that cannot be part of it, because a header in a
comment must not hide the lines after it. Every other line of the file is returned unchanged, as is any text before a
header or after an end marker on the same line. In a log, lines may begin with the time and a program's name, like the
header's line.

Users write these files, so all expressions are RE2's, whose time is linear in the length of the text.
"""

from __future__ import annotations

import re
from typing import Any, Final

import re2

from zeek_agent.masking.text_rules import MASK

HEADER_BYTES: Final = 4_096
"""A header within the first bytes makes the whole file a key file; text that precedes a key is rarely longer."""

_MASK: Final = MASK.encode()
_NUMBER: Final = re.compile(rb"[0-9]+")
_BEGIN: Final = (
    rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"  # RFC 7468, OpenSSH, RFC 9580
    rb"|---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----"
    rb"|-----BEGIN OpenVPN Static key V[0-9]-----"
    rb"|PuTTY-User-Key-File-[0-9]:"
)
_END: Final = (
    rb"-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|---- END SSH2 ENCRYPTED PRIVATE KEY ----"
    rb"|-----END OpenVPN Static key V[0-9]-----|Private-MAC:.*"
)
_WHOLE: Final = (
    rb"AGE-SECRET-KEY-(?:PQ-)?1[0-9A-Z]+"
    rb"|\bS[ACNOUX][A-Z2-7]{56}\b"  # seeds of NATS' nkeys
    rb"|\bzat1_[A-Za-z0-9_-]{43,}"  # `zeek-agent fleet token`
)
_QUOTING: Final = rb"[\s#;>|\"'*/,+-]*"
_BODY: Final = (
    _QUOTING + rb"(?:[A-Za-z0-9+/=_-]*(?:\\n)?"
    rb"|(?:Proc-Type|DEK-Info|Comment|Version|Charset|Hash|Encryption|Public-Lines|Private-Lines|Key-Derivation"
    rb"|Argon2-[A-Za-z]+|Subject|X-[A-Za-z-]+): .*)" + _QUOTING
)


def _compiled(pattern: bytes) -> Any:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1  # bytes as they are
    options.dot_nl = True
    return re2.compile(pattern, options)


_HEADERS: Final = _compiled(_BEGIN + b"|" + _WHOLE)
_MARKS: Final = _compiled(b"(" + _BEGIN + b")|(" + _END + b")|" + _WHOLE)
_BODY_LINE: Final = _compiled(_BODY)


def has_header(text: bytes) -> bool:
    """Whether a private key may begin in the text."""
    return _HEADERS.search(text) is not None


class KeyMask:
    """Masks the private keys in the lines of one file, which are given in order.

    Lines of a key may have a prefix only in a log: elsewhere it could be a public key's type, and hide that key.
    """

    def __init__(self, *, is_log: bool = False) -> None:
        self._inside = False
        self._is_log = is_log
        self._prefix: list[bytes] = []
        """Words before the header of the current key, which its next lines may repeat, without their numbers."""

    def may_leave_alone(self, lines: bytes) -> bool:
        """Whether none of the next whole lines has anything to mask."""
        return not self._inside and not has_header(lines)

    def line(self, line: bytes) -> bytes:
        """The line, with `***` in place of parts of a key."""
        marks = list(_MARKS.finditer(line))
        if self._inside and not marks:
            prefix = b"" if _BODY_LINE.fullmatch(line) is not None else self._prefix_of(line)
            self._inside = prefix is not None
            return line if prefix is None else prefix + _MASK
        kept: list[bytes] = []
        position = 0
        for mark in marks:
            begins, ends = mark.start(1) >= 0, mark.start(2) >= 0
            if self._inside:
                if not ends:
                    continue
                kept.append(_MASK)
                self._inside = False
            elif ends:
                continue
            else:
                kept.append(line[position : mark.start()])
                if begins:
                    self._inside = True
                    self._prefix = _without_numbers(kept[-1]) if self._is_log else []
                    continue
                kept.append(_MASK)
            position = mark.end()
        kept.append(_MASK if self._inside else line[position:])
        return b"".join(kept)

    def _prefix_of(self, line: bytes) -> bytes | None:
        """The prefix of a log's line if it is that of the header's line; None in any other line."""
        if not self._prefix:
            return None
        words = line.split(None, len(self._prefix))
        text = words[len(self._prefix)] if len(words) > len(self._prefix) else b""
        prefix = line[: len(line) - len(text)]
        return prefix if _without_numbers(prefix) == self._prefix and _BODY_LINE.fullmatch(text) is not None else None


def _without_numbers(text: bytes) -> list[bytes]:
    """The words at the beginning of a line, with each number replaced by 0."""
    return [_NUMBER.sub(b"0", word) for word in text.split()]
