"""Private keys in text files: recognised by their headers, masked line by line.

A block runs from its header to its end mark, or to the first line that cannot be part of a key: a header in a comment
must not hide the lines after it. Every other line of the file is returned as it is.
"""

from __future__ import annotations

import re
from typing import Final

from zeek_agent.access import REDACTED

HEADER_WITHIN: Final = 4_096
"""Bytes at the beginning of a file in which a header makes the whole file a key file."""

_MASK: Final = REDACTED.encode()
_HEADER: Final = re.compile(
    rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"  # RFC 7468, OpenSSH, RFC 9580
    rb"|---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----"
    rb"|-----BEGIN OpenVPN Static key V\d-----"
    rb"|PuTTY-User-Key-File-\d:"
    rb"|AGE-SECRET-KEY-(?:PQ-)?1[0-9A-Z]"
)
_END: Final = re.compile(
    rb"-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|---- END SSH2 ENCRYPTED PRIVATE KEY ----"
    rb"|-----END OpenVPN Static key V\d-----|Private-MAC:"
)
_WITHOUT_END: Final = re.compile(rb"AGE-SECRET-KEY-")
_QUOTING: Final = rb"[\s#;>|\"'*/,+-]*"
_BODY: Final = re.compile(
    _QUOTING + rb"(?:[A-Za-z0-9+/=_-]*(?:\\n)?"
    rb"|(?:Proc-Type|DEK-Info|Comment|Version|Charset|Hash|Encryption|Public-Lines|Private-Lines|Key-Derivation"
    rb"|Argon2-[A-Za-z]+|Subject|X-[A-Za-z-]+): .*)" + _QUOTING
)


def has_header(text: bytes) -> bool:
    """Whether a private key may begin in the text."""
    return _HEADER.search(text) is not None


class KeyMask:
    """Masks the private keys in the lines of one file, which are given in order."""

    def __init__(self) -> None:
        self._inside = False

    def may_leave_alone(self, lines: bytes) -> bool:
        """Whether none of these whole lines, which come next, has anything to mask."""
        return not self._inside and not has_header(lines)

    def line(self, line: bytes) -> bytes:
        """The line, or `***` in its place."""
        headers = [match.end() for match in _HEADER.finditer(line)]
        if headers:
            self._inside = _WITHOUT_END.search(line) is None and _END.search(line, headers[-1]) is None
            return _MASK
        if not self._inside:
            return line
        if _END.search(line):
            self._inside = False
            return _MASK
        self._inside = _BODY.fullmatch(line) is not None
        return _MASK if self._inside else line
