"""JSON documents that users write: bounded, because the values of a small text can take very much memory."""

from __future__ import annotations

from typing import Any, Final

import msgspec

VALUES_MAX: Final = 100_000
"""More than browsers and package managers write. Each takes up to 300 bytes, many times its text."""


class JsonError(Exception):
    """The text is not JSON, or has too many values."""


def decoded(content: bytes) -> Any:
    """The document in a text, which may begin with a byte order mark. Raises JsonError.

    Brackets and commas in texts count as values.
    """
    if sum(map(content.count, (b"{", b"[", b","))) > VALUES_MAX:
        raise JsonError(f"more than {VALUES_MAX:,} values")
    try:
        return msgspec.json.decode(content.removeprefix(b"\xef\xbb\xbf"))
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise JsonError("not JSON") from error
