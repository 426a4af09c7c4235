"""Long command lines and paths, stored once: rows refer to them, and readers see the texts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from operator import itemgetter
from typing import Any, Final

import apsw

from zeek_agent.events.layout import columns, quoted
from zeek_agent.events.references import MARK, SHARED_COLUMNS, references_in, shared_columns, text_id
from zeek_agent.schema import Row

_LENGTH_MIN: Final = 128
"""Characters; a reference to a shorter text would save less than the count of references costs."""
_CACHED_TEXTS_MAX: Final = 1_000
_CACHED_LENGTH_MAX: Final = 8_192


class Texts:
    """The texts of one store, over the connection of its writer. Raises apsw.Error.

    Who adds rows calls `use` once they are stored, and who removes rows calls `release`, so that each text is kept as
    long as a row refers to it. Triggers would do the same at several times the cost of the rows themselves. The counts
    have a table of their own because SQLite writes all of a row, here the text, when it changes.
    """

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._references: dict[str, str] = {}
        self._used: Counter[str] = Counter()
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
        """Take no text for stored any more: a transaction failed, or texts were removed."""
        self._references.clear()
        self._used.clear()

    def use(self) -> None:
        """Count the references that were handed out since the last call, as their rows are stored now."""
        if self._used:
            self._change("+", self._used)
            self._used = Counter()

    def release(self, references: Iterable[str]) -> None:
        """Discount the references of removed rows, as `references_in` gives them; unused texts are removed."""
        released: Counter[str] = Counter()
        for values in references:
            released.update(value for value in json.loads(values) if value is not None and value >= MARK)
        if released:
            self._change("-", released)
            for reference in released:
                number = _id_of(reference)
                self._connection.execute("DELETE FROM _text_uses WHERE id = ? AND refs <= 0", (number,))
                if self._connection.changes():
                    self._connection.execute("DELETE FROM _texts WHERE id = ?", (number,))
            self.forget()

    def release_through(self, table: str, seq: int) -> None:
        """Discount the references of rows up to this `seq`, which are about to be removed."""
        if (references := references_in(columns(self._connection, table))) != "NULL":
            sql = f"SELECT {references} AS found FROM {quoted(table)} WHERE seq <= ? AND found IS NOT NULL"
            self.release(str(found) for (found,) in self._connection.execute(sql, (seq,)).fetchall())

    def _change(self, sign: str, references: Mapping[str, int]) -> None:
        self._connection.executemany(
            f"UPDATE _text_uses SET refs = refs {sign} ? WHERE id = ?",
            ((number, _id_of(reference)) for reference, number in references.items()),
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
        if not indexes:
            return None

        values = itemgetter(*indexes) if len(indexes) > 1 else itemgetter(indexes[0], indexes[0])

        def share(rows: list[Any]) -> list[Any]:
            for number, row in enumerate(rows):
                for text in values(row):
                    if text is not None and (len(text) >= _LENGTH_MIN or text >= MARK):
                        rows[number] = self._shared(row, indexes)
                        break
            return rows

        return share

    def adopt(self) -> None:
        """Take over the texts of the attached store `other`, within a transaction; `recount` removes unused ones."""
        self._connection.execute(
            "INSERT OR IGNORE INTO main._text_uses (hash, refs) SELECT hash, 0 FROM other._text_uses"
        )
        self._connection.execute(
            "INSERT OR IGNORE INTO main._texts (id, text) SELECT here.id, text FROM other._texts "
            "JOIN other._text_uses AS there USING (id) JOIN main._text_uses AS here ON here.hash = there.hash"
        )

    def adopted(self, column: str) -> str:
        """SQL for a column of the attached store `other`, referring to this store's texts."""
        if column.lower() not in SHARED_COLUMNS:
            return quoted(column)
        name = quoted(column)
        found = (
            "(SELECT here.id FROM other._text_uses AS there JOIN main._text_uses AS here ON here.hash = there.hash "
            f"WHERE there.id = {text_id(column)})"
        )
        reference = f"'{MARK}' || {found} || substr({name}, instr({name}, ':'))"
        return f"CASE WHEN {name} >= '{MARK}' THEN {reference} ELSE {name} END"

    def _shared(self, row: Row, indexes: Iterable[int]) -> Row:
        values = list(row)
        for index in indexes:
            text = values[index]
            if isinstance(text, str) and (len(text) >= _LENGTH_MIN or text >= MARK):
                values[index] = reference = self._references.get(text) or self._reference(text)
                self._used[reference] += 1
        return values

    def _reference(self, text: str) -> str:
        content = text.encode()
        digest = blake2b(content, digest_size=16).digest()
        number = self._connection.execute("SELECT id FROM _text_uses WHERE hash = ?", (digest,)).get
        if number is None:
            self._connection.execute("INSERT INTO _text_uses (hash, refs) VALUES (?, 0)", (digest,))
            number = self._connection.last_insert_rowid()
            self._connection.execute("INSERT INTO _texts (id, text) VALUES (?, ?)", (number, text))
        reference = f"{MARK}{number}:{len(content)}"
        if len(text) <= _CACHED_LENGTH_MAX:
            if len(self._references) >= _CACHED_TEXTS_MAX:
                self._references.clear()
            self._references[text] = reference
        return reference


def _id_of(reference: str) -> int:
    return int(reference[1 : reference.index(":")])
