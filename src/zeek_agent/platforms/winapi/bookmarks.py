"""The position up to which each log was read, kept in the state directory."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

log = logging.getLogger(__name__)

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.-]+")
_FILE_BYTES_MAX: Final = 4_096


class Position(Struct, frozen=True):
    """Everything of a log up to this record was read, at `time` (seconds since the epoch)."""

    channel: str
    record: int
    time: float


class Bookmark:
    """The file with the position of one reader of one log."""

    def __init__(self, directory: Path, name: str) -> None:
        """`name` is the reader's, and is unique in the directory."""
        self._file = directory / f"{_UNSAFE.sub('-', name)}.json"
        self._saved: Position | None = None

    def load(self, channel: str) -> Position | None:
        """The position of an earlier run; None if there is none, or it cannot be read."""
        try:
            with self._file.open("rb") as file:
                position = msgspec.json.decode(file.read(_FILE_BYTES_MAX), type=Position)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            log.warning("%s: the position in the log %s cannot be read: %s", self._file, channel, error)
            return None
        if position.channel != channel or position.record < 0:
            log.warning("%s is not a position in the log %s", self._file, channel)
            return None
        self._saved = position
        return position

    def save(self, position: Position) -> None:
        """Replace the position on the disk. Raises OSError."""
        if position == self._saved:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        new = self._file.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(position))
        new.replace(self._file)
        self._saved = position
