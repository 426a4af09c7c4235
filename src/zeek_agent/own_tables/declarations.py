"""Declarations of own tables, as plain data that processes can exchange."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

from zeek_agent.privileges import Privileges
from zeek_agent.schema import SEQUENCE, Column

Source: TypeAlias = str | int | Sequence[str | int]
"""Where a column's value is: a key, the number of a field, or a path of keys and positions into nested JSON."""
Format: TypeAlias = Literal["json", "json_lines", "csv", "tsv"]
Unit: TypeAlias = Literal["s", "ms", "us", "ns"]

IGNORED: Final = r"^[ \t]*([#;]|$)"
"""Lines of files that are ignored by default: empty ones and comments, as by `files_columns`."""
OUTPUT_BYTES: Final = 4 << 20
OUTPUT_BYTES_MAX: Final = 16 << 20
TIME: Final = Column("time", "time", "when the agent read the line")


class OwnColumn(Struct, frozen=True, forbid_unknown_fields=True):
    """A column. Without a `source` its value is under its name, or in the field of its position among the columns."""

    name: str
    type: str
    summary: str
    source: Source | None = None
    unit: Unit = "s"
    """Of numbers, for the types time and interval."""


class _OwnTable(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    summary: str
    columns: tuple[OwnColumn, ...]
    description: str = ""
    examples: tuple[str, ...] = ()


class CommandTable(_OwnTable, frozen=True, tag="command", forbid_unknown_fields=True, kw_only=True):
    """A snapshot table from the standard output of a command."""

    command: tuple[str, ...]
    format: Format = "json"
    rows: Sequence[str | int] = ()
    """Path to the array of rows in the JSON document."""
    timeout: float | None = None
    """Seconds; in any case not more than the statement has left."""
    output_bytes: int = OUTPUT_BYTES
    programs: tuple[str, ...] = ()
    """Other programs that the command executes."""
    unix_sockets: tuple[str, ...] = ()
    network: bool = False
    user_database: bool = False

    def privileges(self) -> Privileges:
        """What the command needs. Raises ValueError for what cannot be meant."""
        return Privileges(
            unix_sockets=self.unix_sockets,
            programs=tuple(dict.fromkeys((self.command[0], *self.programs))),
            network=self.network,
            user_database=self.user_database,
        )


class FileTable(_OwnTable, frozen=True, tag="files", forbid_unknown_fields=True, kw_only=True):
    """A snapshot table from the lines of files, split into fields."""

    files: str
    """A path, or a pattern of paths."""
    separator: str = ""
    """Empty: any whitespace."""
    ignore: str = IGNORED


class FollowedTable(_OwnTable, frozen=True, tag="follow", forbid_unknown_fields=True, kw_only=True):
    """An event table from the JSON objects that a program appends to a file, one per line."""

    follow: str
    from_beginning: bool = False
    """Whether to read what is in the file when it is followed for the first time."""

    @property
    def kind(self) -> str:
        """The kind of its events, in `zeek_agent_sources` and `zeek_agent_gaps`."""
        return self.name.removesuffix("_events")


OwnTable: TypeAlias = CommandTable | FileTable | FollowedTable
KINDS: Final = {"command": CommandTable, "files": FileTable, "follow": FollowedTable}
"""The kinds of tables, by the key that only they have."""
RESERVED_COLUMNS: Final = frozenset({SEQUENCE.name})

decode: Final = msgspec.msgpack.Decoder(tuple[OwnTable, ...]).decode
