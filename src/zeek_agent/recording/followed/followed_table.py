"""The event source of an own table: the objects that a program appends to a file of JSON lines."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from zeek_agent.own_tables.cells import Cells, Notes
from zeek_agent.own_tables.declarations import TIME, FollowedTable, OwnColumn, OwnTable
from zeek_agent.own_tables.documents import BYTE_ORDER_MARK, DocumentError, decode_json, source_of, value_at
from zeek_agent.recording.followed.followed_file import LINE_BYTES_MAX, FollowedFile, position_from
from zeek_agent.recording.source import Sink, Source
from zeek_agent.text import from_os

if TYPE_CHECKING:
    from zeek_agent.schema import Row

log = logging.getLogger(__name__)

INTERVAL_SECONDS: Final = 1.0
"""Interval of reading new lines, which queries also trigger."""
BATCH_ROWS: Final = 2_000
"""Rows that are passed on together. The store commits them before more are read: the file itself is the queue."""
BATCH_BYTES: Final = 1 << 20
PAUSE_SHARE: Final = 3.0
"""The pause between two readings is at least so many times as long as a reading."""
DRAIN_SECONDS: Final = 1.0
"""How long a query waits for new lines to be read: a file system may hang, and a backlog may be long."""
STOP_SECONDS: Final = 2.0
_TOO_LONG: Final = f"lines of more than {LINE_BYTES_MAX} bytes"
_NOT_JSON: Final = "lines that are not JSON objects"


class FollowedStore(Protocol):
    """The part of the event store used here."""

    def position(self, table: str) -> str | None: ...

    def flush(self, timeout_seconds: float = 10.0) -> bool: ...

    def record_gap(self, source: str, begin: float, end: float, cause: str) -> None: ...


class FollowedTableSource(Source):
    """Reads new lines once a second, in a thread of its own, and whenever a query runs."""

    backend = "followed_file"
    retry_seconds = 5.0

    def __init__(
        self,
        declared: FollowedTable,
        store: FollowedStore,
        denies: Callable[[str], bool] = lambda _: False,
        *,
        interval_seconds: float = INTERVAL_SECONDS,
        clock: Callable[[], float] = time.time,
        **options: Any,
    ) -> None:
        """`denies` says of a path whether access rules deny it. `options` are those of FollowedFile."""
        super().__init__()
        self.kind = declared.kind
        self._declared = declared
        self._store = store
        self._denies = denies
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._options = options
        self._notes = Notes(examples=False)  # who may read `zeek_agent_sources` may not read every table
        self._lost_lines: Counter[str] = Counter()
        self._cells = Cells(declared.columns, self._notes)
        names = [column.name for column in declared.columns]
        self._time_at = names.index(TIME.name) if TIME.name in names else None
        self._file: FollowedFile | None = None
        self._changed = threading.Condition()
        self._requested = 0
        self._served = 0
        self._is_late = False
        self._ends = False
        self._thread: threading.Thread | None = None
        self._read_until: float | None = None

    def probe(self) -> str | None:
        return self._denied() if self._denies(self._declared.follow) else None

    def _denied(self) -> str:
        return f"the access rules deny {self._declared.follow}"

    def start(self, sink: Sink) -> None:
        self._sink = sink
        stored = self._store.position(self._declared.name)
        position = None if stored is None else position_from(stored)
        if stored is not None and position is None:
            self._missed("the stored position cannot be read")
        if position is not None and position.path != self._declared.follow:
            position = None  # another file was declared
        self._read_until = None if position is None else position.time
        self._file = FollowedFile(
            Path(self._declared.follow),
            position,
            too_long=self._count_too_long,
            missed=self._missed,
            clock=self._clock,
            **self._options,
        )
        self._begins = position is None
        self._ends = False
        self._thread = threading.Thread(target=self._run, name=f"follow-{self.kind}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with self._changed:
            self._ends = True
            self._changed.notify_all()
        thread.join(STOP_SECONDS)
        if thread.is_alive():
            log.warning("%s: the file system of %s does not answer", self._declared.name, self._declared.follow)

    def drain(self) -> None:
        """Read new lines now, for a limited time."""
        if self._thread is None or not self._thread.is_alive():
            return
        with self._changed:
            if self._is_late and self._requested > self._served:
                return  # a request was not served in time, and still is not
            self._requested += 1
            wanted = self._requested
            self._changed.notify_all()
            in_time = self._changed.wait_for(lambda: self._served >= wanted or self._ends, DRAIN_SECONDS)
            self._is_late = not in_time

    def _run(self) -> None:
        last, pause = False, 0.0
        try:
            while not last:
                with self._changed:
                    self._changed.wait_for(lambda: self._ends or self._requested > self._served, pause)
                    last, wanted = self._ends, self._requested
                begun = time.monotonic()
                self._read()
                pause = max(self._interval_seconds, PAUSE_SHARE * (time.monotonic() - begun))
                with self._changed:
                    self._served = wanted
                    self._changed.notify_all()
        except Exception as error:  # noqa: BLE001 - whatever it is, the source has ended and must be replaced
            self.failed(f"{type(error).__name__}: {error}")
        finally:
            if self._file is not None:
                self._file.close()

    def _read(self) -> None:
        """Record new lines, unless the file cannot be read at present."""
        file = self._file
        assert file is not None
        try:
            if self._denies(from_os(os.path.realpath(self._declared.follow))):
                raise PermissionError(errno.EPERM, self._denied())
            if self._begins:
                file.begin(at_end=not self._declared.from_beginning)
                self._begins = False
                self._sink(self._declared.name, [], file.position.stored())
            self._record(file)
        except FileNotFoundError:
            self._begin_later()
        except OSError as error:
            self.counters.last_error = f"{self._declared.follow}: {error.strerror or error}"
            file.close()
        else:
            self._explain()
        self._read_until = self._clock()

    def _begin_later(self) -> None:
        """The directory does not exist yet: all lines of a file that will be created there are new."""
        if self._begins and self._file is not None:
            self._begins = False
            self._sink(self._declared.name, [], self._file.position.stored())

    def _record(self, file: FollowedFile) -> None:
        before = file.position
        batch: list[Row] = []
        bytes_read = 0
        try:
            for line in file.lines():
                bytes_read += len(line)
                if (row := self._row(line)) is not None:
                    batch.append(row)
                if len(batch) >= BATCH_ROWS or bytes_read >= BATCH_BYTES:
                    self._pass_on(batch, file)
                    batch, bytes_read = [], 0
                    if not self._wait_for_store():
                        file.close()
                        return
        finally:  # also if the rest cannot be read: the position is after these rows
            after = file.position
            if batch or (after.inode, after.offset) != (before.inode, before.offset):
                self._pass_on(batch, file)

    def _pass_on(self, rows: Sequence[Row], file: FollowedFile) -> None:
        self.counters.received += len(rows)
        self._sink(self._declared.name, rows, file.position.stored())

    def _wait_for_store(self) -> bool:
        """Wait until the store has written the rows; False if the source is to stop."""
        while not self._ends:
            if self._store.flush():
                return not self._ends
        return False

    def _row(self, line: bytes) -> Row | None:
        """The row of a line; None, counted, if it is not a JSON object."""
        line = line.removeprefix(BYTE_ORDER_MARK)
        if not line.strip():
            return None
        try:
            found = decode_json(line)
        except DocumentError:
            found = None
        if not isinstance(found, dict):
            self._lose(_NOT_JSON)
            return None

        def value_of(_: int, column: OwnColumn) -> Any:
            return value_at(found, source_of(column))

        row = list(self._cells.row(value_of))
        if self._time_at is None:
            return [self._clock(), *row]
        if row[self._time_at] is None:
            row[self._time_at] = self._clock()
        return row

    def _count_too_long(self) -> None:
        self._lose(_TOO_LONG)

    def _lose(self, cause: str) -> None:
        self.counters.lost["decode"] += 1
        self._lost_lines[cause] += 1

    def _explain(self) -> None:
        """Say in `zeek_agent_sources` what was lost, by cause."""
        lost = [f"{cause}: {count}" for cause, count in self._lost_lines.items()]
        self.counters.last_error = "; ".join([*lost, *self._notes.texts()]) or None

    def _missed(self, reason: str) -> None:
        """Record that lines may be missing since the last reading."""
        now = self._clock()
        self._store.record_gap(self.kind, now if self._read_until is None else self._read_until, now, reason)
        log.warning("%s: lines of %s may be missing: %s", self._declared.name, self._declared.follow, reason)


def followed_sources(
    declared: Sequence[OwnTable], store: FollowedStore, denies: Callable[[str], bool]
) -> Mapping[str, Sequence[Source]]:
    """The sources of those tables that follow a file, by their kinds."""
    followed = [one for one in declared if isinstance(one, FollowedTable)]
    return {one.kind: [FollowedTableSource(one, store, denies)] for one in followed}
