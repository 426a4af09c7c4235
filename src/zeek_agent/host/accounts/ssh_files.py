"""Lines of OpenSSH's files: authorized keys (sshd(8)) and client configuration (ssh_config(5))."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

KEY_TYPES: Final = frozenset(
    f"{name}{certificate}".encode()
    for name, domain in (
        *((name, "") for name in ("ssh-rsa", "ssh-ed25519", "ssh-dss")),
        *((f"ecdsa-sha2-nistp{bits}", "") for bits in (256, 384, 521)),
        *((f"sk-{name}", "@openssh.com") for name in ("ssh-ed25519", "ecdsa-sha2-nistp256")),
    )
    for certificate in (domain, "-cert-v01@openssh.com")
)
_BLANKS: Final = b" \t"
_OPTION_MARKS: Final = re.compile(rb'\\"|[" \t]')
"""What matters in sshd's option list: blanks end it unless they are in quotes, and a backslash may precede a quote."""
_KEYWORD: Final = re.compile(rb"([A-Za-z]+)([ \t]*=[ \t]*|[ \t]+|\Z)")
_BLOCKS: Final = frozenset({b"host", b"match"})


class AuthorizedKey(NamedTuple):
    """A line of authorized_keys."""

    options: bytes
    algorithm: bytes
    key: bytes
    comment: bytes


def authorized_key(line: bytes) -> AuthorizedKey | None:
    """The key in a line; None if there is none of a type that OpenSSH has."""
    line = line.strip()
    if line.startswith(b"#"):
        return None
    options, rest = b"", line
    if _first_word(line)[0] not in KEY_TYPES:
        options = line[: _end_of_options(line)]
        rest = line[len(options) :].lstrip(_BLANKS)
    algorithm, rest = _first_word(rest)
    key, comment = _first_word(rest)
    return AuthorizedKey(options, algorithm, key, comment) if algorithm in KEY_TYPES and key else None


def _end_of_options(line: bytes) -> int:
    quoted = False
    for mark in _OPTION_MARKS.finditer(line):
        if mark[0] == b'"':
            quoted = not quoted
        elif len(mark[0]) == 1 and not quoted:
            return mark.start()
    return len(line)


def _first_word(line: bytes) -> tuple[bytes, bytes]:
    """The text up to the first blank, and the text after it without the blanks between."""
    word = line.split(None, 1)
    return (word[0], word[1]) if len(word) > 1 else (line, b"")


class ClientOption(NamedTuple):
    """A line of a client configuration other than an empty one or a comment."""

    starts_block: bool
    """Whether it is a `Host` or `Match` line."""
    keyword: bytes
    separator: bytes
    arguments: bytes


def client_option(line: bytes) -> ClientOption | None:
    """The option in a line; None if there is none."""
    line = line.strip()
    if not line or line.startswith(b"#"):
        return None
    found = _KEYWORD.match(line)
    if found is None:
        return ClientOption(False, b"", b"", line)
    return ClientOption(found[1].lower() in _BLOCKS, found[1], found[2], line[found.end() :])
