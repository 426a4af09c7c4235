"""Long command lines and paths, stored once: rows refer to them, and readers see the texts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from operator import itemgetter
from typing import Any, Final

import apsw

from zeek_agent.events.layout import columns, last_sequence, quoted
from zeek_agent.events.references import MARK, SHARED_COLUMNS, references_in, shared_columns, text_id

_LENGTH_MIN: Final = 128
"""Characters; a reference to a shorter text would save less than the count of references costs."""
_LENGTH_MAX: Final = 65_536
"""Longer texts stay in their rows, so that a few cannot fill the cache."""
_COPIES_MAX: Final = 2
"""Copies of a text in rows before it is stored once: most long command lines do not come again."""
_KNOWN_TEXTS_MAX: Final = 1_000
_KNOWN_LENGTH_MAX: Final = 262_144
_SEEN_TEXTS_MAX: Final = 4_096
_REFERENCE_BYTES: Final = 16
"""About the size of a reference itself."""
_ID_DIGITS_MAX: Final = 18
"""Any number with so many digits fits SQLite's integers."""


class Texts:
    """The texts of one store, over the connection of its writer. Raises apsw.Error.

    Whoever adds rows calls `use` once they are stored, and whoever removes rows calls `release`, so that each text is
    kept as long as a row refers to it. Triggers would do the same at several times the cost of the rows themselves. The
    counts have a table of their own because SQLite writes all of a row, here the text, when it changes. A text that has
    left the cache of known ones is stored again when it comes back.
    """

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._references: dict[str, int] = {}
        """Ids by text, the least recently used first."""
        self._known: dict[int, str] = {}
        """The same by id."""
        self._uses: dict[int, int] = {}
        """How many references to each of these were handed out."""
        self._known_length = 0
        self._copies: dict[int, int] = {}
        """Rows that have a text of their own, by the text's hash; the oldest first."""
        self._used: Counter[int] = Counter()
        self._remove_unused()

    def recount(self, tables: Iterable[str]) -> None:
        """Count the references again, after changes that no trigger has seen."""
        self._connection.execute("UPDATE _text_uses SET refs = 0")
        for table in tables:
            for name in shared_columns(columns(self._connection, table)):
                self._connection.execute(
                    "UPDATE _text_uses SET refs = refs + number FROM "
                    f"(SELECT {text_id(name)} AS found, count(*) AS number FROM {quoted(table)} "
                    f"WHERE {quoted(name)} >= '{MARK}' GROUP BY found) WHERE id = found"
                )
        self._remove_unused()
        self.forget()

    def forget(self) -> None:
        """Assume that no text is stored: a transaction failed, or ids changed."""
        self._references.clear()
        self._known.clear()
        self._uses.clear()
        self._known_length = 0
        self._used.clear()

    def use(self) -> None:
        """Count the references that were handed out since the last call, as their rows are stored now."""
        if self._used:
            self._change("+", self._used)
            self._used = Counter()

    def release(self, references: Iterable[str]) -> None:
        """Discount the references of removed rows, as `references_in` gives them; unused texts are removed."""
        released: Counter[int] = Counter()
        for values in references:
            released.update(_id_of(value) for value in json.loads(values) if value is not None and value >= MARK)
        if released:
            self._change("-", released)
            for number in released:
                self._connection.execute("DELETE FROM _text_uses WHERE id = ? AND refs <= 0", (number,))
                if self._connection.changes():
                    self._connection.execute("DELETE FROM _texts WHERE id = ?", (number,))
                    self._drop(number)

    def release_through(self, table: str, seq: int) -> None:
        """Discount the references of rows up to this `seq`, which are about to be removed."""
        if (references := references_in(columns(self._connection, table))) != "NULL":
            sql = f"SELECT {references} AS found FROM {quoted(table)} WHERE seq <= ? AND found IS NOT NULL"
            self.release(str(found) for (found,) in self._connection.execute(sql, (seq,)).fetchall())

    def _change(self, sign: str, references: Mapping[int, int]) -> None:
        self._connection.executemany(
            f"UPDATE _text_uses SET refs = refs {sign} ? WHERE id = ?",
            ((times, number) for number, times in references.items()),
        )

    def _remove_unused(self) -> None:
        self._connection.execute("DELETE FROM _text_uses WHERE refs <= 0")
        self._connection.execute("DELETE FROM _texts WHERE id NOT IN (SELECT id FROM _text_uses)")

    @contextmanager
    def forgotten_on_error(self) -> Iterator[None]:
        """Forget the texts of a transaction that fails."""
        try:
            yield
        except BaseException:
            self.forget()
            raise

    def sharer(self, present: Mapping[str, str]) -> Callable[[list[Any]], list[Any]] | None:
        """A function that replaces long texts in a list of rows with these columns; None if there can be none.

        The columns are given with SQLite's types.
        """
        shared = shared_columns(present)
        indexes = [index for index, name in enumerate(present) if name in shared]
        getters = [itemgetter(index) for index in indexes]
        if not getters:
            return None

        def share(rows: list[Any]) -> list[Any]:
            # Looking at distinct texts costs a third of looking at each row's, and few of them are long.
            columns = [set(map(get, rows)) for get in getters]
            if long := _long(set().union(*columns)):
                for index, distinct in zip(indexes, columns, strict=True):
                    if present := distinct.intersection(long):
                        self._replace(rows, index, present, all_differ=len(distinct) == len(rows))
            return rows

        return share

    def _replace(self, rows: list[Any], index: int, long: Collection[str], *, all_differ: bool) -> None:
        """Replace those of the long texts in a column that come often enough."""
        found: list[int] = []
        times = dict.fromkeys(long, 1)
        if not all_differ:
            found = [number for number, row in enumerate(rows) if row[index] in times]
            times = Counter(rows[number][index] for number in found)
        references = {}
        for text, number in times.items():
            if (reference := self._reference(text, number)) is not None:
                references[text] = reference
        if references:
            for number in found or range(len(rows)):
                if (reference := references.get(rows[number][index])) is not None:
                    rows[number] = values = list(rows[number])  # a copy: the row may have to be inserted again
                    values[index] = reference

    def _reference(self, text: str, times: int) -> str | None:
        """A reference to a text that comes `times` more; None if it stays in its rows."""
        if (number := self._references.pop(text, None)) is not None:
            self._references[text] = number
            self._uses[number] += times
            return self._counted(number, text, times, self._uses[number])
        is_marked = text >= MARK
        if not is_marked:
            if len(text) > _LENGTH_MAX:
                return None
            copies = self._copies.pop(hash(text), 0) + times
            if copies <= _COPIES_MAX:
                self._copies[hash(text)] = copies
                if len(self._copies) > _SEEN_TEXTS_MAX:
                    del self._copies[next(iter(self._copies))]
                return None
        self._connection.execute("INSERT INTO _texts (text) VALUES (?)", (text,))
        number = self._connection.last_insert_rowid()
        self._connection.execute("INSERT INTO _text_uses (id, refs) VALUES (?, 0)", (number,))
        if len(text) <= _LENGTH_MAX:
            self._remember(text, number, times)
        return self._counted(number, text, times, times)

    def _counted(self, number: int, text: str, times: int, uses: int) -> str:
        """A reference for `times` rows, with their share of the text's bytes after so many uses of it."""
        self._used[number] += times
        return f"{MARK}{number}:{max(len(text.encode()) // uses, _REFERENCE_BYTES)}"

    def _remember(self, text: str, number: int, times: int) -> None:
        self._references[text] = number
        self._known[number] = text
        self._uses[number] = times
        self._known_length += len(text)
        while self._known_length > _KNOWN_LENGTH_MAX or len(self._known) > _KNOWN_TEXTS_MAX:
            self._drop(next(iter(self._references.values())))

    def _drop(self, number: int) -> None:
        """Remove a text from the cache, if it is there."""
        if (text := self._known.pop(number, None)) is not None:
            del self._references[text], self._uses[number]
            self._known_length -= len(text)

    def adopt(self) -> int:
        """Take over the texts of the attached store `other`, within a transaction; `recount` removes unused ones.

        Returns what their ids were raised by.
        """
        offset = last_sequence(self._connection, "_texts")
        execute = self._connection.execute
        execute("INSERT INTO main._texts (id, text) SELECT id + ?, text FROM other._texts", (offset,))
        execute("INSERT INTO main._text_uses (id, refs) SELECT id + ?, 0 FROM other._texts", (offset,))
        return offset


def _long(values: Iterable[Any]) -> list[str]:
    """The texts that are stored once, if they come often enough, or must be because they look like references."""
    try:
        return [text for text in filter(None, values) if len(text) >= _LENGTH_MIN or text >= MARK]
    except TypeError:  # a value of another type, which may or may not fit the column
        return _long(value for value in values if isinstance(value, str))


def adopted(column: str, offset: int) -> str:
    """SQL for a column of another store whose texts were taken over with this offset."""
    if column.lower() not in SHARED_COLUMNS:
        return quoted(column)
    name = quoted(column)
    reference = f"'{MARK}' || ({text_id(column)} + {offset}) || substr({name}, instr({name}, ':'))"
    return f"CASE WHEN {name} >= '{MARK}' THEN {reference} ELSE {name} END"


def _id_of(reference: str) -> int:
    """The id of the text; 0, which no text has, if the file is damaged and this is not a reference."""
    digits = reference[1 : _ID_DIGITS_MAX + 2].partition(":")[0]
    return int(digits) if digits.isdecimal() and len(digits) <= _ID_DIGITS_MAX else 0
