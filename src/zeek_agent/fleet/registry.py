"""The registry of a fleet: enrolment tokens, agents and their keys, in one SQLite file (mode 0600).

The service and the commands use it at the same time; each decision is one transaction.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import apsw
import msgspec

from zeek_agent import platforms
from zeek_agent.bus.subjects import ROAMING
from zeek_agent.errors import ZeekAgentError

VERSION: Final = 2
"""Of the tables."""
AGENTS_MAX: Final = 1_000_000
"""More agents are not enrolled; bounds the file."""
NONCES_SECONDS: Final = 900.0
"""How long a request is remembered, more than twice the largest difference of clocks."""
_BUSY_MILLISECONDS: Final = 10_000
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS tokens(
  key TEXT PRIMARY KEY, uses INTEGER NOT NULL, used INTEGER NOT NULL DEFAULT 0, groups TEXT NOT NULL,
  created REAL NOT NULL, expires REAL NOT NULL, site TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS agents(
  key TEXT PRIMARY KEY, id TEXT NOT NULL, hostname TEXT NOT NULL, groups TEXT NOT NULL, token TEXT NOT NULL,
  enrolled REAL NOT NULL, issued REAL NOT NULL, expires REAL NOT NULL, revoked REAL,
  site TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS agents_id ON agents(id) WHERE revoked IS NULL;
CREATE TABLE IF NOT EXISTS certificates(
  serial TEXT PRIMARY KEY, key TEXT NOT NULL, expires REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS certificates_expires ON certificates(expires);
CREATE TABLE IF NOT EXISTS requests(nonce TEXT PRIMARY KEY, time REAL NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS requests_time ON requests(time);
"""
_FROM_1: Final = f"""
ALTER TABLE tokens ADD COLUMN site TEXT NOT NULL DEFAULT '{ROAMING}';
ALTER TABLE agents ADD COLUMN site TEXT NOT NULL DEFAULT '{ROAMING}';
"""


class TokenRow(NamedTuple):
    """An enrolment token; `key` is its public key."""

    key: str
    uses: int
    used: int
    groups: tuple[str, ...]
    created: float
    expires: float
    site: str


class AgentRow(NamedTuple):
    """An agent; times in seconds since the epoch, `revoked` None unless its key was revoked."""

    key: str
    id: str
    hostname: str
    groups: tuple[str, ...]
    token: str
    enrolled: float
    issued: float
    expires: float
    revoked: float | None
    site: str


