"""Random statements from a grammar: most of them make sense, many are heavy, and some cannot be ended politely."""

from __future__ import annotations

import random
from collections.abc import Sequence

TABLES = {
    "processes": ("pid", "name", "ppid"),
    "sockets": ("pid", "local_port", "state"),
    "users": ("name", "uid", "home"),
    "listening_ports": ("pid", "port", "address"),
    "processes_events": ("time", "pid", "cmdline"),
    "sockets_events_history": ("time", "pid", "remote_addr"),
    "zeek_agent": ("id", "hostname", "uptime"),
    "zeek_agent_queries": ("id", "sql", "runs"),
    "zeek_agent_log": ("time", "level", "message"),
    "zeek_agent_sources": ("source", "backend", "received"),
    "sqlite_master": ("name", "sql", "type"),
    "nowhere": ("a", "b", "c"),
}
FUNCTIONS = ("length({})", "upper({})", "hex({})", "abs({})", "coalesce({}, 1)", "typeof({})", "quote({})", "json({})")
HEAVY = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
    "SELECT count(*) FROM processes a, processes b, processes c, processes d",
    "SELECT group_concat(a.name || b.name || c.name) FROM users a, users b, users c, users d",
    "WITH RECURSIVE n(s) AS (SELECT 'x' UNION ALL SELECT replace(s, 'x', 'xx') FROM n) SELECT max(s) FROM n",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 2000000) SELECT i, i, i, i FROM n",
)
UNENDABLE = " + ".join(["(a LIKE b)"] * 25)


class Grammar:
    """Statements from a seed. `paths` are patterns of files that are asked for."""

    def __init__(self, seed: int, paths: Sequence[str]) -> None:
        self._chance = random.Random(seed)
        self._paths = paths

    def statement(self) -> str:
        chance = self._chance.random()
        if chance < 0.0005:
            return self._unendable()
        if chance < 0.01:
            return f"{self._chance.choice(HEAVY)} -- {self._chance.random()}"
        if chance < 0.02:
            return self._mangled(self._select(2))
        return self._select(2)

    def _unendable(self) -> str:
        """Each match is one step of SQLite, which looks at no clock meanwhile."""
        size = self._chance.randrange(1_000_000, 4_000_000)
        return (
            f"SELECT {UNENDABLE} FROM (SELECT printf('%.*c', {size}, 'a') AS a, "
            "'%' || printf('%.*c', 250, 'a') || 'b' AS b)"
        )

    def _mangled(self, sql: str) -> str:
        at = self._chance.randrange(len(sql))
        return (
            sql[:at]
            + self._chance.choice(["\0", "'", '"', ")", "(" * 300, ";", "\ud7ff", "/*", "x" * 5_000])
            + sql[at:]
        )

    def _select(self, depth: int) -> str:
        source, columns = self._source(depth)
        selected = ", ".join(self._expression(columns, depth) for _ in range(self._chance.randint(1, 4)))
        where = f" WHERE {self._condition(columns, depth)}" if self._chance.random() < 0.6 else ""
        order = f" ORDER BY {self._chance.randint(1, 2)}" if self._chance.random() < 0.2 else ""
        return f"SELECT {selected} FROM {source}{where}{order} LIMIT {self._chance.choice([0, 1, 10, 1000])}"

    def _source(self, depth: int) -> tuple[str, Sequence[str]]:
        kind = self._chance.random()
        if kind < 0.25:
            path = self._chance.choice(self._paths)
            return self._chance.choice(
                [
                    (f"files_list('{path}')", ("path", "type", "size")),
                    (f"files_lines('{path}')", ("path", "number", "content")),
                    (f"files_columns('{path}', '$1:text,$2:int')", ("path", "number", "columns")),
                    (f"file_hashes('{path}')", ("path", "sha256", "size")),
                ]
            )
        if kind < 0.35 and depth:
            return f"({self._select(depth - 1)})", ("1", "NULL", "random()")
        if kind < 0.45:
            limit = self._chance.choice([1, 100, 20_000])
            recursion = (
                f"(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {limit}) SELECT i FROM n)"
            )
            return recursion, ("i", "i", "i")
        name = self._chance.choice(list(TABLES))
        if kind < 0.6:
            other = self._chance.choice(list(TABLES))
            column = TABLES[name][0]
            return f"{name} AS l JOIN {other} AS r ON l.{column} = r.{TABLES[other][0]}", [f"l.{column}", "1", "'x'"]
        return name, TABLES[name]

    def _expression(self, columns: Sequence[str], depth: int) -> str:
        kind = self._chance.random()
        column = self._chance.choice(list(columns))
        if kind < 0.5:
            return column
        if kind < 0.8:
            return self._chance.choice(FUNCTIONS).format(column)
        if kind < 0.85:
            return f"printf('%.*c', {self._chance.choice([1, 1000, 300000])}, 'z')"
        if kind < 0.9:
            return f"CAST({column} AS {self._chance.choice(['INTEGER', 'TEXT', 'BLOB', 'REAL'])})"
        kind_name = self._chance.choice(["count", "text", "bool", "set[text]", "port", "x"])
        return f'{column} AS "e{self._chance.randint(0, 99)}:{kind_name}"'

    def _condition(self, columns: Sequence[str], depth: int) -> str:
        column = self._chance.choice(list(columns))
        kind = self._chance.random()
        if kind < 0.3:
            return f"{column} LIKE '%{'a%' * self._chance.randint(0, 40)}'"
        if kind < 0.5:
            return f"{column} GLOB '*[a-z]*{'?*' * self._chance.randint(0, 20)}'"
        if kind < 0.7:
            return f"{column} REGEXP '(a|b)*{'a?' * self._chance.randint(0, 30)}$'"
        if kind < 0.85:
            return f"{column} IN ({', '.join(str(self._chance.randint(0, 5000)) for _ in range(20))})"
        if depth:
            return f"EXISTS ({self._select(depth - 1)})"
        return f"{column} > 5 OR NOT {column} IS NULL"
