"""Reading Zeek's TSV logs as zeek-cut and scripts do, and a clock that stands still."""

from __future__ import annotations

import re
from typing import Any

from places import TESTS

from zeek_agent.text import from_bytes

CAPTURED = TESTS / "captures" / "zeek-logs"


class Clock:
    def __init__(self, now: float = 1_800_000_000.25) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def parse_header(content: bytes) -> dict[str, list[str]]:
    """The `#` lines of a log by their keys, as zeek-cut reads them."""
    lines = [line.decode() for line in content.split(b"\n") if line.startswith(b"#")]
    assert lines[0] == "#separator \\x09"
    return {line.split("\t")[0]: line.split("\t")[1:] for line in lines[1:]}


def unescape(text: bytes) -> bytes:
    """Zeek's escapes back to bytes: `\\\\` and `\\xNN`."""
    return re.sub(
        rb"\\(\\|x[0-9a-f]{2})",
        lambda match: b"\\" if match[1] == b"\\" else bytes.fromhex(match[1][1:].decode()),
        text,
    )


def cell(raw: bytes, type_: str) -> Any:
    """One value of a log line by its type, as a script that reads Zeek logs would take it."""
    if raw == b"-":
        return None
    if container := re.fullmatch(r"(?:set|vector)\[(\w+)\]", type_):
        return () if raw == b"(empty)" else tuple(cell(member, container[1]) for member in raw.split(b","))
    if type_ in ("string", "enum"):
        return from_bytes(b"" if raw == b"(empty)" else unescape(raw))
    if type_ in ("count", "int", "port"):
        return int(raw)
    if type_ in ("time", "interval", "double"):
        return float(raw)
    if type_ == "bool":
        return {b"T": True, b"F": False}[raw]
    return raw.decode()


def parse_log(content: bytes) -> list[tuple[Any, ...]]:
    """The records of a TSV log."""
    types = parse_header(content)["#types"]
    lines = [line for line in content.split(b"\n") if line and not line.startswith(b"#")]
    return [tuple(map(cell, line.split(b"\t"), types)) for line in lines]