class Registry:
    """An open registry."""

    def __init__(self, file: Path) -> None:
        """Open the file, or create it. Raises ZeekAgentError if that is not possible."""
        self._file = file
        try:
            no_link = getattr(os, "O_NOFOLLOW", 0)
            os.close(platforms.HERE.open_private(file, os.O_RDWR | os.O_CREAT | no_link))
            self._database = apsw.Connection(str(file))
            self._database.set_busy_timeout(_BUSY_MILLISECONDS)
            self._database.execute("PRAGMA synchronous = FULL")
            with self.transaction():
                self._prepare_tables()
        except (apsw.Error, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ZeekAgentError(f"cannot open the registry {file}: {reason}") from None

    def _prepare_tables(self) -> None:
        version = self._database.pragma("user_version")
        if version > VERSION:
            raise ZeekAgentError(f"the registry {self._file} is of a newer zeek-agent: upgrade this one")
        if version == 1:
            self._database.execute(_FROM_1)
        self._database.execute(f"{_SCHEMA}PRAGMA user_version = {VERSION}")

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything or nothing; no other process decides meanwhile. Raises ZeekAgentError if SQLite fails."""
        try:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._database.in_transaction:  # SQLite has rolled back by itself when the disk is full
                    self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")
        except apsw.Error as error:
            raise ZeekAgentError(f"the registry {self._file} cannot be used: {error}") from None

    # Tokens

    def add_token(self, row: TokenRow) -> None:
        self._database.execute(
            "INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?)", (*row[:3], _list(row.groups), *row[4:])
        )

    def token(self, key: str) -> TokenRow | None:
        found = self._database.execute("SELECT * FROM tokens WHERE key = ?", (key,)).fetchone()
        return None if found is None else _token(found)

    def tokens(self) -> list[TokenRow]:
        """All tokens, the newest first."""
        return [_token(row) for row in self._database.execute("SELECT * FROM tokens ORDER BY created DESC, key")]

    def void_token(self, key: str, now: float) -> None:
        self._database.execute("UPDATE tokens SET expires = min(expires, ?) WHERE key = ?", (now, key))

    def use_token(self, key: str) -> None:
        self._database.execute("UPDATE tokens SET used = used + 1 WHERE key = ?", (key,))

    # Agents

    def agents(self) -> list[AgentRow]:
        """All agents, by id; those whose key was revoked first."""
        return [_agent(row) for row in self._database.execute("SELECT * FROM agents ORDER BY id, revoked IS NULL")]

    def agent(self, agent_id: str) -> AgentRow | None:
        """The agent with that id whose key was not revoked."""
        return self._one("id = ? AND revoked IS NULL", agent_id)

    def holder(self, key: str) -> AgentRow | None:
        """The agent with that key."""
        return self._one("key = ?", key)

    def put_agent(self, row: AgentRow) -> None:
        """Add the agent with that key, or replace it."""
        self._database.execute(
            "INSERT OR REPLACE INTO agents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*row[:3], _list(row.groups), *row[4:]),
        )

    def agent_count(self) -> int:
        rows: list[tuple[Any, ...]] = self._database.execute("SELECT count(*) FROM agents").fetchall()
        return int(rows[0][0])

    def revoke(self, key: str, now: float) -> None:
        self._database.execute("UPDATE agents SET revoked = ? WHERE key = ?", (now, key))

    # Certificates

    def add_certificate(self, serial: int, key: str, expires: float, now: float) -> None:
        """Remember the certificate of an agent's key, and forget those that have expired."""
        self._database.execute("DELETE FROM certificates WHERE expires < ?", (now,))
        self._database.execute("INSERT OR REPLACE INTO certificates VALUES (?, ?, ?)", (f"{serial:x}", key, expires))

    def revoked_certificates(self, now: float) -> dict[int, float]:
        """Serial numbers of valid certificates of revoked keys, and when these were revoked."""
        found = self._database.execute(
            "SELECT serial, revoked FROM certificates JOIN agents USING (key) "
            "WHERE revoked IS NOT NULL AND certificates.expires >= ?",
            (now,),
        )
        return {int(serial, 16): revoked for serial, revoked in found}

    # Requests

    def is_replayed(self, nonce: str, now: float) -> bool:
        """Whether the request was seen before; it is remembered."""
        self._database.execute("DELETE FROM requests WHERE time < ?", (now - NONCES_SECONDS,))
        self._database.execute("INSERT OR IGNORE INTO requests VALUES (?, ?)", (nonce, now))
        return self._database.changes() == 0

    def _one(self, condition: str, value: str) -> AgentRow | None:
        found = self._database.execute(f"SELECT * FROM agents WHERE {condition}", (value,)).fetchone()
        return None if found is None else _agent(found)


@contextmanager
def opened(file: Path) -> Iterator[Registry]:
    with closing(Registry(file)) as registry:
        yield registry


def _agent(row: tuple[Any, ...]) -> AgentRow:
    return AgentRow(*row)._replace(groups=_tuple(row[3]))


def _token(row: tuple[Any, ...]) -> TokenRow:
    return TokenRow(*row)._replace(groups=_tuple(row[3]))


def _list(names: tuple[str, ...]) -> str:
    return msgspec.json.encode(names).decode()


def _tuple(text: object) -> tuple[str, ...]:
    return msgspec.json.decode(str(text), type=tuple[str, ...])
